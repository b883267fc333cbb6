"""One stream, many consumers: `Broadcast`, and `tee` for a known number of them.

There is one log of the chunks that came, and each consumer has a position in it instead of a queue. So a consumer that
is slow, late or stopped costs nothing, and one that falls behind gets all it missed as one chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

from together_async.calls.tracebacks import let_go
from together_async.errors import IncompleteStreamError, TogetherError
from together_async.flow.buffer import DEFAULT_SIZE, MAX_BATCH
from together_async.flow.buffered import source_of
from together_async.flow.chunk_log import ChunkLog
from together_async.flow.loops import Loopable
from together_async.flow.source import Chunks, Source, close
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.tasks import Waiter, drop_hold, error_of, handed_over, hold

OnSlow = Literal["coalesce", "block", "drop"]
OnEmpty = Literal["stop", "continue"]


class SlowConsumerError(TogetherError):
    """A consumer of a broadcast was dropped: more chunks waited for it than allowed. The other consumers go on.

    Attributes:
        waiting: How many chunks waited.
        size: How many may wait.
    """

    def __init__(self, waiting: int, size: int) -> None:
        self.waiting = waiting
        self.size = size
        super().__init__(
            f"{waiting} chunks waited for this consumer, expected at most {size}; it was dropped. Read faster, allow "
            "more (size), or take on_slow='coalesce'"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.waiting, self.size)


class Cursor:
    """The position of one consumer in the log of a broadcast.

    Attributes:
        position: The position of the last chunk it has read.
        joined_at: The log's last position when it subscribed: the chunks before it do not make it slow.
        waiter: Its `read` waits here.
        error: Why it was dropped; None if it was not.
        left: Whether its subscription was left.
    """

    __slots__ = ("_pieces", "error", "joined_at", "left", "position", "waiter")

    def __init__(self, position: int, joined_at: int) -> None:
        self.position = position
        self.joined_at = joined_at
        self.waiter = Waiter("two tasks read one subscription at the same time; subscribe once for each")
        self.error: SlowConsumerError | None = None
        self.left = False
        self._pieces: deque[tuple[int, ChatCompletionChunk]] = deque()  # taken from the log, not read yet

    def lag(self, last: int) -> int:
        """Returns how many chunks up to position `last` have come since it subscribed, or last read."""
        return last - max(self.position, self.joined_at)

    def has_read_all(self, last: int) -> bool:
        """Returns whether it has read every chunk up to position `last`."""
        return not self._pieces and self.position == last

    def advance(self, log: ChunkLog, most: int) -> list[ChatCompletionChunk]:
        """Returns the chunks that can be read now, and moves past them.

        A chunk that stands for many comes alone or first, so that every position is known.
        """
        if not self._pieces and self.position < log.last and self.error is None:
            self._pieces.extend(log.since(self.position, merged=self.position < self.joined_at))
        chunks: list[ChatCompletionChunk] = []
        while self._pieces and len(chunks) < most:
            position, chunk = self._pieces[0]
            if chunks and position != self.position + 1:
                break
            self._pieces.popleft()
            self.position = position
            chunks.append(chunk)
        return chunks


class Broadcast:
    """One stream for many consumers, which may join and leave at any time.

    ```python
    broadcast = Broadcast(client.stream(prompt, model=MODEL))
    async for chunk in broadcast.subscribe(): ...  # in as many tasks as you like
    ```

    The first read opens the stream. A consumer that subscribes late gets everything so far as one chunk, then the other
    chunks as they come.

    It has many methods and is one thing: the reading task, the log and the consumers change together, and whether the
    task may read on depends on the slowest consumer.

    Args:
        stream: A stream that is not yet open, or any other async iterable of chunks.
        size: How many chunks may wait for a consumer before it counts as slow, from 1.
        on_slow: What happens to a slow consumer. "coalesce": it gets the waiting chunks as one. "block": the stream is
            not read further until it has caught up. "drop": it gets `SlowConsumerError`.
        on_empty: What happens when the last consumer leaves: "stop" closes the stream, "continue" reads it to its end.

    Attributes:
        error: The error that ended the stream; None while it runs, and after a complete end.
        on_change: Called when a consumer comes or leaves, when chunks come, and at the end; None for no call.

    Raises:
        ValueError: A value is out of range.
        TypeError: `stream` is not a stream.
    """

    def __init__(
        self, stream: Chunks, *, size: int = DEFAULT_SIZE, on_slow: OnSlow = "coalesce", on_empty: OnEmpty = "stop"
    ) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size: got {size!r}, expected a number of chunks from 1")
        if on_slow not in ("coalesce", "block", "drop"):
            raise ValueError(f"on_slow: got {on_slow!r}, expected 'coalesce', 'block' or 'drop'")
        if on_empty not in ("stop", "continue"):
            raise ValueError(f"on_empty: got {on_empty!r}, expected 'stop' or 'continue'")
        self.size = size
        self.on_slow: OnSlow = on_slow
        self.on_empty: OnEmpty = on_empty
        self.error: BaseException | None = None
        self.on_change: Callable[[], None] | None = None
        self._source: Source = source_of(stream)
        # Without "coalesce" no consumer may get a merged chunk, not even after a whole batch at once.
        self._log = ChunkLog(size if on_slow == "coalesce" else size + MAX_BATCH)
        self._consumers: set[Cursor] = set()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened = asyncio.Event()
        self._closing_error: BaseException | None = None  # given to `leave`, for all consumers
        self._room = Waiter()  # of the task, while a consumer is slow
        self._traceback: TracebackType | None = None
        self._over = False

    def __repr__(self) -> str:
        state = "ended" if self._over else "not opened" if self._task is None else "running"
        return f"<Broadcast {state}, {self._log.last} chunks, {len(self._consumers)} consumers>"

    @property
    def position(self) -> int:
        """How many chunks have come."""
        return self._log.last

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    @property
    def consumers(self) -> int:
        """How many consumers there are now."""
        return len(self._consumers)

    @property
    def kept(self) -> int:
        """How many bytes are kept, by estimate."""
        return self._log.size

    def subscribe(self, after: int = 0) -> Subscription:
        """Returns a new consumer: an async iterator of chunks, and an async context manager.

        Args:
            after: The position after which it begins: 0 is the beginning, `position` is now.

        Raises:
            ValueError: The position is below 0, or has not come yet.
        """
        if not 0 <= after <= self._log.last:
            raise ValueError(f"after: got {after}, expected a position from 0 to {self._log.last}")
        if self._loop is None:
            # Consumers may be dropped before the task begins, and must not change the set while this method walks it.
            self._loop = asyncio._get_running_loop()  # noqa: SLF001 - in asyncio's __all__
        cursor = Cursor(after, self._log.last)
        self._consumers.add(cursor)
        self._notify()
        return Subscription(self, cursor)

    def so_far(self) -> ChatCompletion:
        """Returns the completion of the chunks that have come."""
        return self._source.so_far()

    async def wait(self) -> None:
        """Waits for the end of the stream without being a consumer. It never raises what ended it (see `error`)."""
        self.start()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def aclose(self) -> None:
        """Ends the stream for all consumers. Its task has ended when this returns; calling it twice is fine."""
        self.leave()
        if self._task is not None:
            await asyncio.wait((self._task,))

    def leave(self, error: BaseException | None = None) -> None:
        """Ends the stream for all consumers, without waiting.

        Args:
            error: What they get; None is an `IncompleteStreamError`.
        """
        if handed_over(self._loop, self.leave, error):
            return
        self._closing_error = self._closing_error or error
        self._source.leave()
        if self._task is None:
            self._end(error)
        elif not self._over and not self._task.get_loop().is_closed():
            self._task.cancel()

    # ------------------------------------------------------------------------------------------------------- its task

    def start(self) -> None:
        """Opens the stream and begins to read it, without a consumer.

        Raises:
            RuntimeError: There is no running event loop, as in a function that a framework runs in a thread.
        """
        if self._task is None and not self._over:
            loop = asyncio.get_running_loop()  # raises before the coroutine is made
            self._loop = loop
            self._task = loop.create_task(self._run())
            hold(loop, self._task)
            self._task.add_done_callback(self._note_task_done)

    async def _run(self) -> None:
        """Reads the stream to its end."""
        error: BaseException | None = None
        try:
            await self._source.open()
            self._opened.set()
            while chunks := await self._source.read():
                for chunk in chunks:
                    self._log.add(chunk)
                self._drop_slow()
                self._notify()
                if self.on_slow == "block":
                    await self._wait_for_room()
        except asyncio.CancelledError:
            self._source.leave()
            self._end(self._left_early())  # before the source is closed: consumers do not wait for that
            await close(self._source)
            raise
        except Exception as failure:  # noqa: BLE001 - every consumer gets it
            error = self._closing_error or failure
        self._source.leave()
        self._end(error)
        await close(self._source)

    def _note_task_done(self, task: asyncio.Task[None]) -> None:
        drop_hold(task.get_loop(), task)
        error = error_of(task)
        if not self._over:  # cancelled before it began; or ended by a BaseException, which asyncio passes on
            self._source.leave()
            self._end(error or self._left_early())

    def _left_early(self) -> BaseException:
        text = "the stream was closed while others were reading it"
        return self._closing_error or IncompleteStreamError(text, partial=self.so_far())

    def _end(self, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self.error = error
            if error is not None:
                let_go(error)
            self._traceback = None if error is None else error.__traceback__
            self._opened.set()
            self._shrink()
            self._notify()

    def _shrink(self) -> None:
        """Keeps only texts once the stream has ended and no consumer is left to get the chunks as they came."""
        if self._over and not self._consumers:
            self._log.close()

    def _notify(self) -> None:
        for cursor in self._consumers:
            cursor.waiter.wake()
        if self.on_change is not None:
            self.on_change()

    def _drop_slow(self) -> None:
        if self.on_slow != "drop":
            return
        for cursor in tuple(self._consumers):
            lag = cursor.lag(self._log.last)
            # A consumer whose read waits has read everything before: many chunks that come at once do not make it slow.
            if lag > self.size and not cursor.waiter.taken:
                cursor.error = SlowConsumerError(lag, self.size)
                self.release(cursor)

    async def _wait_for_room(self) -> None:
        """Waits while a consumer is slow: it stops at `size` chunks, and goes on at half of them."""
        if all(cursor.lag(self._log.last) < self.size for cursor in self._consumers):
            return
        while any(cursor.lag(self._log.last) > self.size // 2 for cursor in self._consumers):
            await self._room.wait()

    # ---------------------------------------------------------------------------------------------- for `Subscription`

    async def wait_until_open(self) -> None:
        """Opens the stream if no consumer has, and waits until it is open.

        Raises:
            BaseException: The error that ended it before the first chunk.
        """
        self.start()
        await self._opened.wait()
        if self._log.last == 0:
            self._raise_error()

    async def read_for(self, cursor: Cursor, most: int) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait for a consumer, from 1 to `most`; waits for the first.

        An empty list is the end.
        """
        self.start()
        while True:
            chunks = [] if cursor.left else cursor.advance(self._log, most)
            if chunks:
                self._room.wake()
                return chunks
            if cursor.error is not None:
                raise cursor.error
            if self.at_end(cursor):
                self.release(cursor)
                self._raise_error()
                return []
            if cursor.left:
                text = "the stream was left by this reader before its end"
                raise IncompleteStreamError(text, partial=self.so_far())
            await cursor.waiter.wait()

    def _raise_error(self) -> None:
        if self.error is not None:
            # Each raise would lengthen the traceback, which holds the frames of every reader that got the error.
            let_go(self.error)
            raise self.error.with_traceback(self._traceback)

    def at_end(self, cursor: Cursor) -> bool:
        """Returns whether a consumer has read all chunks, and none will come."""
        return self._over and cursor.has_read_all(self._log.last)

    def release(self, cursor: Cursor) -> None:
        """Removes a consumer; the last one may end the stream (see `on_empty`)."""
        if handed_over(self._loop, self.release, cursor):
            return
        if cursor not in self._consumers:
            return
        self._consumers.discard(cursor)
        cursor.waiter.wake()
        self._room.wake()
        self._shrink()
        if self.on_change is not None:
            self.on_change()
        if not self._consumers and self.on_empty == "stop" and not self._over:
            self.leave()


class Subscription(Loopable):
    """One consumer of a `Broadcast`: an async iterator of chunks, and an async context manager.

    It leaves when its loop or block is left, or when it is dropped. Until then, a broadcast with on_slow="block" waits
    for it.

    Raises (while reading):
        SlowConsumerError: It was too slow for a broadcast with on_slow="drop".
        TogetherError: As the stream raised it, after all chunks that had come before.
    """

    __slots__ = ("__weakref__", "_broadcast", "_cursor")

    def __init__(self, broadcast: Broadcast, cursor: Cursor) -> None:
        super().__init__()
        self._broadcast = broadcast
        self._cursor = cursor

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.position} of {self._broadcast!r}>"

    @property
    def position(self) -> int:
        """The position of the last chunk that was read."""
        return self._cursor.position

    async def open(self) -> None:
        """Opens the stream if no consumer has. Raises the error that ended it before the first chunk."""
        await self._broadcast.wait_until_open()

    @property
    def at_end(self) -> bool:
        """Whether all chunks have been read, and none will come."""
        return self._broadcast.at_end(self._cursor)

    async def read(self, most: int = MAX_BATCH) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, from 1 to `most`; waits for the first. An empty list is the end."""
        return await self._broadcast.read_for(self._cursor, most)

    def leave(self) -> None:
        """Leaves; the stream is closed if this was the last consumer and `on_empty` is "stop"."""
        self._cursor.left = True
        self._broadcast.release(self._cursor)

    def so_far(self) -> ChatCompletion:
        """Returns the completion of the chunks that have come, whether or not this consumer has read them."""
        return self._broadcast.so_far()

    async def __aenter__(self) -> Self:
        self._entered = True
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.leave()

    async def aclose(self) -> None:
        """The same as `leave`."""
        self.leave()

    def __del__(self) -> None:
        cursor = getattr(self, "_cursor", None)
        if cursor is not None and not cursor.left:
            with contextlib.suppress(RuntimeError):  # `on_change` can do nothing in a loop that has ended
                self.leave()


def tee(
    stream: Chunks, n: int = 2, *, size: int = DEFAULT_SIZE, on_slow: OnSlow = "coalesce", on_empty: OnEmpty = "stop"
) -> tuple[Subscription, ...]:
    """Returns `n` consumers of one stream. The other arguments are those of `Broadcast`.

    ```python
    for_the_browser, for_the_log = tee(client.stream(prompt, model=MODEL))
    ```

    Raises:
        ValueError: `n` is below 1, or as `Broadcast` raises it.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected a number of consumers from 1")
    broadcast = Broadcast(stream, size=size, on_slow=on_slow, on_empty=on_empty)
    return tuple(broadcast.subscribe() for _ in range(n))
