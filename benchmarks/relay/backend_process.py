"""A backend's process: serves one of ``apps`` until its standard input ends, and measures nothing.

As in production, but for one worker and no access log. What it costs is read from outside, from the process's own
clock, so that nothing here is disturbed by being measured.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import socket
import sys
import threading
import warnings
from typing import Any

from benchmarks.harness.this_process import loop_factory, raise_descriptor_limit, version
from benchmarks.relay import apps


def serve_asgi(app: Any, sock: socket.socket, loop: str) -> None:
    import uvicorn

    config = uvicorn.Config(app, loop=loop, http="httptools", access_log=False, log_level="critical", lifespan="on")
    uvicorn.Server(config).run(sockets=[sock])


def serve_aiohttp(app: Any, sock: socket.socket, loop: str) -> None:
    from aiohttp import web

    async def serve() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, sock).start()
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(serve())


def serve_protocols(protocol: type[asyncio.Protocol], sock: socket.socket, loop: str) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(protocol, sock=sock)
        await server.serve_forever()

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(serve())


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--app", required=True, help="a function of `apps`")
    parser.add_argument("--package", required=True)
    parser.add_argument("--loop", required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--send-bytes", type=int, help="the kernel's send buffer; by default it decides")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    raise_descriptor_limit()
    app = getattr(apps, args.app)(args.base_url)
    sock = socket.create_server(("127.0.0.1", 0), backlog=2048)
    if args.send_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, args.send_bytes)
    print(json.dumps({"port": sock.getsockname()[1], "version": version(args.package)}), flush=True)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    gc.collect()
    if isinstance(app, type):
        serve_protocols(app, sock, args.loop)
    elif type(app).__module__.startswith("aiohttp."):
        serve_aiohttp(app, sock, args.loop)
    else:
        serve_asgi(app, sock, args.loop)


if __name__ == "__main__":
    main()
