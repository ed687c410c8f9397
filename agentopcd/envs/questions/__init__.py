"""Questions with one reply: rows from files, generated sums and puzzles, and the grading of replies."""
