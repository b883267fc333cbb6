"""Thousands of requests at once."""
