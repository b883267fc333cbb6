"""Bytes to values and back. Pure: no event loop, socket, clock or randomness; time is an argument."""
