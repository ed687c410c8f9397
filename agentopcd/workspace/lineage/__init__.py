"""What is in a student's weights: how much of each item it shows, and how one is taken out."""
