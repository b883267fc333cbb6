"""Capacity of one kind (requests, or tokens) for one model: what may be sent when. Pure.

A bucket holds capacity and refills at a rate. Capacity is taken when a request is booked, whether it is there or not:
a level below zero is a debt, and the booked request waits until it is paid. That is one subtraction and one division,
it keeps the order in which requests were booked, and a large one waits no longer for small ones that came after it.

The bucket is small, so requests are spread over time and come in no bursts: it holds one request, and what refills in
`BURST_S`, which makes up for a timer or an event loop that is late. A request larger than the bucket goes when the
bucket is full, and leaves a debt.

The rate is the lowest of what the caller configured, what the service told, and what was found out from 429s. A 429
in spite of that rate makes it lower for a while: multiplied by `FALL`, then back in steady steps (AIMD, as TCP does:
RFC 5681; the factor is CUBIC's, RFC 9438 4.6).
"""

from __future__ import annotations

import math
from typing import Final

BURST_S: Final = 0.05
"""Seconds of refill that may be made up for at once."""
FALL: Final = 0.7
RISE_PER_S: Final = 0.06
"""Of the rate, so that one fall is made good in five seconds."""
LEAST_FACTOR: Final = 0.3
"""Below this the rate that was told or configured is not believed any more, and one is found out."""
FOUND_DOUBLES_S: Final = 30.0
"""Seconds of full use in which a rate that was found out doubles, until the next 429 (or what is told) ends it."""
LEAST_FOUND: Final = (10.0, 0.2)
"""No rate that was found out is lower: tokens, requests per second."""
OBSERVED_S: Final = 10.0
"""Seconds over which the rate that went well is observed."""
PAUSE_S: Final = 60.0
"""Seconds without traffic after which a learned rate is approached from its half again: it may have changed."""
_EPSILON: Final = 1e-9


class Bucket:
    """Capacity of one kind.

    Args:
        least: What one request takes at least, and the bucket always can hold: 1 for requests, 0 for tokens.
        configured: The caller's limit per second, None for none.
        now: Seconds of a clock that does not go back; all times are of the same.
    """

    __slots__ = (
        "_at",
        "_factor",
        "_fallen_at",
        "_least",
        "_mark",
        "_marked_at",
        "_taken_at",
        "booked",
        "configured",
        "found",
        "level",
        "rate",
        "size",
        "told",
    )

    def __init__(self, least: float, configured: float | None, now: float) -> None:
        self._least = least
        self.configured = configured
        self.told: float | None = None
        self.found: float | None = None
        self.booked = 0.0  # all that was ever taken and not taken back unsent
        self._factor = 1.0
        self._fallen_at = -math.inf
        self._at = self._taken_at = self._marked_at = now
        self._mark = 0.0
        self.rate = math.inf
        self.size = least
        self._set_rate()
        self.level = self.size

    def __repr__(self) -> str:
        return f"<Bucket {self.level:g} of {self.size:g}, {self.rate:g} per second>"

    def _set_rate(self) -> None:
        rate = min(rate for rate in (self.configured, self.told, self.found, math.inf) if rate is not None)
        self.rate = rate * self._factor
        # Without a limit nothing is counted: the size is that of a bucket whose limit has just become known.
        self.size = self._least + (self.rate * BURST_S if self.rate < math.inf else 0.0)

    def refill(self, now: float) -> None:
        """Adds what has come since the last time; to be called before anything else is asked or done."""
        elapsed = now - self._at
        if elapsed <= 0:
            return
        self._at = now
        if self.rate == math.inf:
            return
        self.level = min(self.size, self.level + self.rate * elapsed)
        if self._factor < 1:
            self._factor = min(1.0, self._factor + RISE_PER_S * elapsed)
            self._set_rate()
        elif self.found is not None and self.level < self.size:  # in use
            self.found *= 2 ** (elapsed / FOUND_DOUBLES_S)
            known = min(self.configured or math.inf, self.told or math.inf)
            if self.found >= known:
                self.found = None
            self._set_rate()

    def take(self, amount: float, now: float) -> None:
        """Books an amount, whether it is there or not."""
        if now - self._taken_at > PAUSE_S and (self.told is not None or self.found is not None):
            self._factor = min(self._factor, 0.5)
            self._set_rate()
        self._taken_at = now
        if now - self._marked_at > OBSERVED_S:
            self._marked_at, self._mark = now, self.booked
        self.booked += amount
        if self.rate < math.inf:
            self.level -= amount

    def take_back(self, amount: float) -> None:
        """Undoes `take` for a request that was not sent."""
        self.booked -= amount
        self.give_back(amount)

    def give_back(self, amount: float) -> None:
        """Returns an amount that was not used; a negative one is what was used beyond the booking."""
        if self.rate < math.inf:
            self.level = min(self.size, self.level + amount)

    def wait_s(self, amount: float) -> float:
        """Returns the seconds until a booked request of this amount may go; 0 when that is now."""
        # "Until the bucket is full" for what is larger than it.
        lacking = min(0.0, self.size - amount) - self.level
        return lacking / self.rate if lacking > _EPSILON * (1 + amount) else 0.0

    def learn(self, limit: float | None, left: float | None, *, since: float, elapsed_s: float) -> None:
        """Takes what a response tells.

        Args:
            limit: The service's limit per second, None when it does not say.
            left: What it had left after that request, None when it does not say.
            since: What was booked after that request.
            elapsed_s: Seconds since that request was sent. The service counted at some moment within them; that all
                of them have refilled since is the most there can be.
        """
        unknown = self.rate == math.inf
        if limit is not None and limit != self.told:
            self.told = limit
            self._set_rate()
        if self.rate == math.inf:
            return
        if unknown:
            self.level = self.size if left is not None else self.size - since
        if left is not None:
            self.level = min(self.level, self.size, left + self.rate * elapsed_s - since)

    def fall(self, sent_at: float, now: float) -> None:
        """Hears of a 429. Those for requests that were sent before the last fall are part of the same event."""
        if sent_at < self._fallen_at:
            return
        self._fallen_at = now
        unlimited = self.rate == math.inf
        if not unlimited and self._factor * FALL >= LEAST_FACTOR:
            self._factor *= FALL
        else:
            observed = (self.booked - self._mark) / max(now - self._marked_at, 1.0)
            self.found = max(min(observed, self.rate) * FALL, LEAST_FOUND[self._least > 0])
            self._factor = 1.0
        self._set_rate()
        self.level = 0.0 if unlimited else min(self.level, 0.0)

    @property
    def per_minute(self) -> float | None:
        """The rate that is kept now, per minute; None without a limit."""
        return self.rate * 60 if self.rate < math.inf else None
