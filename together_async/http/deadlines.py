"""Deadlines that are hardly ever reached: a timer for each second, not for each of them.

A timer of the event loop costs two to three microseconds to set and cancel, and an object or three for the garbage
collector to look at, which every request would pay for a deadline that is minutes away. So deadlines wait together, by
the second in which they are due; when that second is near, those that are still there get timers of their own, and are
exact.
"""

from __future__ import annotations

import asyncio
import math


class Deadline:
    """Something that may be late. A subclass says what happens then.

    Args:
        at: When that is, on the event loop's clock; infinity is never.
    """

    __slots__ = ("_timer", "at", "second")

    def __init__(self, at: float) -> None:
        self.at = at
        self.second = math.floor(at) - 1 if at < math.inf else None
        self._timer: asyncio.TimerHandle | None = None

    def late(self) -> None:
        """It is late."""
        raise NotImplementedError


class Deadlines:
    """The deadlines of one event loop. It has a timer for each second in which something is due, none when idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[int | None, tuple[set[Deadline], asyncio.TimerHandle]] = {}

    def add(self, deadline: Deadline) -> None:
        """Watches a deadline."""
        second = deadline.second
        if second is None:
            return
        group = self._waiting.get(second)
        if group is not None:
            group[0].add(deadline)
        elif second <= self._loop.time():
            deadline._timer = self._loop.call_at(deadline.at, deadline.late)
        else:
            self._waiting[second] = ({deadline}, self._loop.call_at(second, self._near, second))

    def discard(self, deadline: Deadline) -> None:
        """Forgets a deadline; twice is fine."""
        if deadline._timer is not None:
            deadline._timer.cancel()
            return
        group = self._waiting.get(deadline.second)
        if group is not None:
            group[0].discard(deadline)
            if not group[0]:
                group[1].cancel()
                del self._waiting[deadline.second]

    def _near(self, second: int) -> None:
        for deadline in self._waiting.pop(second)[0]:
            deadline._timer = self._loop.call_at(deadline.at, deadline.late)
