"""Where chunks come from, one way to read it: a stream, what stands between one and its reader, or anybody's iterator.

A source gives all chunks that are there at once, so that who passes them on does so in one piece.
"""

from __future__ import annotations

import abc
import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from together_async.buffer import Buffer
from together_async.errors import IncompleteStreamError
from together_async.group import NOT_TO_PASS, strayed
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.stream import ChatCompletionStream

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
        """Returns what is there, at least one chunk; an empty list is the end.

        A read of what is open may be cancelled and repeated.
        """
        ...

    def leave(self) -> None:
        """Ends it at once: what it was made of is closed, unless others need it."""
        ...

    def completion(self) -> ChatCompletion | None:
        """Returns what has come so far; None where it is not known."""
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
        """Asks for the first response."""
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

    def completion(self) -> ChatCompletion | None:
        """Returns what has come so far."""
        return self._stream.so_far()


class Loopable(abc.ABC):
    """What is read by batches, for loops over its chunks.

    A loop may be left in the midst of a batch: the rest of it stays here, for the next one.
    """

    __slots__ = ("_entered", "_rest")

    def __init__(self) -> None:
        self._entered = False
        self._rest: list[ChatCompletionChunk] = []  # the last is the next

    @abc.abstractmethod
    async def read(self) -> list[ChatCompletionChunk]:
        """Returns the chunks that are there, at least one; an empty list is the end."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Ends it at once."""

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return _ChunkLoop(self, owner=not self._entered)


class _ChunkLoop:
    """The iterator of one loop. Where nobody has entered what it reads, it leaves when the loop is left."""

    __slots__ = ("_owner", "_source")

    def __init__(self, source: Loopable, *, owner: bool) -> None:
        self._source = source
        self._owner = owner

    def __aiter__(self) -> _ChunkLoop:
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        source = self._source
        if not source._rest:
            batch = await source.read()
            if not batch:
                raise StopAsyncIteration
            source._rest = batch[::-1]
        return source._rest.pop()

    def __del__(self) -> None:
        if self._owner:
            self._source.leave()


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
        self._upstream: Source | Chunks = StreamSource(stream) if isinstance(stream, ChatCompletionStream) else stream
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
        if isinstance(self._upstream, Source):
            await self._upstream.open()
            reading = _pump(self._upstream, self._buffer)
        else:
            reading = _pump_each(self._upstream, self._buffer)
        if self._left:
            reading.close()  # type: ignore[unreachable]  # somebody may have left meanwhile
            return
        self._task = asyncio.create_task(reading)
        self._task.add_done_callback(functools.partial(_pumped, self._upstream, self._buffer))

    async def read(self) -> list[ChatCompletionChunk]:
        """Returns the chunks that are there, at least one; an empty list is the end."""
        await self.open()
        return await self._buffer.read()

    def leave(self) -> None:
        """Closes the stream, at once."""
        self._left = True
        if isinstance(self._upstream, Source):
            self._upstream.leave()
        if self._task is None:
            self._buffer.close(_given_up(self._upstream))
        elif not self._task.get_loop().is_closed():
            self._task.cancel()

    def completion(self) -> ChatCompletion | None:
        """Returns what has come so far."""
        return self._upstream.completion() if isinstance(self._upstream, Source) else None

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
        source.leave()


async def _pump_each(chunks: Chunks, buffer: Buffer) -> None:
    iterator = aiter(chunks)
    try:
        async for chunk in iterator:
            await buffer.put(chunk)
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _pumped(upstream: Source | Chunks, buffer: Buffer, task: asyncio.Task[None]) -> None:
    """Tells the reader how it ended: also that of a task that was cancelled, even before it began."""
    error = _given_up(upstream) if task.cancelled() else task.exception()
    if isinstance(error, NOT_TO_PASS):
        error = strayed(error)
    buffer.close(error)


def _given_up(upstream: Source | Chunks) -> IncompleteStreamError:
    so_far = upstream.completion() if isinstance(upstream, Source) else None
    return IncompleteStreamError(
        "the stream was closed by its reader before its end", partial=so_far or ChatCompletion()
    )


def source_of(stream: Any) -> Source:
    """Returns a stream, or what is like one, as a source.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(stream, ChatCompletionStream):
        return StreamSource(stream)
    if isinstance(stream, Source):
        return stream
    if isinstance(stream, AsyncIterable):
        # By a task, because nobody knows whether it bears that a read of it is cancelled.
        return Buffered(stream, Buffer(1))
    raise _no_stream(stream)


def _no_stream(stream: object) -> TypeError:
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
        raise _no_stream(stream)
    return Buffered(stream, Buffer(on_full="coalesce") if buffer is None else buffer)
