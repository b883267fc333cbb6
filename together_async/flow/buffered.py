"""Streams read ahead of their consumer: `buffered`; and `source_of`, which reads foreign iterables that way."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable
from types import TracebackType
from typing import Any, Self

from together_async.errors import IncompleteStreamError
from together_async.flow.buffer import MAX_BATCH, Buffer
from together_async.flow.loops import Loopable
from together_async.flow.source import Chunks, IterableSource, Source, close, direct_source_of, stream_type_error
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.tasks import MISLEADING, drop_hold, error_of, handed_over, hold, not_misleading


class Buffered(Loopable):
    """The chunks of a stream, read ahead. Made by `buffered`: an async iterator, and an async context manager.

    The first read, or `async with`, opens the stream and starts the task that reads it. Leaving the loop or the block
    closes the stream; at the end of the block, the task has ended too.
    """

    __slots__ = ("__weakref__", "_buffer", "_left", "_task", "_upstream")

    def __init__(self, stream: Chunks, buffer: Buffer) -> None:
        super().__init__()
        self._buffer = buffer
        self._left = False
        self._upstream = direct_source_of(stream) or IterableSource(stream)
        self._task: asyncio.Task[None] | None = None
        buffer.take_over()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._buffer!r}>"

    @property
    def position(self) -> int:
        """How many of the stream's chunks the consumer has read."""
        return self._buffer.position

    async def open(self) -> None:
        """Sends the request, and begins to read ahead."""
        if self._task is not None or self._left:
            return
        await self._upstream.open()
        if self._left:
            return  # type: ignore[unreachable]  # another task may have left meanwhile
        self._task = asyncio.create_task(_pump(self._upstream, self._buffer))
        hold(self._task.get_loop(), self._task)
        self._task.add_done_callback(functools.partial(_close_buffer, self._upstream, self._buffer))

    async def read(self, most: int = MAX_BATCH) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, from 1 to `most`; waits for the first. An empty list is the end."""
        await self.open()
        return await self._buffer.read(most)

    def leave(self) -> None:
        """Closes the stream, without waiting. Calling it twice is fine."""
        if self._task is not None and handed_over(self._task.get_loop(), self.leave):
            return
        if self._left:
            return  # a second cancellation would interrupt the closing
        self._left = True
        self._upstream.leave()
        if self._task is None:
            self._buffer.close(_left_early(self._upstream))
        elif not self._task.get_loop().is_closed():
            self._task.cancel()

    def so_far(self) -> ChatCompletion:
        """Returns the completion of the chunks that have come."""
        return self._upstream.so_far()

    async def __aenter__(self) -> Self:
        self._entered = True
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is GeneratorExit:
            self.leave()  # its task was destroyed, and can't wait
        else:
            await self.aclose()

    async def aclose(self) -> None:
        """Closes the stream. Its task has ended when this returns; calling it twice is fine."""
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


def _close_buffer(upstream: Source, buffer: Buffer, task: asyncio.Task[None]) -> None:
    """Closes the buffer with the error of the task, also of one that was cancelled before it began."""
    drop_hold(task.get_loop(), task)
    error = error_of(task)
    if task.cancelled():
        error = _left_early(upstream)
    if isinstance(error, MISLEADING):
        error = not_misleading(error)
    buffer.close(error)


def _left_early(upstream: Source) -> IncompleteStreamError:
    return IncompleteStreamError("the stream was closed by its reader before its end", partial=upstream.so_far())


def source_of(stream: Any) -> Source:
    """Returns the source that reads a stream, a source or any async iterable of chunks.

    Raises:
        TypeError: It is none of these.
    """
    source = direct_source_of(stream)
    if source is not None:
        return source
    if isinstance(stream, AsyncIterable):
        return Buffered(stream, Buffer(1))  # which reads it in a task of its own (see IterableSource)
    raise stream_type_error(stream)


def buffered(stream: Chunks, buffer: Buffer | None = None) -> Buffered:
    """Reads a stream ahead, for a consumer that is slower than the model.

    ```python
    async for chunk in buffered(client.stream(prompt, model=MODEL), Buffer(64, on_full="coalesce")):
        await slow(chunk)
    ```

    Args:
        stream: A stream that is not yet open, or any other async iterable of chunks.
        buffer: Holds the chunks that were read ahead; each stream needs its own. None makes
            `Buffer(64, on_full="coalesce")`.

    Raises:
        TypeError: `stream` is not a stream.
        ValueError: The buffer has been used already.
        TogetherError (while reading): As the stream raises it, after all chunks that had come before.
    """
    if not isinstance(stream, AsyncIterable):
        raise stream_type_error(stream)
    return Buffered(stream, Buffer(on_full="coalesce") if buffer is None else buffer)
