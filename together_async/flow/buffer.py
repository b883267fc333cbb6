"""`Buffer`: the chunks that wait between one producer and one slower consumer.

A plain stream needs no buffer: while nobody reads, TCP holds the server back. A buffer is for an upstream that must not
wait, because a service may give up on a client that does not read, or because others read the same stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Literal

from together_async.calls.tracebacks import let_go
from together_async.models import ChatCompletionChunk
from together_async.tasks import Waiter
from together_async.wire.coalesce import Coalescer

OnFull = Literal["block", "coalesce"]
DEFAULT_SIZE: Final = 64
"""Chunks that may wait, unless the caller says how many."""
MAX_BATCH: Final = 64
"""Most chunks that one read returns: a consumer's turn of the event loop stays short."""


class Buffer:
    """Chunks on their way from one producer to one consumer, never more than `size` of them.

    ```python
    async for chunk in buffered(client.stream(prompt, model=MODEL), Buffer(64, on_full="coalesce")):
        await slow(chunk)
    ```

    A buffer is used for one stream. To use it without `buffered`, the producer awaits `put` and calls `close` at the
    end, and the consumer loops over the buffer.

    Args:
        size: The high-water mark: how many chunks may wait, from 1.
        on_full: What happens at the high-water mark. "block" lets the producer wait until the low-water mark is
            reached. "coalesce" merges the waiting chunks into one, so that the producer never waits, the consumer gets
            everything in fewer chunks, and memory is that of the completion. (A merged chunk has no keys that this
            package does not know, but for those of deltas.)
        low: The low-water mark, from 0 to `size` - 1: a waiting producer continues when so few chunks are left. None
            takes half of `size`.

    Attributes:
        position: How many of the producer's chunks the consumer has read.

    Raises:
        ValueError: A value is out of range.
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
        self._chunks: deque[ChatCompletionChunk] = deque()
        self._coalescer: Coalescer | None = None  # all waiting chunks, once there were too many
        self._pieces: deque[tuple[int, ChatCompletionChunk]] = deque()  # what they were merged into
        self._consumer = Waiter("two tasks read one buffer at the same time; let one of them read")
        self._producer = Waiter("two tasks put into one buffer at the same time; let one of them do it")
        self._used = False
        self._closed = False
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Buffer {state}, {self.waiting} of {self.size} chunks wait, on_full={self.on_full!r}>"

    @property
    def waiting(self) -> int:
        """How many of the producer's chunks the consumer has not read."""
        merging = self._coalescer.count if self._coalescer is not None else 0
        return len(self._chunks) + merging + sum(count for count, _ in self._pieces)

    def take_over(self) -> None:
        """Reserves the buffer for one stream; raises ValueError if it has been used."""
        if self._used or self._closed or self.waiting or self.position:
            raise ValueError("buffer: it is in use, or was; each stream needs one of its own")
        self._used = True

    # --------------------------------------------------------------------------------------------------- the producer

    async def put(self, chunk: ChatCompletionChunk) -> None:
        """Adds a chunk; waits while the buffer is full and `on_full` is "block".

        Raises:
            RuntimeError: The buffer is closed, or another task waits to add a chunk.
        """
        if self._closed:
            raise RuntimeError("the buffer is closed; nothing more can be put into it")
        if self.on_full == "block" and len(self._chunks) >= self.size:
            await self._producer.wait()
            if self._closed:
                raise RuntimeError("the buffer was closed while a chunk waited for its turn; the chunk is not in it")
        self._add(chunk)
        self._consumer.wake()

    async def put_all(self, chunks: list[ChatCompletionChunk]) -> None:
        """Adds several chunks, as `put` adds one."""
        if self._closed or (self.on_full == "block" and len(self._chunks) + len(chunks) > self.size):
            for chunk in chunks:
                await self.put(chunk)
            return
        # Quick path of `put`; tests/flow/test_buffer.py::test_a_batch_never_fills_it_over_its_size holds the two
        # together.
        for chunk in chunks:
            self._add(chunk)
        self._consumer.wake()

    def _add(self, chunk: ChatCompletionChunk) -> None:
        if self._coalescer is not None:
            self._coalescer.add(chunk)
            return
        self._chunks.append(chunk)
        if len(self._chunks) > self.size and self.on_full == "coalesce":
            self._coalescer = Coalescer()
            for waiting in self._chunks:
                self._coalescer.add(waiting)
            self._chunks.clear()

    def close(self, error: BaseException | None = None) -> None:
        """Ends the buffer: no chunk will come. Calling it twice is fine; the first call counts.

        Args:
            error: Raised to the consumer after the waiting chunks; None is a complete end.
        """
        if not self._closed:
            self._closed = True
            self._error = error
            self._consumer.wake()
            self._producer.wake()

    # --------------------------------------------------------------------------------------------------- the consumer

    async def read(self, most: int = MAX_BATCH) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, from 1 to `most`; waits for the first. An empty list is the end.

        Raises:
            BaseException: The error that the buffer was closed with.
            RuntimeError: Another task is reading.
        """
        while True:
            chunks = self._pop(most)
            if chunks:
                return chunks
            if self._closed:
                if self._error is not None:
                    let_go(self._error)
                    raise self._error
                return []
            await self._consumer.wait()

    def _pop(self, most: int) -> list[ChatCompletionChunk]:
        """Removes the chunks that can be read now. A merged chunk comes alone, so that every position is known."""
        if self._coalescer is not None:
            self._pieces.extend(self._coalescer.take())
            self._coalescer = None
        if self._pieces:
            count, chunk = self._pieces.popleft()
            self.position += count
            return [chunk]
        waiting = self._chunks
        chunks = [waiting.popleft() for _ in range(min(len(waiting), most))]
        self.position += len(chunks)
        if len(waiting) <= self.low:
            self._producer.wake()
        return chunks

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return self._chunks_of_a_loop()

    async def _chunks_of_a_loop(self) -> AsyncIterator[ChatCompletionChunk]:
        while chunks := await self.read(1):  # the others still wait here, and are counted
            yield chunks[0]
