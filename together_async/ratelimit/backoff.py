"""`Backoff`: how a service is asked again that accepts nothing, and does not say for how long. Pure.

It is left alone for a while, twice as long each time. Then one request tries whether it accepts anything again. If that
is answered, or not refused within the time of a few refusals, the others go on.
"""

from __future__ import annotations

import math
from typing import Final

FIRST_S: Final = 0.25
MOST_S: Final = 2.0
"""Seconds until the next try: the first, and the most."""
LEAST_S: Final = 0.05
"""Seconds after a refusal in any case, so that those sent with it are in before the next request goes."""
MOST_LATENCY_S: Final = 2.0
"""A refusal that took longer shows how long a connection was opened, or how long the service held it back."""
IN_TIME: Final = 3.0
"""A request that has not been refused in this many times the latency of a refusal was accepted."""


class Backoff:
    """The state of one model.

    Attributes:
        latency_s: How long the last refusal took to come back, in seconds.
        probing: Whether one request at most is to try.
    """

    __slots__ = ("_in_a_row", "_probe_at", "latency_s", "probing")

    def __init__(self) -> None:
        self.latency_s = 0.0
        self.probing = False
        self._in_a_row = 0
        self._probe_at = math.inf  # when the request that tries was sent

    def __repr__(self) -> str:
        return f"<Backoff, {self._in_a_row} in a row{', probing' if self.probing else ''}>"

    def record_refusal(self, sent_at: float, now: float) -> None:
        """Records how long a refusal took."""
        self.latency_s = min(now - sent_at, MOST_LATENCY_S)

    def stray_s(self) -> float:
        """Returns the seconds in which all refusals of requests sent with the last one come back."""
        return max(LEAST_S, IN_TIME * self.latency_s)

    def pause_s(self, jitter: float, *, nothing_accepted: bool, again: bool) -> float:
        """Returns the seconds for which nothing is sent.

        Args:
            jitter: A random number from 0 to 1: clients that were refused together come back apart.
            nothing_accepted: Whether the service accepts nothing, so that the pause doubles each time.
            again: Whether the refusal belongs to those that were counted last.
        """
        if nothing_accepted and not (again and self._in_a_row):
            self._in_a_row += 1
        pause_s = min(MOST_S, FIRST_S * 2.0 ** max(0, self._in_a_row - 1))
        return max(LEAST_S, 1.5 * self.latency_s, pause_s * (0.5 + jitter / 2))

    def probe(self) -> None:
        """Lets one request try after the pause, and the others wait for it."""
        self.probing, self._probe_at = True, math.inf

    def record_sent(self, now: float) -> None:
        """Records that the request that tries goes."""
        self._probe_at = now

    def wait_s(self, now: float) -> float:
        """Returns the seconds for which others wait for the request that tries; 0 when none has been sent."""
        return 0.0 if self._probe_at == math.inf else self._probe_at + self.stray_s() - now

    def tick(self, now: float) -> None:
        """Ends the wait for a request that has not been refused in time."""
        if self.probing and self._probe_at < math.inf and self.wait_s(now) <= 0:
            self.probing = False

    def end(self) -> None:
        """Ends the backoff: something was accepted, or it is known why not."""
        self.probing, self._in_a_row = False, 0
