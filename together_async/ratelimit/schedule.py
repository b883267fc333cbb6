"""Which lanes are worth a look, and in which order, so that those that cannot move cost nothing. Pure.

A lane in which calls wait is either a *candidate*, or it is *parked*. It is parked when a look has shown that its first
call cannot go: until a time, if time alone will let it go, or until an event in that lane. Every event that may let a
call go (`touch`) makes the lane a candidate again. A candidate is looked at only when a place is free, so an event
costs a few heap operations, however many lanes there are.

The heaps keep entries that are no longer right, and drop them when they come up; what is right stands in the dicts.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Final

from together_async.ratelimit.lane import Lane
from together_async.ratelimit.limits import Priority

_SPARE: Final = 64
"""A heap with more entries than twice those that are right, and these, is made anew."""
_PRIORITIES: Final[tuple[Priority, ...]] = ("interactive", "batch")


class Schedule:
    """The candidates, by the numbers of their calls, and the parked lanes, by time."""

    __slots__ = ("_candidates", "_due", "_due_at", "_heaps", "_sequence")

    def __init__(self) -> None:
        self._candidates: dict[Lane, dict[Priority, int]] = {}  # with the number by which each is in a heap
        self._heaps: dict[Priority, list[tuple[int, int, Lane]]] = {"interactive": [], "batch": []}
        self._due_at: dict[Lane, float] = {}
        self._due: list[tuple[float, int, Lane]] = []
        self._sequence = 0  # lanes have no order

    def __repr__(self) -> str:
        return f"<Schedule of {len(self._candidates)} candidates, {len(self._due_at)} parked until a time>"

    def touch(self, lane: Lane) -> None:
        """Makes a lane in which calls wait a candidate: an event may let its first call go."""
        if not lane.queue.length:
            return
        self._due_at.pop(lane, None)
        numbers = self._candidates.get(lane)
        if numbers is None:
            numbers = self._candidates[lane] = {}
        first = lane.queue.first
        for priority in _PRIORITIES:
            head = lane.queue.head(priority)
            if priority == "batch" and first is not None and first is not head:
                head = None  # an interactive call is booked, and goes before it
            if head is None:
                numbers.pop(priority, None)
            elif numbers.get(priority) != head.number:
                numbers[priority] = head.number
                self._sequence += 1
                heap = self._heaps[priority]
                heappush(heap, (head.number, self._sequence, lane))
                if len(heap) > 2 * len(self._candidates) + _SPARE:
                    self._rebuild(priority)

    def update(self, lane: Lane) -> None:
        """Does the same after calls have come or gone, unless those behind the first one of a parked lane."""
        if lane.queue.first is None or lane in self._candidates:
            self.touch(lane)

    def _rebuild(self, priority: Priority) -> None:
        self._heaps[priority] = [
            (numbers[priority], place, lane)
            for place, (lane, numbers) in enumerate(self._candidates.items())
            if priority in numbers
        ]
        heapify(self._heaps[priority])

    def first(self, priority: Priority) -> Lane | None:
        """Returns the candidate whose first call of a priority is the oldest; None if no candidate has one."""
        heap = self._heaps[priority]
        while heap:
            number, _, lane = heap[0]
            numbers = self._candidates.get(lane)
            if numbers is not None and numbers.get(priority) == number:
                return lane
            heappop(heap)
        return None

    def park(self, lane: Lane, at: float) -> None:
        """Puts a lane aside until a time; infinite if only an event in that lane can let its first call go."""
        self._candidates.pop(lane, None)
        if at == math.inf:
            return
        self._due_at[lane] = at
        self._sequence += 1
        heappush(self._due, (at, self._sequence, lane))
        if len(self._due) > 2 * len(self._due_at) + _SPARE:
            self._due = [(due_at, place, parked) for place, (parked, due_at) in enumerate(self._due_at.items())]
            heapify(self._due)

    def remove(self, lane: Lane) -> None:
        """Forgets a lane in which no call waits any more."""
        self._candidates.pop(lane, None)
        self._due_at.pop(lane, None)

    @property
    def next_due(self) -> float:
        """The earliest time for which a lane is parked; infinite without any."""
        due, due_at = self._due, self._due_at
        while due:
            at, _, lane = due[0]
            if due_at.get(lane) == at:
                return at
            heappop(due)
        return math.inf

    def pop_due(self, now: float) -> Lane | None:
        """Returns a lane whose time has come, which is then a candidate; None if there is none."""
        if self.next_due > now:
            return None
        _, _, lane = heappop(self._due)
        self.touch(lane)
        return lane

    def clear(self) -> None:
        """Forgets all lanes."""
        self._candidates.clear()
        self._due_at.clear()
        self._due.clear()
        for heap in self._heaps.values():
            heap.clear()
