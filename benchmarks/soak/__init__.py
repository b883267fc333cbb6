"""A long run of streams with every outcome checked."""
