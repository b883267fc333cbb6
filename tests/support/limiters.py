"""Limiters in tests, and tasks that wait for their turn."""

from __future__ import annotations

import asyncio
from typing import Any

from support.admission import MODEL
from support.virtual_time import now
from together_async import Limits, RateLimiter
from together_async.ratelimit.headers import AccountLimits, ReportedLimit
from together_async.ratelimit.queue import Reservation

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


async def taken(limiter: RateLimiter, **options: Any) -> Reservation:
    return await limiter.driver.acquire(MODEL, **options)


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
