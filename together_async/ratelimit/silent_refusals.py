"""`SilentRefusals`: what 429s show that report no limit. Pure.

Such a refusal may mean that a limit was reached, that the service is not ready yet, or nothing at all: some gateways
refuse one request in ten whatever is sent. The outcomes of the requests sent around it show which. All refusals of
requests that were sent before the first of them came back are one event, and each of them makes it be judged anew:

* Of the requests sent from the first refused one on, under half are refused: a stray. It shows nothing.
* No request of the last seconds was accepted: the service takes nothing at present.
* Otherwise a limit was reached, and what was accepted in the last seconds shows how high it is.

Two services are judged by all of their recent requests instead. One that has reported its limits, which are kept,
refuses strays as long as under a third are refused. And once a rate has been found, each event shows where the limit
is, unless events go on although requests go more and more slowly: such a service refuses by chance, and its refusals
are strays as well, unless more of them come than strays would explain: that is a limit. If the next event then comes
only where that limit is, nothing was refused by chance, and more events are needed before it is assumed again.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from enum import Enum
from typing import Final, NamedTuple

STRAY_OF: Final = 5
"""With fewer requests than these a stray cannot be told from a limit."""
RECENT_OF: Final = 12
"""Where all recent requests are looked at: of fewer requests than these up to three refusals show nothing."""
STRAY_SHARE: Final = 0.5
STRAY_SHARE_RECENT: Final = 0.33
"""Refusals are strays below this share of the requests sent from the first refused one on; and of all recent requests,
where those are looked at."""
SLOWER: Final = 0.95
"""Requests go more slowly than before if they go at less than this share of the rate that was accepted."""
BY_CHANCE_OF: Final = 3
BY_CHANCE_SHARE: Final = 0.4
BY_CHANCE_RATE: Final = 0.6
"""A service refuses by chance if so many events come although requests go more and more slowly, by now at less than
this share of the rate at the first, and less than this share of them is refused."""
MOST_EVENTS: Final = 8
"""The most events that are needed. With 12 an account that also refuses one in ten by chance is used half as well; with
4 an account of a request a second refuses two of three."""
COUNTED_S: Final = 10.0
"""Seconds over which the accepted requests are counted, at most."""
LEAST_COUNTED_S: Final = 1.0
LEAST_EMPTIED_S: Final = 0.1
"""The same at least: at first a service has capacity saved up, which it gives at once; later it has none."""
_MARK_EVERY_S: Final = 0.05


class Cause(Enum):
    """What an event shows."""

    STRAY = "stray"
    LIMIT = "limit"
    NOTHING_ACCEPTED = "nothing accepted"


class Judgement(NamedTuple):
    """What the refusals show so far.

    Attributes:
        cause: What they mean.
        accepted: Requests per second that were accepted lately.
        again: Whether the same event was judged before.
        since_last_s: Seconds from the event before this one to this one; infinite without any.
    """

    cause: Cause
    accepted: float
    again: bool
    since_last_s: float


class SilentRefusals:
    """The requests that were sent lately, and those that were refused. Requests are numbered as they are sent, from 1.

    Attributes:
        marks: When how many had been sent: times and numbers.
        best: Requests per second that were accepted before more and more refusals came.
        next_mark_at: When the next mark is due.
        by_chance: Whether the service seems to refuse by chance, whatever is sent.
    """

    __slots__ = (
        "_accepted",
        "_began_at",
        "_emptied_at",
        "_events",
        "_events_needed",
        "_finding",
        "_first",
        "_last",
        "_length_s",
        "_limit",
        "_previous_at",
        "_refused",
        "_row",
        "_seen",
        "_since",
        "best",
        "by_chance",
        "marks",
        "next_mark_at",
    )

    def __init__(self) -> None:
        self.marks: deque[tuple[float, int]] = deque(maxlen=int(COUNTED_S / _MARK_EVERY_S))
        self.next_mark_at = -math.inf
        self.by_chance = False
        self.best = 0.0
        self._refused: list[int] = []  # of those that are counted, in order
        self._began_at = self._previous_at = -math.inf  # the event, and the one before
        self._emptied_at = -math.inf
        self._finding = False
        self._limit = False  # whether the event shows one
        self._events_needed = BY_CHANCE_OF
        self._accepted = 0.0  # per second, in the event
        self._row = (0, 0)  # requests sent more slowly since then, and refused ones
        self._events = 0  # in which they were refused
        self._seen = (0, 0)  # requests in this event, and refused ones
        self._first = self._last = 0  # the first request refused in the event, and the last one that was sent before
        self._since = 1  # the first request of those that are counted
        self._length_s = 0.0  # seconds in which they were sent

    def __repr__(self) -> str:
        return f"<SilentRefusals: {len(self._refused)} lately>"

    def mark(self, number: int, now: float) -> None:
        """Records that a request goes. Call it when `next_mark_at` has come."""
        self.marks.append((now, number))
        self.next_mark_at = now + _MARK_EVERY_S

    def sent_since(self, time: float, last: int) -> int:
        """Returns how many requests were sent since a time, as far as the marks go; `last` is the last one's number."""
        first = last + 1
        for at, number in reversed(self.marks):
            if at < time:
                break
            first = number
        return max(0, last + 1 - first)

    def judge(self, number: int, sent_at: float, sent: int, now: float, *, known: bool, finding: bool) -> Judgement:
        """Records a refusal, and judges the event that it belongs to.

        Args:
            number: The request's number.
            sent_at: When it was sent.
            sent: How many were sent so far.
            now: The time.
            known: Whether the service has reported its limits, and they were kept.
            finding: Whether a rate has been found already; then every refusal shows where the limit is.
        """
        again = number <= self._last
        if again:
            self._first = min(self._first, number)
        else:
            self._begin(number, sent_at, sent, now, finding=finding)
        bisect.insort(self._refused, number)
        all_sent = self._last - self._since + 1
        refused = self._count(self._since)
        accepted = all_sent - refused
        self._accepted = (accepted + 0.5) / self._length_s
        self._seen = (all_sent, refused)
        self._limit = False
        if self._is_stray(all_sent, refused, known=known):
            cause = Cause.STRAY
        else:
            cause = Cause.LIMIT if accepted > 0 else Cause.NOTHING_ACCEPTED
            self._limit = accepted > 0
            if not accepted:
                self.by_chance = False
        return Judgement(cause, self._accepted, again, self._began_at - self._previous_at)

    def _is_stray(self, sent: int, refused: int, *, known: bool) -> bool:
        if known or self.by_chance:
            return refused < STRAY_SHARE_RECENT * max(sent, RECENT_OF)
        if self._finding:
            return False
        sent_since = self._last - self._first + 1
        return sent_since >= STRAY_OF and self._count(self._first) < STRAY_SHARE * sent_since

    def _count(self, first: int) -> int:
        """Returns how many were refused, from a number on."""
        return len(self._refused) - bisect.bisect_left(self._refused, first)

    def _begin(self, number: int, sent_at: float, sent: int, now: float, *, finding: bool) -> None:
        self._previous_at, self._began_at = self._began_at, now
        while self.marks and self.marks[0][0] < now - COUNTED_S:
            self.marks.popleft()
        at, since = self.marks[0] if self.marks else (sent_at, number)
        least_s = LEAST_COUNTED_S if at != self._emptied_at else LEAST_EMPTIED_S
        self._note_best()
        before = self._accepted if self._limit else 0.0
        self._since, self._length_s = min(since, number), max(least_s, sent_at - at)
        self._first, self._last, self._finding = number, sent, finding
        del self._refused[: bisect.bisect_left(self._refused, self._since)]
        if finding:
            self._follow(sent - self._since + 1, before)

    def _note_best(self) -> None:
        """Compares the event that is over with those before it."""
        if not self._finding or self._accepted > SLOWER * self.best:
            self.best, self._row, self._events = self._accepted, (0, 0), 0
        else:
            self._row = (self._row[0] + self._seen[0], self._row[1] + self._seen[1])

    def _follow(self, sent: int, limit: float) -> None:
        """Finds out whether the service refuses by chance: however slowly requests go, some of them are refused.

        Args:
            sent: How many requests are counted in the event.
            limit: The rate that the event before it showed as a limit; 0 if it showed none.
        """
        rate = sent / self._length_s
        if self.by_chance and limit and rate > SLOWER * limit:
            self.by_chance = False  # it is the limit again, and nothing in between
            self._events_needed = min(MOST_EVENTS, 2 * self._events_needed)
        self._events += 1
        few = self._row[1] + 1 < BY_CHANCE_SHARE * (self._row[0] + sent)
        if few and self._events >= self._events_needed and rate < BY_CHANCE_RATE * self.best:
            self.by_chance, self._row, self._events = True, (0, 0), 0
            self._since, self._first = self._last, self._last  # what went slowly before shows nothing of what comes now
            self.marks.clear()

    def resume(self, sent: int, now: float) -> None:
        """Counts anew: the service's capacity is used up, so what it accepts from here on shows its rate.

        Args:
            sent: How many were sent so far.
            now: The time at which the service refused.
        """
        self._emptied_at = now
        self.marks.clear()
        self.marks.append((now, sent + 1))
