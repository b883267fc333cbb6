"""One answer on its way to one client: what all of this package's doors share.

The doors (`sse`, `EventSourceResponse`, `aiohttp_response`) differ in how they send bytes and how they hear that the
client has left. What is sent is made here: events as they come, comments while nothing comes, one last event when
something goes wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import attrs

from together_async.errors import TogetherError
from together_async.flow.buffered import source_of
from together_async.flow.source import Chunks, Source, close
from together_async.models import ChatCompletion
from together_async.relay import shutdown
from together_async.relay.browser_errors import AllReadError, NotKeptError, ServerShutdownError, error_for_browser
from together_async.relay.events import BOM, DONE, HEARTBEAT, RECONNECT, Format, error_event, render_all, renderer
from together_async.relay.passthrough import Passthrough
from together_async.tasks import error_of
from together_async.wire.sse import encode_event

LOG: Final = logging.getLogger("together_async.relay")
DEFAULT_HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment is sent: what the standard advises (WHATWG HTML, 9.2.7)."""
HEAD_START: Final = 1.0
"""Seconds which a response that has begun may take to its first event before the client gets its own head: until then
an error is a status."""


Relayed = Chunks | Passthrough
"""What the doors take: a stream, what stands for one, any async iterable of chunks; or a pass-through."""


@attrs.frozen
class End:
    """How a relay ended; given to `on_end`.

    Attributes:
        completion: What had come from the model by then, whole or not.
        error: What went wrong, None when nothing did.
        left: Whether the client left before the end.
    """

    completion: ChatCompletion
    error: BaseException | None
    left: bool


OnEnd = Callable[[End], Awaitable[None] | None]


class Feed(Protocol):
    """Bytes for a client, piece by piece."""

    resumable: bool
    """Whether it can continue after an event that a client has had."""
    error: TogetherError | None
    """What went wrong, if the client has been told of it."""

    async def open(self) -> None:
        """Asks for the first response."""
        ...

    async def next(self) -> bytes:
        """Returns the next bytes; empty at the end. It may be cancelled and repeated once it has returned some."""
        ...

    def leave(self) -> None:
        """Ends it at once."""
        ...

    def resume(self, last_event_id: str) -> None:
        """Says, before it is opened, which event the client has had last."""
        ...

    def end_id(self) -> str | None:
        """Returns the id of an event that ends it with an error; None for no id."""
        ...

    async def aclose(self) -> None:
        """Waits, when it has left, until nothing of it is under way."""
        ...

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        ...


class EventFeed:
    """The events of a source, and `[DONE]` at its end."""

    def __init__(self, source: Source, format: Format, *, ids: bool) -> None:
        self._source = source
        self._render = renderer(format)
        self._ids = ids
        self._done = False
        self._begun = False
        self._failure: Exception | None = None  # of the function that makes events
        self.error: TogetherError | None = None
        self.resumable = hasattr(source, "resume")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._source!r}>"

    async def open(self) -> None:
        """Asks for the first response."""
        await self._source.open()

    async def next(self) -> bytes:
        """Returns the next events; empty at the end."""
        while not self._done:
            if self._failure is not None:
                raise self._failure
            chunks = await self._source.read()
            if not chunks:
                self._done = True
                end_id = self.end_id()
                return DONE if end_id is None else encode_event("[DONE]", id=end_id)
            prefix = getattr(self._source, "id_prefix", "") if self._ids else None
            data, self._failure = render_all(self._render, chunks, self._source.position, prefix)
            if not data:
                continue
            if self.resumable and not self._begun:
                self._begun = True
                data = RECONNECT + data
            return data
        return b""

    def end_id(self) -> str | None:
        """Returns the id of the last event, so that a browser that comes back after it is told that this was all.

        None where it was not: a browser's last id stays that of the last chunk it got, and it gets the rest.
        """
        if not (self.resumable and self._ids and self._source.at_end) or self._failure is not None:  # type: ignore[attr-defined]  # where it is resumable
            return None
        return f"{getattr(self._source, 'id_prefix', '')}{self._source.position + 1}"

    def leave(self) -> None:
        """Closes the stream, at once."""
        self._source.leave()

    def resume(self, last_event_id: str) -> None:
        """Says, before it is opened, which event the client has had last."""
        self._source.resume(last_event_id)  # type: ignore[attr-defined]  # where it is resumable

    def so_far(self) -> ChatCompletion:
        """Returns what has come so far."""
        return self._source.so_far()

    async def aclose(self) -> None:
        """Waits, when it has left, until nothing of it is under way."""
        await close(self._source)


def check_times(heartbeat: float | None, grace: float) -> None:
    """Raises ValueError for seconds that are none."""
    if heartbeat is not None and not (isinstance(heartbeat, (int, float)) and heartbeat > 0):
        raise ValueError(f"heartbeat: got {heartbeat!r}, expected seconds above 0, or None")
    if not (isinstance(grace, (int, float)) and grace >= 0):
        raise ValueError(f"grace: got {grace!r}, expected seconds from 0")


def feed_of(stream: Relayed, format: Format, *, ids: bool) -> Feed:
    """Returns what a relay sends of a stream, or of what is like one.

    Raises:
        TypeError, ValueError: No stream; no such format.
    """
    if isinstance(stream, Passthrough):
        if format != "chunks":
            raise ValueError("format: a pass-through has none; its bytes are the service's")
        return stream
    return EventFeed(source_of(stream), format, ids=ids)


class RelaySession:
    """The bytes of one answer: `first`, then `next` until it is empty, and `leave` whatever happens.

    Args:
        feed: What is relayed.
        heartbeat: Seconds of silence after which a comment is sent; None sends none.
        grace: Seconds it may go on when the server is told to stop.
    """

    def __init__(self, feed: Feed, *, heartbeat: float | None, grace: float) -> None:
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._heartbeat = heartbeat
        self._grace = grace
        # Until its first bytes a stream may be asked for again, which must not be interrupted: that is a task.
        self._opening: asyncio.Future[Any] | None = None
        self._opened = False
        self._commented = False  # before the first bytes
        # Afterwards who waits is interrupted when it is time for a comment. That costs no timer for each read.
        self._reader: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._since = 0.0
        self._interrupted = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopping: TogetherError | None = None
        self._stop_timer: asyncio.TimerHandle | None = None
        self.sender: asyncio.Task[None] | None = None  # the task that sends, where there is one
        self.gone = False  # the client has left
        self._over = False
        self.error: BaseException | None = None
        shutdown.enter(self)

    def __repr__(self) -> str:
        state = "over" if self._over else "running" if self._opened else "opening"
        return f"<RelaySession {state} {self._feed!r}>"

    async def first(self) -> bytes:
        """Returns the first bytes: the first event, or a comment when it is time that the client hears something.

        That is after `heartbeat` seconds, or a second after the service has begun its response; without a heartbeat
        never.

        Raises:
            Exception: There will be no answer, and nothing was sent: this can be a status.
        """
        self._opening = asyncio.ensure_future(self._feed.open())
        try:
            data = await self._until_open(None if self._heartbeat is None else HEAD_START)
        except Exception as error:
            self.error = error
            raise
        return self._after(data)

    async def next(self) -> bytes:
        """Returns the next bytes, the event of an error and a comment among them; empty at the end."""
        if self._over:
            return b""
        if not self._opened and self._opening is None:
            self._opening = asyncio.ensure_future(self._feed.open())
        try:
            if self._stopping is not None:
                raise self._stopping
            data = await (self._wait() if self._opening is None else self._until_open(self._heartbeat))
        except AllReadError:
            self._over = True
            return b""
        except Exception as error:  # noqa: BLE001 - the client is told, and the door raises what is none of ours
            self.error = error
            self._over = True
            return error_event(error_for_browser(error), self._feed.end_id())
        return self._after(data)

    def _after(self, data: bytes | None) -> bytes:
        if self._timer is None and self._heartbeat is not None:
            self._timer = self._loop.call_later(self._heartbeat, self._look)
        if data is None:
            return HEARTBEAT
        if not data:
            self._over = True
            self.error = self._feed.error
        return data

    async def _until_open(self, limit_s: float | None) -> bytes | None:
        """Waits for the first bytes, once open for `limit_s`; None when it is time for a comment."""
        began = self._loop.time()
        while True:
            opening = self._opening
            assert opening is not None  # noqa: S101 - begun, and not yet through
            left_s = None if self._heartbeat is None else began + self._heartbeat - self._loop.time()
            if self._opened and limit_s is not None:
                left_s = limit_s if left_s is None else min(limit_s, left_s)
            await asyncio.wait((opening,), timeout=None if left_s is None else max(0.0, left_s))
            if not opening.done():
                self._commented = True
                return None
            if self._stopping is not None:
                raise self._stopping
            data: bytes | None = opening.result()
            if self._opened:
                self._opening = None
                # A byte order mark is one at the beginning alone: after a comment it would spoil the first line.
                return data.removeprefix(BOM) if self._commented and data is not None else data
            self._opened = True
            self._opening = asyncio.ensure_future(self._feed.next())

    async def _wait(self) -> bytes | None:
        """Waits for the next bytes; None when it is time for a comment."""
        reader = asyncio.current_task(self._loop)
        assert reader is not None  # noqa: S101 - a coroutine of asyncio's
        self._cancelling = reader.cancelling()
        self._since = self._loop.time()
        self._reader = reader
        try:
            return await self._feed.next()
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            self._interrupted = False
            if reader.uncancel() > self._cancelling:
                raise  # somebody else means it
            if self._stopping is not None:
                raise self._stopping from None
            return None
        finally:
            self._reader = None
            del reader  # a task that is cancelled here keeps this frame, which would keep the task

    def _interrupt(self) -> None:
        if self._reader is not None and not self._interrupted:
            self._interrupted = True
            self._reader.cancel()

    def _look(self) -> None:
        """Interrupts who has waited for so long; else looks again when that could be."""
        assert self._heartbeat is not None  # noqa: S101 - there is a timer
        now = self._loop.time()
        due = (now if self._reader is None else self._since) + self._heartbeat
        if due <= now + 0.001:  # the loop's clock may fire a timer that much early
            self._interrupt()
            due = now + self._heartbeat
        self._timer = self._loop.call_at(due, self._look)

    def end_id(self) -> str | None:
        """Returns the id of an event that ends it with an error; None for no id."""
        return self._feed.end_id()

    # --------------------------------------------------------------------------------------------------------- ending

    def shut_down(self) -> None:
        """The server is told to stop: what is not through when `grace` is over ends with an event that says so."""
        if self._stop_timer is None:
            self._stop_timer = self._loop.call_later(self._grace, self._stop)

    def _stop(self) -> None:
        if self._over:
            return
        self._stopping = ServerShutdownError("the server was told to stop")
        # A client that does not even read the last event is not waited for.
        self._stop_timer = self._loop.call_later(self._grace, self._give_up)
        self._interrupt()
        if self._opening is not None:
            self._opening.cancel()

    def _give_up(self) -> None:
        if self.sender is not None:
            self.sender.cancel()

    def leave(self) -> None:
        """Closes what is relayed, at once. Twice is fine."""
        self._over = True
        self._feed.leave()
        if self._opening is not None:
            self._opening.cancel()
        for timer in (self._timer, self._stop_timer):
            if timer is not None:
                timer.cancel()
        shutdown.leave(self)

    async def end(self, on_end: OnEnd | None, *, left: bool) -> None:
        """Says how it ended, once it has left and nothing of it is under way.

        Whoever waits may be cancelled, even at every `await` of theirs, as some frameworks do when a client has left:
        by a task, that cuts nothing off.
        """
        hidden = sys.exception() is not None  # where this is called in a `finally`: that counts more than ours
        ending = self._loop.create_task(self._end(on_end, left=left))
        try:
            await _all_done({ending})
        except BaseException:
            hidden = True
            raise
        finally:
            if hidden and not ending.cancelled() and ending.exception() is not None:
                LOG.error("on_end of a relay failed", exc_info=ending.exception())
        if not hidden:
            ending.result()

    async def _end(self, on_end: OnEnd | None, *, left: bool) -> None:
        if self._opening is not None:
            await asyncio.wait((self._opening,))
            if not self._opening.cancelled():
                self._opening.exception()  # it is told elsewhere, or nobody is left to tell
        await self._feed.aclose()
        error = self.error
        if isinstance(error, TogetherError) and not isinstance(error, AllReadError):
            LOG.log(logging.INFO if isinstance(error, NotKeptError) else logging.WARNING, "a relay ended: %s", error)
        await _say(on_end, End(self._feed.so_far(), error, left))

    def raise_what_is_not_ours(self) -> None:
        """Raises what somebody's function raised: the client has been told, now its author is."""
        if self.error is not None and not isinstance(self.error, TogetherError):
            raise self.error


async def _say(on_end: OnEnd | None, end: End) -> None:
    if on_end is not None:
        said = on_end(end)
        if inspect.isawaitable(said):
            await said


async def finish_unsent(feed: Feed, on_end: OnEnd | None, error: TogetherError | None = None) -> None:
    """Ends what was not asked for: a request wants its head only, or has had everything."""
    feed.leave()
    await feed.aclose()
    await _say(on_end, End(feed.so_far(), error, left=False))


async def run(relaying: RelaySession, pump: Coroutine[Any, Any, None], gone: Coroutine[Any, Any, None]) -> bool:
    """Runs what sends until it is through or the client has gone; returns whether the client left.

    Nothing of it is under way when this returns, by whatever way.

    Args:
        relaying: What is sent.
        pump: Sends it all. An `OSError` from it says that the client has gone.
        gone: Returns when the client has gone.
    """
    loop = asyncio.get_running_loop()
    sending, watching = loop.create_task(pump), loop.create_task(gone)
    tasks = {sending, watching}
    relaying.sender = sending
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = not sending.done()
        relaying.gone = watching.done()
        relaying.leave()
        relaying.sender = None
        for task in tasks:
            task.cancel()
        await _all_done(tasks)
        for task in tasks:
            error_of(task)  # of what watches any error is as good as the client's leaving
    if left or sending.cancelled():
        return True
    if isinstance(sending.exception(), OSError) and sending.exception() is not relaying.error:
        return True
    sending.result()
    return False


async def _all_done(tasks: set[asyncio.Task[None]]) -> None:
    """Waits for tasks that were cancelled, even when the one who waits is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # or it holds this frame, which holds it
