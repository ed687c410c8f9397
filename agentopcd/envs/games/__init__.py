"""Games: TextArena's, Gymnasium's, and what solves them."""
