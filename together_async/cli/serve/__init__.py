"""`together-async serve`."""
