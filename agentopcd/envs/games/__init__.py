"""Games: TextArena's, Gymnasium's, and solvers for the grid games."""
