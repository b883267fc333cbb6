"""`RelaySession`: one answer on its way to one client, which `sse`, `EventSourceResponse` and `aiohttp_response` share.

These doors differ in how they send bytes and how they learn that the
client has left. The bytes come from here: events as the feed returns them, comments during silence, and one last event
when something fails.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs

from together_async.errors import TogetherError
from together_async.models import ChatCompletion
from together_async.relay import shutdown
from together_async.relay.browser_errors import AllReadError, NotKeptError, ServerShutdownError, error_for_browser
from together_async.relay.events import BOM, HEARTBEAT, error_event
from together_async.relay.feed import Feed
from together_async.tasks import handed_over

LOG: Final = logging.getLogger("together_async.relay")
DEFAULT_HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment is sent, as the standard advises (WHATWG HTML, 9.2.7)."""
HEAD_START: Final = 1.0
"""Seconds from the head of the service's response to its first event, after which the client gets its own head. An
error within them can still be a status."""


@attrs.frozen
class End:
    """How a relay ended; given to `on_end`.

    Attributes:
        completion: What had come from the model by then, complete or not. Of a pass-through: without its text.
        error: The exception that ended it; None if the answer is complete, or the client left first.
        left: Whether the client left before the end.
    """

    completion: ChatCompletion
    error: BaseException | None
    left: bool


OnEnd = Callable[[End], Awaitable[None] | None]


def check_times(heartbeat: float | None, grace: float) -> None:
    """Raises ValueError unless both are seconds: `heartbeat` above 0 or None, `grace` from 0."""
    if heartbeat is not None and not (isinstance(heartbeat, (int, float)) and heartbeat > 0):
        raise ValueError(f"heartbeat: got {heartbeat!r}, expected seconds above 0, or None")
    if not (isinstance(grace, (int, float)) and grace >= 0):
        raise ValueError(f"grace: got {grace!r}, expected seconds from 0")


class RelaySession:
    """The bytes of one answer: `first` or `next`, then `next` until it is empty, then `close` and `end` in any case.

    Its states, by the attributes that make them:

    | state     | `_opening`        | `_opened` | `_over` | what it does                                               |
    |-----------|-------------------|-----------|---------|------------------------------------------------------------|
    | new       | None              | False     | False   | nothing was asked for yet                                  |
    | asking    | task: `feed.open` | False     | False   | waits for the service's head; the client may get comments  |
    | beginning | task: `feed.next` | True      | False   | waits for the first bytes, or for an error in their place  |
    | streaming | None              | True      | False   | reads; `_reader` is the task that waits in `feed.next`     |
    | over      | any               | any       | True    | `next` returns b"": after the end, an error, or `close`    |

    `shut_down` starts a timer in any state. When `grace` has passed, `_stopping` is the error that ends the answer: the
    task in `_opening` is cancelled, or the task in `_reader` interrupted; without either, the next `next` sees it.

    Until the first bytes, requests may be retried, which must not be interrupted, so that part runs in a task of its
    own. Afterwards a read may be cancelled and repeated: when a comment is due, a timer cancels the reader. That costs
    no timer for each read.

    Args:
        feed: What is relayed.
        heartbeat: Seconds of silence after which a comment is sent; None sends none.
        grace: Seconds it may go on after the server was told to stop.

    Attributes:
        loop: The event loop it runs in.
        sender: The task that sends its bytes; None where the framework's own task does.
        gone: Whether the client was seen to leave.
        error: The exception that ended it; None before its end, and if the answer is complete.
    """

    def __init__(self, feed: Feed, *, heartbeat: float | None, grace: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.sender: asyncio.Task[None] | None = None
        self.gone = False
        self.error: BaseException | None = None
        self._feed = feed
        self._heartbeat = heartbeat
        self._grace = grace
        self._opening: asyncio.Future[Any] | None = None
        self._opened = False
        self._over = False
        self._commented = False  # whether a comment was sent before the first bytes
        self._reader: asyncio.Task[Any] | None = None
        self._cancelling = 0  # the reader's `cancelling()` when it began to wait
        self._since = 0.0  # when it did, on the loop's clock
        self._interrupted = False  # whether the timer has cancelled it
        self._timer: asyncio.TimerHandle | None = None
        self._stopping: TogetherError | None = None
        self._stop_timer: asyncio.TimerHandle | None = None
        shutdown.register(self)

    def __repr__(self) -> str:
        state = "over" if self._over else "running" if self._opened else "opening"
        return f"<RelaySession {state} {self._feed!r}>"

    async def first(self) -> bytes:
        """Returns the first bytes: the first event, or a comment when the client should get its head without one.

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
        """Returns the next bytes: events, a comment, or the event of an error; empty at the end."""
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
        except Exception as error:  # noqa: BLE001 - the client gets an event, the door raises a foreign error
            self.error = error
            self._over = True
            return error_event(error_for_browser(error), self._feed.end_id())
        return self._after(data)

    def _after(self, data: bytes | None) -> bytes:
        if self._timer is None and self._heartbeat is not None:
            self._timer = self.loop.call_later(self._heartbeat, self._check_silence)
        if data is None:
            return HEARTBEAT
        if not data:
            self._over = True
            self.error = self._feed.error
        return data

    async def _until_open(self, limit_s: float | None) -> bytes | None:
        """Waits for the first bytes, for `limit_s` once the response has begun; None when a comment is due."""
        began = self.loop.time()
        while True:
            opening = self._opening
            assert opening is not None  # noqa: S101 - states "asking" and "beginning"
            left_s = None if self._heartbeat is None else began + self._heartbeat - self.loop.time()
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
                # A byte order mark may only begin a body: after a comment it would spoil the first line.
                return data.removeprefix(BOM) if self._commented and data is not None else data
            self._opened = True
            self._opening = asyncio.ensure_future(self._feed.next())

    async def _wait(self) -> bytes | None:
        """Waits for the next bytes; None when a comment is due."""
        reader = asyncio.current_task(self.loop)
        assert reader is not None  # noqa: S101 - a coroutine of asyncio runs in a task
        self._cancelling = reader.cancelling()
        self._since = self.loop.time()
        self._reader = reader
        try:
            return await self._feed.next()
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            self._interrupted = False
            if reader.uncancel() > self._cancelling:
                raise  # it was cancelled from outside too
            if self._stopping is not None:
                raise self._stopping from None
            return None
        finally:
            self._reader = None
            del reader  # the traceback of a cancelled task keeps this frame, which would keep the task

    def _interrupt(self) -> None:
        if self._reader is not None and not self._interrupted:
            self._interrupted = True
            self._reader.cancel()

    def _check_silence(self) -> None:
        """Interrupts a read that has waited for `heartbeat` seconds; else comes back when one could have."""
        assert self._heartbeat is not None  # noqa: S101 - without it there is no timer
        now = self.loop.time()
        due = (now if self._reader is None else self._since) + self._heartbeat
        if due <= now + 0.001:  # the loop's clock may fire a timer that much early
            self._interrupt()
            due = now + self._heartbeat
        self._timer = self.loop.call_at(due, self._check_silence)

    def end_id(self) -> str | None:
        """Returns the id for an error event that ends the answer; None for an event without an id."""
        return self._feed.end_id()

    # --------------------------------------------------------------------------------------------------------- ending

    def shut_down(self) -> None:
        """Notes that the server was told to stop: an answer that is not over within `grace` ends with an error."""
        if self._stop_timer is None:
            self._stop_timer = self.loop.call_later(self._grace, self._stop)

    def _stop(self) -> None:
        if self._over:
            return
        self._stopping = ServerShutdownError("the server was told to stop")
        # A client that does not read even the last event is given up after the grace has passed once more.
        self._stop_timer = self.loop.call_later(self._grace, self._give_up)
        self._interrupt()
        if self._opening is not None:
            self._opening.cancel()

    def _give_up(self) -> None:
        if self.sender is not None:
            self.sender.cancel()

    def close(self) -> None:
        """Closes what is relayed, without waiting. Twice is fine."""
        if handed_over(self.loop, self.close):
            return
        self._over = True
        self._feed.leave()
        if self._opening is not None:
            self._opening.cancel()
        for timer in (self._timer, self._stop_timer):
            if timer is not None:
                timer.cancel()
        shutdown.unregister(self)

    async def end(self, on_end: OnEnd | None, *, left: bool) -> None:
        """Calls `on_end`, once the session was closed and no task of it is running.

        The caller may be cancelled, even at each of its awaits, as some frameworks do when a client has left; so this
        runs in a task, which is not cut off.
        """
        if self.loop.is_closed():
            return  # its coroutine is destroyed after the end of its loop; no task can run any more
        hidden = sys.exception() is not None  # called in a `finally`: that exception counts more than one of `on_end`
        ending = self.loop.create_task(self._end(on_end, left=left))
        try:
            await all_done({ending})
        except BaseException:
            hidden = True
            raise
        finally:
            if hidden and ending.done() and not ending.cancelled() and ending.exception() is not None:
                LOG.error("on_end of a relay failed", exc_info=ending.exception())
        if not hidden:
            ending.result()

    async def _end(self, on_end: OnEnd | None, *, left: bool) -> None:
        if self._opening is not None:
            await asyncio.wait((self._opening,))
            if not self._opening.cancelled():
                self._opening.exception()  # retrieved: `error` has it already, or the client has left
        await self._feed.aclose()
        error = self.error
        if isinstance(error, TogetherError) and not isinstance(error, AllReadError):
            LOG.log(logging.INFO if isinstance(error, NotKeptError) else logging.WARNING, "a relay ended: %s", error)
        await _call_on_end(on_end, End(self._feed.so_far(), error, left))

    def raise_foreign_error(self) -> None:
        """Raises an error that is not of this package: the client has got its event, the app gets the exception."""
        if self.error is not None and not isinstance(self.error, TogetherError):
            raise self.error


async def _call_on_end(on_end: OnEnd | None, end: End) -> None:
    if on_end is not None:
        result = on_end(end)
        if inspect.isawaitable(result):
            await result


async def finish_unsent(feed: Feed, on_end: OnEnd | None, error: TogetherError | None = None) -> None:
    """Closes a feed that is not sent, and calls `on_end`: for a HEAD request, or a client that can't resume."""
    feed.leave()
    await feed.aclose()
    await _call_on_end(on_end, End(feed.so_far(), error, left=False))


async def all_done(tasks: set[asyncio.Task[None]]) -> None:
    """Waits until all tasks are done, even if the caller is cancelled meanwhile; then that cancellation is raised."""
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
