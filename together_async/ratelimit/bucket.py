"""Capacity of one kind (requests, or tokens) for one model: what may be sent when. Pure.

A bucket holds capacity and refills at a rate. Capacity is taken when a request is booked, whether it is there or not:
a level below zero is a debt, and the booked request waits until it is paid. That is one subtraction and one division,
it keeps the order in which requests were booked, and a large one waits no longer for small ones that came after it.

The bucket is small, so requests are spread over time and come in no bursts: it holds one request, and a part of what a
service holds beyond that (`SHARE`), which makes up for a timer or an event loop that is late, and for requests that
differ: where both limits bind, what a small bucket can't keep of one while the other is short would be lost. A request
larger than the bucket goes when the bucket is full, and leaves a debt.

The rate is the lowest of what the caller configured, what the service told, and what was found out from 429s. A 429
in spite of that rate makes it lower for a while: multiplied by `FALL`, then back in steady steps (AIMD, as TCP does:
RFC 5681). If that does not help, whatever was told is not believed, and the rate is found out as CUBIC does (RFC 9438
4.2): it comes back quickly to just below where the 429 came, stays there for a while, and then tries for more.
"""

from __future__ import annotations

import math
from typing import Final

from together_async.ratelimit.headers import Capacity

BURST_S: Final = 0.05
"""At least the tokens of so many seconds may be made up for at once."""
SHARE: Final = {"requests": 0.25, "tokens": 0.5}
"""Of what a service is taken to hold (`HELD_S`), less a request."""
HELD_S: Final = 1.0
GUARD_S: Final = 0.08
TIGHT_S: Final = 0.5
"""A service that holds capacity for a second or so has nothing to spare for a request that is worth as much: if that
arrives earlier after the one before than it was sent after it, it is refused. Such a request costs so much more.
And where requests are worth more than `TIGHT_S`, what is given back of an estimate is no more than the service can
hold: it never took the difference, and was full all the while."""
TYPICAL_WEIGHT: Final = 0.05
FALL: Final = 0.7
RISE_PER_S: Final = 0.06
"""Of the rate, so that one fall is made good in five seconds."""
MARGIN: Final = 0.05
MOST_MARGIN: Final = 0.3
MARGIN_HALVES_S: Final = 60.0
"""After a 429 this much of the rate is not used, half of it a minute later, so that the next one does not come as soon
as the fall is made good."""
BELIEVED_S: Final = 30.0
"""A second 429 within so many seconds: the rate that was told or configured is not believed any more."""
PLATEAU_S: Final = 30.0
"""Seconds after which a rate that was found out is back where the 429 came; then it rises beyond."""
LEAST_FOUND: Final = {"requests": 0.2, "tokens": 10.0}
FIRST_FOUND: Final = {"requests": 2.0, "tokens": 1_000.0}
"""No rate that was told or found out is lower, per second; nor is the first one, when all that is known is one 429."""
MOST_RESET_S: Final = 60.0
"""Of what a service tells about the time until there is enough again, this is believed."""
OBSERVED_S: Final = 10.0
"""Seconds over which the rate that went well is observed."""
PAUSE_S: Final = 60.0
"""Seconds without traffic after which a learned rate is approached from its half again: it may have changed."""
_EPSILON: Final = 1e-9


class Bucket:
    """Capacity of one kind.

    Args:
        kind: "requests", of which the bucket always can hold one, or "tokens".
        configured: The caller's limit per second, None for none.
        now: Seconds of a clock that does not go back; all times are of the same.

    Attributes:
        rate: Per second; infinite while no limit is known.
        size: What the bucket can hold.
        level: What it holds, less what is booked.
        booked: All that was ever taken, less what was given back because it was not sent or not used.
    """

    __slots__ = (
        "_at",
        "_ceiling",
        "_factor",
        "_fallen_at",
        "_found_at",
        "_kind",
        "_least",
        "_margin",
        "_marks",
        "_pending",
        "_taken_at",
        "_told_at_fall",
        "_top",
        "_typical",
        "booked",
        "configured",
        "found",
        "level",
        "rate",
        "size",
        "told",
    )

    def __init__(self, kind: str, configured: float | None, now: float) -> None:
        self._least = 1.0 if kind == "requests" else 0.0
        self._kind = kind
        self.configured = configured
        self.told: float | None = None
        self.found: float | None = None
        self.booked = 0.0
        self._typical = self._least  # amount of a request
        self._ceiling = math.inf  # of the level, had the bucket been full when the last request went
        self._pending = 0.0  # booked, and not gone yet
        self._factor = 1.0
        self._margin = 0.0
        self._top = self._found_at = 0.0  # where the last 429 came, and for how long the rate has been in use since
        self._fallen_at = -math.inf
        self._told_at_fall: float | None = None
        self._at = self._taken_at = now
        self._marks = ((now, 0.0), (now, 0.0))  # when how much was booked: ten seconds or so ago, and before
        self.rate = math.inf
        self.size = self._least
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
        rate = min(rate for rate in (self.configured, self.told, self.found, math.inf) if rate is not None)
        self.rate = rate * self._factor * (1 - self._margin)
        self._set_size()

    def _set_size(self) -> None:
        self.size = self._least
        if self.rate < math.inf:
            # Where the service holds no more than a request, nothing.
            spare = max(0.0, self.rate * HELD_S - self._typical) * SHARE[self._kind]
            self.size += spare if self._least else max(spare, self.rate * BURST_S)

    def refill(self, now: float) -> None:
        """Adds what has come since the last time; to be called before anything else is asked or done."""
        elapsed = now - self._at
        if elapsed <= 0:
            return
        self._at = now
        rate = self.rate
        if rate == math.inf:
            return
        added = rate * elapsed
        level = self.level + added
        if self._margin or self._factor < 1.0 or self.found is not None:
            self._recover(elapsed)
        # After the rate, and with it the size, has risen: else the level would never be the size.
        most = self._most() if self._pending else self.size
        self.level = min(most, level)
        self._ceiling += added

    def _recover(self, elapsed: float) -> None:
        """Takes back, step by step, what 429s have done to the rate."""
        if self._margin:
            self._margin *= 2 ** (-elapsed / MARGIN_HALVES_S)
            if self._margin < 0.001:
                self._margin = 0.0
        self._factor = min(1.0, self._factor + RISE_PER_S * elapsed)
        if self.found is not None:
            # A rate that is not used says nothing: time counts until the bucket is full.
            self._found_at += min(elapsed, max(0.0, self._most() - self.level) / self.rate)
            since_plateau = (self._found_at - PLATEAU_S) / PLATEAU_S
            self.found = self._top * (1 + (1 - FALL) * since_plateau**3)
            if self.found >= min(self.configured or math.inf, self.told or math.inf):
                self.found = None
        self._set_rate()

    # ---------------------------------------------------------------------------------------------------------- amounts

    def _tight(self, amount: float) -> bool:
        return self._kind == "requests" or amount > TIGHT_S * self.rate

    def _most(self) -> float:
        """The level of a full bucket. What is booked has been taken from it already."""
        pending = self._pending
        # A large request goes when the bucket is full; if it goes later, because a timer is late, that is made up for.
        late = 0.0 if not pending or self._tight(pending) else min(pending, self.size)
        return self.size - pending + late

    def cost(self, amount: float) -> float:
        """Returns what has to be taken for an amount; see `GUARD_S`."""
        rate = self.rate
        if rate == math.inf or not amount:
            return amount
        largest = max(self._typical, amount)  # the next may be larger than this one
        spare_s = HELD_S - largest / rate
        return amount if spare_s >= GUARD_S else amount + rate * (GUARD_S - max(0.0, spare_s))

    def take(self, amount: float, now: float) -> None:
        """Books an amount, whether it is there or not."""
        if now - self._taken_at > PAUSE_S and (self.told is not None or self.found is not None):
            self._factor = min(self._factor, 0.5)
            self._set_rate()
        self._taken_at = now
        if now - self._marks[1][0] > OBSERVED_S:
            self._marks = (self._marks[1], (now, self.booked))
        if not self._least:
            self._typical += TYPICAL_WEIGHT * (amount - self._typical) if self._typical else amount
            self._set_size()
        self.booked += amount
        self._pending += amount
        if self.rate < math.inf:
            self.level -= amount

    def go(self) -> None:
        """Hears that what is booked goes."""
        self._ceiling = self.size - self._pending
        self._pending = 0.0

    def let_pass(self, amount: float, now: float) -> None:
        """Books an amount that goes at once, as long as there is no rate: `refill`, `take` and `go` in one."""
        self._at = self._taken_at = now
        if now - self._marks[1][0] > OBSERVED_S:
            self._marks = (self._marks[1], (now, self.booked))
        if not self._least:
            self._typical += TYPICAL_WEIGHT * (amount - self._typical) if self._typical else amount
        self.booked += amount
        self._ceiling = self.size - amount

    def take_back(self, amount: float) -> None:
        """Undoes `take`, for a request that has not gone."""
        self._pending -= amount
        self.booked -= amount
        if self.rate < math.inf:
            self.level = min(self._most(), self.level + amount)

    def settle(self, booked: float, used: float, *, last: bool) -> None:
        """Puts what was used in the place of what was booked, which it may exceed.

        Args:
            booked: What was taken.
            used: What should have been.
            last: Whether no other request has gone since that one.
        """
        # The service never counted the difference, so it is not among what was booked since some answer either.
        self.booked -= booked - used
        if self.rate < math.inf:
            self.level = min(self._most(), self.level + booked - used)
            if last:
                self._ceiling += booked - used
            if self._tight(booked):
                self.level = min(self.level, self._ceiling - self._pending)

    def wait_s(self, amount: float) -> float:
        """Returns the seconds until a booked request of this amount may go; 0 when that is now."""
        # "Until the bucket is full" for what is larger than it.
        lacking = min(0.0, self.size - amount) - self.level
        return lacking / self.rate if lacking > _EPSILON * (1 + amount) else 0.0

    # --------------------------------------------------------------------------------------------------------- learning

    def learn(self, told: Capacity, *, amount: float, since: float, elapsed_s: float) -> None:
        """Takes what a response tells.

        Args:
            told: The limit, and what was left of it after that request.
            amount: What that request used.
            since: What was booked after it.
            elapsed_s: Seconds since it was sent. The service counted at some moment within them; that all of them
                have refilled since is the most there can be.
        """
        unknown, left = self.rate == math.inf, told.left
        if told.limit is not None and told.limit != self.told:
            # Whatever a header says, nobody waits for it for ever.
            self.told = max(told.limit, LEAST_FOUND[self._kind])
            self._set_rate()
        if self.rate == math.inf:
            return
        if unknown:
            elapsed_s = 0.0  # the first request had a connection to open, and came later than the next one will
            self.level = self._most() if left is not None else self.size - since
        if left is not None:
            level = (
                self._seen_from_here(left, told.reset_s, amount)
                + self.rate * elapsed_s
                + amount
                - self.cost(amount)
                - since
            )
            self.level = min(self.level, level)

    def _seen_from_here(self, left: float, reset_s: float, amount: float) -> float:
        """Returns the level at which this bucket lets the next request go when the service does, with so much left.

        Both let a request go that is larger than they are when they are full; this one is smaller.
        """
        size, typical, held = self.size, self._typical, self.rate * HELD_S
        if not left and reset_s:
            return min(size, amount) - self.rate * min(reset_s, MOST_RESET_S)
        if typical <= size and typical <= held:
            return left
        return left - min(typical, held) + min(typical, size)

    def fall(self, sent_at: float, now: float) -> None:
        """Hears of a 429. Those for requests that were sent before the last fall are part of the same event."""
        if sent_at < self._fallen_at:
            return
        # A service that lowers what it tells is to be believed, for a while.
        lowered = self.told != self._told_at_fall and self._factor > FALL**2
        again = now - self._fallen_at < BELIEVED_S and not lowered
        self._fallen_at, self._told_at_fall = now, self.told
        if self.rate == math.inf or again or self.found is not None:
            since, booked = self._marks[0]
            observed = max(0.0, self.booked - booked) / max(now - since, 1.0)
            least = FIRST_FOUND if self.rate == math.inf else LEAST_FOUND
            self._top = max(min(observed, self.rate), least[self._kind])
            self.found, self._found_at = self._top * FALL, 0.0
            self._factor, self._margin = 1.0, 0.0
        else:
            self._factor *= FALL
            self._margin = min(MOST_MARGIN, self._margin + MARGIN)
        self._set_rate()
        self.level = min(self.level, self._most())
