"""Results on test tasks."""
