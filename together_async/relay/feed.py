"""What a relay sends: a stream's events, rendered batch by batch, or the bytes of a pass-through.

A `Feed` is to bytes what a `Source` (flow) is to chunks: opened once, read batch by batch, left at any time.
"""

from __future__ import annotations

from typing import Protocol

from together_async.errors import TogetherError
from together_async.flow.buffered import source_of
from together_async.flow.source import Chunks, Source, close, is_resumable
from together_async.models import ChatCompletion
from together_async.relay.events import DONE, RECONNECT, Format, render_all, renderer
from together_async.relay.passthrough import Passthrough
from together_async.wire.sse import encode_event

Relayed = Chunks | Passthrough
"""What can be relayed: a stream or anything that reads like one (any async iterable of chunks), or a pass-through."""


class Feed(Protocol):
    """Bytes for one client, batch by batch."""

    resumable: bool
    """Whether it can continue after an event that the client already has."""
    error: TogetherError | None
    """The error that ended it, if the bytes it returned already report it to the client; else None."""

    async def open(self) -> None:
        """Sends the request, and returns once the service has begun its response."""
        ...

    async def next(self) -> bytes:
        """Returns the next bytes; empty at the end. Once it has returned some, a call may be cancelled and repeated."""
        ...

    def leave(self) -> None:
        """Closes what it reads from, without waiting. Twice is fine."""
        ...

    def resume(self, last_event_id: str) -> None:
        """Makes it start after this event; called before `open`, and only if it is resumable."""
        ...

    def end_id(self) -> str | None:
        """Returns the id for an error event that ends it; None for an event without an id."""
        ...

    async def aclose(self) -> None:
        """Leaves, and returns once no task of it is running."""
        ...

    def so_far(self) -> ChatCompletion:
        """Returns what has come from the model so far."""
        ...


class EventFeed:
    """A source as server-sent events, with `[DONE]` at its end.

    Args:
        source: The chunks.
        format: What becomes of a chunk (see `renderer`).
        ids: Whether events get ids.
    """

    def __init__(self, source: Source, format: Format, *, ids: bool) -> None:
        self._source = source
        self._resumable = source if is_resumable(source) else None
        self._render = renderer(format)
        self._ids = ids
        self._done = False  # `[DONE]` was returned
        self._begun = False  # the first event was returned, where it tells the browser to come back
        self._failure: Exception | None = None  # raised by the user's format function, after the events before it
        self.error: TogetherError | None = None
        self.resumable = self._resumable is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._source!r}>"

    async def open(self) -> None:
        """Sends the request, and returns once the service has begun its response."""
        await self._source.open()

    async def next(self) -> bytes:
        """Returns the next events; empty at the end."""
        while not self._done:
            if self._failure is not None:
                raise self._failure
            chunks = await self._source.read()
            if not chunks:
                self._done = True
                end_id = self.end_id()
                return DONE if end_id is None else encode_event("[DONE]", id=end_id)
            resumable = self._resumable
            prefix = None if not self._ids else "" if resumable is None else resumable.id_prefix
            data, self._failure = render_all(self._render, chunks, self._source.position, prefix)
            if not data:
                continue
            if resumable is not None and not self._begun:
                self._begun = True
                data = RECONNECT + data
            return data
        return b""

    def end_id(self) -> str | None:
        """Returns an id one past the last chunk's, so that a browser that comes back with it is told it has all.

        None unless the client has all: a browser then keeps the id of the last chunk it got, and gets the rest.
        """
        source = self._resumable
        if source is None or not self._ids or not source.at_end or self._failure is not None:
            return None
        return f"{source.id_prefix}{self._source.position + 1}"

    def leave(self) -> None:
        """Closes the source, without waiting."""
        self._source.leave()

    def resume(self, last_event_id: str) -> None:
        """Makes it start after this event; called before `open`, and only if it is resumable."""
        assert self._resumable is not None  # noqa: S101 - the doors look at `resumable` first
        self._resumable.resume(last_event_id)

    def so_far(self) -> ChatCompletion:
        """Returns what has come from the model so far."""
        return self._source.so_far()

    async def aclose(self) -> None:
        """Closes the source, and returns once no task of it is running."""
        await close(self._source)


def feed_of(stream: Relayed, format: Format, *, ids: bool) -> Feed:
    """Returns the feed of a stream, of anything that reads like one, or of a pass-through.

    Raises:
        TypeError: `stream` is not a stream.
        ValueError: There is no such format, or `stream` is a pass-through, which has no format.
    """
    if isinstance(stream, Passthrough):
        if format != "chunks":
            raise ValueError("format: a pass-through has none; its bytes are the service's")
        return stream
    return EventFeed(source_of(stream), format, ids=ids)
