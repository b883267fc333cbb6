"""HTTP by way of aiohttp: a request is sent, and one response is read in time.

From outside to inside: `connections` (where a client connects to, and its transport in the running event loop),
`transport` (sends a request, returns the head of its response), `response` (its bytes and deadlines). Below them:
`connector` (the pool), `sockets`, `deadlines` (cheap timers), `headers`, `proxies`, `errors`.
"""
