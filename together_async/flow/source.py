"""Where chunks come from, one way to read it: a stream, what stands between one and its reader, or anybody's iterator.

A source gives all chunks that are there at once, so that who passes them on does so in one piece.
"""

from __future__ import annotations

import abc
import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Final, Protocol, Self, runtime_checkable

from together_async.calls.readers import BatchesReader, RawReader, TextReader
from together_async.calls.stream import ChatCompletionStream
from together_async.errors import IncompleteStreamError
from together_async.flow.buffer import MOST_AT_ONCE, Buffer
from together_async.models import ChatCompletion, ChatCompletionChunk, text_of
from together_async.tasks import MISLEADING, error_of, not_misleading
from together_async.wire.accumulator import ChatCompletionAccumulator

READ_ALREADY: Final = "this stream has been read to its end already; make one for each who is to read it"
Chunks = AsyncIterable[ChatCompletionChunk]


@runtime_checkable
class Source(Protocol):
    """Chunks, batch by batch."""

    @property
    def position(self) -> int:
        """How many of the upstream's chunks have been read, the last of the last batch included.

        Those of a batch have consecutive positions; only the first may stand for more than one.
        """
        ...

    async def open(self) -> None:
        """Asks for the first response; what it raises is known before anything is passed on."""
        ...

    async def read(self) -> list[ChatCompletionChunk]:
        """Returns what is there, at least one chunk; an empty list is the end, and all has come.

        A read of what is open may be cancelled and repeated.
        """
        ...

    def leave(self) -> None:
        """Ends it at once: what it was made of is closed, unless others need it."""
        ...

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        ...


class StreamSource:
    """A stream of this package."""

    __slots__ = ("_batches", "_stream", "position")

    def __init__(self, stream: ChatCompletionStream) -> None:
        self._stream = stream
        self._batches: AsyncIterator[list[ChatCompletionChunk]] | None = None
        self.position = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._stream!r}>"

    async def open(self) -> None:
        """Asks for the first response.

        Raises:
            RuntimeError: The stream is at its end: somebody has read it.
        """
        if self._stream.complete:
            raise RuntimeError(READ_ALREADY)
        await self._stream.__aenter__()
        self._batches = self._stream.batches()

    async def read(self) -> list[ChatCompletionChunk]:
        """Returns the chunks that are there, at least one; an empty list is the end."""
        if self._batches is None:
            await self.open()
        assert self._batches is not None  # noqa: S101 - just opened
        try:
            batch = await anext(self._batches)  # no loop, which would make an iterator of its own each time
        except StopAsyncIteration:
            return []
        self.position += len(batch)
        return batch

    def leave(self) -> None:
        """Closes the stream, at once."""
        self._stream.leave()

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        return self._stream.so_far()


class IterableSource:
    """Anybody's async iterable of chunks.

    It is read by one task alone, and not cancelled but to end it: nobody knows what else it bears.
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
        """Looks at it; nothing is asked before the first read.

        Raises:
            TypeError: It is one of this package's that have no chunks.
        """
        iterator: Any = aiter(self._chunks)
        if isinstance(iterator, (BatchesReader, RawReader, TextReader, _TextLoop)):
            raise self._no_chunks()
        self._iterator = iterator

    async def read(self) -> list[ChatCompletionChunk]:
        """Returns the next chunk; an empty list is the end.

        Raises:
            TypeError: What came is no chunk.
        """
        assert self._iterator is not None  # noqa: S101 - opened, and not closed
        try:
            chunk = await anext(self._iterator)
        except StopAsyncIteration:
            return []
        if not isinstance(chunk, ChatCompletionChunk):
            raise self._no_chunks(f"with a {type(chunk).__name__} ")
        self.position += 1
        self._accumulator.add(chunk)
        return [chunk]

    def _no_chunks(self, found: str = "") -> TypeError:
        return TypeError(
            f"stream: got a {type(self._chunks).__name__} {found}where chunks are needed; hand over what "
            "`client.stream(...)` returns, itself (a relay makes texts of it with format='text')"
        )

    def leave(self) -> None:
        """Nothing can be ended without waiting (see `aclose`)."""

    async def aclose(self) -> None:
        """Closes it, where it can be closed."""
        # Some are closed by being dropped, and who still has this source, a hub for minutes, may not keep them.
        iterator, self._iterator = self._iterator, None
        aclose = getattr(iterator, "aclose", None)
        if aclose is not None:
            await aclose()

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        return self._accumulator.completion()


async def close(source: Source) -> None:
    """Ends it at once, and waits until nothing of it is under way."""
    source.leave()
    aclose = getattr(source, "aclose", None)  # of what has a task
    if aclose is not None:
        await aclose()


class Loopable(abc.ABC):
    """What is read by batches, for those who loop over its chunks, or its texts, as over a stream's."""

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered = False

    @abc.abstractmethod
    async def read(self, most: int = MOST_AT_ONCE) -> list[ChatCompletionChunk]:
        """Returns the chunks that are there, at most so many and at least one; an empty list is the end."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Ends it at once."""

    @abc.abstractmethod
    def so_far(self) -> ChatCompletion:
        """Returns what has come so far; it reads nothing itself."""

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return _ChunkLoop(self, owner=not self._entered)

    async def __anext__(self) -> ChatCompletionChunk:
        return await _ChunkLoop(self, owner=False).__anext__()

    def text(self, choice: int = 0) -> AsyncIterator[str]:
        """Returns an iterator of the texts of one choice; empty ones are left out."""
        return _TextLoop(self, choice, owner=not self._entered)

    async def completion(self) -> ChatCompletion:
        """Reads the rest, if any, and returns the completion that it all adds up to."""
        async for _ in self:
            pass
        return self.so_far()


class _Loop:
    """The iterator of one loop. Where nobody has entered what it reads, it leaves when the loop is left."""

    __slots__ = ("_owner", "_source")

    def __init__(self, source: Loopable, *, owner: bool) -> None:
        self._source = source
        self._owner = owner

    def __aiter__(self) -> Self:
        return self

    def __del__(self) -> None:
        if self._owner:
            self._source.leave()


class _ChunkLoop(_Loop):
    """One by one: what the loop has not asked for still waits, and counts as waiting."""

    __slots__ = ()

    async def __anext__(self) -> ChatCompletionChunk:
        for chunk in await self._source.read(1):
            return chunk
        raise StopAsyncIteration


class _TextLoop(_Loop):
    __slots__ = ("_choice",)

    def __init__(self, source: Loopable, choice: int, *, owner: bool) -> None:
        super().__init__(source, owner=owner)
        self._choice = choice

    async def __anext__(self) -> str:
        while chunks := await self._source.read(1):
            text = "".join([text_of(one) for one in chunks[0].choices if (one.index or 0) == self._choice])
            if text:
                return text
        raise StopAsyncIteration


class Buffered(Loopable):
    """The chunks of a stream, read ahead. Made by `buffered`: an async iterator, and an async context manager.

    The stream is opened, and its task begins, with the first read or `async with`. Leaving the loop or the block closes
    the stream; with the block, its task has ended too.
    """

    __slots__ = ("__weakref__", "_buffer", "_left", "_task", "_upstream")

    def __init__(self, stream: Chunks, buffer: Buffer) -> None:
        super().__init__()
        self._buffer = buffer
        self._left = False
        self._upstream = _direct(stream) or IterableSource(stream)
        self._task: asyncio.Task[None] | None = None
        buffer.take_over()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._buffer!r}>"

    @property
    def position(self) -> int:
        """How many of the stream's chunks have been read."""
        return self._buffer.position

    async def open(self) -> None:
        """Asks for the first response, and begins to read ahead."""
        if self._task is not None or self._left:
            return
        await self._upstream.open()
        if self._left:
            return  # type: ignore[unreachable]  # somebody may have left meanwhile
        self._task = asyncio.create_task(_pump(self._upstream, self._buffer))
        self._task.add_done_callback(functools.partial(_pumped, self._upstream, self._buffer))

    async def read(self, most: int = MOST_AT_ONCE) -> list[ChatCompletionChunk]:
        """Returns the chunks that are there, at most so many and at least one; an empty list is the end."""
        await self.open()
        return await self._buffer.read(most)

    def leave(self) -> None:
        """Closes the stream, at once. Twice is fine."""
        if self._left:
            return  # a second cancellation would cut off what is being closed
        self._left = True
        self._upstream.leave()
        if self._task is None:
            self._buffer.close(_given_up(self._upstream))
        elif not self._task.get_loop().is_closed():
            self._task.cancel()

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        return self._upstream.so_far()

    async def __aenter__(self) -> Self:
        self._entered = True
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the stream. Its task has ended when this returns; twice is fine."""
        self.leave()
        if self._task is not None:
            await asyncio.wait((self._task,))

    def __del__(self) -> None:
        if getattr(self, "_task", None) is not None:
            self.leave()


async def _pump(source: Source, buffer: Buffer) -> None:
    try:
        while chunks := await source.read():
            await buffer.put_all(chunks)
    finally:
        await close(source)


def _pumped(upstream: Source, buffer: Buffer, task: asyncio.Task[None]) -> None:
    """Tells the reader how it ended: also that of a task that was cancelled, even before it began."""
    error = error_of(task)
    if task.cancelled():
        error = _given_up(upstream)
    if isinstance(error, MISLEADING):
        error = not_misleading(error)
    buffer.close(error)


def _given_up(upstream: Source) -> IncompleteStreamError:
    return IncompleteStreamError("the stream was closed by its reader before its end", partial=upstream.so_far())


def source_of(stream: Any) -> Source:
    """Returns a stream, or what is like one, as a source.

    Raises:
        TypeError: It is neither.
    """
    source = _direct(stream)
    if source is not None:
        return source
    if isinstance(stream, AsyncIterable):
        return Buffered(stream, Buffer(1))  # by a task (see IterableSource)
    raise no_stream(stream)


def _direct(stream: Any) -> Source | None:
    """What can be read as it is."""
    if isinstance(stream, ChatCompletionStream):
        return StreamSource(stream)
    return stream if isinstance(stream, Source) else None


def no_stream(stream: object) -> TypeError:
    """Returns the error for what is none."""
    if isinstance(stream, Coroutine):
        stream.close()
    return TypeError(
        f"stream: got a {type(stream).__name__}, expected what `client.stream(...)` returns (not awaited), or an async "
        "iterable of chunks"
    )


def buffered(stream: Chunks, buffer: Buffer | None = None) -> Buffered:
    """Reads a stream ahead, for a consumer who is slower than the model.

    ```python
    async for chunk in buffered(client.stream(prompt, model=MODEL), Buffer(64, on_full="coalesce")):
        await slow(chunk)
    ```

    Args:
        stream: A stream that is not yet open, or any other async iterable of chunks.
        buffer: What stands between, used once; None takes `Buffer(64, on_full="coalesce")`.

    Raises:
        TypeError: It is no stream.
        ValueError: The buffer is in use already.
        TogetherError (while reading): As the stream raises it, after all that had come before.
    """
    if not isinstance(stream, AsyncIterable):
        raise no_stream(stream)
    return Buffered(stream, Buffer(on_full="coalesce") if buffer is None else buffer)
