"""Chunks as server-sent events: what goes over the wire to a browser.

Formats: the API's own chunks, so that every client of the API is a client of the relay; plain texts; or what a function
makes of a chunk. An event's id is the position of its chunk, so that a client that comes back says how far it was.
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
"""The last event of an answer that is complete."""
RECONNECT: Final = b"retry: 1000\n"
"""A line of the first event: tells a browser to come back after a second, where it can go on; its own default is three
or five."""
BOM: Final = b"\xef\xbb\xbf"
"""A byte order mark, which an event stream may begin with (WHATWG HTML, 9.2.6)."""
HEARTBEAT: Final = b":\n"
"""A comment: bytes for proxies and browsers that give up on silence, and no event.

It stands in the block of the next event. An empty line after it would be right too, but the parser of the `openai` SDK
takes every empty line that comes after an id for an event, and fails on its empty data.
"""
HEADERS: Final[Mapping[str, str]] = {
    "content-type": "text/event-stream; charset=utf-8",
    # `no-transform` keeps compressing proxies away, which collect before they send.
    "cache-control": "no-cache, no-transform",
    # nginx, and those who speak its words, pass on at once what they would collect.
    "x-accel-buffering": "no",
}
"""Of every response that is a stream."""


def renderer(format: Format) -> Render:
    """Returns the function that makes events of a chunk, given its id or None.

    Raises:
        ValueError: No such format.
        TypeError: An async function, for which nobody would wait.
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
    """Returns the event of a chunk as the API sends it, to the last key where its bytes are known."""
    data: bytes = getattr(chunk, "raw_json", None) or encode(chunk.to_dict())
    if b"\n" in data or b"\r" in data:
        # Between JSON's tokens, where a blank means the same; within a string no line break can stand.
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return _plain_event(data, id)


def _plain_event(data: bytes, id: str | None) -> bytes:
    """What `encode_event` makes of one line, at a third of the price."""
    return b"data: %b\n\n" % data if id is None else b"id: %b\ndata: %b\n\n" % (id.encode(), data)


def text_event(chunk: ChatCompletionChunk, id: str | None = None) -> bytes:
    """Returns the event of the text of choice 0; nothing where there is none.

    Line breaks are lines of the event's data, which every parser joins again with LF. A piece of text that reads
    `[DONE]` comes as two events, so that it is not taken for the end.
    """
    text = "".join(text_of(choice) for choice in chunk.choices if not choice.index)
    if not text:
        return b""
    if text == "[DONE]":
        return encode_event("[DONE") + encode_event("]", id=id)
    if "\n" in text or "\r" in text:
        return encode_event(text, id=id)
    return _plain_event(text.encode(), id)


def _by_function(function: Callable[[ChatCompletionChunk], Any]) -> Render:
    def render(chunk: ChatCompletionChunk, id: str | None = None) -> bytes:
        return value_event(function(chunk), id)

    return render


def value_event(value: Any, id: str | None = None) -> bytes:
    """Returns the event of what somebody's function returned.

    A str or bytes is the data; a `ServerSentEvent` says its type too; None is no event; all else becomes JSON.
    """
    if value is None:
        return b""
    if isinstance(value, ServerSentEvent):
        event = value.event if value.event != "message" else None
        return encode_event(value.data, event=event, id=value.id or id, retry=value.retry)
    if isinstance(value, (str, bytes)):
        return encode_event(value, id=id)
    return encode_event(encode(plain(value)), id=id)


def error_event(problem: Mapping[str, Any], id: str | None = None) -> bytes:
    """Returns the last event of an answer that is not complete: of type `error`, in the shape of the API's errors."""
    return encode_event(encode({"error": problem}), event="error", id=id)


def render_all(
    render: Render, chunks: Sequence[ChatCompletionChunk], last: int, prefix: str | None
) -> tuple[bytes, Exception | None]:
    """Returns the events of chunks with consecutive positions, the last of which is given; and what stopped that.

    What comes together does so by chance: the events before one that can't be made are good.

    Args:
        render: What makes an event.
        chunks: The chunks.
        last: The position of the last of them.
        prefix: What stands before the position in an id; None leaves ids out.
    """
    events: list[bytes] = []
    try:
        for position, chunk in enumerate(chunks, last - len(chunks) + 1):
            events.append(render(chunk, None if prefix is None else f"{prefix}{position}"))
    except Exception as error:  # noqa: BLE001 - somebody's function; it is raised after the events
        return b"".join(events), error
    return b"".join(events), None
