"""The tables of the paper (arXiv:2602.12275): recipes, their runs and their reports."""
