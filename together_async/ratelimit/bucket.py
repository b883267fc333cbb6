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
"""A service is assumed to hold the capacity of this many seconds."""
SHARE: Final = {"requests": 0.25, "tokens": 0.5}
"""The share of the service's capacity, less a request, that a bucket holds."""
GUARD_S: Final = 0.08
"""A service that holds capacity for a second or so has none to spare for a request that is worth as much: if two such
requests arrive closer together than they were sent, the second is refused. So each costs this much of the rate more."""
TIGHT_S: Final = 0.5
"""Where a request is worth more of the rate than this, the excess of an estimate is given back only up to what the
service can hold: it never took the excess, and was full all the while."""
TYPICAL_WEIGHT: Final = 0.05
"""Weight of a request in the amount of a typical one."""
MOST_RESET_S: Final = 60.0
"""A reported reset is believed up to this many seconds."""
OBSERVED_S: Final = 10.0
"""Seconds over which the rate that the service allowed is observed."""
PAUSE_S: Final = 60.0
"""Seconds without traffic after which a learned rate is approached from its half again: it may have changed."""
_EPSILON: Final = 1e-9


class Bucket:
    """Capacity of one kind.

    Args:
        kind: "requests", of which the bucket always can hold one, or "tokens".
        configured: The caller's limit per second; None for no limit.
        now: Seconds of a clock that does not go back; all times are of the same.

    Attributes:
        control: What is known of the rate.
        rate: Per second; infinite while no limit is known.
        size: What the bucket can hold.
        level: What it holds, less what is booked.
        booked: All that was ever booked, less what was given back because it was not sent or not used.
    """

    __slots__ = (
        "_at",
        "_booked_at",
        "_ceiling",
        "_kind",
        "_least",
        "_marks",
        "_pending",
        "_typical",
        "booked",
        "control",
        "level",
        "rate",
        "size",
    )

    def __init__(self, kind: Kind, configured: float | None, now: float) -> None:
        self._least = 1.0 if kind == "requests" else 0.0
        self._kind = kind
        self.control = RateControl(kind, configured)
        self.booked = 0.0
        self._typical = self._least  # amount of a request
        self._ceiling = math.inf  # of the level, had the bucket been full when the last request went
        self._pending = 0.0  # booked, and not sent yet
        self._at = self._booked_at = now  # of the last refill, and of the last booking
        self._marks = ((now, 0.0), (now, 0.0))  # when how much was booked: ten seconds or so ago, and before
        self._set_rate()
        self.level = self.size

    def __repr__(self) -> str:
        return f"<Bucket {self.level:g} of {self.size:g}, {self.rate:g} per second>"

    @property
    def per_minute(self) -> float | None:
        """The rate that is kept now, per minute; None without a limit."""
        return self.rate * 60 if self.rate < math.inf else None

    # ------------------------------------------------------------------------------------------------------------ rate

    def _set_rate(self) -> None:
        self.rate = self.control.rate()
        self._set_size()

    def _set_size(self) -> None:
        self.size = self._least
        if self.rate < math.inf:
            # Where the service holds no more than a request, nothing is added.
            spare = max(0.0, self.rate * HELD_S - self._typical) * SHARE[self._kind]
            self.size += spare if self._least else max(spare, self.rate * BURST_S)

    def refill(self, now: float) -> None:
        """Adds the capacity that has come since the last time. Call it before any other method."""
        elapsed = now - self._at
        if elapsed <= 0:
            return
        self._at = now
        rate = self.rate
        if rate == math.inf:
            return
        added = rate * elapsed
        level = self.level + added
        if self.control.recovering:
            # In use until the bucket is full.
            self.control.recover(elapsed, min(elapsed, max(0.0, self._full_level() - self.level) / rate))
            self._set_rate()
        # After the rate, and with it the size, has risen: else the level would never be the size.
        full = self._full_level() if self._pending else self.size
        self.level = min(full, level)
        self._ceiling += added

    # ---------------------------------------------------------------------------------------------------------- amounts

    def _tight(self, amount: float) -> bool:
        return self._kind == "requests" or amount > TIGHT_S * self.rate

    def _full_level(self) -> float:
        """Returns the level of a full bucket, less the amount that is booked."""
        pending = self._pending
        # A large request goes when the bucket is full; if it goes later, because a timer is late, that is made up for.
        late = 0.0 if not pending or self._tight(pending) else min(pending, self.size)
        return self.size - pending + late

    def cost(self, amount: float) -> float:
        """Returns the capacity to book for an amount; see `GUARD_S`."""
        rate = self.rate
        if rate == math.inf or not amount:
            return amount
        largest = max(self._typical, amount)  # the next may be larger than this one
        spare_s = HELD_S - largest / rate
        return amount if spare_s >= GUARD_S else amount + rate * (GUARD_S - max(0.0, spare_s))

    def book(self, amount: float, now: float) -> None:
        """Books an amount, whether it is there or not."""
        if now - self._booked_at > PAUSE_S and self.control.halve():
            self._set_rate()
        self._booked_at = now
        if now - self._marks[1][0] > OBSERVED_S:
            self._marks = (self._marks[1], (now, self.booked))
        if not self._least:
            self._typical += TYPICAL_WEIGHT * (amount - self._typical) if self._typical else amount
            self._set_size()
        self.booked += amount
        self._pending += amount
        if self.rate < math.inf:
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
            self._typical += TYPICAL_WEIGHT * (amount - self._typical) if self._typical else amount
        self.booked += amount
        self._ceiling = self.size - amount

    def unbook(self, amount: float) -> None:
        """Undoes `book`, for a request that was not sent."""
        self._pending -= amount
        self.booked -= amount
        if self.rate < math.inf:
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
        if self.rate < math.inf:
            self.level = min(self._full_level(), self.level + booked - used)
            if last:
                self._ceiling += booked - used
            if self._tight(booked):
                self.level = min(self.level, self._ceiling - self._pending)

    def wait_s(self, amount: float) -> float:
        """Returns the seconds until a booked request of this amount may go; 0 when that is now."""
        # A request larger than the bucket goes when the bucket is full.
        lacking = min(0.0, self.size - amount) - self.level
        return lacking / self.rate if lacking > _EPSILON * (1 + amount) else 0.0

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
        unknown, remaining = self.rate == math.inf, reported.remaining
        if reported.limit is not None and self.control.report(reported.limit):
            self._set_rate()
        if self.rate == math.inf:
            return
        if unknown:
            elapsed_s = 0.0  # the first request had a connection to open, and arrived later than the next one will
            self.level = self._full_level() if remaining is not None else self.size - since
        if remaining is not None:
            level = (
                self._level_for(remaining, reported.reset_s, amount)
                + self.rate * elapsed_s
                + amount
                - self.cost(amount)
                - since
            )
            self.level = min(self.level, level)

    def _level_for(self, remaining: float, reset_s: float, amount: float) -> float:
        """Returns the level at which this bucket lets the next request go when the service does, by what remains there.

        Both let a request go that is larger than they are when they are full; this one is smaller.
        """
        size, typical, held = self.size, self._typical, self.rate * HELD_S
        if not remaining and reset_s:
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
