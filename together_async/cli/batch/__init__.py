"""`together-async batch`."""
