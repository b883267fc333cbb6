"""Many calls under an account's rate limits."""
