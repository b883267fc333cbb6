"""One limiter in several event loops, one after the other and at once."""

from __future__ import annotations

import asyncio
import gc
import itertools

import pytest

from support.admission import MODEL
from support.limiters import Waiters, taken, turns
from support.virtual_time import run_in_fake_time
from together_async import (
    APIConnectionError,
    Limits,
    RateLimiter,
    TogetherError,
)
from together_async.ratelimit.headers import AccountLimits, ReportedLimit
from together_async.ratelimit.queue import Reservation


def test_limiter_in_a_second_loop_knows_what_it_has_learned() -> None:
    limiter = RateLimiter(Limits(concurrency=1))

    async def main(limits: AccountLimits | None) -> float | None:
        async with limiter.reserve(MODEL, 10):
            pass
        reservation = await taken(limiter)
        limiter.driver.record_response(reservation, limits, good=True)
        limiter.driver.release(reservation)
        return limiter.state.models[MODEL].server_requests_per_minute

    reported = AccountLimits(ReportedLimit(5_000, None), ReportedLimit())
    assert run_in_fake_time(main(reported), asyncio.new_event_loop()) == 300_000
    assert run_in_fake_time(main(None), asyncio.new_event_loop()) == 300_000


def test_calls_left_over_in_a_closed_loop_hold_no_place() -> None:
    """One is under way, one is first in line, one waits; then their loop is stopped and closed."""
    clock = itertools.count().__next__
    limiter = RateLimiter(Limits(concurrency=1, requests_per_minute=6e6), clock=clock)
    old = asyncio.new_event_loop()

    async def first() -> tuple[Reservation, list[asyncio.Task[Reservation]]]:
        reservation = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(2)
        return reservation, waiters.tasks

    reservation, tasks = old.run_until_complete(first())
    old.close()
    state = limiter.state
    assert (state.in_flight, state.queued) == (1, 2)

    async def second() -> None:
        two = await taken(limiter)
        assert two.granted
        assert (limiter.state.in_flight, limiter.state.queued) == (1, 0)
        limiter.driver.release(reservation, 0)  # as when a stream of the old loop is dropped only now
        limiter.driver.withdraw(reservation)
        limiter.driver.record_rate_limit(reservation, None, wait_s=100, kind=None)
        assert limiter.state.in_flight == 1
        waiters = Waiters(limiter)
        await waiters.add(1)
        assert waiters.order == []
        limiter.driver.release(two)
        limiter.driver.release(await waiters.tasks[0])
        assert limiter.state.in_flight == 0

    run_in_fake_time(second(), asyncio.new_event_loop())
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio would log it
    del tasks, task
    gc.collect()  # the waits end with their coroutines, and touch nothing
    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)


def test_waiters_that_die_with_their_closed_loop_disturb_nobody() -> None:
    """A discarded coroutine withdraws its call, and the call that this wakes may belong to the closed loop too."""
    limiter = RateLimiter(Limits(concurrency=1))
    old = asyncio.new_event_loop()

    async def first() -> list[asyncio.Task[Reservation]]:
        waiters = Waiters(limiter)
        await waiters.add(3)
        return waiters.tasks

    tasks = old.run_until_complete(first())
    reservation = tasks[0].result()
    old.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio would log it
    limiter.driver.release(reservation)
    del tasks, task
    gc.collect()

    async def second() -> None:
        limiter.driver.release(await asyncio.wait_for(taken(limiter), 5))

    run_in_fake_time(second(), asyncio.new_event_loop())
    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)


def test_use_in_two_loops_at_once_is_one_clear_error() -> None:
    """The error comes at once instead of an endless wait; the first loop isn't disturbed."""
    limiter = RateLimiter(Limits(concurrency=2))
    old, new = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        reservation = old.run_until_complete(taken(limiter))
        with pytest.raises(APIConnectionError, match="another event loop that still runs") as caught:
            new.run_until_complete(taken(limiter))
        assert caught.value.attempts == 0
        assert isinstance(caught.value, TogetherError)
        assert limiter.state.in_flight == 1
        old.run_until_complete(taken(limiter))
        for held in (reservation, *[reservation] * 2):
            limiter.driver.release(held)
        assert limiter.state.in_flight == 1
    finally:
        old.close()
        new.close()


def test_idle_limiter_goes_from_loop_to_loop() -> None:
    """Two open loops use it in turn, with nothing under way in between."""
    limiter = RateLimiter(Limits(concurrency=1, requests_per_minute=60_000))
    loops = [asyncio.new_event_loop() for _ in range(2)]

    async def wait_twice() -> None:
        for _ in range(2):
            limiter.driver.release(await taken(limiter))
        waiters = Waiters(limiter)
        await waiters.add(2)
        limiter.driver.release(await waiters.tasks[0])
        limiter.driver.release(await waiters.tasks[1])

    try:
        for loop in loops * 2:
            loop.run_until_complete(asyncio.wait_for(wait_twice(), 30))
    finally:
        for loop in loops:
            loop.close()


def test_asyncio_run_twice_with_calls_cancelled_at_the_end_of_the_first() -> None:
    """`asyncio.run` cancels the calls that are left; their places are free in the second run."""
    limiter = RateLimiter(Limits(concurrency=2))

    async def call() -> None:
        async with limiter.reserve(MODEL):
            await asyncio.sleep(100)

    async def first() -> None:
        tasks.update(asyncio.create_task(call()) for _ in range(5))
        await turns()
        assert (limiter.state.in_flight, limiter.state.queued) == (2, 3)

    async def second() -> None:
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
        async with limiter.reserve(MODEL), limiter.reserve(MODEL):
            assert limiter.state.in_flight == 2

    tasks: set[asyncio.Task[None]] = set()
    asyncio.run(first())
    asyncio.run(second())
