"""A client of bytes on a socket, which sees the emulator's responses as they are on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any, Self

from together_async.testing import (
    EmulatorServer,
)

SOON = 1.0
"""Seconds in which nothing must come; most tests of silence use virtual time."""
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "one two three four"


def post(path: str = CHAT, *, headers: str = "", body: Any = None, **fields: Any) -> bytes:
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps({**BODY, **fields} if body is None else body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(data)}\r\n\r\n".encode() + data


def get(path: str, *, headers: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode()


class Answer:
    """One response off the wire."""

    def __init__(self, head: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        self.line = line
        self.status = int(line.split(" ")[1])
        self.headers = {name: value for name, _, value in (field.partition(": ") for field in fields)}
        self.chunks: list[bytes] = []
        self.ended = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The stream's data, JSON decoded; without `[DONE]`, which must be the last."""
        *events, done, remaining = self.body.split(b"\n\n")
        assert (done, remaining) == (b"data: [DONE]", b"")
        return [json.loads(event.removeprefix(b"data: ")) for event in events]

    @property
    def text(self) -> str:
        choices = [event["choices"][0] for event in self.events if event["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


class Client:
    """A socket, and just enough HTTP to read responses without repairing them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, server: EmulatorServer, *, sock: socket.socket | None = None, **options: Any) -> Self:
        if sock is not None:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
            return cls(*await asyncio.open_connection(sock=sock, limit=1_000))
        return cls(*await asyncio.open_connection("127.0.0.1", server.port, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def ask(self, request: bytes) -> Answer:
        """Sends a request and reads one whole response."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> Answer:
        async with asyncio.timeout(5):
            answer = Answer(await self.reader.readuntil(b"\r\n\r\n"))
            if "chunked" in answer.headers.get("transfer-encoding", ""):
                while size := int(await self.reader.readline(), 16):
                    answer.chunks.append(await self.reader.readexactly(size))
                    assert await self.reader.readexactly(2) == b"\r\n"
                assert await self.reader.readexactly(2) == b"\r\n"
            elif "content-length" in answer.headers:
                answer.chunks.append(await self.reader.readexactly(int(answer.headers["content-length"])))
            else:
                answer.chunks.append(await self.reader.read())
            answer.ended = True
            return answer

    async def read_to_end(self) -> tuple[bytes, str]:
        """All bytes until the connection ends, and how it did."""
        got = bytearray()
        async with asyncio.timeout(5):
            try:
                while data := await self.reader.read(65_536):
                    got += data
            except ConnectionResetError:
                return bytes(got), "reset"
        return bytes(got), "eof"

    async def silence(self) -> bytes:
        """The bytes that come until a pause; the connection must still be open then."""
        got = bytearray()
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(SOON):
                    data = await self.reader.read(65_536)
                assert data, f"the connection ended after {bytes(got)!r}"
                got += data
        return bytes(got)


async def ask(server: EmulatorServer, request: bytes) -> Answer:
    async with await Client.to(server) as client:
        return await client.ask(request)


async def raw(server: EmulatorServer, request: bytes) -> tuple[bytes, str]:
    async with await Client.to(server) as client:
        client.writer.write(request)
        return await client.read_to_end()


async def plain(*, stream: bool) -> tuple[bytes, list[bytes]]:
    """The body without any fault, and its events."""
    async with EmulatorServer(TEXT) as server:
        body = (await ask(server, post(stream=stream))).body
    body = body.replace(b"\n\n", b"\n\n\0")
    events = body.split(b"\0")
    return body.replace(b"\0", b""), events[:-1] if stream else events


def same(body: bytes) -> bytes:
    """A body without its time stamps."""
    at = body.find(b'"created":')
    while at >= 0:
        end = at + len(b'"created":1763880000')
        body = body[:at] + b'"created":1763880000' + body[end:]
        at = body.find(b'"created":', end)
    return body


def narrow() -> socket.socket:
    """A socket that takes little without being read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    return sock


async def outcome(server: EmulatorServer, request: bytes) -> Answer:
    async with asyncio.timeout(5):
        return await ask(server, request)
