"""The ground: errors, types, statistics, run folders, settings. Imports no torch and nothing of the other folders."""
