"""Bytes to values and back. Pure: no event loop, socket, clock or chance; time is an argument."""
