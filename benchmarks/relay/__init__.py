"""Streams relayed to browsers through a web backend."""
