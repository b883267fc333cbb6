"""`Hub`: keeps running completions while their browsers reconnect.

A browser that lost its connection comes back with the id of the last event it had (WHATWG HTML, 9.2.5 "Last-Event-ID")
and gets the rest, from there on. What is kept is bounded in number, size and time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, Iterator
from types import TracebackType
from typing import Final, Self

from together_async.errors import QueueFullError
from together_async.flow.broadcast import Broadcast, Subscription
from together_async.flow.buffer import MAX_BATCH
from together_async.flow.loops import Loopable
from together_async.flow.source import Chunks, stream_type_error
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.relay.browser_errors import AllReadError, IdError, NotKeptError, StoppedError, TooLargeError

_WINDOW: Final = 16
"""Chunks of a completion that are kept as they came; who is further behind gets the missing ones as one."""
_MIB: Final = 1024 * 1024


class _Run:
    """One completion that is kept."""

    __slots__ = ("broadcast", "loop", "named", "size", "timer")

    def __init__(self, broadcast: Broadcast, *, named: bool) -> None:
        self.broadcast = broadcast
        self.loop = asyncio.get_running_loop()
        self.named = named  # its id is the app's own, and may be one that can be guessed
        self.size = 0
        self.timer: asyncio.TimerHandle | None = None


class Hub:
    """Completions under ids, for readers who come, go and come back, from this tab or another.

    ```python
    hub = Hub()

    @app.post("/chat/{id}")
    async def ask(id: str, question: Question):
        hub.start(client.stream(question.text, model=MODEL), id)

    @app.get("/chat/{id}")  # new EventSource("/chat/" + id)
    async def answer(id: str):
        return EventSourceResponse(hub.join(id))
    ```

    A completion runs whether or not somebody reads it, for `abandon` seconds without a reader; when it is through it is
    kept for `keep` seconds. Leave the `async with` block, or call `aclose`, to end them all.

    It works in one process, so behind several workers a browser has to come back to the same one. Nothing in its
    interface depends on that: readers are found by id and position, and nobody is told more than bytes and ids.

    Args:
        max_streams: How many completions may be kept, from 1. Where there are so many, those that are through and not
            being read make room, the oldest first; where none is, `start` raises.
        max_size: Most bytes of all of them together, by estimate; the same is done for room, and a completion for which
            there is none is stopped.
        keep: Seconds for which a completion is kept when it is through.
        abandon: Seconds for which one goes on without a reader, before its first and after its last; None lets it run
            to its end.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        *,
        max_streams: int = 1000,
        max_size: int = 64 * _MIB,
        keep: float = 300.0,
        abandon: float | None = 60.0,
    ) -> None:
        for name, value, least in (("max_streams", max_streams, 1), ("max_size", max_size, 1), ("keep", keep, 0)):
            if not value >= least:  # nor a NaN
                raise ValueError(f"{name}: got {value}, expected at least {least}")
        if abandon is not None and not abandon >= 0:
            raise ValueError(f"abandon: got {abandon}, expected seconds from 0, or None")
        self.max_streams = max_streams
        self.max_size = max_size
        self.keep = keep
        self.abandon = abandon
        self._runs: dict[str, _Run] = {}  # the oldest first
        self._size = 0

    def __repr__(self) -> str:
        running = sum(not run.broadcast.over for run in self._runs.values())
        return f"<Hub {running} running, {len(self._runs) - running} kept, {self._size} bytes>"

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._runs))

    def __contains__(self, id: object) -> bool:
        return id in self._runs

    @property
    def size(self) -> int:
        """Bytes that are kept, by estimate."""
        return self._size

    # ----------------------------------------------------------------------------------------------------- completions

    def start(self, stream: Chunks, id: str | None = None) -> str:
        """Starts a completion, and returns its id. It begins at once, whether or not somebody reads it.

        Args:
            stream: A stream that is not yet open, or any other async iterable of chunks.
            id: What it is known by: a str without control characters. None makes one that can't be guessed. Whoever
                knows the id can read the answer.

        Raises:
            IdError: The id is taken, or none that a header can hold. It is a ValueError; a relay answers 409 or 400.
            QueueFullError: There is no room: all that are kept are running or being read.
            RuntimeError: There is no running event loop, as in an endpoint without `async`, which runs in a thread.
        """
        asyncio.get_running_loop()  # before anything is entered
        key = uuid.uuid4().hex if id is None else id
        if not (isinstance(key, str) and key and key.isprintable()):
            raise IdError(f"id: got {key!r}, expected a text without control characters", status_code=400)
        if key in self._runs:
            text = f"id: there is a completion with the id {key!r}; join it, or take another id"
            raise IdError(text, status_code=409)
        if not self._made_room(streams=1):
            raise QueueFullError(
                f"the hub keeps {len(self._runs)} completions, all of them running or being read, expected at most "
                f"{self.max_streams}; try again later, or raise max_streams"
            )
        broadcast = Broadcast(stream, size=_WINDOW, on_empty="continue")
        run = self._runs[key] = _Run(broadcast, named=id is not None)
        broadcast.on_change = lambda: self._changed(key, run)
        broadcast.start()
        self._changed(key, run)
        return key

    def join(self, id: str, last_event_id: str = "") -> HubReader:
        """Returns a reader of a completion: from its beginning, or after the event whose id is given.

        The relay's doors pass a request's `Last-Event-ID` on by themselves. What has been said since is one chunk, then
        the rest comes as it is generated.

        Raises (when it is opened):
            NotKeptError: There is none under this id (now); a relay answers 410.
        """
        reader = HubReader(self, id)
        if last_event_id:
            reader.resume(last_event_id)
        return reader

    def open(self, stream: Chunks, id: str | None = None) -> HubReader:
        """Starts a completion and joins it: for a page that asks and reads in one request.

        A request that comes back with a `Last-Event-ID` joins the completion which that names, if its id is one that
        the hub made or the one that is given here; the new stream is then not opened, and nothing is asked again.

        Args:
            stream: As for `start`.
            id: As for `start`, but if there is a completion under it, that is joined.

        Raises:
            TypeError: It is no stream.

        Raises (when it is opened):
            NotKeptError: It came back, and what it wants is not kept any more.
            QueueFullError: As `start` does.
        """
        if not isinstance(stream, AsyncIterable):
            raise stream_type_error(stream)
        return HubReader(self, id, stream)

    async def stop(self, id: str) -> bool:
        """Stops a completion, as a stop button does; who reads it gets its end. Returns whether there was one running.

        What had come by then is kept as of one that is through.
        """
        run = self._runs.get(id)
        if run is None or run.broadcast.over:
            return False
        run.broadcast.leave(StoppedError("the completion was stopped"))
        await run.broadcast.aclose()
        return True

    def so_far(self, id: str) -> ChatCompletion:
        """Returns what a completion is so far.

        Raises:
            NotKeptError: There is none under this id.
        """
        return self._run(id).broadcast.so_far()

    async def aclose(self) -> None:
        """Ends all and forgets them. They have ended when this returns; twice is fine."""
        runs = [run.broadcast for run in self._runs.values()]
        for key in tuple(self._runs):
            self._forget(key)
        for broadcast in runs:
            broadcast.leave()  # all of them at once, before any is waited for
        for broadcast in runs:
            await broadcast.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------------------------------------------- the bounds

    def _run(self, id: str) -> _Run:
        run = self._runs.get(id)
        if run is None:
            raise NotKeptError("no completion is kept under this id: none was, it is forgotten, or it ran elsewhere")
        return run

    def _changed(self, id: str, run: _Run) -> None:
        """Something has come to a completion, a reader has, or one has left, or it is through."""
        if self._runs.get(id) is not run:
            return
        broadcast = run.broadcast
        self._size += broadcast.kept - run.size
        run.size = broadcast.kept
        if self._size > self.max_size and not self._made_room() and not broadcast.over:
            broadcast.leave(
                TooLargeError(
                    f"all completions of this hub have {self._size} bytes, expected at most {self.max_size}; this one "
                    "was stopped. Raise max_size, or keep for a shorter time"
                )
            )
        if self._runs.get(id) is not run:
            return  # it made room itself
        wait_s = self.keep if broadcast.over else self.abandon
        if broadcast.consumers or wait_s is None:
            if run.timer is not None:
                run.timer.cancel()
                run.timer = None
        elif run.timer is None or broadcast.over:
            if run.timer is not None:
                run.timer.cancel()
            run.timer = run.loop.call_later(wait_s, self._late, id, run)

    def _late(self, id: str, run: _Run) -> None:
        run.timer = None
        if run.broadcast.over:
            if self._runs.get(id) is run:
                self._forget(id)
        else:
            run.broadcast.leave(StoppedError(f"the completion was stopped: nobody read it for {self.abandon:g} s"))

    def _made_room(self, streams: int = 0) -> bool:
        """Forgets what is through and not being read, the oldest first, for room; returns whether there is any."""
        for key, run in tuple(self._runs.items()):
            if len(self._runs) + streams <= self.max_streams and self._size <= self.max_size:
                break
            if run.broadcast.over and not run.broadcast.consumers:
                self._forget(key)
        return len(self._runs) + streams <= self.max_streams and self._size <= self.max_size

    def _forget(self, id: str) -> None:
        run = self._runs.pop(id)
        self._size -= run.size
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        run.broadcast.on_change = None


class HubReader(Loopable):
    """Somebody who reads a completion of a hub. Made by `Hub.join` and `Hub.open`; for the relay's doors."""

    __slots__ = ("__weakref__", "_after", "_hub", "_id", "_named", "_place", "_stream")

    def __init__(self, hub: Hub, id: str | None, stream: Chunks | None = None) -> None:
        super().__init__()
        self._hub = hub
        self._id = id
        self._named = id is not None
        self._stream = stream
        self._after: int | None = 0  # None for an event that is none of this completion's
        self._place: Subscription | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._id!r} at {self.position}>"

    @property
    def id(self) -> str:
        """What the completion is known by; empty before it is opened, if the hub makes it."""
        return self._id or ""

    @property
    def id_prefix(self) -> str:
        """What stands before the position in the ids of events, so that one names the completion too."""
        return f"{self.id}:"

    @property
    def position(self) -> int:
        """The position of the last chunk that was read."""
        return (self._after or 0) if self._place is None else self._place.position

    def resume(self, last_event_id: str) -> None:
        """Says which event the client has had last. Nobody gets another completion by it than he may read."""
        key, colon, position = last_event_id.rpartition(":")
        known = bool(colon and key) and position.isascii() and position.isdecimal() and len(position) < 10
        self._stream = None
        if self._named:
            known = known and key == self._id
        else:
            run = self._hub._runs.get(key)
            known = known and run is not None and not run.named
            self._id = key if known else None  # what a client says is not repeated
        self._after = int(position) if known else None

    async def open(self) -> None:
        """Finds the completion, or starts it; waits until the service has begun its response."""
        if self._place is not None:
            return
        if self._after is None:
            raise NotKeptError(
                "the client has had an event that is none of this completion's, or of one not kept any more"
            )
        if self._stream is not None and self._id not in self._hub:
            self._id = self._hub.start(self._stream, self._id)
        broadcast = self._hub._run(self.id).broadcast
        if self._after == broadcast.position + 1 and broadcast.over:
            raise AllReadError("the client has had all of the completion")
        if self._after > broadcast.position:
            raise NotKeptError(
                f"the completion has {broadcast.position} chunks, and the client says it has had {self._after}"
            )
        self._stream = None
        self._place = broadcast.subscribe(self._after)
        await self._place.open()

    @property
    def at_end(self) -> bool:
        """Whether the client has had all there ever will be: it need not come back."""
        return self._place is not None and self._place.at_end

    async def read(self, most: int = MAX_BATCH) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, at most so many and at least one; waits for it. An empty list is the end."""
        await self.open()
        assert self._place is not None  # noqa: S101 - just opened
        return await self._place.read(most)

    def leave(self) -> None:
        """Leaves; the completion goes on for others, and for when this one comes back."""
        self._stream = None
        if self._place is not None:
            self._place.leave()

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        return ChatCompletion() if self._place is None else self._place.so_far()
