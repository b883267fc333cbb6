"""Whether a service is away, by what becomes of requests, and how long to wait for it. Pure; time is an argument."""

from __future__ import annotations

from typing import Final

IN_A_ROW: Final = 10
"""Failures that may pass, one after another, after which the requests are not to blame."""
FIRST_TRIES: Final = 4
"""Pauses for a service that has not answered once."""
LAST_TRIES: Final = 9
"""Pauses for the last few requests, which may be to blame after all: about four minutes."""
MOST_PAUSE_S: Final = 60.0
PATIENCE_S: Final = 3_600.0
"""How long a service that has answered may be away."""


class Outage:
    """The recent past of a service.

    Attributes:
        answers: How often it has answered; a refusal of a request is an answer.
        tries: Pauses since it did.
    """

    __slots__ = ("_in_a_row", "_since", "answers", "tries")

    def __init__(self) -> None:
        self.answers = 0
        self.tries = 0
        self._in_a_row = 0
        self._since: float | None = None

    @property
    def likely(self) -> bool:
        """Whether nothing more should begin for a while."""
        return self._in_a_row >= IN_A_ROW

    def answered(self) -> None:
        """Hears of an answer."""
        self.answers += 1
        self.tries = self._in_a_row = 0
        self._since = None

    def failed(self, now: float) -> None:
        """Hears of a failure that may pass."""
        self._in_a_row += 1
        if self._since is None:
            self._since = now

    def away_s(self, now: float) -> float:
        """Returns for how long it has been away."""
        return 0.0 if self._since is None else now - self._since

    def pause_s(self, now: float) -> float | None:
        """Returns how long to wait before the next try, None when that has been done long enough."""
        if self.tries >= FIRST_TRIES if not self.answers else self.away_s(now) > PATIENCE_S:
            return None
        self.tries += 1
        return min(MOST_PAUSE_S, 2.0 ** (self.tries - 1))
