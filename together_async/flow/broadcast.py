"""One upstream, many consumers: `Broadcast`, and `tee` for a known number of them.

There is one log of what came, and a position in it for each consumer; nobody has a queue of his own. So a consumer who
is slow, late or stopped costs nothing, and one who lags behind gets all he missed as one chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

from together_async.errors import IncompleteStreamError, TogetherError
from together_async.flow.buffer import DEFAULT_SIZE, MOST_AT_ONCE, wake
from together_async.flow.chunk_log import ChunkLog
from together_async.flow.source import Chunks, Loopable, Source, close, source_of
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.tasks import error_of

OnSlow = Literal["coalesce", "block", "drop"]
OnEmpty = Literal["stop", "continue"]


class SlowConsumerError(TogetherError):
    """A consumer of a broadcast was dropped: more chunks waited for it than allowed. The others go on.

    Attributes:
        waiting: How many chunks waited.
        size: How many may.
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


class Broadcast:
    """One stream for many consumers, who come and go as they like.

    ```python
    broadcast = Broadcast(client.stream(prompt, model=MODEL))
    async for chunk in broadcast.subscribe(): ...  # in as many tasks as you like
    ```

    The stream is opened with the first read. Who comes late gets what was said so far as one chunk, then the rest as it
    comes.

    Args:
        stream: A stream that is not yet open, or any other async iterable of chunks.
        size: How many chunks may wait for a consumer before it counts as slow, from 1.
        on_slow: What happens then. "coalesce": it gets what waits as one chunk. "block": everybody waits for it.
            "drop": it gets `SlowConsumerError`.
        on_empty: What happens when the last consumer leaves: "stop" closes the stream, "continue" reads it to its end.

    Attributes:
        error: What the stream ended with; None while it runs, and when it ended well.

    Raises:
        ValueError: A value out of range.
        TypeError: `stream` is none.
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
        self._source: Source = source_of(stream)
        # Those that come together are more than one: nobody who must not lag may find a merged chunk because of that.
        self._log = ChunkLog(size if on_slow == "coalesce" else size + MOST_AT_ONCE)
        self._consumers: set[_Place] = set()
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._wanted: BaseException | None = None  # what everybody is to get, when it is closed
        self._room: asyncio.Future[None] | None = None  # what the reader waits for while somebody is slow
        self._traceback: TracebackType | None = None
        self._over = False
        self.on_change: Callable[[], None] | None = None
        """Called when a consumer comes or leaves, when something comes, and at the end."""

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
        """How many there are now."""
        return len(self._consumers)

    @property
    def kept(self) -> int:
        """Bytes of what is kept, by estimate."""
        return self._log.size

    def subscribe(self, after: int = 0) -> Subscription:
        """Returns a new consumer: an async iterator of chunks, and an async context manager.

        Args:
            after: The position it continues from: 0 is the beginning, `position` is now.

        Raises:
            ValueError: A position that is below 0 or has not come yet.
        """
        if not 0 <= after <= self._log.last:
            raise ValueError(f"after: got {after}, expected a position from 0 to {self._log.last}")
        place = _Place(after, self._log.last)
        self._consumers.add(place)
        self._changed()
        return Subscription(self, place)

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        return self._source.so_far()

    async def wait(self) -> None:
        """Waits for the end of the stream, without being a consumer; it raises nothing (see `error`)."""
        self.start()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def aclose(self) -> None:
        """Ends the stream for everybody. Its task has ended when this returns; twice is fine."""
        self.leave()
        if self._task is not None:
            await asyncio.wait((self._task,))

    def leave(self, error: BaseException | None = None) -> None:
        """Ends the stream for everybody, at once; `error` is what they get.

        Without one they get what the stream makes of it, as `IncompleteStreamError`.
        """
        self._wanted = self._wanted or error
        self._source.leave()
        if self._task is None:
            self._end(error)
        elif not self._over and not self._task.get_loop().is_closed():
            self._task.cancel()

    # ----------------------------------------------------------------------------------------------------- its reader

    def start(self) -> None:
        """Opens the stream and begins to read it, without a consumer.

        Raises:
            RuntimeError: There is no running event loop, as in a function that a framework runs in a thread.
        """
        if self._task is None and not self._over:
            loop = asyncio.get_running_loop()  # or it raises, before there is anything to run
            self._task = loop.create_task(self._run())
            self._task.add_done_callback(self._ran)  # also when it was cancelled before it began

    async def _run(self) -> None:
        """Reads the stream to its end. It is the broadcast's own task: consumers come and go."""
        error: BaseException | None = None
        try:
            await self._source.open()
            self._opened.set()
            while chunks := await self._source.read():
                for chunk in chunks:
                    self._log.add(chunk)
                self._look_at_the_slow()
                self._changed()
                if self.on_slow == "block":
                    await self._until_room()
        except asyncio.CancelledError:
            self._source.leave()
            self._end(self._given_up())  # nobody waits for what may have to be closed
            await close(self._source)
            raise
        except Exception as failure:  # noqa: BLE001 - every consumer gets it
            error = self._wanted or failure
        self._source.leave()
        self._end(error)
        await close(self._source)

    def _ran(self, task: asyncio.Task[None]) -> None:
        error = error_of(task)
        if not self._over:  # cancelled before it began; or ended by what is no Exception, which asyncio passes on
            self._source.leave()
            self._end(error or self._given_up())

    def _given_up(self) -> BaseException:
        text = "the stream was closed while others were reading it"
        return self._wanted or IncompleteStreamError(text, partial=self.so_far())

    def _end(self, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self.error = error
            self._traceback = None if error is None else error.__traceback__
            self._opened.set()
            self._shrink()
            self._changed()

    def _shrink(self) -> None:
        """Keeps texts alone, once all has come and those who kept up have had it as it came."""
        if self._over and not self._consumers:
            self._log.close()

    def _changed(self) -> None:
        for place in self._consumers:
            wake(place.waiter)
        if self.on_change is not None:
            self.on_change()

    def _look_at_the_slow(self) -> None:
        if self.on_slow == "drop":
            for place in tuple(self._consumers):
                waiting = self._waiting(place)
                # Who waits has had all there was: many that come at once make nobody slow.
                if waiting > self.size and place.waiter is None:
                    place.error = SlowConsumerError(waiting, self.size)
                    self._forget(place)

    def _waiting(self, place: _Place) -> int:
        """How many chunks have come since a consumer came, or last read."""
        return self._log.last - max(place.position, place.began)

    async def _until_room(self) -> None:
        """Waits until nobody is slow: at `size` chunks it stops, at half of them it goes on."""
        if all(self._waiting(place) < self.size for place in self._consumers):
            return
        while any(self._waiting(place) > self.size // 2 for place in self._consumers):
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None

    # -------------------------------------------------------------------------------------------------- the consumers

    async def _open(self) -> None:
        self.start()
        await self._opened.wait()
        if self._log.last == 0:
            self._raise()

    async def _read(self, place: _Place, most: int) -> list[ChatCompletionChunk]:
        self.start()
        while True:
            chunks = [] if place.left else self._next(place, most)
            if chunks:
                wake(self._room)
                return chunks
            if place.error is not None:
                raise place.error
            if self.at_end(place):
                self._forget(place)
                self._raise()
                return []
            if place.left:
                text = "the stream was left by this reader before its end"
                raise IncompleteStreamError(text, partial=self.so_far())
            if place.waiter is not None:
                raise RuntimeError("two tasks read one subscription at the same time; subscribe once for each")
            place.waiter = asyncio.get_running_loop().create_future()
            try:
                await place.waiter
            finally:
                place.waiter = None

    def _raise(self) -> None:
        if self.error is not None:
            # As it came: each raising would lengthen its traceback, which holds every reader that was told.
            raise self.error.with_traceback(self._traceback)

    def at_end(self, place: _Place) -> bool:
        """Whether a consumer has had all there ever will be."""
        return self._over and not place.pieces and place.position == self._log.last

    def _next(self, place: _Place, most: int) -> list[ChatCompletionChunk]:
        """What can be given now. A chunk that stands for many comes alone, so that every position is known."""
        if not place.pieces and place.position < self._log.last and place.error is None:
            place.pieces.extend(self._log.since(place.position, merged=place.position < place.began))
        chunks: list[ChatCompletionChunk] = []
        while place.pieces and len(chunks) < most:
            position, chunk = place.pieces[0]
            if chunks and position != place.position + 1:
                break
            place.pieces.popleft()
            place.position = position
            chunks.append(chunk)
        return chunks

    def _forget(self, place: _Place) -> None:
        if place not in self._consumers:
            return
        self._consumers.discard(place)
        wake(place.waiter)
        wake(self._room)
        self._shrink()
        if self.on_change is not None:
            self.on_change()
        if not self._consumers and self.on_empty == "stop" and not self._over:
            self.leave()


class _Place:
    """Where a consumer is."""

    __slots__ = ("began", "error", "left", "pieces", "position", "waiter")

    def __init__(self, position: int, began: int) -> None:
        self.position = position
        self.began = began  # what was there before does not make it slow
        self.pieces: deque[tuple[int, ChatCompletionChunk]] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.error: SlowConsumerError | None = None
        self.left = False


class Subscription(Loopable):
    """One consumer of a `Broadcast`: an async iterator of chunks, and an async context manager.

    It leaves when its loop or block is left, or when it is dropped. Until then a broadcast that blocks waits for it.

    Raises (while reading):
        SlowConsumerError: It was too slow for a broadcast with on_slow="drop".
        TogetherError: As the stream raised it, after all that had come before.
    """

    __slots__ = ("__weakref__", "_broadcast", "_place")

    def __init__(self, broadcast: Broadcast, place: _Place) -> None:
        super().__init__()
        self._broadcast = broadcast
        self._place = place

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.position} of {self._broadcast!r}>"

    @property
    def position(self) -> int:
        """The position of the last chunk that was read."""
        return self._place.position

    async def open(self) -> None:
        """Opens the stream, if nobody has; raises what that raises."""
        await self._broadcast._open()

    @property
    def at_end(self) -> bool:
        """Whether it has had all there ever will be."""
        return self._broadcast.at_end(self._place)

    async def read(self, most: int = MOST_AT_ONCE) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, at most so many and at least one; waits for it. An empty list is the end."""
        return await self._broadcast._read(self._place, most)

    def leave(self) -> None:
        """Leaves; the stream is closed if this was the last consumer and `on_empty` is "stop"."""
        self._place.left = True
        self._broadcast._forget(self._place)

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far, to whomever."""
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
        place = getattr(self, "_place", None)
        if place is not None and not place.left:
            with contextlib.suppress(RuntimeError):  # the loop has ended, or this is not its thread
                self.leave()


def tee(
    stream: Chunks, n: int = 2, *, size: int = DEFAULT_SIZE, on_slow: OnSlow = "coalesce", on_empty: OnEmpty = "stop"
) -> tuple[Subscription, ...]:
    """Returns `n` consumers of one stream. Other arguments as for `Broadcast`.

    ```python
    for_the_browser, for_the_log = tee(client.stream(prompt, model=MODEL))
    ```

    Raises:
        ValueError: `n` is below 1, or as `Broadcast` does.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected a number of consumers from 1")
    broadcast = Broadcast(stream, size=size, on_slow=on_slow, on_empty=on_empty)
    return tuple(broadcast.subscribe() for _ in range(n))
