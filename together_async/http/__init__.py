"""One HTTP response of aiohttp: sent, read, in time."""
