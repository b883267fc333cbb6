"""Chunks as server-sent events: what goes over the wire to a browser.

Formats: the API's own chunks, so that every client of the API is a client of the relay; plain texts; or what a function
makes of each chunk. An event's id is the position of its chunk, so a client that comes back says how far it got.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from together_async.models import ChatCompletionChunk, plain, text_of
from together_async.wire.codec import encode
from together_async.wire.sse import ServerSentEvent, encode_event

Format = Literal["chunks", "text"] | Callable[[ChatCompletionChunk], Any]
Render = Callable[[ChatCompletionChunk, str | None], bytes]

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a complete answer."""
RECONNECT: Final = b"retry: 1000\n"
"""A line of the first event of an answer that can be resumed: a browser that loses it comes back after one second, not
after its own three or five."""
BOM: Final = b"\xef\xbb\xbf"
"""A byte order mark, with which an event stream may begin (WHATWG HTML, 9.2.6)."""
HEARTBEAT: Final = b":\n"
"""A comment: bytes, but no event, for proxies and browsers that give up on silence.

It stands in the block of the next event. An empty line after it would be valid, but the parser of the `openai` SDK
takes every empty line after an id for an event, and fails on its empty data.
"""
HEADERS: Final[Mapping[str, str]] = {
    "content-type": "text/event-stream; charset=utf-8",
    # `no-transform` keeps compressing proxies off, which collect data before they send it.
    "cache-control": "no-cache, no-transform",
    # nginx, and others that know this header, would collect the response; with it they pass it on at once.
    "x-accel-buffering": "no",
}
"""The headers of every event stream."""


def renderer(format: Format) -> Render:
    """Returns the function that renders a chunk, given the event's id or None, as bytes.

    Raises:
        ValueError: There is no such format.
        TypeError: The format is an async function, which would never be awaited.
    """
    if callable(format):
        if inspect.iscoroutinefunction(format):
            raise TypeError("format: got an async function, expected one that returns the event at once")
        return _by_function(format)
    if format == "chunks":
        return chunk_event
    if format == "text":
        return text_event
    raise ValueError(f"format: got {format!r}, expected 'chunks', 'text' or a function of a chunk")


def chunk_event(chunk: ChatCompletionChunk, id: str | None = None) -> bytes:
    """Returns the event of a chunk as the API sends it, byte by byte if the chunk still has its bytes."""
    data = chunk.raw_json or encode(chunk.to_dict())
    if b"\n" in data or b"\r" in data:
        # Line breaks can only be between JSON's tokens, where a space means the same; strings have none.
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return single_line_event(data, id)


# Quick path of encode_event; tests/relay/test_events.py::test_single_line_events_are_alike holds the two together.
def single_line_event(data: bytes, id: str | None) -> bytes:
    """Returns the event of data without line breaks, at a third of the cost of `encode_event`."""
    return b"data: %b\n\n" % data if id is None else b"id: %b\ndata: %b\n\n" % (id.encode(), data)


def text_event(chunk: ChatCompletionChunk, id: str | None = None) -> bytes:
    """Returns the event of the text of choice 0; empty if the chunk has no text.

    Each line of the text is a line of the event's data; every parser joins them again with LF. A text that reads
    `[DONE]` becomes two events, so that no client takes it for the end.
    """
    text = "".join(text_of(choice) for choice in chunk.choices if not choice.index)
    if not text:
        return b""
    if text == "[DONE]":
        return encode_event("[DONE") + encode_event("]", id=id)
    if "\n" in text or "\r" in text:
        return encode_event(text, id=id)
    return single_line_event(text.encode(), id)


def _by_function(function: Callable[[ChatCompletionChunk], Any]) -> Render:
    def render(chunk: ChatCompletionChunk, id: str | None = None) -> bytes:
        return value_event(function(chunk), id)

    return render


def value_event(value: Any, id: str | None = None) -> bytes:
    """Returns the event of a value that a user's format function returned.

    A str or bytes is the data; a `ServerSentEvent` has its own type, id and retry; None is no event; all else becomes
    JSON.
    """
    if value is None:
        return b""
    if isinstance(value, ServerSentEvent):
        event = value.event if value.event != "message" else None
        return encode_event(value.data, event=event, id=value.id or id, retry=value.retry)
    if isinstance(value, (str, bytes)):
        return encode_event(value, id=id)
    return encode_event(encode(plain(value)), id=id)


def error_event(error: Mapping[str, Any], id: str | None = None) -> bytes:
    """Returns the last event of an incomplete answer: of type `error`, in the shape of the API's errors."""
    return encode_event(encode({"error": error}), event="error", id=id)


def render_all(
    render: Render, chunks: Sequence[ChatCompletionChunk], last: int, prefix: str | None
) -> tuple[bytes, Exception | None]:
    """Returns the events of a batch of chunks, and the exception that a user's function raised, or None.

    The network groups chunks by chance, so the events before the failed one are returned all the same.

    Args:
        render: Renders one chunk (see `renderer`).
        chunks: The batch, with consecutive positions.
        last: The position of its last chunk.
        prefix: What stands before the position in an id; None leaves ids out.
    """
    events: list[bytes] = []
    try:
        for position, chunk in enumerate(chunks, last - len(chunks) + 1):
            events.append(render(chunk, None if prefix is None else f"{prefix}{position}"))
    except Exception as error:  # noqa: BLE001 - the user's function; it is raised after the events
        return b"".join(events), error
    return b"".join(events), None
