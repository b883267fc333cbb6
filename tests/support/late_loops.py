"""Loops that are late: blocked, stopped, or slow in every turn; and calls whose answers come in the meantime."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self

from support.servers import DONE, LAST_CHUNK, MODEL, Call, ScriptedServer, delta, response, sse, whole
from support.virtual_time import FakeTimeLoop, VirtualTimeLoop
from together_async import APITimeoutError, AsyncTogether, Retry, StreamTimeoutError, Timeouts, TogetherError

GOOD = {"token", "first token", "head", "whole", "body", "connect"}
"""Calls whose answers come while the loop is late, by what they wait for."""
SILENT = {
    "silent token": "StreamTimeoutError idle",
    "silent whole": "APITimeoutError first_token",
    "silent connect": "APITimeoutError connect",
}
"""Calls whose answers never come, and what becomes of them."""
_ON_TLS = {"connect", "silent connect"}


def _new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _new_debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 1_000  # it would report the block
    return loop


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "debug": _new_debug_loop,
    "uvloop": _new_uvloop,
}


# -------------------------------------------------------------------------------------------------- loops that are slow


class _Late(VirtualTimeLoop):
    turn_s = 0.0

    def suspend(self, seconds: float) -> None:
        """Stops the process for so long. The loop's next wait brings nothing: the signal has interrupted it."""
        selector = self._jumping
        select = selector.select
        selector.jumped_s += seconds

        def interrupted(timeout: float | None = None) -> list[Any]:
            selector.select = select  # type: ignore[method-assign]  # for one call
            return []

        selector.select = interrupted  # type: ignore[method-assign]  # for one call

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # asyncio's, without types
        self._jumping.jumped_s += self.turn_s


class LateFakeTimeLoop(_Late, FakeTimeLoop):
    """A loop with a fake clock in which every turn takes `turn_s` seconds."""


class LateVirtualTimeLoop(_Late):
    """The same with real sockets."""


class SlowVirtualTimeLoop(_Late):
    """The same with 50 ms for every turn."""

    turn_s = 0.05


# ----------------------------------------------------------------------------------------------- servers that hold back


class HeldServers:
    """Servers in a thread that send the first part of each answer, and the second after `release`.

    The one with TLS accepts no connection before, so that handshakes have to wait. The silent one never does.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._server = ScriptedServer(self._answer)
        self._tls_server = ScriptedServer(self._answer)
        self._listener, self._silent = _listener(), _listener()
        self._stop: asyncio.Event
        self._released: asyncio.Event

    @property
    def urls(self) -> tuple[str, str, str]:
        """The base URLs: plain, with TLS, silent."""
        ports = (listener.getsockname()[1] for listener in (self._listener, self._silent))
        return (self._server.base_url, *(f"https://127.0.0.1:{port}/v1" for port in ports))  # type: ignore[return-value]  # three

    async def _main(self, started: concurrent.futures.Future[None]) -> None:
        self._stop, self._released = asyncio.Event(), asyncio.Event()
        async with self._server:
            started.set_result(None)
            await self._stop.wait()
        await self._tls_server.__aexit__()

    def __enter__(self) -> Self:
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(started),))
        self._thread.start()
        started.result(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        self._loop.close()
        self._listener.close()
        self._silent.close()

    def wait_for_calls(self, *, tls_too: bool) -> None:
        """Waits until the calls of `outcomes` are under way. Blocks."""
        self._run(self._server.call(len(expected(tls_too=False)) - 1))
        for listener in (self._listener, self._silent) if tls_too else ():
            assert select.select([listener], [], [], 20)[0]
        time.sleep(0.2)  # most first parts are read in the meantime; if not, more is read later

    def release(self) -> None:
        """Sends what was held back; it is on its way afterwards."""

        async def go_on() -> None:
            self._released.set()
            self._tls_server._server = await asyncio.start_server(
                self._tls_server._connected, sock=self._listener, ssl=self._tls
            )

        self._run(go_on())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _answer(self, call: Call) -> None:
        way = call.json["messages"][0]["content"]
        begin, end = _parts(way)
        await call.send(begin)
        if way.startswith("silent"):
            await call.hang()
        await self._released.wait()
        await call.send(end)


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    return listener


def _parts(way: str) -> tuple[bytes, bytes]:
    """Returns what is sent at once, and what is held back."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    first, last = (
        b"%x\r\n%s\r\n" % (len(data), data)
        for data in (sse(delta("o", role="assistant")), sse(delta("k", finish="stop")) + DONE)
    )
    last += LAST_CHUNK
    body = response(whole("ok"))
    split = body.index(b"\r\n\r\n") + 6
    return {
        "token": (head + first, last),
        "silent token": (head + first, b""),
        "first token": (head, first + last),
        "head": (b"", head + first + last),
        "body": (body[:split], body[split:]),
    }.get(way, (b"", body))


# ------------------------------------------------------------------------------------------------------------ the calls


async def outcomes(urls: tuple[str, str, str], tls: ssl.SSLContext, limit_s: float, *, tls_too: bool) -> dict[str, str]:
    """Makes a call of each kind; returns what became of it: the text, or the error and its phase."""
    plain, on_tls, silent = urls
    async with contextlib.AsyncExitStack() as stack:

        async def client(url: str, **limits: float) -> AsyncTogether:
            options: dict[str, Any] = {"ssl": tls, "timeouts": Timeouts(**limits), "retry": Retry(attempts=1)}
            return await stack.enter_async_context(AsyncTogether("key", base_url=url, **options))

        clients = {
            "connect": await client(on_tls, connect=limit_s),
            "silent connect": await client(silent, connect=limit_s),
        }
        other = await client(plain, first_token=limit_s, idle=limit_s)
        ways = sorted(way for way in (*GOOD, *SILENT) if tls_too or way not in _ON_TLS)
        found = await asyncio.gather(*(_outcome(clients.get(way, other), way) for way in ways))
    return dict(zip(ways, found, strict=True))


async def _outcome(client: AsyncTogether, way: str) -> str:
    try:
        if way in {"token", "silent token", "first token", "head"}:
            return (await client.stream(way, model=MODEL).completion()).text
        return (await client.create(way, model=MODEL)).text
    except (APITimeoutError, StreamTimeoutError) as error:
        return f"{type(error).__name__} {error.phase}"
    except TogetherError as error:
        return repr(error)


def expected(*, tls_too: bool) -> dict[str, str]:
    """What `outcomes` finds when nothing good was given up, and nothing was waited for in vain."""
    found = {**dict.fromkeys(GOOD, "ok"), **SILENT}
    return {way: outcome for way, outcome in found.items() if tls_too or way not in _ON_TLS}
