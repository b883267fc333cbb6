"""Limiters in tests, and tasks that wait for their turn."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from support.admission import MODEL
from support.virtual_time import now
from together_async import Limits, RateLimiter
from together_async.ratelimit.headers import AccountLimits, ReportedLimit
from together_async.ratelimit.queue import Reservation
from together_async.timeouts import Due

UNLIMITED = AccountLimits(ReportedLimit(), ReportedLimit())
"""What a service without limits reports."""


def limiter_of(limits: Limits) -> RateLimiter:
    """A limiter on the running loop's clock, for a service that is known to have no other limits."""
    limiter = RateLimiter(limits, clock=asyncio.get_running_loop().time)
    limiter.driver.admission.lane(MODEL, now()).start.limits_known = True
    return limiter


async def turns(count: int = 3) -> None:
    """Lets all tasks run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def taken(
    limiter: RateLimiter,
    *,
    tokens: float = 0,
    number: int | None = None,
    deadline: Due | None = None,
    on_waiting: Callable[[asyncio.Future[None] | None], None] | None = None,
    **options: Any,
) -> Reservation:
    """Asks and waits for a turn, as a call does.

    Args:
        limiter: Whose turn it is.
        tokens: As for `Driver.ask`, like `number` and `options`; a new interactive call by default.
        number: See `tokens`.
        deadline: As for `Driver.wait`, like `on_waiting`.
        on_waiting: See `deadline`.
        **options: See `tokens`.
    """
    new_call = {"priority": "interactive", "max_pause_s": math.inf, "counts_as_queued": True, "careful_start": False}
    reservation = limiter.driver.ask(MODEL, tokens, number=number, **(new_call | options))
    if not reservation.granted:
        await limiter.driver.wait(reservation, is_new=number is None, deadline=deadline, on_waiting=on_waiting)
    return reservation


class Waiters:
    """Tasks that wait for their turn, in order, and what became of each."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.tasks: list[asyncio.Task[Reservation]] = []
        self.order: list[int] = []
        self.at: list[float] = []

    async def add(self, count: int = 1, **options: Any) -> None:
        """One after the other, each with its place in the queue before the next."""
        for _ in range(count):
            self.tasks.append(asyncio.create_task(self.wait(len(self.tasks), options)))
            await asyncio.sleep(0)

    async def wait(self, place: int, options: dict[str, Any]) -> Reservation:
        reservation = await taken(self.limiter, **options)
        self.order.append(place)
        self.at.append(now())
        return reservation

    async def ended(self) -> list[Reservation | BaseException]:
        return await asyncio.gather(*self.tasks, return_exceptions=True)
