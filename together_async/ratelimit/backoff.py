"""`Backoff`: when to try again a service that accepts nothing and names no time. Pure.

It is left alone for a while, twice as long each time. Then one request, the probe, tries whether it accepts anything
again. If the probe is answered, or not refused within the time of a few refusals, the others go on.
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
TOGETHER: Final = 1.5
"""Refusals of requests that were sent together come back within this many times the latency of the first."""
IN_TIME: Final = 3.0
"""A request that has not been refused in this many times the latency of a refusal was accepted."""


class Backoff:
    """The state of one model.

    Attributes:
        latency_s: How long the last refusal took to come back, in seconds.
        probing: Whether nothing but a probe may go.
    """

    __slots__ = ("_in_a_row", "_probe_at", "latency_s", "probing")

    def __init__(self) -> None:
        self.latency_s = 0.0
        self.probing = False
        self._in_a_row = 0
        self._probe_at = math.inf  # when the probe was sent

    def __repr__(self) -> str:
        return f"<Backoff, {self._in_a_row} in a row{', probing' if self.probing else ''}>"

    def record_refusal(self, sent_at: float, now: float) -> None:
        """Records how long a refusal took."""
        self.latency_s = min(now - sent_at, MOST_LATENCY_S)

    def together_s(self) -> float:
        """Returns the seconds in which refusals of requests that were sent together come back."""
        return max(LEAST_S, TOGETHER * self.latency_s)

    def stray_s(self) -> float:
        """Returns the seconds in which all refusals of requests sent with the last one come back."""
        return max(LEAST_S, IN_TIME * self.latency_s)

    def next_pause_s(self, jitter: float, *, nothing_accepted: bool, again: bool) -> float:
        """Begins a pause, and returns its length in seconds.

        Args:
            jitter: A random number from 0 to 1: clients that were refused together come back apart.
            nothing_accepted: Whether the service accepts nothing, so that the pause doubles each time.
            again: Whether the refusal belongs to those that were counted last.
        """
        if nothing_accepted and not (again and self._in_a_row):
            self._in_a_row += 1
        pause_s = min(MOST_S, FIRST_S * 2.0 ** max(0, self._in_a_row - 1))
        return max(self.together_s(), pause_s * (0.5 + jitter / 2))

    def probe(self) -> None:
        """Lets a probe go after the pause, and the others wait for it."""
        self.probing, self._probe_at = True, math.inf

    def record_sent(self, now: float) -> None:
        """Records that the probe goes."""
        self._probe_at = now

    def wait_s(self, now: float) -> float:
        """Returns the seconds for which the others wait for the probe; 0 when it has not been sent."""
        return 0.0 if self._probe_at == math.inf else self._probe_at + self.stray_s() - now

    def tick(self, now: float) -> None:
        """Ends the wait for a probe that has not been refused in time."""
        if self.probing and self._probe_at < math.inf and self.wait_s(now) <= 0:
            self.probing = False

    def end(self) -> None:
        """Ends the backoff: something was accepted, or it is known why not."""
        self.probing, self._in_a_row = False, 0
