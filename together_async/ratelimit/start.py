"""The start: how fast requests are sent to a model while nothing is known of its limits. Pure.

A refusal comes back within a round trip, an answer within seconds. So the start is open: a request too many costs a 429
within a round trip, and a request that is fine is never held back noticeably.

* `AT_ONCE` requests go at once. Each good answer that reports no limit allows one more to be without an answer. After
  `IDLE_S` without a request this begins anew.
* Beyond that the requests of a burst grow e-fold in `GROWTH_S`: 24 become 64 within 50 ms, 1,000 within 190 ms. From
  farther away, where refusals take longer, they grow e-fold in the time of a round trip, as far as the opening of the
  first connection shows it.
* They grow from the moment when the first request of the burst is on its way, not while its connection is opened.
* They are let go by the timer alone, which the event loop runs after it has read what came, never because another call
  asks: two thousand tasks that ask in one turn of the loop take 0.2 s, in which no refusal could be read. A timer that
  is late has missed as much, so no more than `LATE_S` of its lateness counts.

A careful start, which a batch prefers, sends one request and waits: the requests without an answer are at most one more
than the good answers, so their number doubles in the time of an answer (TCP's slow start). Requests beyond that go
after gaps of a second, half a second and so on, because an answer may take minutes.
"""

from __future__ import annotations

import math
from typing import Final

AT_ONCE: Final = 24
"""Requests without an answer that need no gap. With 32 a first `gather` of 64 takes 1 % less time, and a fixed account
of ten requests a second sees twice as many 429s; with 16 it takes 3 % more."""
GROWTH_S: Final = 0.05
MOST_GROWTH_S: Final = 0.25
"""Seconds in which the requests of a burst grow e-fold, and the most from far away."""
LATE_S: Final = 0.01
"""Seconds of a timer's lateness that count."""
BURST_S: Final = 1.0
"""Seconds without a request that end a burst."""
IDLE_S: Final = 60.0
"""Seconds without a request after which answers show nothing any more."""
DIAL_TRIPS: Final = 2
"""Round trips in which a connection with TLS is opened. Without TLS it is one, so the trips are taken for half."""
DIAL_S: Final = 0.5
"""Seconds for which the opening of the first connection is waited for, at most."""
CAREFUL_GAP_S: Final = 1.0
LEAST_CAREFUL_GAP_S: Final = 0.02
_SOON_S: Final = 0.0005


class Start:
    """How fast requests are sent to a model while its limits are not known.

    Attributes:
        limits_known: Whether a response has reported limits; then there is no start.
        unanswered_allowed: How many requests may be without an answer before the next one needs a gap.
    """

    __slots__ = (
        "_allowed",
        "_at",
        "_connected",
        "_dialling",
        "_dialling_since",
        "_growth_s",
        "_sent",
        "_sent_at",
        "_total",
        "limits_known",
        "unanswered_allowed",
    )

    def __init__(self) -> None:
        self.limits_known = False
        self.unanswered_allowed = AT_ONCE
        self._total = 0  # requests sent so far
        self._sent = 0  # of these, in this burst
        self._sent_at = -math.inf
        self._allowed = 0.0  # requests that may go beyond those that need no gap
        self._at = -math.inf  # since when they grow in number; or since the last one was sent
        self._growth_s = GROWTH_S
        self._dialling = 0  # connections that are being opened
        self._dialling_since = -math.inf
        self._connected = False  # whether a request of this burst is on its way

    def __repr__(self) -> str:
        return f"<Start, {self._sent} sent, {self.unanswered_allowed - AT_ONCE} answers>"

    def wait_s(self, unanswered: int, now: float, *, careful: bool) -> float:
        """Returns the seconds until one more request may go, next to those without an answer; 0 when that is now."""
        if careful:
            if unanswered <= self.unanswered_allowed - AT_ONCE:
                return 0.0
            gap_s = CAREFUL_GAP_S / 2.0 ** min(self._total - 1, 10)
            return max(0.0, self._sent_at + max(gap_s, LEAST_CAREFUL_GAP_S) - now)
        if unanswered < self.unanswered_allowed or self._allowed >= 1.0:
            return 0.0
        # Even if that time has passed: `tick` has to let it go.
        return max(self._due() - now, _SOON_S)

    def _due(self) -> float:
        if self._dialling and not self._connected:
            return self._dialling_since + DIAL_S
        return max(self._at, self._sent_at) + self._growth_s * math.log1p((1.0 - self._allowed) / max(1, self._sent))

    def tick(self, now: float) -> None:
        """Lets the requests go whose time has come. Call it from the timer."""
        due = self._due()
        if due <= now:
            if self._dialling and not self._connected:
                self._connected, self._at = True, now  # this connection may never be opened; others go on
            elapsed_s = min(now, due + LATE_S) - max(self._at, self._sent_at)
            grown = max(1, self._sent) * math.expm1(max(0.0, elapsed_s) / self._growth_s)
            self._allowed = max(self._allowed + grown, 1.0)
            self._at = now

    def record_sent(self, unanswered: int, now: float) -> None:
        """Records that a request goes, next to those without an answer."""
        if now - self._sent_at > BURST_S:
            self._sent, self._allowed, self._connected = 0, 0.0, False
            if now - self._sent_at > IDLE_S:
                self.unanswered_allowed = AT_ONCE
        if self._allowed:
            self._allowed = max(0.0, self._allowed - 1.0) if unanswered >= self.unanswered_allowed else 0.0
        self._sent += 1
        self._total += 1
        self._sent_at = now

    def forget_answer(self) -> None:
        """Takes an answer back: it was a refusal."""
        self.unanswered_allowed = max(AT_ONCE, self.unanswered_allowed - 1)

    def forget_requests(self) -> None:
        """Forgets the connections that are being opened: their event loop is gone."""
        self._dialling = 0

    def record_dialling(self, now: float) -> None:
        """Records that a connection begins to be opened for a request that was granted its turn."""
        if not self._dialling:
            self._dialling_since = now
        self._dialling += 1

    def record_dialled(self, now: float, seconds: float, *, connected: bool) -> None:
        """Records that a connection is open, or has failed.

        Args:
            now: The time.
            seconds: How long it took; with TLS these are two round trips and more.
            connected: Whether it is open, so that its request is on its way.
        """
        self._dialling -= 1
        if connected and not self._connected:
            self._connected, self._at = True, now
            self._growth_s = min(MOST_GROWTH_S, max(GROWTH_S, seconds / DIAL_TRIPS))
