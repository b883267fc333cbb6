"""`together-async chat`."""
