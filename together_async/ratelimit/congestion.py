"""Finds how many requests to one model may be under way at once: `Limits(concurrency="auto")`. Pure.

The rule is that of TCP's congestion window (RFC 5681), because the question is the same: how much may be on its way to
something that shows its limits only by refusing.

* Slow start (3.1): each good response in a full window adds a place, so the window doubles in the time of a response.
* Congestion avoidance (3.1): beyond the size at which a 429 came, it takes a whole window of good responses.
* A 429 multiplies the window by `FALL` (RFC 9438 4.6, instead of the older half), once for all requests sent before.
* Only a window that is full grows (RFC 7661), and after a pause it starts anew (RFC 5681 4.1).

Three things differ from TCP. A stream that is being read holds its place for minutes, but shows nothing about the next
request; so a 429 takes places from the requests that wait for a response, and where every place is held by a stream
that goes well, the window grows with time. Latency counts too, as in TCP Vegas (Brakmo and Peterson 1995), since
servers queue before they refuse: while responses take more than `SLOW` times as long as usual, the window keeps its
size. And a 503 changes nothing: the platform is overloaded, whatever this client sends.
"""

from __future__ import annotations

import math
from typing import Final

INITIAL: Final = 100
"""Requests of a fresh window: as many as the SDKs open connections."""
FALL: Final = 0.7
"""A 429 multiplies the places of unanswered requests by this."""
LEAST: Final = 10
"""No window is smaller (RFC 6928 begins with as many): below it the rates, which a 429 lowers too, do the work."""
SLOW: Final = 2.0
"""Latencies above this multiple of the usual one stop growth."""
PROBE_S: Final = 0.05
"""Seconds at least between two places added because all others are held by streams that go well."""
PAUSE_S: Final = 60.0
"""After so many seconds without requests the window starts anew."""
_QUICK: Final = 0.2
"""Weight of a sample in the current latency."""
_WINDOWS: Final = 10
"""The usual latency is the mean over about so many windows of responses."""


class Latency:
    """How long responses take.

    Attributes:
        now_s: Seconds lately; 0 before the first sample.
        usual_s: Seconds usually; 0 before the first sample.
    """

    __slots__ = ("now_s", "usual_s")

    def __init__(self) -> None:
        self.now_s = self.usual_s = 0.0

    def add(self, seconds: float, places: float) -> None:
        """Adds a sample, one of about `places` in a response's time."""
        if not self.usual_s:
            self.now_s = self.usual_s = seconds
            return
        self.now_s += _QUICK * (seconds - self.now_s)
        self.usual_s += min(_QUICK, 1 / (_WINDOWS * places)) * (seconds - self.usual_s)

    @property
    def good(self) -> bool:
        """Whether responses come about as fast as usual."""
        return self.now_s <= SLOW * self.usual_s


class CongestionWindow:
    """The number of requests that may be under way at once, and how it changes.

    Args:
        now: Seconds of a clock that does not go back; all times are of the same.

    Attributes:
        size: The number, with the fraction that growth has reached.
        latencies: The latency of the heads of streams, and that of whole responses per completion token.
    """

    __slots__ = ("_fallen_at", "_grown_at", "_threshold", "_used_at", "latencies", "size")

    def __init__(self, now: float) -> None:
        self.size = float(INITIAL)
        self.latencies = (Latency(), Latency())
        self._threshold = math.inf  # above it, growth is slow
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
        """Returns the seconds until one more may be sent; infinite if a request has to end or be answered first."""
        if in_flight < int(self.size):
            return 0.0
        if unanswered or not self.good:
            return math.inf
        return max(0.0, self._grown_at + max(PROBE_S, min(self.latencies[0].now_s, 1.0)) - now)

    def record_sent(self, in_flight: int, now: float) -> None:
        """Records that a request is sent, next to those in flight."""
        if now - self._used_at > PAUSE_S and not in_flight:
            self.size = min(self.size, float(INITIAL))
            self._threshold = math.inf
        self._used_at = now
        if in_flight >= int(self.size):  # all places are held by streams that go well
            self._grown_at = now
            self.size = in_flight + 1.0

    def record_response(self, in_flight: int, now: float) -> None:
        """Records a good response, to a request still counted in `in_flight`."""
        if in_flight >= int(self.size) - 1 and self.good:
            self._grown_at = now
            self.size += 1.0 if self.size < self._threshold else 1.0 / self.size

    def record_rate_limit(self, in_flight: int, unanswered: int, sent_at: float, now: float) -> None:
        """Records a 429 to a request sent at `sent_at`, which is still counted in both numbers."""
        if sent_at < self._fallen_at:
            return
        self._fallen_at = now
        pressure = min(self.size, float(in_flight)) - (in_flight - unanswered)
        self.size = max(float(LEAST), in_flight - unanswered + pressure * FALL)
        # Below the first window nothing was found out, so growth up to it is quick.
        self._threshold = max(self.size, float(INITIAL))
