"""Apps that relay, servers that run them as processes of their own, and visitors that ask and vanish.

The app is `asgi` for every ASGI server, and `python relay_apps.py PORT MODE` runs the same of aiohttp.web. What becomes
of a request is chosen by its model's name (see `Upstream`); what the app knows about itself is at `/facts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import attrs

from together_async import AsyncTogether, Limits, Retry
from together_async.relay import (
    Broadcast,
    End,
    EventSourceResponse,
    Hub,
    aiohttp_response,
    buffered,
    lifespan,
    passthrough,
)
from together_async.testing import ByModel, EmulatorServer, Entry, Model, Reply, Stall

KEY = "tgp_v1_relay-tests-0123456789"
SOON = 0.1
"""Seconds within which the upstream is left when the client is."""
DEADLINE_S = 10.0
"""Seconds after which something that has not happened counts as missing."""

# ------------------------------------------------------------------------------------------------------------ the app


class Relay:
    """What the apps of all frameworks do with a request."""

    def __init__(self, base_url: str) -> None:
        retry = Retry(budget=0, max_retry_after=0)
        self.client = AsyncTogether(KEY, base_url=base_url, retry=retry)
        self.narrow = AsyncTogether(KEY, base_url=base_url, retry=retry, limits=Limits(concurrency=1))
        self.hub = Hub()
        self.ended: list[str] = []

    def of(self, door: str, query: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
        """Returns a stream and the options of its response."""
        client = self.narrow if door == "narrow" else self.client
        stream: Any = client.stream(query["prompt"], model=query["model"])
        if door == "raw":
            stream = passthrough(stream)
        elif door == "buffered":
            stream = buffered(stream)
        elif door == "broadcast":
            stream = Broadcast(stream).subscribe()
        elif door == "hub":
            stream = self.hub.open(stream, query["prompt"])
        options: dict[str, Any] = {name: float(query[name]) for name in ("heartbeat", "grace") if name in query}
        options["on_end"] = lambda end: self.record_end(query["prompt"], end)
        if "format" in query:
            options["format"] = query["format"]
        return stream, options

    def record_end(self, prompt: str, end: End) -> None:
        """Notes how a relay ended."""
        error = "" if end.error is None else type(end.error).__name__
        self.ended.append(f"{prompt} {'left' if end.left else 'read'} {error}".rstrip())

    async def aclose(self) -> None:
        """Closes what `lifespan` closes, for frameworks without one."""
        for closable in (self.hub, self.narrow, self.client):
            await closable.aclose()

    def facts(self) -> dict[str, Any]:
        """What the app knows about itself: its places in use, tasks, signal handlers, and how relays ended."""
        states = (self.client.limits, self.narrow.limits)
        tasks = (getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
        return {
            "in_flight": sum(state.in_flight for state in states),
            "queued": sum(state.queued for state in states),
            "tasks": sorted(tasks),
            "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
            "ended": self.ended,
            "pid": os.getpid(),
        }


def starlette_app(relay: Relay) -> Any:
    """The app for ASGI servers."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        stream, options = relay.of(request.path_params["door"], request.query_params)
        response: Any = EventSourceResponse(stream, **options)
        return response

    async def facts(request: Request) -> Response:
        return JSONResponse(relay.facts())

    async def stop(request: Request) -> Response:
        return JSONResponse(await relay.hub.stop(request.query_params["prompt"]))

    routes = [Route("/facts", facts), Route("/stop", stop), Route("/{door}", answer, methods=["GET", "POST"])]
    return Starlette(routes=routes, lifespan=lifespan(relay.client, relay.narrow, relay.hub))


def aiohttp_app(relay: Relay) -> Any:
    """The app for aiohttp.web."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        stream, options = relay.of(request.match_info["door"], request.query)
        return await aiohttp_response(request, stream, **options)

    async def facts(request: web.Request) -> web.Response:
        return web.json_response(relay.facts())

    async def stop(request: web.Request) -> web.Response:
        return web.json_response(await relay.hub.stop(request.query["prompt"]))

    app = web.Application()
    app.cleanup_ctx.append(lifespan(relay.client, relay.narrow, relay.hub))
    app.router.add_get("/facts", facts)
    app.router.add_get("/stop", stop)
    app.router.add_route("*", "/{door}", answer)
    return app


UPSTREAM = "RELAY_TESTS_UPSTREAM"
"""The environment variable that names the upstream."""


if UPSTREAM in os.environ and __name__ != "__main__":
    asgi = starlette_app(Relay(os.environ[UPSTREAM]))


def main(port: str, mode: str) -> None:
    """Runs aiohttp's server."""
    from aiohttp import web

    if mode == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    web.run_app(
        aiohttp_app(Relay(os.environ[UPSTREAM])),
        host="127.0.0.1",
        port=int(port),
        loop=loop,
        print=None,
        handler_cancellation=mode == "cancels",
    )


# ----------------------------------------------------------------------------------------------------------- upstream

TOKEN = "tok "
COMMENT = b"\r\n:\n\r\n"
"""A heartbeat, in a block of a chunked body."""
TOKEN_MARK = b'"content":"tok '
"""Bytes that every chunk with a token holds exactly once."""
BULK = "x" * 16_000


class Upstream:
    """The emulator in a thread of its own, with a model for each stage at which a visitor may vanish.

    `head` stalls before its head, `first` before the first token, `silence` after three tokens; `tokens` speaks 100
    tokens a second, `bulk` is 16 MB as fast as can be; all others say what is asked for.
    """

    def __init__(self) -> None:
        models = [Model("tokens", tokens_per_second=100), *map(Model, ("head", "first", "silence", "bulk", "say"))]
        faults = {"head": Stall(), "first": Stall(after_token=0), "silence": Stall(after_token=3)}
        self.emulator = EmulatorServer(_reply, models=models, faults=ByModel(faults))
        self._count = 0

    def __enter__(self) -> Self:
        self.emulator.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.emulator.__exit__(None, None, None)

    def prompt(self) -> str:
        """Returns a prompt that no other request has."""
        self._count += 1
        return f"prompt-{self._count}"

    async def entry(self, prompt: str) -> Entry:
        """Waits for the request with this prompt; returns its journal entry."""
        return await until(lambda: self.entry_of(prompt), f"the upstream's request {prompt}")

    def entry_of(self, prompt: str) -> Entry | None:
        """Returns the journal entry of the request with this prompt; None before it has come."""
        for entry in reversed(list(self.emulator.journal)):
            if entry.body["messages"][0]["content"] == prompt:
                return entry
        return None


def _reply(request: Any) -> Any:
    if request.model == "bulk":
        return Reply((BULK,) * 1_000)
    return Reply((TOKEN,) * (10 if request.model == "say" else 1_000))


async def until(look: Callable[[], Any], what: str, within: float = DEADLINE_S) -> Any:
    """Waits until `look` returns something true; returns that."""
    end = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < end, f"{what} did not come within {within} s"
        await asyncio.sleep(0.002)
    return found


async def stopped(entry: Entry) -> None:
    """Waits until no more is written to a visitor that does not read."""
    seen, same = -1, 0
    while same < 6:
        await asyncio.sleep(0.02)
        now = entry.bytes_written
        seen, same = now, same + 1 if now == seen and now else 0
    assert entry.outcome == "open", "the reader was meant to be too slow"


# ------------------------------------------------------------------------------------------------------------ visitors


class Visitor:
    """A client on a bare socket, so that it can stop reading, and vanish in any way.

    Args:
        port: Where to.
        small: Its receive buffer is small, so that it is soon full.
    """

    def __init__(self, port: int, *, small: bool = False) -> None:
        self._port = port
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if small:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.got = b""

    async def ask(
        self, path: str, *, method: str = "GET", headers: Sequence[str] = (), body: bytes = b"", **query: Any
    ) -> Self:
        """Sends a request."""
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        lines = [f"{method} {path}?{urlencode(query)} HTTP/1.1", "host: relay.test", *headers]
        if body:
            lines.append(f"content-length: {len(body)}")
        await self.send("\r\n".join((*lines, "", "")).encode() + body)
        return self

    async def send(self, data: bytes) -> None:
        """Sends bytes."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read(self) -> bytes:
        """Returns the next bytes; empty at the end."""
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 65_536), DEADLINE_S)
        self.got += data
        return data

    async def until(self, text: bytes, times: int = 1) -> bytes:
        """Reads until a text has come so many times; returns all that has come."""
        while self.got.count(text) < times:
            assert await self.read(), f"the response ended without {text!r}: {self.got[-500:]!r}"
        return self.got

    async def read_to_end(self) -> bytes:
        """Reads until the server closes or cuts the connection; returns all that has come."""
        with contextlib.suppress(ConnectionError):
            while await self.read():
                pass
        return self.got

    def leave(self, how: str = "close") -> float:
        """Vanishes, with a FIN or (`reset`) a RST; returns the time."""
        if how == "reset":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        at = time.monotonic()
        self._socket.close()
        return at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


async def get(port: int, path: str, *, method: str = "GET", headers: Sequence[str] = (), **query: Any) -> bytes:
    """Returns a whole response as it came."""
    with Visitor(port) as visitor:
        await visitor.ask(path, method=method, headers=("connection: close", *headers), **query)
        return await visitor.read_to_end()


async def facts_of(port: int) -> dict[str, Any]:
    """Returns an app's facts (see `Relay.facts`)."""
    response = await get(port, "/facts")
    facts: dict[str, Any] = json.loads(response[response.index(b"{") : response.rindex(b"}") + 1])
    return facts


def quiet(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of an app's facts that must be the same whenever nothing is relayed."""
    return {name: facts[name] for name in ("in_flight", "queued", "tasks", "handlers")}


@contextlib.asynccontextmanager
async def nothing_left(process: Process) -> AsyncIterator[None]:
    """Fails if the server then has a place in use, a task, or a signal handler that it had not before."""
    before = after = quiet(await facts_of(process.port))
    yield
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        after = quiet(await facts_of(process.port))
        if after == before:
            break
        await asyncio.sleep(0.005)
    assert after == before, f"before: {before}, after: {after}"


STAGES = ("head", "comment", "first", "silence", "tokens", "bulk")
"""When a visitor may vanish: the names of `Upstream`'s models; at `comment` it has a heartbeat and no token."""


async def leaving(port: int, upstream: Upstream, stage: str, how: str, door: str = "chat") -> float:
    """Returns how long it took, in seconds, until the upstream was left by a relay whose visitor vanished.

    The best of three tries, because a busy machine may delay each: a relay that is slow by design is slow every time.
    """
    best = DEADLINE_S
    for _ in range(3):
        best = min(best, await _leaving(port, upstream, stage, how, door))
        if best < SOON:
            break
    return best


async def _leaving(port: int, upstream: Upstream, stage: str, how: str, door: str) -> float:
    prompt = upstream.prompt()
    with Visitor(port, small=stage == "bulk") as visitor:
        if stage == "comment":
            await visitor.ask(f"/{door}", model="head", prompt=prompt, heartbeat=0.02)
            await visitor.until(COMMENT)
        else:
            await visitor.ask(f"/{door}", model=stage, prompt=prompt)
        entry = await upstream.entry(prompt)
        if stage == "first":
            await until(lambda: entry.first_byte_at, "the response's head")
        elif stage == "bulk":
            await stopped(entry)
        elif stage in ("silence", "tokens"):
            await until(lambda: entry.tokens_written >= 3, "three tokens")
        at = visitor.leave(how)
        return await entry.wait_left(DEADLINE_S / 2) - at


# ------------------------------------------------------------------------------------------------------------- servers


@attrs.frozen
class Process:
    """A server that runs."""

    popen: subprocess.Popen[bytes]
    port: int
    log: Path

    async def ready(self) -> None:
        """Waits until it answers."""
        end = time.monotonic() + 3 * DEADLINE_S
        while True:
            with contextlib.suppress(ConnectionError, ValueError):
                await facts_of(self.port)
                await facts_of(self.port)  # the first may have tasks of the server's start
                return
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            await asyncio.sleep(0.02)

    def stop(self, name: str) -> None:
        """Sends a signal: SIGTERM to it alone, as supervisors do; SIGINT to its workers too, as terminals do."""
        if name == "SIGINT":
            os.killpg(self.popen.pid, signal.SIGINT)
        else:
            self.popen.send_signal(getattr(signal, name))

    async def exited(self, within: float = DEADLINE_S) -> int:
        """Waits for its end; returns its exit status."""
        await until(lambda: self.popen.poll() is not None, f"the server's exit; {self.log.read_text()}", within)
        return self.popen.wait()


SERVERS: Mapping[str, Sequence[str]] = {
    "uvicorn-asyncio-h11": ("uvicorn", "relay_apps:asgi", "--loop=asyncio", "--http=h11", "--port={port}"),
    "uvicorn-uvloop-httptools": ("uvicorn", "relay_apps:asgi", "--loop=uvloop", "--http=httptools", "--port={port}"),
    "hypercorn": ("hypercorn", "relay_apps:asgi", "--graceful-timeout=1", "--bind=127.0.0.1:{port}"),
    "hypercorn-uvloop": (
        "hypercorn",
        "relay_apps:asgi",
        "--graceful-timeout=1",
        "--bind=127.0.0.1:{port}",
        "-k=uvloop",
    ),
    "gunicorn": (
        "gunicorn",
        "relay_apps:asgi",
        "--worker-class=uvicorn_worker.UvicornWorker",
        "--bind=127.0.0.1:{port}",
    ),
    "aiohttp": ("relay_apps", "{port}", "plain"),
    "aiohttp-cancels": ("relay_apps", "{port}", "cancels"),
    "aiohttp-uvloop": ("relay_apps", "{port}", "uvloop"),
}


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(name: str, upstream: str, directory: Path) -> Iterator[Process]:
    """Runs a server of `SERVERS`; yields its process."""
    port = free_port()
    here = Path(__file__).parent
    # With `cwd` here, `python -m` finds this module; the package is the installed one.
    command = [sys.executable, "-m", *(word.format(port=port) for word in SERVERS[name])]
    environment = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")} | {UPSTREAM: upstream}
    log = directory / f"{name}-{port}.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=here, env=environment, stdout=output, stderr=output, start_new_session=True
        ) as popen,
    ):
        try:
            yield Process(popen, port, log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)  # its workers too


@contextlib.asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[int]:
    """Runs an ASGI app under uvicorn in this loop; yields its port. No task is left when it ends."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", **{"lifespan": "on", **options}))
    config = server.config
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        # What `server.shutdown` does, without its sleeps of a tenth of a second.
        server.servers[0].close()
        state = server.server_state
        for connection in tuple(state.connections):
            connection.shutdown()
        await until(lambda: not (state.connections or state.tasks), "the end of all connections")
        await server.lifespan.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
