"""`Hub`: keeps completions running while their browsers reconnect.

A browser that lost its connection comes back with the id of the last event it got (`Last-Event-ID`, WHATWG HTML, 9.2.5)
and gets the rest from there. What a hub keeps is bounded in number, size and time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, Callable, Iterator, Mapping
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
"""Chunks of a completion that are kept as they came. A reader that is further behind gets the missing ones as one."""
_MIB: Final = 1024 * 1024


class _KeptCompletion:
    """A completion of a hub, running or complete, and its timer."""

    __slots__ = ("broadcast", "id_given", "loop", "size", "timer")

    def __init__(self, broadcast: Broadcast, *, id_given: bool) -> None:
        self.broadcast = broadcast
        self.loop = asyncio.get_running_loop()
        self.id_given = id_given  # by the app, so it may be one that can be guessed
        self.size = 0  # bytes, by estimate, as the hub's sum has it
        self.timer: asyncio.TimerHandle | None = None  # stops it, or forgets it, unless a reader comes


def _broadcast(kept: Mapping[str, _KeptCompletion], id: str) -> Broadcast:
    """Returns the broadcast of a completion.

    Raises:
        NotKeptError: No completion is kept under this id.
    """
    completion = kept.get(id)
    if completion is None:
        raise NotKeptError("no completion is kept under this id: none was, it is forgotten, or it ran elsewhere")
    return completion.broadcast


class Hub:
    """Completions under ids, for readers that come, go and come back, from this tab or another.

    ```python
    hub = Hub()

    @app.post("/chat/{id}")
    async def ask(id: str, question: Question):
        hub.start(client.stream(question.text, model=MODEL), id)

    @app.get("/chat/{id}")  # new EventSource("/chat/" + id)
    async def answer(id: str):
        return EventSourceResponse(hub.join(id))
    ```

    A completion runs whether or not it has a reader, for `abandon` seconds without one. When it is complete it is kept
    for `keep` seconds. Leave the `async with` block, or call `aclose`, to end all of them.

    A hub works in one process, so behind several workers a browser has to come back to the same worker. Nothing in its
    interface depends on that: readers are found by id and position, and get nothing but bytes and ids.

    Args:
        max_streams: How many completions may be kept, from 1. Where there are so many, completions that are complete
            and have no reader make room, the oldest first; where there is no such completion, `start` raises.
        max_size: Most bytes of all completions together, by estimate, from 1. They make room in the same way; a running
            completion that still does not fit is stopped.
        keep: Seconds for which a completion is kept after its end or its last reader, from 0.
        abandon: Seconds for which a completion runs without a reader, before its first and after its last, from 0; None
            lets it run to its end.

    Raises:
        ValueError: A value is out of range.
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
        self._kept: dict[str, _KeptCompletion] = {}  # the oldest first
        self._size = 0

    def __repr__(self) -> str:
        running = sum(not completion.broadcast.over for completion in self._kept.values())
        return f"<Hub {running} running, {len(self._kept) - running} kept, {self._size} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._kept))

    def __contains__(self, id: object) -> bool:
        return id in self._kept

    @property
    def size(self) -> int:
        """Bytes of all completions that are kept, by estimate."""
        return self._size

    # ----------------------------------------------------------------------------------------------------- completions

    def start(self, stream: Chunks, id: str | None = None) -> str:
        """Starts a completion, and returns its id. It begins at once, whether or not it has a reader.

        Args:
            stream: A stream that is not yet open, or any other async iterable of chunks.
            id: The id to keep it under: a str without control characters. None makes one that can't be guessed. Whoever
                knows the id can read the answer.

        Raises:
            TypeError: `stream` is not a stream.
            IdError: The id is taken, or a header can't hold it. It is a ValueError; a relay answers 409 or 400.
            QueueFullError: There is no room: all completions that are kept are running or have a reader. Try again
                later, or raise `max_streams`.
            RuntimeError: There is no running event loop, as in an endpoint without `async`, which runs in a thread.
        """
        asyncio.get_running_loop()  # raises before anything is kept
        key = uuid.uuid4().hex if id is None else id
        if not (isinstance(key, str) and key and key.isprintable()):
            raise IdError(f"id: got {key!r}, expected a text without control characters", status_code=400)
        if key in self._kept:
            text = f"id: there is a completion with the id {key!r}; join it, or take another id"
            raise IdError(text, status_code=409)
        if not self._make_room(streams=1):
            raise QueueFullError(
                f"the hub keeps {len(self._kept)} completions, all of them running or being read, expected at most "
                f"{self.max_streams}; try again later, or raise max_streams"
            )
        broadcast = Broadcast(stream, size=_WINDOW, on_empty="continue")
        completion = self._kept[key] = _KeptCompletion(broadcast, id_given=id is not None)
        broadcast.on_change = lambda: self._note_change(key, completion)
        broadcast.start()
        self._note_change(key, completion)
        return key

    def join(self, id: str, last_event_id: str = "") -> HubReader:
        """Returns a reader of a completion: from its beginning, or after the event whose id is given.

        `EventSourceResponse` and `aiohttp_response` pass on the request's `Last-Event-ID` by themselves. What has come
        since then is one chunk; the rest comes as it is generated.

        Args:
            id: The id that `start` returned.
            last_event_id: The id of the last event that the client has; empty reads from the beginning.

        Raises (when it is opened):
            NotKeptError: No completion is kept under this id; a relay answers 410.
        """
        reader = HubReader(self.start, self._kept, id)
        if last_event_id:
            reader.resume(last_event_id)
        return reader

    def open(self, stream: Chunks, id: str | None = None) -> HubReader:
        """Starts a completion and joins it: for a page that asks and reads in one request.

        A request that comes back with a `Last-Event-ID` joins the completion which that names, if the hub made its id,
        or if it is the `id` given here; the new stream is then not opened, and nothing is sent again.

        Args:
            stream: As for `start`.
            id: As for `start`, but a completion that is already kept under it is joined.

        Raises:
            TypeError: `stream` is not a stream.

        Raises (when it is opened):
            NotKeptError: The client came back, and its completion is not kept any more.
            IdError, QueueFullError: As `start` raises them.
        """
        if not isinstance(stream, AsyncIterable):
            raise stream_type_error(stream)
        return HubReader(self.start, self._kept, id, stream)

    async def stop(self, id: str) -> bool:
        """Stops a completion, as a stop button does, and returns whether it was running.

        Its readers get `StoppedError`, after what had come by then. That is kept like a complete one.
        """
        completion = self._kept.get(id)
        if completion is None or completion.broadcast.over:
            return False
        completion.broadcast.leave(StoppedError("the completion was stopped"))
        await completion.broadcast.aclose()
        return True

    def so_far(self, id: str) -> ChatCompletion:
        """Returns what has come of a completion so far.

        Raises:
            NotKeptError: No completion is kept under this id.
        """
        return _broadcast(self._kept, id).so_far()

    async def aclose(self) -> None:
        """Ends all completions and forgets them. Their tasks have ended when this returns; twice is fine."""
        broadcasts = [completion.broadcast for completion in self._kept.values()]
        for key in tuple(self._kept):
            self._forget(key)
        for broadcast in broadcasts:
            broadcast.leave()  # all of them at once, before any is waited for
        for broadcast in broadcasts:
            await broadcast.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------------------------------------------- the bounds

    def _note_change(self, id: str, completion: _KeptCompletion) -> None:
        """Follows a change of a completion: chunks have come, a reader has come or left, or it has ended."""
        if self._kept.get(id) is not completion:
            return
        broadcast = completion.broadcast
        self._size += broadcast.kept - completion.size
        completion.size = broadcast.kept
        if self._size > self.max_size and not self._make_room() and not broadcast.over:
            broadcast.leave(
                TooLargeError(
                    f"all completions of this hub have {self._size} bytes, expected at most {self.max_size}; this one "
                    "was stopped. Raise max_size, or keep for a shorter time"
                )
            )
        if self._kept.get(id) is not completion:
            return  # it was forgotten to make room
        wait_s = self.keep if broadcast.over else self.abandon
        if broadcast.consumers or wait_s is None:
            if completion.timer is not None:
                completion.timer.cancel()
                completion.timer = None
        elif completion.timer is None or broadcast.over:
            if completion.timer is not None:
                completion.timer.cancel()
            completion.timer = completion.loop.call_later(wait_s, self._expire, id, completion)

    def _expire(self, id: str, completion: _KeptCompletion) -> None:
        """Forgets a completion that has ended, stops one that runs; it had no reader for as long as may be."""
        completion.timer = None
        if completion.broadcast.over:
            if self._kept.get(id) is completion:
                self._forget(id)
        else:
            error = StoppedError(f"the completion was stopped: nobody read it for {self.abandon:g} s")
            completion.broadcast.leave(error)

    def _make_room(self, streams: int = 0) -> bool:
        """Forgets completions that have ended and have no reader, the oldest first, until there is room.

        Args:
            streams: For how many more completions there must be room, besides the size.

        Returns:
            Whether there is room now.
        """
        for key, completion in tuple(self._kept.items()):
            if len(self._kept) + streams <= self.max_streams and self._size <= self.max_size:
                break
            if completion.broadcast.over and not completion.broadcast.consumers:
                self._forget(key)
        return len(self._kept) + streams <= self.max_streams and self._size <= self.max_size

    def _forget(self, id: str) -> None:
        completion = self._kept.pop(id)
        self._size -= completion.size
        if completion.timer is not None:
            completion.timer.cancel()
            completion.timer = None
        completion.broadcast.on_change = None


class HubReader(Loopable):
    """A reader of one completion of a hub. Made by `Hub.join` and `Hub.open`; to be relayed, or for a loop.

    Args:
        start: Starts a completion, and returns its id.
        kept: The completions of the hub.
        id: The completion's id; None takes it from the client's last event, or from `start`.
        stream: The stream to start if there is no completion yet; None never starts one.
    """

    __slots__ = ("__weakref__", "_after", "_id", "_id_given", "_kept", "_start", "_stream", "_subscription")

    def __init__(
        self,
        start: Callable[[Chunks, str | None], str],
        kept: Mapping[str, _KeptCompletion],
        id: str | None,
        stream: Chunks | None = None,
    ) -> None:
        super().__init__()
        self._start = start
        self._kept = kept
        self._id = id
        self._id_given = id is not None
        self._stream = stream
        self._after: int | None = 0  # None if the client's last event is not of this completion
        self._subscription: Subscription | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._id!r} at {self.position}>"

    @property
    def id(self) -> str:
        """The completion's id; empty before it is opened, if the hub makes it."""
        return self._id or ""

    @property
    def id_prefix(self) -> str:
        """What stands before the position in the ids of events, so that an id names the completion too."""
        return f"{self.id}:"

    @property
    def position(self) -> int:
        """The position of the last chunk that was read; before the first read, of the client's last event."""
        return (self._after or 0) if self._subscription is None else self._subscription.position

    def resume(self, last_event_id: str) -> None:
        """Makes it start after this event. A client can't reach another completion with a forged id."""
        key, colon, position = last_event_id.rpartition(":")
        known = bool(colon and key) and position.isascii() and position.isdecimal() and len(position) < 10
        self._stream = None
        if self._id_given:
            known = known and key == self._id
        else:
            completion = self._kept.get(key)
            known = known and completion is not None and not completion.id_given
            self._id = key if known else None  # nothing that a client sends is sent back
        self._after = int(position) if known else None

    async def open(self) -> None:
        """Finds the completion, or starts it; returns once the service has begun its response."""
        if self._subscription is not None:
            return
        if self._after is None:
            raise NotKeptError("the client's last event is of another completion, or of one not kept any more")
        if self._stream is not None and self._id not in self._kept:
            self._id = self._start(self._stream, self._id)
        broadcast = _broadcast(self._kept, self.id)
        if self._after == broadcast.position + 1 and broadcast.over:
            raise AllReadError("the client has had all of the completion")
        if self._after > broadcast.position:
            raise NotKeptError(
                f"the completion has {broadcast.position} chunks, and the client says it has had {self._after}"
            )
        self._stream = None
        self._subscription = broadcast.subscribe(self._after)
        await self._subscription.open()

    @property
    def at_end(self) -> bool:
        """Whether the last chunk has been read and no other will come: the client need not come back."""
        return self._subscription is not None and self._subscription.at_end

    async def read(self, most: int = MAX_BATCH) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, from 1 to `most`, as soon as there is one; an empty list is the end."""
        await self.open()
        assert self._subscription is not None  # noqa: S101 - just opened
        return await self._subscription.read(most)

    def leave(self) -> None:
        """Stops reading. The completion goes on, for other readers and for a client that comes back."""
        self._stream = None
        if self._subscription is not None:
            self._subscription.leave()

    def so_far(self) -> ChatCompletion:
        """Returns what has come from the model so far, also what this reader has not read."""
        return ChatCompletion() if self._subscription is None else self._subscription.so_far()
