"""`ClockedAdmission`: an admission with a clock of its own, for tests. The clock is a number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from together_async import Limits, PaymentRequiredError
from together_async.ratelimit import LimitsState
from together_async.ratelimit.admission import Admission
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.headers import AccountLimits, Kind, ReportedLimit
from together_async.ratelimit.lane import RateLimited
from together_async.ratelimit.queue import Reservation

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDING = 1e-6
ROOM_S = 0.5
"""Seconds' worth that may go at once, next to one request: half of what a service is assumed to hold, or less."""
LATE_S = 0.04
"""How late a timer may be without any loss."""
MODEL = "m"


def reported(
    requests: float | None = None,
    left: float | None = None,
    tokens: float | None = None,
    tokens_left: float | None = None,
) -> AccountLimits:
    """What headers say: limits per second, and what was left."""
    return AccountLimits(ReportedLimit(requests, left), ReportedLimit(tokens, tokens_left))


class ClockedAdmission:
    """Admission with a clock: what a limiter does, without an event loop.

    Args:
        limits: What is allowed.
        known: Whether the service has answered before, so that the model is known.
    """

    def __init__(self, limits: Limits, *, known: bool = True) -> None:
        self.known = known
        self.admission = Admission(limits, self.wall)
        self.now = 0.0
        self.granted: list[Reservation] = []
        self.turned_away: list[tuple[Reservation, Exception]] = []

    def ask(self, tokens: float | Size = 0, model: str = MODEL, **options: Any) -> Reservation:
        self.admission.lane(model, self.now).start.limits_known |= self.known
        return self.admission.ask(model, tokens, self.now, **options)

    def asked(self, tokens: float | Size = 0, model: str = MODEL, **options: Any) -> Reservation:
        reservation = self.ask(tokens, model, **options)
        self.advance()
        return reservation

    def again(self, reservation: Reservation) -> Reservation:
        """Its call asks once more, with its number."""
        return self.asked(
            reservation.tokens, reservation.model, priority=reservation.priority, number=reservation.number
        )

    def advance(self) -> list[Reservation]:
        granted = self.admission.advance(self.now)
        self.granted += granted
        self.turned_away += self.admission.turned_away
        self.admission.turned_away = []
        return granted

    def to(self, time: float) -> list[Reservation]:
        """Lets the time pass; returns those that went meanwhile."""
        found = self.advance()
        while self.admission.queued and self.admission.next_at <= time:
            self.now = max(self.now, self.admission.next_at)
            found += self.advance()
        self.now = time
        return found + self.advance()

    def answered(self, reservation: Reservation, limits: AccountLimits | None = None, *, good: bool = True) -> None:
        self.admission.record_response(reservation, self.now, limits, good=good)
        self.advance()

    def limited(
        self,
        reservation: Reservation,
        wait_s: float | None = 1.0,
        *,
        limits: AccountLimits | None = None,
        kind: Kind | None = None,
    ) -> RateLimited:
        """A 429 comes, and ends the request."""
        found = self.admission.record_rate_limit(reservation, self.now, limits, wait_s=wait_s, kind=kind, jitter=1.0)
        self.advance()
        self.end(reservation, 0)
        return found

    def end(self, reservation: Reservation, used: float | None = None) -> None:
        if used is not None:
            self.admission.settle(reservation, used, self.now)
        self.admission.release(reservation, self.now)
        self.advance()

    def withdraw(self, reservation: Reservation) -> None:
        self.admission.withdraw(reservation, self.now)
        self.advance()

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now)

    @property
    def state(self) -> LimitsState:
        return self.admission.state(self.now, EPOCH)

    def rate(self, model: str = MODEL) -> float:
        """The requests per second that are kept now."""
        self.state  # noqa: B018 - brings it up to date
        return self.admission.lane(model, self.now).requests.rate


def paid() -> PaymentRequiredError:
    return PaymentRequiredError("402: no money", status_code=402, headers={"x": "y"}, body={"a": 1}, request_id="r")
