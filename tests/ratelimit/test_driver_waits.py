"""Waits that end early: cancelled, late, refused, or in a full queue."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import Any

import pytest

from support.admission import MODEL, paid
from support.limiters import Waiters, limiter_of, taken, turns
from support.virtual_time import now, run_in_fake_time, timers
from together_async import (
    APIConnectionError,
    APITimeoutError,
    Limits,
    PaymentRequiredError,
    QueueFullError,
    RateLimitError,
)
from together_async.timeouts import due


def test_cancelled_waiter_in_the_middle_is_passed_over() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(3)
        waiters.tasks[1].cancel()
        await turns()
        assert limiter.state.queued == 2
        limiter.driver.release(reservation)
        await turns()
        limiter.driver.release(waiters.tasks[0].result())
        await turns()
        assert waiters.order == [0, 2]
        limiter.driver.release(waiters.tasks[2].result())
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run_in_fake_time(main())


def test_cancelled_waiter_that_is_first_in_line_gives_its_turn_to_the_next() -> None:
    """The capacity it had booked isn't lost: the next call goes when the cancelled one would have gone."""

    async def main() -> None:
        limiter = limiter_of(Limits(requests_per_minute=60))
        await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(2)
        started = now()
        await asyncio.sleep(0.4)
        waiters.tasks[0].cancel()
        await waiters.tasks[1]
        assert now() - started == pytest.approx(1, rel=0.12)

    run_in_fake_time(main())


def test_cancelled_last_waiter_takes_the_timer_with_it() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(requests_per_minute=60))
        await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(1)
        assert limiter.driver.timer is not None
        waiters.tasks[0].cancel()
        await turns()
        assert limiter.driver.timer is None
        assert limiter.state.queued == 0

    run_in_fake_time(main())


@pytest.mark.parametrize("by", ["release", "timer", "release, then an error for all"])
def test_cancelled_in_the_very_turn_in_which_it_was_granted(by: str) -> None:
    """The place it was just granted goes to the next; nothing is counted as sent for it."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1) if by != "timer" else Limits(requests_per_minute=60))
        reservation = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(2)
        if by == "timer":
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.9)
            # Timers that are due together run in one turn of the loop, in order of time: the limiter's, then this one.
            assert limiter.driver.timer is not None
            cancelled = loop.create_future()
            loop.call_at(
                limiter.driver.timer.when() + 1e-10, lambda: (waiters.tasks[0].cancel(), cancelled.set_result(None))
            )
            await cancelled
        else:
            limiter.driver.release(reservation)
            assert limiter.state.in_flight == 1
            waiters.tasks[0].cancel()
        await turns()
        assert waiters.tasks[0].cancelled()
        if by == "timer":
            await waiters.tasks[1]
        assert waiters.order == [1]
        assert (limiter.state.in_flight, limiter.state.queued, limiter.state.sent) == (1 + (by == "timer"), 0, 2)

    run_in_fake_time(main())


def test_cancelled_in_the_turn_in_which_it_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Cancellation goes through, and no error is logged as never retrieved."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(1)
        limiter.driver.record_payment_required(paid())
        waiters.tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters.tasks[0]
        limiter.driver.release(reservation)
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    with caplog.at_level(logging.DEBUG):
        run_in_fake_time(main())
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_cancelled_before_it_began() -> None:
    """A task that never ran never asked."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        task = asyncio.create_task(taken(limiter))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert limiter.state.sent == 0
        limiter.driver.release(await taken(limiter))

    run_in_fake_time(main())


def test_every_second_of_a_hundred_is_cancelled_at_some_moment() -> None:
    """The others all get their turn, in order, and every count comes back to 0."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=3, requests_per_minute=6_000))
        order: list[int] = []

        async def call(place: int) -> None:
            async with limiter.reserve(MODEL, 10):
                order.append(place)
                await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(call(place)) for place in range(100)]
        for place in range(0, 100, 2):
            await asyncio.sleep(0.0073)
            tasks[(place * 37) % 100].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError | None) for result in results)
        assert order == sorted(order)
        assert set(order) >= set(range(1, 100, 2))
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run_in_fake_time(main())


def test_caller_can_end_a_wait_with_an_error_of_its_own() -> None:
    """`on_waiting` hands out the future, and None when the wait is over: closing a client reaches its calls."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        handed: list[asyncio.Future[None] | None] = []
        waiters = Waiters(limiter)
        await waiters.add(1, on_waiting=handed.append)
        (waiter,) = handed
        assert waiter is not None
        waiter.set_exception(APIConnectionError("closed"))
        with pytest.raises(APIConnectionError, match="closed"):
            await waiters.tasks[0]
        assert handed == [waiter, None]
        assert limiter.state.queued == 0
        limiter.driver.release(reservation)
        assert limiter.state.in_flight == 0
        reservation = await taken(limiter, on_waiting=handed.append)
        assert len(handed) == 2, "one that never waits has nothing to hand out"

    run_in_fake_time(main())


# --------------------------------------------------------------------------------------------------- late, or too many


@pytest.mark.parametrize("phase", ["queue", "total"])
def test_wait_that_is_too_long_ends_in_time(phase: Any) -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        started = now()
        with pytest.raises(APITimeoutError) as caught:
            await taken(limiter, deadline=due(phase, 2.5, started))
        assert now() - started == pytest.approx(2.5)
        assert (caught.value.phase, caught.value.seconds, caught.value.attempts) == (phase, 2.5, 0)
        assert limiter.state.queued == 0
        limiter.driver.release(reservation)
        assert (await taken(limiter)).granted

    run_in_fake_time(main())


def test_wait_that_is_just_short_enough() -> None:
    """The timer of its deadline is gone with the wait."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        asyncio.get_running_loop().call_later(2.4, limiter.driver.release, reservation)
        two = await taken(limiter, deadline=due("queue", 2.5, now()))
        assert timers(asyncio.get_running_loop()) == []
        await asyncio.sleep(1)
        assert two.granted

    run_in_fake_time(main())


@pytest.mark.parametrize("first", ["release", "timeout"])
def test_turn_and_timeout_in_the_same_turn_of_the_loop(first: str) -> None:
    """Whichever comes first counts, and the place is not lost."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        loop, at = asyncio.get_running_loop(), now() + 1
        waiters = Waiters(limiter)
        await waiters.add(1, deadline=due("queue", 1, at - 1))
        await waiters.add(1)
        loop.call_at(at - 1e-10 if first == "release" else at + 1e-10, limiter.driver.release, reservation)
        await asyncio.sleep(1.001)
        if first == "release":
            assert waiters.order == [0]
            limiter.driver.release(waiters.tasks[0].result())
            await turns()
        else:
            with pytest.raises(APITimeoutError):
                waiters.tasks[0].result()
        assert waiters.order[-1] == 1
        limiter.driver.release(waiters.tasks[1].result())
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run_in_fake_time(main())


@pytest.mark.parametrize("most", [0, 1, 3])
def test_one_more_than_may_wait_is_refused_at_once(most: int) -> None:
    """Without a turn of the loop in between; a call that need not wait is never refused."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=2, max_queued=most))
        flying = [await taken(limiter) for _ in range(2)]
        waiters = Waiters(limiter)
        await waiters.add(most)
        assert limiter.state.queued == most
        acquiring = limiter.driver.acquire(MODEL)
        with pytest.raises(QueueFullError, match=f"Limits.max_queued is {most}") as caught:
            acquiring.send(None)
        assert caught.value.attempts == 0
        assert limiter.state.queued == most
        for reservation in flying:
            limiter.driver.release(reservation)
        await turns()
        for task in waiters.tasks:
            await turns()
            limiter.driver.release(await task)
        assert waiters.order == list(range(most))
        limiter.driver.release(await taken(limiter))
        assert limiter.state.in_flight == 0

    run_in_fake_time(main())


@pytest.mark.parametrize("most", [0, 1, 3])
def test_uncounted_calls_take_no_room_from_others(most: int) -> None:
    """Any number of calls that `max_queued` does not count may wait, and as many of the others as without them; also in
    the turn of the loop in which uncounted calls were granted, but have not run yet."""

    async def main() -> None:
        limiter = limiter_of(Limits(3, max_queued=most))
        held = [await taken(limiter) for _ in range(3)]
        uncounted = Waiters(limiter)
        await uncounted.add(5, counts_as_queued=False, priority="batch")
        for reservation in held:
            limiter.driver.release(reservation)
        asking = [taken(limiter) for _ in range(most + 2)]
        refused = 0
        for each in asking:
            try:
                each.send(None)
            except QueueFullError:
                refused += 1
        assert refused == 2
        assert limiter.state.queued == 2 + most
        for each in asking:
            each.close()
        for reservation in await asyncio.gather(*uncounted.tasks[:3]):
            limiter.driver.release(reservation)
        for reservation in await asyncio.gather(*uncounted.tasks[3:]):
            limiter.driver.release(reservation)
        assert (limiter.state.in_flight, limiter.state.queued, limiter.driver.admission.uncounted) == (0, 0, 0)

    run_in_fake_time(main())


def test_uncounted_calls_that_give_up_are_not_counted_any_more() -> None:
    """Cancelled, late or refused."""

    async def main() -> None:
        limiter = limiter_of(Limits(1))
        held = await taken(limiter)
        uncounted = Waiters(limiter)
        await uncounted.add(2, counts_as_queued=False)
        await uncounted.add(1, counts_as_queued=False, deadline=due("queue", 1.0, now()))
        assert limiter.driver.admission.uncounted == 3
        uncounted.tasks[0].cancel()
        await asyncio.sleep(2)
        assert limiter.driver.admission.uncounted == 1
        limiter.driver.record_payment_required(PaymentRequiredError("402", status_code=402))
        await uncounted.ended()
        assert limiter.driver.admission.uncounted == 0
        limiter.driver.release(held)

    run_in_fake_time(main())


def test_call_that_asks_again_is_not_refused_for_a_full_queue() -> None:
    """It was admitted before; calls that came later fill the queue."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1, max_queued=1))
        reservation = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(1)
        limiter.driver.record_rate_limit(reservation, None, wait_s=1, kind=None)
        limiter.driver.release(reservation, 0)
        again = await taken(limiter, number=reservation.number)
        assert again.number == reservation.number
        assert waiters.order == []
        limiter.driver.release(again)
        limiter.driver.release(await waiters.tasks[0])

    run_in_fake_time(main())


def test_pause_that_is_too_long_is_not_waited_for() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=2))
        reservation, other = await taken(limiter), await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(1, max_pause_s=60.0)
        await waiters.add(1)
        limiter.driver.record_rate_limit(reservation, None, wait_s=90, kind=None)
        limiter.driver.release(reservation, 0)
        await turns()
        with pytest.raises(RateLimitError) as caught:
            waiters.tasks[0].result()
        assert caught.value.retry_after == 90
        assert caught.value.attempts == 0
        with pytest.raises(RateLimitError):
            await taken(limiter, max_pause_s=60.0)
        limiter.driver.release(other)
        limiter.driver.release(await waiters.tasks[1])

    run_in_fake_time(main())
