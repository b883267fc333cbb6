"""A long life of a client: many streams at once, read and left in every way, and what is left of them each minute."""
