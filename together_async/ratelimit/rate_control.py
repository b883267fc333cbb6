"""The rate of a bucket: how fast requests may be sent to a model, by all that is known. Pure.

It is the lowest of three: the rate the caller configured, the rate the service reported, and the rate found from 429s.
A 429 in spite of it lowers it for a while: multiplied by `FALL`, then back in steady steps (AIMD, as TCP does: RFC
5681). If that does not help, the configured and the reported rate are not believed, and the rate is found (see
`found_rate`).
"""

from __future__ import annotations

import math
from typing import Final

from together_async.ratelimit.found_rate import FoundRate
from together_async.ratelimit.headers import Kind

FALL: Final = 0.7
RISE_PER_S: Final = 0.06
"""Share of the rate that comes back per second: one fall is made good in five seconds."""
MARGIN: Final = 0.05
MOST_MARGIN: Final = 0.3
MARGIN_HALVES_S: Final = 60.0
"""After a 429 this much of the rate is not used, half of it a minute later, so that the next one does not come as soon
as the fall is made good."""
LEAST_REPORTED: Final = {"requests": 1 / 900, "tokens": 1.0}
"""No lower rate per second is adopted from a report: a request in 15 minutes, as long as the longest pause."""
BELIEVED_S: Final = 30.0
BELIEVED_FALLS: Final = 2
"""After more falls than these within so many seconds, the reported or configured rate is no longer believed."""


class RateControl:
    """What is known of one rate, and what 429s have done to it.

    Args:
        kind: "requests" or "tokens".
        configured: The caller's limit per second; None for no limit.

    Attributes:
        configured: The caller's limit per second; None for no limit.
        reported: The limit per second that the service reported last; None before it reported any.
        found: The rate found from 429s; without one the configured or the reported one is believed.
        recovering: Whether a 429 or a pause still lowers the rate; then `recover` is to be called.
    """

    __slots__ = (
        "_factor",
        "_fallen_at",
        "_falls",
        "_kind",
        "_margin",
        "_reported_at_fall",
        "configured",
        "found",
        "recovering",
        "reported",
    )

    def __init__(self, kind: Kind, configured: float | None) -> None:
        self._kind: Kind = kind
        self.configured = configured
        self.reported: float | None = None
        self.found = FoundRate(kind)
        self.recovering = False
        self._factor = 1.0
        self._margin = 0.0
        self._fallen_at = -math.inf
        self._falls = 0  # within BELIEVED_S of one another
        self._reported_at_fall: float | None = None

    def __repr__(self) -> str:
        return f"<RateControl {self.rate():g} per second>"

    def rate(self) -> float:
        """Returns the rate to keep, per second; infinite while no limit is known."""
        rates = (self.configured, self.reported, self.found.rate, math.inf)
        return min(rate for rate in rates if rate is not None) * self._factor * (1 - self._margin)

    def report(self, limit: float) -> bool:
        """Adopts the limit per second that the service reports; returns whether that changes anything.

        The first report replaces all that was found out before.
        """
        if limit == self.reported:
            return False
        if self.reported is None:
            self.found.drop()
            self._factor, self._margin = 1.0, 0.0
        # Whatever the header, no call waits for ever.
        self.reported = max(limit, LEAST_REPORTED[self._kind])
        return True

    def halve(self) -> bool:
        """Approaches a learned rate from its half again, after a pause; returns whether there is one."""
        if self.reported is None and self.found.rate is None:
            return False
        self._factor = min(self._factor, 0.5)
        self.recovering = True
        return True

    def recover(self, elapsed_s: float, used_s: float) -> None:
        """Undoes, step by step, what 429s have done to the rate.

        Args:
            elapsed_s: Seconds since the last time.
            used_s: How many of them the rate was in use: an unused rate shows nothing about the service.
        """
        if self._margin:
            self._margin *= 2 ** (-elapsed_s / MARGIN_HALVES_S)
            if self._margin < 0.001:
                self._margin = 0.0
        self._factor = min(1.0, self._factor + RISE_PER_S * elapsed_s)
        found = self.found
        found.record_used(used_s)
        if found.rate is not None and found.rate >= min(self.configured or math.inf, self.reported or math.inf):
            found.drop()
        self.recovering = bool(self._margin) or self._factor < 1.0 or found.rate is not None

    def find(self, accepted: float, since_last_s: float, *, again: bool) -> None:
        """Adopts a rate for a service that reports none, after refusals (see `FoundRate.record_refusals`)."""
        self.found.record_refusals(accepted, since_last_s, again=again, search=self.reported is None)
        self._factor, self._margin = 1.0, 0.0
        self.recovering = True

    def undo_find(self) -> None:
        """Undoes the last `find`, and searches on from what was known before: it was no limit."""
        self.found.undo()
        self.found.search()

    def search_from(self, rate: float) -> None:
        """Searches on from a rate, if a lower one was found: what was refused was refused by chance."""
        self.found.search_from(rate)

    def record_rate_limit(self, rate: float, observed: float, sent_at: float, now: float) -> bool:
        """Lowers the rate after a 429 that came in spite of a known limit; returns whether it did.

        The 429s for requests that were sent before the last fall are part of the same event.

        Args:
            rate: The rate kept until now, per second.
            observed: The rate at which requests really went in the last seconds, per second.
            sent_at: When the refused request was sent.
            now: The time, of the same clock.
        """
        if sent_at < self._fallen_at:
            return False
        # A service that lowers what it reports is to be believed, for a while.
        lowered = self.reported != self._reported_at_fall and self._factor > FALL**2
        since_last_s = now - self._fallen_at
        self._falls = 1 if since_last_s >= BELIEVED_S or lowered else self._falls + 1
        self._fallen_at, self._reported_at_fall = now, self.reported
        if rate == math.inf or self._falls > BELIEVED_FALLS or self.found.rate is not None:
            self.find(min(observed, rate), since_last_s, again=False)
        else:
            self._factor *= FALL
            self._margin = min(MOST_MARGIN, self._margin + MARGIN)
        self.recovering = True
        return True
