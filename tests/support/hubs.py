"""Helpers for tests of `Hub`: completions that have ended, and a browser that comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from support.sources import Tap
from together_async.relay import EventSourceResponse, Hub
from together_async.relay.hub import HubReader
from together_async.wire.sse import EventStreamParser


async def ended_completion(hub: Hub, id: str, content: str = "abc") -> Tap:
    """Starts a completion, and returns once it has ended. It has no reader."""
    tap = Tap(content)
    tap.end()
    hub.start(tap, id)
    await hub._kept[id].broadcast.wait()
    return tap


def last_event_id(reader: HubReader) -> str:
    """Returns the id of the last event that was read, as the relay sends it."""
    return f"{reader.id_prefix}{reader.position}"


async def collect(events: AsyncIterator[bytes], body: list[bytes]) -> None:
    """Reads a response to its end, also one that the test's own function breaks with a KeyError."""
    with contextlib.suppress(KeyError):
        async for data in events:
            body.append(data)  # noqa: PERF401 - those before an error count


async def body_of(events: AsyncIterator[bytes]) -> bytes:
    body: list[bytes] = []
    async with asyncio.timeout(2):
        await collect(events, body)
    return b"".join(body)


async def send_response(response: EventSourceResponse, body: list[bytes], last: str = "") -> int:
    """Runs a response as a server does, for a client that stays; returns its status."""
    status = 0

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        body.append(message.get("body", b""))

    headers = [(b"last-event-id", last.encode())] if last else []
    await response({"type": "http", "method": "GET", "headers": headers}, receive, send)
    return status


class EventSourceClient:
    """What a browser's EventSource does: it joins texts, and keeps the id with which it would come back."""

    def __init__(self) -> None:
        self.last = ""
        self.text = ""

    def read_body(self, body: bytes) -> str:
        """Reads the body of one response; returns the type of its last event, or `[DONE]`."""
        kind = ""
        for event in EventStreamParser().feed(body):
            self.last = event.id or self.last
            kind = "[DONE]" if event.data == b"[DONE]" else event.event
            if kind == "message":
                self.text += event.data.decode()
        return kind
