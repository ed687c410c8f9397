"""Foundations: errors, types, statistics, run folders and settings. Imports neither torch nor any other folder."""
