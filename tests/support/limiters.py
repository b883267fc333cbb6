"""Limiters in tests: an event loop whose time only passes in waits, and tasks that wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from support.admission import MODEL
from support.virtual_time import VirtualTimeLoop
from together_async import Limits, RateLimiter
from together_async.ratelimit.headers import AccountLimits, ReportedLimit
from together_async.ratelimit.queue import Reservation

T = TypeVar("T")
UNLIMITED = AccountLimits(ReportedLimit(), ReportedLimit())
"""What a service without limits reports."""


class FakeTimeLoop(VirtualTimeLoop):
    """A loop in which no time passes but in the waits for timers. They are exact, since nothing here uses a socket."""

    def time(self) -> float:
        """Seconds since the loop was made, and a number that is not 0."""
        return 1_000 + self._jumping.jumped_s


def run(main: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None) -> T:
    """Runs a coroutine in a loop of its own, at whose end no task and no timer is left, and no callback failed."""
    loop = loop or FakeTimeLoop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    try:
        result = loop.run_until_complete(main)
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks left: {left}"
        assert not timers(loop), f"timers left: {timers(loop)}"
        assert not unhandled, f"in callbacks: {unhandled}"
        return result
    finally:
        loop.close()


def timers(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    scheduled = loop._scheduled  # type: ignore[attr-defined]  # asyncio has no public list of timers
    return [timer for timer in scheduled if not timer.cancelled()]


def now() -> float:
    return asyncio.get_running_loop().time()


def limiter_of(limits: Limits) -> RateLimiter:
    """A limiter on the running loop's clock, for a service that is known to have no other limits."""
    limiter = RateLimiter(limits, clock=asyncio.get_running_loop().time)
    limiter.driver.admission.lane(MODEL, now()).slow_start.limits_known = True
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
