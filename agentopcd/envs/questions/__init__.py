"""Questions with one reply: rows from files, made-up sums and puzzles, and how replies are graded."""
