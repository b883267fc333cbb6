"""Deadlines that are hardly ever reached: one timer for each second, and not one for each deadline.

A timer of the event loop costs two to three microseconds to set and cancel, and one to three objects for the garbage
collector; every request would pay that for a deadline that is minutes away. So deadlines are grouped by the second
before the one in which they are due. When it comes, those that are left get timers of their own, and are exact.
"""

from __future__ import annotations

import abc
import asyncio
import math


class Deadline(abc.ABC):
    """A moment by which something must have happened. A subclass says what happens if it has not.

    Args:
        at: The moment, on the event loop's clock; infinity for never.

    Attributes:
        at: As given.
        second: The second at which it gets a timer of its own; None for never.
        timer: Its own timer; None before that second.
    """

    __slots__ = ("at", "second", "timer")

    def __init__(self, at: float) -> None:
        self.at = at
        self.second = math.floor(at) - 1 if at < math.inf else None
        self.timer: asyncio.TimerHandle | None = None

    @abc.abstractmethod
    def expire(self) -> None:
        """Called when the moment has come."""


class Deadlines:
    """The deadlines of one event loop: one timer for each second in which something is due, and no timer when idle."""

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
            deadline.timer = self._loop.call_at(deadline.at, deadline.expire)
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
                group[1].cancel()
                del self._waiting[deadline.second]

    def _give_timers(self, second: int) -> None:
        for deadline in self._waiting.pop(second)[0]:
            deadline.timer = self._loop.call_at(deadline.at, deadline.expire)
