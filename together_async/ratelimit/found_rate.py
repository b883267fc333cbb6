"""`FoundRate`: the rate of a service that refuses and reports no limit, found from what it accepted before. Pure.

* The first refusals show little: some of what was accepted was capacity that the service had saved up. The rate begins
  at `KEPT` of what was accepted per second, and doubles each second that it is used, until the next refusal.
* That one shows the limit. From then on the rate follows CUBIC (RFC 9438 4.2): it comes back to where the refusal came,
  stays there for a while, and then tries more.
* Refusals that come soon after one another show that the limit itself has fallen. The rate falls further, rises slowly
  to just below its old value, and stays there for a minute.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from together_async.ratelimit.headers import Kind

KEPT: Final = 0.85
"""Share of what was accepted that is sent after refusals."""
FELL: Final = 0.7
"""The share if the limit itself has fallen."""
SOON_S: Final = 8.0
"""Refusals within so many seconds of the last show that the limit has fallen."""
DOUBLING_S: Final = 1.0
PLATEAU_S: Final = 30.0
"""Seconds after which a rate is back where the refusal came; then it rises beyond."""
FELL_RISE_PER_S: Final = 0.02
FELL_MOST: Final = 0.95
FELL_FOR_S: Final = 60.0
"""Then it rises by this share of itself per second, to this share of the old limit at most, for so many seconds of
use."""
LEAST: Final = {"requests": 0.2, "tokens": 10.0}
"""No found rate per second is lower."""
MOST: Final = 1e6
"""A rate that has doubled beyond this is no limit."""


class _Before(NamedTuple):
    """What refusals change, to be restored if they were premature."""

    rate: float | None
    searching: bool
    top: float
    used_s: float
    rise: tuple[float, float] | None


class FoundRate:
    """A rate, and how it changes.

    Args:
        kind: "requests" or "tokens".

    Attributes:
        rate: Per second; None while none has been found.
    """

    __slots__ = ("_before", "_least", "_rise", "_top", "_used_s", "rate", "searching")

    def __init__(self, kind: Kind) -> None:
        self._least = LEAST[kind]
        self.rate: float | None = None
        self.searching = False
        self._top = 0.0  # where refusals came
        self._used_s = 0.0  # since then
        self._rise: tuple[float, float] | None = None  # after a fall of the limit: from, and to at most
        self._before = _Before(None, searching=False, top=0.0, used_s=0.0, rise=None)

    def __repr__(self) -> str:
        return f"<FoundRate {self.rate}>"

    def record_refusals(self, accepted: float, since_last_s: float, *, again: bool, search: bool) -> None:
        """Adopts a rate after refusals.

        Args:
            accepted: The rate that the service accepted lately, per second.
            since_last_s: Seconds since the refusals before these; infinite without any.
            again: Whether more of the same refusals have come, so that the last time was premature.
            search: Whether the first rate is doubled, because it shows little.
        """
        if again:
            self.undo()
        self._before = _Before(self.rate, self.searching, self._top, self._used_s, self._rise)
        accepted = max(accepted, self._least)
        if self.rate is None:
            self._begin(accepted, KEPT, searching=search)
        elif self.searching or since_last_s > SOON_S:
            self._begin(accepted, KEPT, searching=False)
        else:
            old = self._top
            self._begin(accepted, FELL, searching=False)
            self._rise = (accepted * FELL, max(accepted * FELL, FELL_MOST * old))
            self._top = old

    def _begin(self, accepted: float, share: float, *, searching: bool) -> None:
        self._top, self._used_s, self.searching, self._rise = accepted, 0.0, searching, None
        self.rate = max(self._least, accepted * share)

    def undo(self) -> None:
        """Undoes the last `record_refusals`: more refusals have shown that it was no limit."""
        self.rate, self.searching, self._top, self._used_s, self._rise = self._before

    def search(self) -> None:
        """Doubles the rate from here on, if there is one: what came before may no longer hold."""
        self.searching, self._rise, self._used_s = self.rate is not None, None, 0.0

    def search_from(self, rate: float) -> None:
        """Doubles a rate from now on, if a lower one was found: what was refused, was refused by chance."""
        if self.rate is not None:
            self.rate = max(self.rate, rate)
            self.search()

    def record_used(self, seconds: float) -> None:
        """Lets the rate rise after so many seconds in which it was in use: an unused one shows nothing."""
        if self.rate is None:
            return
        self._used_s += seconds
        if self.searching:
            self.rate *= 2 ** (seconds / DOUBLING_S)
            if self.rate > MOST:
                self.rate, self.searching = None, False
        elif self._rise is not None:
            start, most = self._rise
            self.rate = min(most, start * math.exp(FELL_RISE_PER_S * self._used_s))
            if self._used_s > FELL_FOR_S:
                # The plateau, from there on.
                self._top, self._used_s, self._rise = self.rate, PLATEAU_S, None
        else:
            since_plateau = (self._used_s - PLATEAU_S) / PLATEAU_S
            self.rate = self._top * (1 + (1 - KEPT) * since_plateau**3)

    def drop(self) -> None:
        """Forgets the rate: the service has reported one."""
        self.rate, self.searching, self._rise = None, False, None
