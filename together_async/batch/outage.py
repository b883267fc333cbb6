"""Decides from the results of requests whether the service is down, and how long to wait for it.

Pure; time is an argument.
"""

from __future__ import annotations

from typing import Final

IN_A_ROW: Final = 10
"""Transient failures in a row after which the service is to blame, not the requests."""
FIRST_TRIES: Final = 4
"""Pauses for a service that has never answered."""
LAST_TRIES: Final = 9
"""Pauses for the last few requests, which may be to blame after all: about four minutes."""
MOST_PROBE_PAUSE_S: Final = 60.0
"""The longest pause between two tries, in seconds."""
MOST_DOWN_S: Final = 3_600.0
"""Seconds to wait for a service that has answered before."""


class OutageDetector:
    """Tracks the answers and failures of a service.

    Attributes:
        answers: How often the service has answered; refusing a request is an answer too.
        tries: Pauses since its last answer.
    """

    __slots__ = ("_in_a_row", "_since", "answers", "tries")

    def __init__(self) -> None:
        self.answers = 0
        self.tries = 0
        self._in_a_row = 0
        self._since: float | None = None

    @property
    def likely(self) -> bool:
        """Whether the service seems to be down, so that no more requests should begin for now."""
        return self._in_a_row >= IN_A_ROW

    def record_answer(self) -> None:
        """Records that the service answered."""
        self.answers += 1
        self.tries = self._in_a_row = 0
        self._since = None

    def record_failure(self, now: float) -> None:
        """Records a transient failure.

        Args:
            now: Seconds on a monotonic clock.
        """
        self._in_a_row += 1
        if self._since is None:
            self._since = now

    def down_s(self, now: float) -> float:
        """Returns the seconds since the first failure after the last answer; 0 without one."""
        return 0.0 if self._since is None else now - self._since

    def pause_s(self, now: float) -> float | None:
        """Counts a try, and returns the seconds to wait before it; None if there have been enough."""
        if self.tries >= FIRST_TRIES if not self.answers else self.down_s(now) > MOST_DOWN_S:
            return None
        self.tries += 1
        return min(MOST_PROBE_PAUSE_S, 2.0 ** (self.tries - 1))
