"""Deadlines: many of them wait on few timers, and only `total` gives up before the event loop has read once more.

A timer of the event loop costs two to three microseconds to set and cancel, and one to three objects for the garbage
collector; every request would pay that for a deadline that is minutes away. So deadlines are grouped by the second
before the one in which they are due. When it comes, those that are left get timers of their own, and are exact. The
timer of the second that was emptied last stays for the next request, which is mostly due in the same: calls that follow
one another set one timer a second.

A timer that fires late proves nothing about the server. While the loop was blocked or the process stopped, the answer
may have come: it waits in the socket, and event loops may run their timers before they look there. So what waits for
the network is ended by a `PatientTimer`, which lets the loop read once more.
"""

from __future__ import annotations

import abc
import asyncio
import math
from collections.abc import Callable
from typing import Final

MAX_GRACE_S: Final = 1.0
"""The longest second look, in seconds. What has come is read within a turn of the loop; a second is enough for the
round trips of a TLS handshake that stood still with the process, and no long wait for a connection that is gone."""
_TURNS: Final = 3
"""Turns of the loop between the timer and the verdict. uvloop runs timers and the callbacks that wait before it polls;
then comes the poll, which receives data, then the task that waits for the data takes it, and then comes the verdict."""


def grace_s(late_s: float, left_s: float = math.inf) -> float:
    """Returns how long a second look lasts: as long as the timer was late, within bounds.

    A loop that is always a little late must still time out, so the second look has no other.

    Args:
        late_s: Seconds from the deadline to the moment at which its timer fired; below 0 if it fired early.
        left_s: Seconds to another deadline, which is exact.

    Returns:
        Seconds, 0 to `MAX_GRACE_S`.
    """
    return max(0.0, min(late_s, left_s, MAX_GRACE_S))


class PatientTimer:
    """A timer for something that waits for the network. It takes a second look before it gives up.

    When it fires late, it waits for as long as it is late, but no longer than `MAX_GRACE_S`. Then, late or not, it lets
    the loop poll once and the waiting tasks take what has come. Whoever has got what it waited for by then cancels the
    timer, or sees for itself in `expire` that nothing is due any more.

    Args:
        loop: The event loop.
        at: When it fires, on the loop's clock.
        expire: What to call after the second look.
        latest: When the second look ends in any case.
    """

    __slots__ = ("_at", "_expire", "_handle", "_latest", "_loop")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, at: float, expire: Callable[[], None], *, latest: float = math.inf
    ) -> None:
        self._loop = loop
        self._at = at
        self._expire = expire
        self._latest = latest
        self._handle: asyncio.Handle | None = loop.call_at(at, self._fire)

    def cancel(self) -> None:
        """Stops the timer, or the second look. Twice is fine."""
        if self._handle is not None:
            self._handle.cancel()

    def _fire(self) -> None:
        now = self._loop.time()
        self._handle = self._loop.call_later(grace_s(now - self._at, self._latest - now), self._turn, _TURNS)

    def _turn(self, left: int) -> None:
        if left:
            self._handle = self._loop.call_soon(self._turn, left - 1)
        else:
            self._handle = None  # it holds this timer
            self._expire()


class Deadline(abc.ABC):
    """A moment by which something must have happened. A subclass says what happens if it has not.

    Args:
        at: The moment, on the event loop's clock; infinity for never.
        latest: When the second look ends at the latest. Equal to `at`, there is no second look.

    Attributes:
        at: As given.
        latest: As given.
        second: The second at which it gets a timer of its own; None for never.
        timer: Its own timer; None before that second.
    """

    __slots__ = ("at", "latest", "second", "timer")

    def __init__(self, at: float, latest: float = math.inf) -> None:
        self.at = at
        self.latest = latest
        self.second = math.floor(at) - 1 if at < math.inf else None
        self.timer: asyncio.TimerHandle | PatientTimer | None = None

    @abc.abstractmethod
    def expire(self) -> None:
        """Called when the moment has come, and the second look has changed nothing."""


class Deadlines:
    """The deadlines of one event loop: one timer for each second in which something is due.

    And at most one more: that of the second that was emptied last.

    Attributes:
        time: The clock of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time = loop.time
        self._waiting: dict[int | None, tuple[set[Deadline], asyncio.TimerHandle]] = {}
        self._idle_second: int | None = None  # whose timer is set, and nothing waits for it
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, deadline: Deadline) -> None:
        """Watches a deadline."""
        second = deadline.second
        if second is None:
            return
        group = self._waiting.get(second)
        if group is not None:
            group[0].add(deadline)
        elif second == self._idle_second and self._idle_timer is not None:
            self._waiting[second] = ({deadline}, self._idle_timer)
            self._idle_second = self._idle_timer = None
        elif second <= self._loop.time():
            self._give_timer(deadline)
        else:
            self._waiting[second] = ({deadline}, self._loop.call_at(second, self._give_timers, second))

    def discard(self, deadline: Deadline) -> None:
        """Forgets a deadline; twice is fine."""
        if deadline.timer is not None:
            deadline.timer.cancel()
            return
        group = self._waiting.get(deadline.second)
        if group is not None:
            group[0].discard(deadline)
            if not group[0]:
                self._drop_idle_timer()
                self._idle_second, self._idle_timer = deadline.second, group[1]
                del self._waiting[deadline.second]
                if self._closed:
                    self._drop_idle_timer()

    def close(self) -> None:
        """Keeps no timer for requests to come; what waits still has its own. Twice is fine."""
        self._closed = True
        self._drop_idle_timer()

    def _drop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_second = self._idle_timer = None

    def _give_timers(self, second: int) -> None:
        group = self._waiting.pop(second, None)
        if group is None:
            self._idle_second = self._idle_timer = None
            return
        for deadline in group[0]:
            self._give_timer(deadline)

    def _give_timer(self, deadline: Deadline) -> None:
        if deadline.latest <= deadline.at:
            deadline.timer = self._loop.call_at(deadline.at, deadline.expire)
        else:
            deadline.timer = PatientTimer(self._loop, deadline.at, deadline.expire, latest=deadline.latest)
