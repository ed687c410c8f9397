"""Environments that live elsewhere: on an OpenEnv server, or in a Python of their own beside the package verifiers."""
