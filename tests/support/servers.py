"""A scripted HTTP/1.1 server on a real socket: the script of a request is a coroutine that writes bytes.

It records what was asked, how many connections were made, and when a client left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

from support.virtual_time import lasts

MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
KEY = "tgp_v1_0123456789-abcdefghij"
SOON = 0.05
"""Seconds within which a server must have seen that its client left."""
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Call:
    """One request, and the way to answer it."""

    def __init__(self, connection: Connection, line: str, headers: dict[str, str], body: bytes) -> None:
        self.connection = connection
        self.method, self.target, _ = line.split(" ", 2)
        self.headers = headers
        self.body = body
        self.left = connection.left

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.writer.write(piece)
        await self.connection.writer.drain()

    async def head(
        self, *, media_type: str = "text/event-stream", framing: str = "chunked", extra: bytes = b""
    ) -> None:
        """The head of a stream; `framing` is chunked, close, or the number of a content-length."""
        frame = {"chunked": b"transfer-encoding: chunked\r\n", "close": b"connection: close\r\n"}.get(
            framing, b"content-length: " + framing.encode() + b"\r\n"
        )
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-type: " + media_type.encode() + b"\r\n" + frame + extra + b"\r\n")

    async def chunk(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.send(chunked(piece))

    def close(self) -> None:
        """Ends the connection with a FIN."""
        self.connection.writer.close()

    def reset(self) -> None:
        """Ends the connection with an RST, once what was written before is on the wire."""
        sock = self.connection.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.writer.transport.abort()

    async def hang(self) -> None:
        """Sends nothing more until the client leaves."""
        await self.left.wait()


Script = Callable[[Call], Awaitable[None]]


class Connection:
    """One accepted connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.left = asyncio.Event()
        self.left_at = 0.0
        self._buffer = bytearray()
        self._more = asyncio.Event()

    async def pump(self) -> None:
        """Reads all the time, so that leaving is seen while a script is waiting or writing."""
        with contextlib.suppress(OSError):
            while data := await self.reader.read(65_536):
                self._buffer += data
                self._more.set()
        self.left_at = asyncio.get_running_loop().time()
        self.left.set()
        self._more.set()

    async def _fill(self) -> bool:
        self._more.clear()
        if not self.left.is_set():
            await self._more.wait()
        return not self.left.is_set()

    async def next_call(self) -> Call | None:
        while b"\r\n\r\n" not in self._buffer:
            if not await self._fill():
                return None
        head, _, _ = bytes(self._buffer).partition(b"\r\n\r\n")
        del self._buffer[: len(head) + 4]
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        size = int(headers.get("content-length", "0"))
        while len(self._buffer) < size:
            if not await self._fill():
                return None
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return Call(self, line, headers, body)


class ScriptedServer:
    """Runs one script for every request; given several, the n-th for the n-th request and the last for the rest."""

    def __init__(self, *scripts: Script, ssl_context: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._ssl = ssl_context
        self.calls: list[Call] = []
        self.connections: list[Connection] = []
        self.errors: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrival = asyncio.Event()
        self.port = 0

    @property
    def origin(self) -> str:
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._ssl, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self.connections:
            connection.writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors[0]

    async def call(self, number: int = 0) -> Call:
        """Waits for the n-th request."""
        while len(self.calls) <= number:
            self._arrival.clear()
            await self._arrival.wait()
        return self.calls[number]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(len(self.connections), reader, writer)
        self.connections.append(connection)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pump = asyncio.create_task(connection.pump())
        self._tasks.add(pump)
        try:
            while (call := await connection.next_call()) is not None:
                self.calls.append(call)
                self._arrival.set()
                await self._scripts[min(len(self.calls), len(self._scripts)) - 1](call)
                if writer.is_closing():
                    break
        except (OSError, asyncio.CancelledError):
            pass
        except BaseException as error:  # noqa: BLE001 - shown at the end of the test
            self.errors.append(error)
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
            connection.left.set()
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError, ssl.SSLError):
                await writer.wait_closed()


@contextlib.contextmanager
def threaded(*scripts: Script, ssl_context: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """The server in a loop and thread of its own, for tests of clients that change loops."""
    server = ScriptedServer(*scripts, ssl_context=ssl_context)
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def main(stop: asyncio.Event) -> None:
        async with server:
            started.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(stop),))
    thread.start()
    try:
        assert started.wait(5)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()


# ------------------------------------------------------------------------------------------------------------ messages


def chunked(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def sse(payload: Any) -> bytes:
    """One event."""
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def delta(content: str | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    fields = {**({} if content is None else {"content": content}), **more}
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": index, "delta": fields, "finish_reason": finish}],
    }


def say(*texts: str, finish: str = "stop") -> bytes:
    """A whole stream: the role, each text, a finish reason, `[DONE]`."""
    last = sse({**delta(finish=finish), "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
    return sse(delta("", role="assistant")) + b"".join(sse(delta(text)) for text in texts) + last + DONE


def whole(text: str = "Hello") -> dict[str, Any]:
    """A whole completion."""
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def response(
    body: Any, *, status: int = 200, media_type: str = "application/json", extra: bytes = b"", reason: str = "X"
) -> bytes:
    """A response with a content-length."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: {media_type}\r\ncontent-length: {len(data)}\r\n".encode()
    return head + extra + b"\r\n" + data


def answers(data: bytes) -> Script:
    """A script that sends these bytes."""

    async def script(call: Call) -> None:
        await call.send(data)

    return script


def streams(*texts: str) -> Script:
    """A script that streams these texts, in one chunked response on a connection that stays open."""

    async def script(call: Call) -> None:
        await call.head()
        await call.send(chunked(say(*texts)) + LAST_CHUNK)  # in one write: the body's end comes with `[DONE]`

    return script


async def hangs(call: Call) -> None:
    """A script that never answers."""
    await call.hang()


async def starts_and_hangs(call: Call) -> None:
    """A script that sends the head and two tokens, and nothing more."""
    await call.head()
    await call.chunk(sse(delta("a", role="assistant")), sse(delta("b")))
    await call.hang()


async def ticks(call: Call) -> None:
    """A script that sends a token every few milliseconds for ever."""
    await call.head()
    while not call.left.is_set():
        await call.chunk(sse(delta("t", role="assistant")))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.left.wait(), 0.005)


async def gone(call: Call, within: float = SOON) -> float:
    """Waits until the server has seen the client leave; returns how long that took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(within):
        await call.left.wait()
    return loop.time() - started


async def left_at_once(call: Call) -> None:
    """Waits until the server has seen the client leave, for which nothing may have to wait. In virtual time only."""
    with lasts(0):
        await gone(call, 5)


@contextlib.asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """Measures how long the loop was blocked: yields a list of the gaps between turns, in seconds.

    Of this thread's processor time, which other work on the machine does not lengthen.
    """
    gaps: list[float] = []

    async def beat() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.005)
            now = time.thread_time()
            gaps.append(now - last)
            last = now

    task = asyncio.create_task(beat())
    try:
        yield gaps
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
