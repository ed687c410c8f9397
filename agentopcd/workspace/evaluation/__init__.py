"""Results on test tasks: the table of success rates, and the drift of replies."""
