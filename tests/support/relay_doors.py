"""The relay's doors, each driven as its server does it, and what a client gets from them.

The ASGI response is driven by a plain harness, `aiohttp_response` by aiohttp's server on a real socket, `sse` by a
loop. The upstream is the emulator, or an iterator of chunks where an error must be exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import attrs
from aiohttp import web
from openai._streaming import SSEDecoder

from support.any_chunks import chunk
from together_async import APIStatusError, ChatCompletionChunk
from together_async.relay import (
    HEADERS,
    Broadcast,
    EventSourceResponse,
    ServerSentEvent,
    aiohttp_response,
    buffered,
    passthrough,
    sse,
)
from together_async.wire.sse import EventStreamParser

KEY = "tgp_v1_relay-key-0f1e2d3c4b5a"
PROMPT = "zanzibar-penguins whisper about turbines"
URL = "https://inference.internal.example:8443/v1"
ACCOUNT = "org-5f2a1b"
SECRETS = f"{KEY} {PROMPT} {URL} {ACCOUNT}"
"""All that no browser may get."""
TOKENS = ("One", " two", " thrée", "\nfour")
TEXT = "".join(TOKENS)
SOON = 5.0
"""Seconds after which something that has not happened counts as missing."""
COMMENT = b":\n"
"""A heartbeat: one line, without an empty line (see `relay.events.HEARTBEAT`)."""


@attrs.frozen
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def events(self) -> list[ServerSentEvent]:
        return EventStreamParser().feed(self.body)

    @property
    def error_object(self) -> dict[str, Any]:
        """The error, from the body of a status or from the last event."""
        data = self.body if self.status != 200 else self.events[-1].data
        error: dict[str, Any] = json.loads(data)["error"]
        return error

    @property
    def text(self) -> str:
        """The text of all events that are chunks."""
        messages = [event.data for event in self.events if event.event == "message"]
        chunks = [json.loads(data) for data in messages if data != b"[DONE]"]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def scope_of(method: str = "GET", headers: Mapping[str, str] | None = None, kind: str = "http") -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": kind, "method": method, "headers": raw, "path": "/", "query_string": b""}


class ASGIClient:
    """A client of a plain ASGI server: keeps what is sent, and leaves when `left` is set."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.received = asyncio.Event()  # set when something was sent
        self.refuses: BaseException | None = None  # `send` raises it
        self.reads = asyncio.Event()  # while not set, `send` waits
        self.reads.set()
        self._requested = False

    async def receive(self) -> dict[str, Any]:
        if not self._requested:
            self._requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(dict(message))
        self.received.set()
        await self.reads.wait()

    @property
    def answer(self) -> Answer:
        head = self.sent[0]
        assert head["type"] == "http.response.start"
        assert sum(message["type"] == "http.response.start" for message in self.sent) == 1
        raw = [(name.decode(), value.decode()) for name, value in head["headers"]]
        assert all(name == name.lower() for name, _ in raw)
        assert len(raw) == len(dict(raw))
        return Answer(head["status"], dict(raw), b"".join(message.get("body", b"") for message in self.sent[1:]))

    @property
    def finished(self) -> bool:
        """Whether the response was sent to its end."""
        return bool(self.sent) and self.sent[-1]["type"].endswith("body") and not self.sent[-1].get("more_body", False)


async def by_asgi(stream: Any, method: str = "GET", asked: Mapping[str, str] | None = None, **options: Any) -> Answer:
    client = ASGIClient()
    response: Any = EventSourceResponse(stream, **options)
    await response(scope_of(method, asked), client.receive, client.send)
    assert client.finished
    return client.answer


async def by_aiohttp(
    stream: Any, method: str = "GET", asked: Mapping[str, str] | None = None, **options: Any
) -> Answer:
    failed: list[Exception] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await aiohttp_response(request, stream, **options)
        except Exception as error:
            failed.append(error)
            raise

    async with (
        serving_handler(answer) as url,
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=asked) as response,
    ):
        with contextlib.suppress(aiohttp.ClientPayloadError):
            body = await response.read()
        names = {name.lower(): value for name, value in response.headers.items()}
        assert len(names) == len(response.headers)
    if failed:
        raise failed[0]
    return Answer(response.status, names, body)


@contextlib.asynccontextmanager
async def serving_handler(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: Any
) -> AsyncIterator[str]:
    """Serves a handler in this loop; yields its URL."""
    app = web.Application()
    app.router.add_route("*", "/", answer)
    runner = web.AppRunner(app, access_log=None, **options)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def by_loop(stream: Any, asked: Mapping[str, str] | None = None, **options: Any) -> Answer:
    options["last_event_id"] = (asked or {}).get("last-event-id")
    return Answer(200, HEADERS, b"".join([data async for data in sse(stream, **options)]))


DOORS: Mapping[str, Callable[..., Awaitable[Answer]]] = {"asgi": by_asgi, "aiohttp": by_aiohttp, "sse": by_loop}


async def stream_of(*items: str | BaseException) -> AsyncIterator[ChatCompletionChunk]:
    """A user's own stream: chunks with these texts, and errors where they stand."""
    for item in items:
        if isinstance(item, BaseException):
            raise item
        yield chunk(item)


async def own(stream: Any) -> AsyncIterator[ChatCompletionChunk]:
    async for item in stream:
        yield item


KINDS: Mapping[str, Callable[[Any], Any]] = {
    "chunks": lambda stream: stream,
    "raw": passthrough,
    "buffered": buffered,
    "broadcast": lambda stream: Broadcast(stream).subscribe(),
    "own": own,
}
"""What the doors take in place of a stream, made from a stream."""


def openai_events(body: bytes) -> list[tuple[str, str]]:
    """Returns type and data of the events, as the SDK's own decoder reads them."""
    return [(event.event or "", event.data) for event in SSEDecoder().iter_bytes(iter([body]))]


def status_error(cls: type[APIStatusError], status: int, **more: Any) -> APIStatusError:
    return cls(f"{status}: nothing secret", status_code=status, body={"error": {"message": SECRETS}}, **more)
