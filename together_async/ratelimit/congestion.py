"""How many requests to one model may be under way at once, when nobody says: `Limits(concurrency="auto")`. Pure.

The rule is that of TCP's congestion window (RFC 5681), because the question is the same: how much may be on its way to
something that tells its limits only by refusing.

* Slow start (3.1): each good answer to a full window lets one more go, so the window doubles in the time of an answer.
* Congestion avoidance (3.1): beyond the size at which a 429 came, it takes a whole window of good answers.
* A 429 multiplies the window by `FALL` (RFC 9438 4.6, instead of the older half), once for all that were sent before.
* Only a window that is full grows (RFC 7661), and after a pause it starts anew (RFC 5681 4.1).

Three things differ from TCP. A stream that is being answered holds its place for minutes, but says nothing about the
next request; so a 429 takes away from those that wait for an answer, and where every place is held by a stream that
goes well, the window grows with time. Latency is looked at too, as TCP Vegas does (Brakmo and Peterson 1995), since
servers queue before they refuse: while answers take more than `SLOW` times as long as they used to, the window keeps
its size. And a 503 changes nothing: the platform is overloaded, whoever sends what.
"""

from __future__ import annotations

import math
from typing import Final

INITIAL: Final = 100
"""Requests of a fresh window: as many as the SDKs have connections."""
FALL: Final = 0.7
LEAST: Final = 10
"""No window is smaller (RFC 6928 begins with as many): below it the rates, which a 429 lowers too, do the work."""
SLOW: Final = 2.0
PROBE_S: Final = 0.05
"""At least as many seconds between two places added because all others are held by streams that go well."""
PAUSE_S: Final = 60.0
_QUICK: Final = 0.2
"""Weight of a sample in the latency of now."""
_WINDOWS: Final = 10
"""The usual latency is the mean of about so many windows of answers."""


class Latency:
    """How long answers take now, and how long they usually do."""

    __slots__ = ("now_s", "usual_s")

    def __init__(self) -> None:
        self.now_s = self.usual_s = 0.0

    def add(self, seconds: float, places: float) -> None:
        """Takes a sample, one of about `places` in the time of an answer."""
        if not self.usual_s:
            self.now_s = self.usual_s = seconds
            return
        self.now_s += _QUICK * (seconds - self.now_s)
        self.usual_s += min(_QUICK, 1 / (_WINDOWS * places)) * (seconds - self.usual_s)

    @property
    def good(self) -> bool:
        """Whether answers come about as fast as usual."""
        return self.now_s <= SLOW * self.usual_s


class CongestionWindow:
    """The number of requests that may be under way at once, and how it changes."""

    __slots__ = ("_fallen_at", "_grown_at", "_threshold", "_used_at", "latencies", "size")

    def __init__(self, now: float) -> None:
        self.size = float(INITIAL)
        self.latencies = (Latency(), Latency())  # of heads of streams; of whole answers, per token
        self._threshold = math.inf
        self._fallen_at = -math.inf
        self._grown_at = self._used_at = now

    def __repr__(self) -> str:
        return f"<CongestionWindow {self.size:.1f}>"

    @property
    def places(self) -> int:
        """How many may be under way at once."""
        return int(self.size)

    @property
    def good(self) -> bool:
        """Whether the latencies allow growth."""
        return self.latencies[0].good and self.latencies[1].good

    def wait_s(self, in_flight: int, unanswered: int, now: float) -> float:
        """Returns the seconds until one more may go: 0 for now, infinite for when one has ended or is answered."""
        if in_flight < int(self.size):
            return 0.0
        if unanswered or not self.good:
            return math.inf
        return max(0.0, self._grown_at + max(PROBE_S, min(self.latencies[0].now_s, 1.0)) - now)

    def record_sent(self, in_flight: int, now: float) -> None:
        """Hears that a request goes, beside those in flight."""
        if now - self._used_at > PAUSE_S and not in_flight:
            self.size = min(self.size, float(INITIAL))
            self._threshold = math.inf
        self._used_at = now
        if in_flight >= int(self.size):  # all places are held by streams that go well
            self._grown_at = now
            self.size = in_flight + 1.0

    def record_response(self, in_flight: int, now: float) -> None:
        """Hears of a good answer."""
        if in_flight >= int(self.size) - 1 and self.good:
            self._grown_at = now
            self.size += 1.0 if self.size < self._threshold else 1.0 / self.size

    def record_rate_limit(self, in_flight: int, unanswered: int, sent_at: float, now: float) -> None:
        """Hears of a 429, to a request sent at `sent_at` which is still counted in both numbers."""
        if sent_at < self._fallen_at:
            return
        self._fallen_at = now
        pressure = min(self.size, float(in_flight)) - (in_flight - unanswered)
        self.size = max(float(LEAST), in_flight - unanswered + pressure * FALL)
        # Below the first window nothing was found out, so it is taken up again quickly.
        self._threshold = max(self.size, float(INITIAL))
