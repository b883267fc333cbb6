"""Reservations, and the order in which the waiting ones of one model get their turns. Pure.

First come, first served within a priority; a call that asks again keeps its old number, and with it its place. Of two
priorities the interactive one goes first, but while both wait, every `BATCH_TURN_EVERY`-th turn is the batch's.
Where the calls of all models compete for places, `Admission` chooses the priority instead.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from together_async.ratelimit.estimator import Estimator, Size
from together_async.ratelimit.limits import Priority

if TYPE_CHECKING:
    from together_async.ratelimit.lane import Lane

WAITING, BOOKED, GRANTED, ENDED = range(4)
"""The states of a reservation, in the order in which it passes through them; a booked one may step back to waiting."""
BATCH_TURN_EVERY: Final = 5
"""While both priorities wait, every turn with this number is the batch's."""
COMPACT_ABOVE: Final = 64
"""A queue with more withdrawn reservations than this, and more than waiting ones, is rebuilt without them."""


class Reservation:
    """A call's place: waiting, then under way, until it is released.

    Attributes:
        lane: The model's lane.
        state: WAITING, BOOKED, GRANTED or ENDED.
        tokens: Tokens the call is expected to use. Estimated from `size`, if that is given, when it is booked.
        size: The request's size; None when the caller gave a number of tokens.
        priority: "interactive" or "batch".
        number: Its place in the order of arrival. A call that asks again brings its number, and keeps its place.
        max_pause_s: The call fails instead of waiting for a longer pause; infinite for any pause.
        counts_as_queued: Whether `Limits.max_queued` counts it.
        careful_start: Whether the call waits for the first answer of a model whose limits are not known.
        blind: Whether it was granted before the service had reported a limit.
        sent_number: Which of the model's requests it is, as they are sent, from 1; 0 before it is granted.
        refused: Whether it was answered with a 429.
        granted_at: When it was granted; None before.
        costs: Requests and tokens that are booked for it in the lane's buckets.
        booked_totals: `Bucket.booked` of both buckets when it was granted.
        answered: Whether it no longer counts as unanswered.
        settled: Whether the tokens it really used have been booked in place of the expected ones.
        epoch: The number of the event loop it belongs to, as the admission counts them.
        waiter: The future that its driver wakes; None when nothing waits for it.
    """

    __slots__ = (
        "answered",
        "blind",
        "booked_totals",
        "careful_start",
        "costs",
        "counts_as_queued",
        "epoch",
        "granted_at",
        "lane",
        "max_pause_s",
        "number",
        "priority",
        "refused",
        "sent_number",
        "settled",
        "size",
        "state",
        "tokens",
        "waiter",
    )

    def __init__(
        self,
        lane: Lane,
        tokens: float | Size,
        *,
        priority: Priority,
        number: int,
        max_pause_s: float,
        counts_as_queued: bool,
        careful_start: bool,
        epoch: int,
    ) -> None:
        self.lane = lane
        self.state = WAITING
        self.size = tokens if isinstance(tokens, Size) else None
        self.tokens = 0.0 if isinstance(tokens, Size) else tokens
        self.priority: Priority = priority
        self.number = number
        self.max_pause_s = max_pause_s
        self.counts_as_queued = counts_as_queued
        self.careful_start = careful_start
        self.blind = False
        self.sent_number = 0
        self.refused = False
        self.granted_at: float | None = None
        self.costs = self.booked_totals = (0.0, 0.0)
        self.answered = self.settled = False
        self.epoch = epoch
        self.waiter: Any = None

    def __repr__(self) -> str:
        state = ("waiting", "first in line", "under way", "ended")[self.state]
        return f"<Reservation {self.number} of {self.model}, {self.tokens:g} tokens, {state}>"

    @property
    def model(self) -> str:
        """The model's name."""
        return self.lane.model

    @property
    def estimator(self) -> Estimator:
        """What was learned about the sizes of the model's requests."""
        return self.lane.estimator

    @property
    def timed(self) -> bool:
        """Whether the lane's congestion window needs the latency of the response."""
        return self.lane.window is not None

    @property
    def granted(self) -> bool:
        """Whether it is under way."""
        return self.state == GRANTED


class Queue:
    """The waiting calls of one model.

    Attributes:
        first: The one that is booked and goes next; None before one is chosen.
        length: How many wait, the first included.
        uncounted: How many of them `Limits.max_queued` does not count.
        interactive_turns: Turns since the batch had one, while it waited.
        shortest_max_pause_s: No waiting call has a lower `max_pause_s`; infinite when no call waits. Whoever looks at
            all of them sets it anew (`unwilling`); calls that go do not raise it, which would cost each a search.
    """

    __slots__ = ("_calls", "_withdrawn", "first", "interactive_turns", "length", "shortest_max_pause_s", "uncounted")

    def __init__(self) -> None:
        self.first: Reservation | None = None
        self.length = self.uncounted = self.interactive_turns = 0
        self.shortest_max_pause_s = math.inf
        self._calls: dict[Priority, deque[Reservation]] = {"interactive": deque(), "batch": deque()}
        self._withdrawn = 0  # reservations that have ended and are still in a deque

    def __repr__(self) -> str:
        return f"<Queue of {self.length}>"

    def count(self, reservation: Reservation) -> None:
        """Counts a call that begins to wait."""
        self.length += 1
        self.shortest_max_pause_s = min(self.shortest_max_pause_s, reservation.max_pause_s)

    def add(self, reservation: Reservation) -> None:
        """Puts a call behind those that came before it; usually the last place."""
        calls = self._calls[reservation.priority]
        if not calls or calls[-1].number < reservation.number:
            calls.append(reservation)
        else:
            number = reservation.number
            calls.insert(next(place for place, other in enumerate(calls) if other.number >= number), reservation)

    def precedes_first(self, reservation: Reservation) -> bool:
        """Returns whether a new call goes before the one that is booked."""
        first = self.first
        if first is None:
            return False
        if reservation.priority == first.priority:
            return reservation.number < first.number
        return reservation.priority == "interactive" and self.interactive_turns < BATCH_TURN_EVERY - 1

    def step_back(self) -> None:
        """Puts the first call back at the head of its priority, since another is sent before it."""
        first = self.first
        if first is not None:
            first.state = WAITING
            self._calls[first.priority].appendleft(first)
            self.first = None

    def head(self, priority: Priority) -> Reservation | None:
        """Returns the oldest waiting call of a priority; None if there is none."""
        first = self.first
        if first is not None and first.priority == priority:
            return first
        calls = self._live(priority)
        return calls[0] if calls else None

    def next_priority(self) -> Priority:
        """Returns the priority whose turn it is among the calls of this model."""
        if self.head("interactive") is None:
            return "batch"
        passed_over = self.interactive_turns >= BATCH_TURN_EVERY - 1 and self.head("batch") is not None
        return "batch" if passed_over else "interactive"

    def pop(self, priority: Priority | None = None) -> Reservation | None:
        """Removes and returns the call that is to be the first; None if there is none.

        Args:
            priority: Whose oldest call it is; None for the priority whose turn it is.
        """
        calls = self._live(self.next_priority() if priority is None else priority)
        return calls.popleft() if calls else None

    def grant_first(self) -> None:
        """Removes the first call, whose turn has come."""
        first, self.first = self.first, None
        self._count_down()
        if first is not None and first.priority != "batch" and self._live("batch"):
            self.interactive_turns += 1

    def remove(self, reservation: Reservation) -> None:
        """Removes a call that gives up or is turned away."""
        self._count_down()
        if reservation is self.first:
            self.first = None
        else:
            self._withdrawn += 1
            if self._withdrawn > COMPACT_ABOVE and self._withdrawn > self.length:
                self._compact(reservation)
        reservation.state = ENDED

    def _count_down(self) -> None:
        self.length -= 1
        if not self.length:
            self.shortest_max_pause_s = math.inf

    def unwilling(self, pause_s: float) -> list[Reservation]:
        """Returns the waiting calls that do not wait for a pause of so many seconds. They are to be removed."""
        if pause_s <= self.shortest_max_pause_s:
            return []
        found = []
        self.shortest_max_pause_s = math.inf
        for reservation in self.waiting():
            if pause_s > reservation.max_pause_s:
                found.append(reservation)
            else:
                self.shortest_max_pause_s = min(self.shortest_max_pause_s, reservation.max_pause_s)
        return found

    def _compact(self, withdrawn: Reservation) -> None:
        for calls in self._calls.values():
            live = [other for other in calls if other.state != ENDED and other is not withdrawn]
            calls.clear()
            calls.extend(live)
        self._withdrawn = 0

    def _live(self, priority: Priority) -> deque[Reservation]:
        """Returns the calls of a priority, whose first one still waits."""
        calls = self._calls[priority]
        while calls and calls[0].state == ENDED:
            calls.popleft()
            self._withdrawn -= 1
        return calls

    def waiting(self) -> Iterator[Reservation]:
        """Yields the calls that wait, in the order of their numbers within each priority."""
        if self.first is not None:
            yield self.first
        for calls in self._calls.values():
            yield from (reservation for reservation in tuple(calls) if reservation.state == WAITING)

    def clear(self) -> None:
        """Forgets the calls that wait; they have ended."""
        for reservation in self.waiting():
            reservation.state = ENDED
        for calls in self._calls.values():
            calls.clear()
        self.first = None
        self.length = self.uncounted = self._withdrawn = 0
        self.shortest_max_pause_s = math.inf
