"""Capacity of one kind (requests, or tokens) for one model: decides when the next request may be sent. Pure.

A bucket holds capacity and refills at a rate. Capacity is booked before a request is sent, whether it is there or not:
a level below zero is a debt, and the booked request waits until it is paid. That costs one subtraction and one
division, keeps requests in the order of their bookings, and lets no small request delay a large one booked before it.

The bucket is small, so requests are spread over time instead of going in bursts: it holds one request, and a part of
what a service holds beyond that (`SHARE`). This part makes up for a timer or an event loop that is late, and for
requests that differ in size: where both limits bind, a small bucket would lose what it can't keep of one kind while the
other is short. A request larger than the bucket goes when the bucket is full, and leaves a debt.

The rate is `RateControl`'s.
"""

from __future__ import annotations

import math
from typing import Final

from together_async.ratelimit.headers import Kind, ReportedLimit
from together_async.ratelimit.rate_control import RateControl

BURST_S: Final = 0.05
"""A bucket of tokens holds at least the tokens of this many seconds."""
HELD_S: Final = 1.0
"""A service is assumed to hold the capacity of this many seconds, unless it says for how many its limit is."""
SHARE: Final = {"requests": 0.25, "tokens": 0.5}
SHARE_OF_WINDOW: Final = 0.9
"""The share of the service's capacity, less a request, that a bucket holds; the second where the service holds that of
a minute, so that jitter is small next to it and the requests of one `gather` are not spread over a minute."""
GUARD_S: Final = 0.08
"""A service that holds capacity for a second or so has none to spare for a request that is worth as much: if two such
requests arrive closer together than they were sent, the second is refused. So each costs this much of the rate more."""
TIGHT_S: Final = 0.5
"""Where a request is worth more of the rate than this, the excess of an estimate is given back only up to what the
service can hold: it never took the excess, and was full all the while."""
TYPICAL_WEIGHT: Final = 0.05
"""Weight of a request in the amount of a typical one."""
MOST_RESET_S: Final = 60.0
"""The debt taken from a reported reset is at most what comes in so many seconds; a longer one pauses the lane."""
OBSERVED_S: Final = 10.0
"""Seconds over which the rate that the service allowed is observed."""
IDLE_S: Final = 60.0
"""Seconds without traffic after which a learned rate is approached from its half again: it may have changed."""
_EPSILON: Final = 1e-9
_INF: Final = math.inf


class Bucket:
    """Capacity of one kind.

    It has many methods and is one thing: the level is what all of them change.

    Args:
        kind: "requests", of which the bucket always can hold one, or "tokens".
        configured: The caller's limit per second; None for no limit.
        now: Seconds of a clock that does not go back; all times are of the same.

    Attributes:
        control: What is known of the rate.
        rate: Per second; infinite while no limit is known.
        size: What the bucket can hold.
        typical: The amount of a typical request.
        level: What it holds, less what is booked.
        quota_until: When the window ends of which a service has reported the rest; the past without one.
        booked: All that was ever booked, less what was given back because it was not sent or not used.
    """

    __slots__ = (
        "_at",
        "_booked_at",
        "_ceiling",
        "_held_s",
        "_kind",
        "_least",
        "_marks",
        "_pending",
        "_quota",
        "booked",
        "control",
        "level",
        "quota_until",
        "rate",
        "size",
        "typical",
    )

    def __init__(self, kind: Kind, configured: float | None, now: float) -> None:
        self._least = 1.0 if kind == "requests" else 0.0
        self._kind = kind
        self.control = RateControl(kind, configured)
        self.booked = 0.0
        self.typical = self._least  # amount of a request
        self._ceiling = _INF  # of the level, had the bucket been full when the last request went
        self._pending = 0.0  # booked, and not sent yet
        self._at = self._booked_at = now  # of the last refill, and of the last booking
        self._held_s = HELD_S
        self._quota = _INF  # no more may ever have been booked, before the window ends
        self.quota_until = -_INF
        self._marks = ((now, 0.0), (now, 0.0))  # when how much was booked: ten seconds or so ago, and before
        self._set_rate()
        self.level = self.size

    def __repr__(self) -> str:
        return f"<Bucket {self.level:g} of {self.size:g}, {self.rate:g} per second>"

    @property
    def per_minute(self) -> float | None:
        """The rate that is kept now, per minute; None without a limit."""
        return self.rate * 60 if self.rate < _INF else None

    @property
    def found(self) -> bool:
        """Whether the rate was found from refusals."""
        return self.control.found.rate is not None

    # ------------------------------------------------------------------------------------------------------------ rate

    def _set_rate(self) -> None:
        self.rate = self.control.rate()
        self._set_size()

    def _set_size(self) -> None:
        self.size = self._least
        if self.rate < _INF:
            # Where the service holds no more than a request, nothing is added.
            share = SHARE[self._kind] if self._held_s <= HELD_S else SHARE_OF_WINDOW
            spare = max(0.0, self.rate * self._held_s - self.typical) * share
            self.size += spare if self._least else max(spare, self.rate * BURST_S)

    def refill(self, now: float) -> None:
        """Adds the capacity that has come since the last time. Call it before any other method."""
        elapsed = now - self._at
        if elapsed <= 0:
            return
        self._at = now
        rate = self.rate
        if rate == _INF:
            return
        added = rate * elapsed
        level = self.level + added
        if self.control.recovering:
            # In use until the bucket is full.
            self.control.recover(elapsed, min(elapsed, max(0.0, self._full_level() - self.level) / rate))
            self._set_rate()
        # After the rate, and with it the size, has risen: else the level would never be the size.
        full = self._full_level() if self._pending else self.size
        self.level = min(level, full)
        self._ceiling += added

    # ---------------------------------------------------------------------------------------------------------- amounts

    def _tight(self, amount: float) -> bool:
        return self._kind == "requests" or amount > TIGHT_S * self.rate * self._held_s

    def _full_level(self) -> float:
        """Returns the level of a full bucket, less the amount that is booked."""
        pending = self._pending
        # A large request goes when the bucket is full; if it goes later, because a timer is late, that is made up for.
        late = 0.0 if not pending or self._tight(pending) else min(pending, self.size, self.rate * BURST_S)
        return self.size - pending + late

    def cost(self, amount: float) -> float:
        """Returns the capacity to book for an amount; see `GUARD_S`."""
        rate = self.rate
        if rate == _INF or not amount or self.control.found.rate is not None:
            return amount  # a rate that was found shows nothing of how much the service holds
        typical = self.typical
        spare_s = self._held_s - max(typical, amount) / rate  # the next may be larger than this one
        return amount if spare_s >= GUARD_S else amount + rate * (GUARD_S - max(0.0, spare_s))

    def book(self, amount: float, now: float) -> None:
        """Books an amount, whether it is there or not."""
        if now - self._booked_at > IDLE_S and self.control.halve():
            self._set_rate()
        self._booked_at = now
        if now - self._marks[1][0] > OBSERVED_S:
            self._marks = (self._marks[1], (now, self.booked))
        if not self._least:
            self.typical += TYPICAL_WEIGHT * (amount - self.typical) if self.typical else amount
            self._set_size()
        self.booked += amount
        self._pending += amount
        if self.rate < _INF:
            self.level -= amount

    def record_sent(self) -> None:
        """Records that the booked request is sent."""
        self._ceiling = self.size - self._pending
        self._pending = 0.0

    # Quick path of Bucket.book, with refill before it and record_sent after it;
    # tests/ratelimit/test_lane_at_once.py::test_asking_at_once_keeps_the_same_numbers holds the two together.
    def record_unlimited(self, amount: float, now: float) -> None:
        """Records a request that is sent while there is no rate: `refill`, `book` and `record_sent` in one."""
        self._at = self._booked_at = now
        if now - self._marks[1][0] > OBSERVED_S:
            self._marks = (self._marks[1], (now, self.booked))
        if not self._least:
            self.typical += TYPICAL_WEIGHT * (amount - self.typical) if self.typical else amount
        self.booked += amount
        self._ceiling = self.size - amount

    def take(self, amount: float, now: float) -> None:
        """Records a request that is sent at once, since there is enough for it: `book` and `record_sent` in one."""
        self.book(amount, now)
        self._ceiling = self.size - amount
        self._pending = 0.0

    def unbook(self, amount: float) -> None:
        """Undoes `book`, for a request that was not sent."""
        self._pending -= amount
        self.booked -= amount
        if self.rate < _INF:
            self.level = min(self._full_level(), self.level + amount)

    def settle(self, booked: float, used: float, *, last: bool) -> None:
        """Replaces the amount that was booked by the amount that was used, which may be larger.

        Args:
            booked: What was booked for the request.
            used: What it used.
            last: Whether no other request has gone since that one.
        """
        # The service never counted the difference, so it is not among what was booked since some response either.
        self.booked -= booked - used
        if self.rate < _INF:
            self.level = min(self._full_level(), self.level + booked - used)
            if last:
                self._ceiling += booked - used
            if self._tight(booked):
                self.level = min(self.level, self._ceiling - self._pending)

    def wait_s(self, amount: float) -> float:
        """Returns the seconds until a booked request of this amount may go; 0 when that is now."""
        # A request larger than the bucket goes when the bucket is full.
        lacking = min(0.0, self.size - amount) - self.level
        wait_s = lacking / self.rate if lacking > _EPSILON * (1 + amount) else 0.0
        if self.quota_until > self._at and self.booked > self._quota + _EPSILON:
            return max(wait_s, self.quota_until - self._at)
        return wait_s

    # --------------------------------------------------------------------------------------------------------- learning

    def learn(self, reported: ReportedLimit, *, amount: float, since: float, elapsed_s: float) -> None:
        """Adopts the limit that a response reports.

        Args:
            reported: The limit, and what remained of it after the request.
            amount: What that request used.
            since: The amount that was booked after it.
            elapsed_s: Seconds since it was sent. The service counted at some moment within them, so at most their whole
                refill has come since.
        """
        unknown, remaining = self.rate == _INF, reported.remaining
        limit = reported.limit
        if limit is not None and (limit != self.control.reported or reported.window_s != self._held_s):
            self._adopt(limit, reported.window_s)
        if self.rate == _INF:
            return
        if unknown:
            elapsed_s = 0.0  # the first request had a connection to open, and arrived later than the next one will
            self.level = self._full_level() if remaining is not None else self.size - since
        # The rest of a window is a quota. As a debt at a rate that was found it would stay when that rate falls.
        if remaining is not None and (limit is not None or not self.found):
            if remaining > self.level + since + self.typical + GUARD_S * self.rate:
                return  # that would not lower the level
            level = (
                self._level_for(remaining, reported.reset_s, amount)
                + self.rate * elapsed_s
                + amount
                - self.cost(amount)
                - since
            )
            self.level = min(self.level, level)

    def _adopt(self, limit: float, window_s: float) -> None:
        if self.control.report(limit) or window_s != self._held_s:
            self._held_s = window_s
            self._set_rate()

    @property
    def quota_left(self) -> float:
        """What may still be booked before the window ends of which the service has reported the rest."""
        return self._quota - self.booked if self.quota_until > self._at else _INF

    def set_quota(self, left: float, until: float) -> None:
        """Lets no more than an amount go before a time: a service reports what remains of a window.

        Args:
            left: What may still be booked.
            until: When the window ends.
        """
        # What is booked and waits for its turn has not been sent.
        self.quota_until, self._quota = until, self.booked - self._pending + max(0.0, left + self._pending)

    def set_level(self, reported: ReportedLimit, *, amount: float) -> None:
        """Adopts the limit that a refusal reports, and the level with it: whatever was thought of it before.

        Args:
            reported: The limit, and what remained of it.
            amount: What the refused request would have used.
        """
        if reported.limit is not None:
            self._adopt(reported.limit, reported.window_s)
        if self.rate < _INF:
            level = self._level_for(reported.remaining or 0.0, reported.reset_s, amount)
            self.level = min(self.size, level) - self._pending

    def find(self, accepted: float, since_last_s: float, *, again: bool) -> None:
        """Adopts a rate after refusals that report none; see `FoundRate.record_refusals`.

        Args:
            accepted: Requests per second that were accepted lately.
            since_last_s: Seconds since the refusals before these; infinite without any.
            again: Whether more of the same refusals have come.
        """
        self.control.find(accepted * (self.typical or 1.0), since_last_s, again=again)
        self._set_rate()
        self.level = min(self.level, 0.0, self._full_level())

    def undo_find(self) -> None:
        """Goes on from the rate before the last refusals, and doubles it: they show no limit after all."""
        self.control.undo_find()
        self._set_rate()

    def search_from(self, accepted: float) -> None:
        """Goes on from a number of requests per second, doubling it: the service refuses by chance."""
        self.control.search_from(accepted * (self.typical or 1.0))
        self._set_rate()

    def _level_for(self, remaining: float, reset_s: float, amount: float) -> float:
        """Returns the level at which this bucket lets the next request go when the service does, by what remains there.

        Both let a request go that is larger than they are when they are full; this one is smaller.
        """
        size, typical, held = self.size, self.typical, self.rate * self._held_s
        if not remaining and reset_s and self._held_s <= HELD_S:  # the end of a longer window is waited for as a pause
            return min(size, amount) - self.rate * min(reset_s, MOST_RESET_S)
        if typical <= size and typical <= held:
            return remaining
        return remaining - min(typical, held) + min(typical, size)

    def record_rate_limit(self, sent_at: float, now: float) -> None:
        """Records a 429 to a request that was sent at `sent_at`."""
        since, booked = self._marks[0]
        observed = max(0.0, self.booked - booked) / max(now - since, 1.0)
        if self.control.record_rate_limit(self.rate, observed, sent_at, now):
            self._set_rate()
            self.level = min(self.level, self._full_level())
