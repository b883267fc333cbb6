"""Sources: one way to read chunks, whatever they come from.

`Source` is the protocol. A stream of this package is read through `StreamSource`, anybody's async iterable through
`IterableSource`; `Buffered`, `Subscription` and a hub's readers are sources themselves. `source_of` (in `buffered`)
returns the right one.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

from together_async.calls.readers import BatchesReader, RawReader, TextReader
from together_async.calls.stream import ChatCompletionStream
from together_async.flow.loops import TextLoop
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.wire.accumulator import ChatCompletionAccumulator

READ_ALREADY: Final = "this stream has been read to its end already; make one for each reader"
Chunks = AsyncIterable[ChatCompletionChunk]


@runtime_checkable
class Source(Protocol):
    """Chunks, batch by batch: all that have come at each read, so that they can be passed on together."""

    @property
    def position(self) -> int:
        """How many of the upstream's chunks have been read, including the last of the last batch.

        The chunks of a batch have consecutive positions; only the first may stand for more than one.
        """
        ...

    async def open(self) -> None:
        """Sends the request, so that its error is known before anything is passed on."""
        ...

    async def read(self) -> list[ChatCompletionChunk]:
        """Returns the chunks that have come, at least one; waits for it. An empty list is the complete end.

        Once the source is open, a read may be cancelled and repeated.
        """
        ...

    def leave(self) -> None:
        """Ends it without waiting: what it reads is closed, unless others read it too."""
        ...

    def so_far(self) -> ChatCompletion:
        """Returns the completion of the chunks that have come."""
        ...


class ClosableSource(Source, Protocol):
    """A source with tasks or iterators whose end can be awaited."""

    async def aclose(self) -> None:
        """Ends it. Nothing of it is running when this returns."""
        ...


class ResumableSource(Source, Protocol):
    """A source that can continue after a chunk that a client had over an earlier connection."""

    @property
    def id_prefix(self) -> str:
        """What stands before the position in an event's id, to name the completion too."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether all chunks have been read, and none will come."""
        ...

    def resume(self, last_event_id: str) -> None:
        """Makes the source start after this event; called before it is opened."""
        ...


# `isinstance` with these two protocols would take 20 us or more, for each stream that is relayed or buffered.
def is_closable(source: Source) -> TypeGuard[ClosableSource]:
    """Whether the end of a source can be awaited."""
    return hasattr(source, "aclose")


def is_resumable(source: Source) -> TypeGuard[ResumableSource]:
    """Whether a source can continue after a chunk that a client had before."""
    return hasattr(source, "resume")


class StreamSource:
    """A stream of this package as a source."""

    __slots__ = ("_batches", "_stream", "position")

    def __init__(self, stream: ChatCompletionStream) -> None:
        self._stream = stream
        self._batches: AsyncIterator[list[ChatCompletionChunk]] | None = None
        self.position = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._stream!r}>"

    async def open(self) -> None:
        """Sends the request.

        Raises:
            RuntimeError: The stream has been read to its end already.
        """
        if self._stream.complete:
            raise RuntimeError(READ_ALREADY)
        await self._stream.__aenter__()
        self._batches = self._stream.batches()

    async def read(self) -> list[ChatCompletionChunk]:
        """Returns the chunks that have come, at least one; an empty list is the end."""
        if self._batches is None:
            await self.open()
        assert self._batches is not None  # noqa: S101 - just opened
        try:
            batch = await anext(self._batches)  # a loop would make another iterator for each read
        except StopAsyncIteration:
            return []
        self.position += len(batch)
        return batch

    def leave(self) -> None:
        """Closes the stream, without waiting."""
        self._stream.leave()

    def so_far(self) -> ChatCompletion:
        """Returns the completion of the chunks that have come."""
        return self._stream.so_far()


class IterableSource:
    """Anybody's async iterable of chunks as a source.

    Only one task reads it, and cancels it only to end it: a foreign iterator may not survive a cancelled read.
    """

    __slots__ = ("_accumulator", "_chunks", "_iterator", "position")

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._iterator: AsyncIterator[object] | None = None
        self._accumulator = ChatCompletionAccumulator()
        self.position = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of a {type(self._chunks).__name__}>"

    async def open(self) -> None:
        """Makes the iterator; it is not asked for anything before the first read.

        Raises:
            TypeError: It is an iterator of this package that yields something other than chunks.
        """
        iterator: Any = aiter(self._chunks)
        if isinstance(iterator, (BatchesReader, RawReader, TextReader, TextLoop)):
            raise self._wrong_items()
        self._iterator = iterator

    async def read(self) -> list[ChatCompletionChunk]:
        """Returns the next chunk; an empty list is the end.

        Raises:
            TypeError: The iterable yields something else.
        """
        assert self._iterator is not None  # noqa: S101 - opened, and not closed
        try:
            chunk = await anext(self._iterator)
        except StopAsyncIteration:
            return []
        if not isinstance(chunk, ChatCompletionChunk):
            raise self._wrong_items(f"with a {type(chunk).__name__} ")
        self.position += 1
        self._accumulator.add(chunk)
        return [chunk]

    def _wrong_items(self, found: str = "") -> TypeError:
        return TypeError(
            f"stream: got a {type(self._chunks).__name__} {found}where chunks are needed; hand over what "
            "`client.stream(...)` returns, itself (a relay makes texts of it with format='text')"
        )

    def leave(self) -> None:
        """Does nothing: a foreign iterator cannot be closed without waiting (see `aclose`)."""

    async def aclose(self) -> None:
        """Closes the iterator, if it can be closed."""
        # Some iterators are closed by being dropped, so a source that is kept, by a hub for minutes, must not hold one.
        iterator, self._iterator = self._iterator, None
        aclose = getattr(iterator, "aclose", None)  # a foreign object, perhaps a proxy: no protocol describes it
        if aclose is not None:
            await aclose()

    def so_far(self) -> ChatCompletion:
        """Returns the completion of the chunks that have come."""
        return self._accumulator.completion()


async def close(source: Source) -> None:
    """Ends a source, and waits until nothing of it is running."""
    source.leave()
    if is_closable(source):
        await source.aclose()


def direct_source_of(stream: Any) -> Source | None:
    """Returns the source that reads a stream, or the argument if it is a source; None for anything else."""
    if isinstance(stream, ChatCompletionStream):
        return StreamSource(stream)
    return stream if isinstance(stream, Source) else None


def stream_type_error(stream: object) -> TypeError:
    """Returns the error for an argument that is not a stream; a coroutine is closed."""
    if isinstance(stream, Coroutine):
        stream.close()
    return TypeError(
        f"stream: got a {type(stream).__name__}, expected what `client.stream(...)` returns (not awaited), or an async "
        "iterable of chunks"
    )
