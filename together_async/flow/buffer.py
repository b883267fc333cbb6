"""`Buffer`: what waits between one upstream and one consumer who is slower.

A stream needs none: while nobody reads, the server is held back by TCP. That is the wrong thing where the upstream must
not wait, because a service may give up on a client who does not read, or because others read the same stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Literal

from together_async.models import ChatCompletionChunk
from together_async.wire.coalesce import Coalescer

OnFull = Literal["block", "coalesce"]
DEFAULT_SIZE: Final = 64
MOST_AT_ONCE: Final = 64
"""Chunks that are handed over at once."""


class Buffer:
    """Chunks on their way from one producer to one consumer, never more than `size` of them.

    ```python
    async for chunk in buffered(client.stream(prompt, model=MODEL), Buffer(64, on_full="coalesce")):
        await slow(chunk)
    ```

    It is used once; by hand, a producer awaits `put` and calls `close`, and the consumer loops over it.

    Args:
        size: The high-water mark: how many chunks may wait, from 1.
        on_full: What happens when so many wait. "block" lets the producer wait until the low-water mark is reached.
            "coalesce" merges what waits into one chunk, so that the producer never waits, the consumer gets everything
            in fewer chunks, and memory is that of the completion. (Keys of a chunk that this package does not know,
            but for those of deltas, are not in a merged one.)
        low: The low-water mark, from 0 to `size` - 1: a producer that waits goes on when so few are left. None takes
            half of `size`.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(self, size: int = DEFAULT_SIZE, on_full: OnFull = "block", *, low: int | None = None) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size: got {size!r}, expected a number of chunks from 1")
        if on_full not in ("block", "coalesce"):
            raise ValueError(f"on_full: got {on_full!r}, expected 'block' or 'coalesce'")
        if low is not None and not 0 <= low < size:
            raise ValueError(f"low: got {low!r}, expected a number of chunks from 0 to {size - 1}, below the size")
        self.size = size
        self.on_full: OnFull = on_full
        self.low = size // 2 if low is None else low
        self.position = 0
        """How many of the producer's chunks the consumer has had."""
        self._chunks: deque[ChatCompletionChunk] = deque()
        self._merging: Coalescer | None = None  # everything that waits, once it was too much
        self._pieces: deque[tuple[int, ChatCompletionChunk]] = deque()  # what it came to
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._used = False
        self._closed = False
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Buffer {state}, {self.waiting} of {self.size} chunks wait, on_full={self.on_full!r}>"

    @property
    def waiting(self) -> int:
        """How many of the producer's chunks have not been taken."""
        merging = self._merging.count if self._merging is not None else 0
        return len(self._chunks) + merging + sum(count for count, _ in self._pieces)

    def take_over(self) -> None:
        """Says that a stream is read into it from now on; raises ValueError if it has been used."""
        if self._used or self._closed or self.waiting or self.position:
            raise ValueError("buffer: it is in use, or was; each stream needs one of its own")
        self._used = True

    # --------------------------------------------------------------------------------------------------- the producer

    async def put(self, chunk: ChatCompletionChunk) -> None:
        """Gives a chunk; waits while the buffer is full and `on_full` is "block".

        Raises:
            RuntimeError: The buffer is closed, or somebody else waits to give one.
        """
        if self._closed:
            raise RuntimeError("the buffer is closed; nothing more can be put into it")
        if self.on_full == "block" and len(self._chunks) >= self.size:
            await self._until_low()
            if self._closed:
                raise RuntimeError("the buffer was closed while a chunk waited for its turn; the chunk is not in it")
        self._add(chunk)
        self._wake()

    async def put_all(self, chunks: list[ChatCompletionChunk]) -> None:
        """Gives several chunks, as `put` does one."""
        if self._closed or (self.on_full == "block" and len(self._chunks) + len(chunks) > self.size):
            for chunk in chunks:
                await self.put(chunk)
            return
        for chunk in chunks:
            self._add(chunk)
        self._wake()

    def _add(self, chunk: ChatCompletionChunk) -> None:
        if self._merging is not None:
            self._merging.add(chunk)
            return
        self._chunks.append(chunk)
        if len(self._chunks) > self.size and self.on_full == "coalesce":
            self._merging = Coalescer()
            for one in self._chunks:
                self._merging.add(one)
            self._chunks.clear()

    async def _until_low(self) -> None:
        if self._writer is not None:
            raise RuntimeError("two tasks put into one buffer at the same time; let one of them do it")
        self._writer = asyncio.get_running_loop().create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def close(self, error: BaseException | None = None) -> None:
        """Says that no chunk will come; the consumer gets what waits, and then `error`, if there is one."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._wake()
            wake(self._writer)

    # --------------------------------------------------------------------------------------------------- the consumer

    async def read(self, most: int = MOST_AT_ONCE) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, at most `most` and at least one; waits for it. An empty list is the end.

        Raises:
            BaseException: What the buffer was closed with.
            RuntimeError: Somebody else is reading.
        """
        while True:
            chunks = self._taken(most)
            if chunks:
                return chunks
            if self._closed:
                if self._error is not None:
                    raise self._error
                return []
            if self._reader is not None:
                raise RuntimeError("two tasks read one buffer at the same time; let one of them read")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def _taken(self, most: int) -> list[ChatCompletionChunk]:
        """What can be taken now. A chunk that stands for many comes alone, so that every position is known."""
        if self._merging is not None:
            self._pieces.extend(self._merging.take())
            self._merging = None
        if self._pieces:
            count, chunk = self._pieces.popleft()
            self.position += count
            return [chunk]
        waiting = self._chunks
        chunks = [waiting.popleft() for _ in range(min(len(waiting), most))]
        self.position += len(chunks)
        if len(waiting) <= self.low:
            wake(self._writer)
        return chunks

    def _wake(self) -> None:
        wake(self._reader)

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return self._each()

    async def _each(self) -> AsyncIterator[ChatCompletionChunk]:
        while chunks := await self.read(1):  # what has not been asked for waits here, and is counted
            yield chunks[0]


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Wakes who waits, if somebody does."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
