"""How many calls may be under way while the process has no file descriptors left (`EMFILE`, `ENFILE`). Pure.

A request that finds no descriptor for its connection waits for a place like any other call. The number of places for
all models falls to what is under way without that request, since so many connections there are. It rises again by one
for each `RISE_S`, and after `FORGOTTEN_S` without another such failure it is forgotten. Where nothing else is under
way, no release will come, so the next request is tried after a short pause.
"""

from __future__ import annotations

import math
from typing import Final

RISE_S: Final = 0.5
"""Seconds after which one more call may be under way: two tries a second cost little, and find out quickly."""
FORGOTTEN_S: Final = 60.0
"""Seconds without another failure after which the number is no longer bounded."""
FIRST_PAUSE_S: Final = 0.1
"""The first pause when nothing else is under way; each following one is twice as long."""
LONGEST_PAUSE_S: Final = 2.0
"""The longest of these pauses."""
GIVE_UP_S: Final = 60.0
"""Seconds of such pauses, without a response in between, after which a call fails."""
_APART_S: Final = 10.0
"""Failures that are further apart than this belong to two shortages."""


class DescriptorShortage:
    """The places that are left while descriptors are short.

    Args:
        now: Seconds of a clock that does not go back; all times are of the same.

    Attributes:
        paused_until: Nothing is sent before this time.
    """

    __slots__ = ("_alone_at", "_alone_since", "_lowered_at", "_lowered_to", "_pause_s", "paused_until")

    def __init__(self, now: float) -> None:
        self.paused_until = -math.inf
        self._lowered_at = now
        self._lowered_to = 1
        self._pause_s = FIRST_PAUSE_S
        self._alone_at = self._alone_since = -math.inf

    def record_exhausted(self, others: int, now: float) -> bool:
        """Records that a request found no descriptor.

        Args:
            others: How many other calls are under way.
            now: The time.

        Returns:
            Whether its call may wait; False when there has been none for `GIVE_UP_S`.
        """
        self._lowered_at = now
        self._lowered_to = max(1, others)
        if others:
            return True
        if now - self._alone_at > _APART_S:
            self.record_response()
            self._alone_since = now
        self._alone_at = now
        self.paused_until = now + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        return now - self._alone_since < GIVE_UP_S

    def record_response(self) -> None:
        """Records a response: its request had a descriptor, so the next pause is a short one again."""
        self._pause_s = FIRST_PAUSE_S
        self._alone_at = -math.inf

    def is_over(self, now: float) -> bool:
        """Returns whether it can be forgotten."""
        return now - self._lowered_at >= FORGOTTEN_S

    def places(self, now: float) -> int:
        """Returns how many calls may be under way at once."""
        return self._lowered_to + int((now - self._lowered_at) / RISE_S)

    def free_at(self, in_flight: int, now: float) -> float:
        """Returns when one more call may be sent, next to those in flight, if none of them ends; `now` if at once."""
        missing = in_flight + 1 - self._lowered_to
        # A little later than the very moment, so that rounding does not leave the number where it was.
        return max(now, self.paused_until, self._lowered_at + missing * RISE_S * (1 + 1e-9))
