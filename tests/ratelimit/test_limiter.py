"""`RateLimiter`: the admission of one account on an event loop. What may go when is tests/test_admission.py's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest

from support.virtual_time import VirtualTimeLoop
from together_async import (
    APIConnectionError,
    APITimeoutError,
    Limits,
    PaymentRequiredError,
    QueueFullError,
    RateLimiter,
    RateLimitError,
    TogetherError,
)
from together_async.ratelimit.admission import STOP_S
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.headers import AccountLimits, ReportedLimit
from together_async.ratelimit.queue import Reservation
from together_async.timeouts import due

T = TypeVar("T")
MODEL = "m"
ROUNDING = 1e-6
ROOM_S = 0.5
"""Seconds' worth that may go at once, beside one request: half of what a service is taken to hold, or less."""
TOLD = AccountLimits(ReportedLimit(), ReportedLimit())
"""An answer of a service that tells of no limit."""


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
    return [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]


def now() -> float:
    return asyncio.get_running_loop().time()


def limiter_of(limits: Limits) -> RateLimiter:
    """A limiter on the running loop's clock, of which the service has told before that it has no other limits."""
    limiter = RateLimiter(limits, clock=asyncio.get_running_loop().time)
    limiter.driver.admission.lane(MODEL, now()).slow_start.limits_known = True
    return limiter


async def turns(count: int = 3) -> None:
    """Lets everybody run who can."""
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
        one = await taken(self.limiter, **options)
        self.order.append(place)
        self.at.append(now())
        return one

    async def ended(self) -> list[Reservation | BaseException]:
        return await asyncio.gather(*self.tasks, return_exceptions=True)


# ----------------------------------------------------------------------------------------------------------- no contest


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(concurrency=5),
        Limits(concurrency="auto"),
        Limits(concurrency=5, requests_per_minute=600, tokens_per_minute=60_000, max_queued=0),
    ],
    ids=["learned", "places", "auto", "all"],
)
def test_call_without_contest_costs_no_task_no_timer_and_no_turn_of_the_loop(limits: Limits) -> None:
    """It is let go before it ever waits; a coroutine that never suspends says so."""

    async def main() -> None:
        limiter = RateLimiter(limits, clock=now)
        loop = asyncio.get_running_loop()
        acquiring = limiter.driver.acquire(MODEL, 100)
        with pytest.raises(StopIteration) as stopped:
            acquiring.send(None)
        one = stopped.value.value
        assert one.granted
        limiter.driver.record_response(one, TOLD, good=True, latency_s=0.1)
        limiter.driver.release(one, 90)
        assert limiter.driver.timer is None
        assert timers(loop) == []
        assert not loop._ready  # type: ignore[attr-defined]
        assert len(asyncio.all_tasks()) == 1
        assert (limiter.state.in_flight, limiter.state.queued, limiter.state.sent) == (0, 0, 1)

    run(main())


def test_call_without_contest_takes_microseconds() -> None:
    """15 us is the aim on a quiet machine; here ten times as much, since what runs beside is not known."""

    async def main() -> float:
        limiter = RateLimiter(Limits(concurrency=100, requests_per_minute=6e7, tokens_per_minute=6e10))
        best = float("inf")
        for _ in range(5):
            started = time.process_time()
            for _ in range(500):
                one = await limiter.driver.acquire(MODEL, 100)
                limiter.driver.record_response(one, TOLD, good=True, latency_s=0.1)
                limiter.driver.release(one, 90)
            best = min(best, (time.process_time() - started) / 500)
        return best

    assert run(main(), asyncio.new_event_loop()) < 150e-6


def test_all_that_wait_share_one_timer() -> None:
    """There is one timer, and when nobody waits any more there is none."""

    async def main() -> None:
        limiter = limiter_of(Limits(requests_per_minute=6_000))
        waiters = Waiters(limiter)
        started = now()
        await waiters.add(100)
        timer = limiter.driver.timer
        await waiters.add(100)
        assert limiter.driver.timer is timer, "it isn't set anew for those that come later"
        assert timers(asyncio.get_running_loop()) == [timer]
        await waiters.ended()
        assert limiter.driver.timer is None
        assert waiters.order == list(range(200))
        assert 2 - ROOM_S <= waiters.at[-1] - started <= 2.01

    run(main())


def test_no_timer_while_only_places_are_missing() -> None:
    """The end of another call will wake those that wait; the clock can't."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(3)
        assert timers(asyncio.get_running_loop()) == []
        for place in range(3):
            limiter.driver.release(one)
            await turns()
            assert waiters.order == list(range(place + 1))
            one = waiters.tasks[place].result()
        limiter.driver.release(one)

    run(main())


# -------------------------------------------------------------------------------------------------------------- waiting


def test_turns_come_in_order_and_at_the_rate() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(requests_per_minute=60))
        waiters = Waiters(limiter)
        await waiters.add(5)
        await waiters.ended()
        assert waiters.order == [0, 1, 2, 3, 4]
        gaps = [later - earlier for earlier, later in itertools.pairwise(waiters.at)]
        assert gaps == pytest.approx([1.0] * 4, rel=0.12)
        assert min(gaps) > 1 - ROUNDING

    run(main())


def test_settled_tokens_let_others_go_earlier() -> None:
    """Ten times as much was expected as was used."""

    async def main() -> None:
        limiter = limiter_of(Limits(tokens_per_minute=600_000))
        one = await taken(limiter, tokens=50_000)
        waiters = Waiters(limiter)
        await waiters.add(tokens=100)
        await asyncio.sleep(0.1)
        assert waiters.order == []
        limiter.driver.release(one, 500)
        await asyncio.wait_for(waiters.tasks[0], 0.5)

    run(main())


def test_pause_wakes_nobody_before_its_end_and_everybody_after() -> None:
    """The timer is set anew by what comes meanwhile: a longer pause, a call of another model."""

    async def main() -> None:
        limiter = limiter_of(Limits(requests_per_minute=6_000))
        first, second = await taken(limiter), await taken(limiter)
        waiters = Waiters(limiter)
        started = now()
        limiter.driver.record_rate_limit(first, None, wait_s=2.0, kind=None)
        limiter.driver.release(first, 0)
        await waiters.add(3)
        await asyncio.sleep(1)
        limiter.driver.record_rate_limit(second, None, wait_s=4.0, kind=None)
        limiter.driver.release(second, 0)
        other = await limiter.driver.acquire("other")
        limiter.driver.release(other)
        await waiters.ended()
        assert started + 5 - ROUNDING <= waiters.at[0] <= started + 5.1
        assert limiter.state.rate_limited == 2

    run(main())


def test_clock_of_the_limiter_need_not_be_the_loops() -> None:
    """It may start anywhere; only differences count."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(Limits(concurrency=9, requests_per_minute=60), clock=lambda: loop.time() - 5_000)
        started = now()
        for _ in range(3):
            limiter.driver.release(await taken(limiter))
        assert now() - started == pytest.approx(2, rel=0.12)

    run(main())


def test_interactive_call_goes_before_batch_calls_that_wait() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter, priority="batch")
        waiters = Waiters(limiter)
        await waiters.add(2, priority="batch")
        await waiters.add(1, priority="interactive")
        for _ in range(3):
            limiter.driver.release(one)
            await turns()
            one = waiters.tasks[waiters.order[-1]].result()
        assert waiters.order == [2, 0, 1]
        limiter.driver.release(one)

    run(main())


def test_two_that_share_a_limiter_keep_within_it_together() -> None:
    """Fifty calls of each, five at once: never more, and all of them get their turn in the order in which they came."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=5))
        most, order = 0, []

        async def call(place: int) -> None:
            nonlocal most
            async with limiter.reserve(MODEL):
                order.append(place)
                most = max(most, limiter.state.in_flight)
                await asyncio.sleep(0.1 + place % 3 / 100)

        await asyncio.gather(*(call(place) for place in range(100)))
        assert most == 5
        assert order == list(range(100))
        assert limiter.state.in_flight == 0

    run(main())


def test_estimate_is_learned() -> None:
    """What a model's answers really cost is booked for those that come later; a model of its own for each name."""

    async def main() -> None:
        limiter = limiter_of(Limits(tokens_per_minute=6e6))
        size = Size(100, 1_000, 1)
        one = await limiter.driver.acquire(MODEL, size)
        assert one.tokens == 1_100
        limiter.driver.estimator(MODEL).learn(size, 120, 250)
        limiter.driver.release(one, 370)
        one = await limiter.driver.acquire(MODEL, size)
        assert 370 <= one.tokens < 1_100
        limiter.driver.release(one)
        one = await limiter.driver.acquire("other", size)
        assert one.tokens == 1_100
        limiter.driver.release(one)

    run(main())


# ----------------------------------------------------------------------------------------------------------- cancelling


def test_cancelled_waiter_in_the_middle_is_passed_over() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(3)
        waiters.tasks[1].cancel()
        await turns()
        assert limiter.state.queued == 2
        limiter.driver.release(one)
        await turns()
        limiter.driver.release(waiters.tasks[0].result())
        await turns()
        assert waiters.order == [0, 2]
        limiter.driver.release(waiters.tasks[2].result())
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run(main())


def test_cancelled_waiter_that_is_first_in_line_gives_its_turn_to_the_next() -> None:
    """What it had booked isn't lost: the next one goes when the cancelled one would have gone."""

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

    run(main())


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

    run(main())


@pytest.mark.parametrize("by", ["release", "timer", "release, then an error for all"])
def test_cancelled_in_the_very_turn_in_which_it_was_let_go(by: str) -> None:
    """The place it holds already, without knowing, goes to the next; nothing is counted as sent for it."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1) if by != "timer" else Limits(requests_per_minute=60))
        one = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(2)
        if by == "timer":
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.9)
            # Whatever is due together runs in one turn, in order of time: the limiter's timer, then this.
            assert limiter.driver.timer is not None
            cancelled = loop.create_future()
            loop.call_at(
                limiter.driver.timer.when() + 1e-10, lambda: (waiters.tasks[0].cancel(), cancelled.set_result(None))
            )
            await cancelled
        else:
            limiter.driver.release(one)
            assert limiter.state.in_flight == 1
            waiters.tasks[0].cancel()
        await turns()
        assert waiters.tasks[0].cancelled()
        if by == "timer":
            await waiters.tasks[1]
        assert waiters.order == [1]
        assert (limiter.state.in_flight, limiter.state.queued, limiter.state.sent) == (1 + (by == "timer"), 0, 2)

    run(main())


def test_cancelled_in_the_turn_in_which_it_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Cancellation goes through, and nobody complains of an error that was never looked at."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(1)
        limiter.driver.record_payment_required(paid())
        waiters.tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters.tasks[0]
        limiter.driver.release(one)
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    with caplog.at_level(logging.DEBUG):
        run(main())
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_cancelled_before_it_began() -> None:
    """A task that never ran has never asked."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        task = asyncio.create_task(taken(limiter))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert limiter.state.sent == 0
        limiter.driver.release(await taken(limiter))

    run(main())


def test_every_second_of_a_hundred_is_cancelled_at_some_moment() -> None:
    """Whenever that is, the others all get their turn, in order, and every count comes back to 0."""

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

    run(main())


def test_caller_can_end_a_wait_with_an_error_of_its_own() -> None:
    """`on_waiting` hands out the future, and None when the wait is over: closing a client reaches its calls."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
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
        limiter.driver.release(one)
        assert limiter.state.in_flight == 0
        one = await taken(limiter, on_waiting=handed.append)
        assert len(handed) == 2, "one that never waits has nothing to hand out"

    run(main())


# ---------------------------------------------------------------------------------------------------- late, or too many


@pytest.mark.parametrize("phase", ["queue", "total"])
def test_wait_that_is_too_long_ends_in_time(phase: Any) -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
        started = now()
        with pytest.raises(APITimeoutError) as caught:
            await taken(limiter, deadline=due(phase, 2.5, started))
        assert now() - started == pytest.approx(2.5)
        assert (caught.value.phase, caught.value.seconds, caught.value.attempts) == (phase, 2.5, 0)
        assert limiter.state.queued == 0
        limiter.driver.release(one)
        assert (await taken(limiter)).granted

    run(main())


def test_wait_that_is_just_short_enough() -> None:
    """The timer of its patience is gone with the wait."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
        asyncio.get_running_loop().call_later(2.4, limiter.driver.release, one)
        two = await taken(limiter, deadline=due("queue", 2.5, now()))
        assert timers(asyncio.get_running_loop()) == []
        await asyncio.sleep(1)
        assert two.granted

    run(main())


@pytest.mark.parametrize("first", ["release", "timeout"])
def test_turn_and_timeout_in_the_same_turn_of_the_loop(first: str) -> None:
    """Whichever comes first counts, and the place is not lost."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
        loop, at = asyncio.get_running_loop(), now() + 1
        waiters = Waiters(limiter)
        await waiters.add(1, deadline=due("queue", 1, at - 1))
        await waiters.add(1)
        loop.call_at(at - 1e-10 if first == "release" else at + 1e-10, limiter.driver.release, one)
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

    run(main())


@pytest.mark.parametrize("most", [0, 1, 3])
def test_one_more_than_may_wait_is_refused_at_once(most: int) -> None:
    """Not after a turn of the loop, and not when nothing needs to wait."""

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
        for one in flying:
            limiter.driver.release(one)
        await turns()
        for task in waiters.tasks:
            await turns()
            limiter.driver.release(await task)
        assert waiters.order == list(range(most))
        limiter.driver.release(await taken(limiter))
        assert limiter.state.in_flight == 0

    run(main())


@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_patient_take_nobodys_room(most: int) -> None:
    """Of those that `max_queued` does not count any number waits, and as many of the others as ever; also in the turn
    of the loop in which patient ones were let go, but have not run yet."""

    async def main() -> None:
        limiter = limiter_of(Limits(3, max_queued=most))
        held = [await taken(limiter) for _ in range(3)]
        patient = Waiters(limiter)
        await patient.add(5, counts_as_queued=False, priority="batch")
        for one in held:
            limiter.driver.release(one)
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
        for one in await asyncio.gather(*patient.tasks[:3]):
            limiter.driver.release(one)
        for one in await asyncio.gather(*patient.tasks[3:]):
            limiter.driver.release(one)
        assert (limiter.state.in_flight, limiter.state.queued, limiter.driver.admission.uncounted) == (0, 0, 0)

    run(main())


def test_the_patient_that_give_up_are_not_counted_any_more() -> None:
    """Cancelled, late or refused."""

    async def main() -> None:
        limiter = limiter_of(Limits(1))
        held = await taken(limiter)
        patient = Waiters(limiter)
        await patient.add(2, counts_as_queued=False)
        await patient.add(1, counts_as_queued=False, deadline=due("queue", 1.0, now()))
        assert limiter.driver.admission.uncounted == 3
        patient.tasks[0].cancel()
        await asyncio.sleep(2)
        assert limiter.driver.admission.uncounted == 1
        limiter.driver.record_payment_required(PaymentRequiredError("402", status_code=402))
        await patient.ended()
        assert limiter.driver.admission.uncounted == 0
        limiter.driver.release(held)

    run(main())


def test_call_that_asks_again_is_not_refused_for_a_full_queue() -> None:
    """It has been let in before; others that came later fill the queue."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1, max_queued=1))
        one = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(1)
        limiter.driver.record_rate_limit(one, None, wait_s=1, kind=None)
        limiter.driver.release(one, 0)
        again = await taken(limiter, number=one.number)
        assert again.number == one.number
        assert waiters.order == []
        limiter.driver.release(again)
        limiter.driver.release(await waiters.tasks[0])

    run(main())


def test_pause_that_is_too_long_is_not_waited_for() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=2))
        one, other = await taken(limiter), await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(1, max_pause_s=60.0)
        await waiters.add(1)
        limiter.driver.record_rate_limit(one, None, wait_s=90, kind=None)
        limiter.driver.release(one, 0)
        await turns()
        with pytest.raises(RateLimitError) as caught:
            waiters.tasks[0].result()
        assert caught.value.retry_after == 90
        assert caught.value.attempts == 0
        with pytest.raises(RateLimitError):
            await taken(limiter, max_pause_s=60.0)
        limiter.driver.release(other)
        limiter.driver.release(await waiters.tasks[1])

    run(main())


# ------------------------------------------------------------------------------------------------------------------ 402


def paid() -> PaymentRequiredError:
    return PaymentRequiredError("402: no money", status_code=402)


def test_a_402_is_taken_back_when_somebody_has_paid() -> None:
    """`resume` does not wait for a probe."""

    async def main() -> None:
        limiter = limiter_of(Limits())
        limiter.driver.record_payment_required(paid())
        with pytest.raises(PaymentRequiredError):
            await taken(limiter)
        limiter.resume()
        limiter.driver.release(await taken(limiter))
        assert limiter.state.stopped is None

    run(main())


def test_402_ends_every_wait_and_every_call_that_comes_until_a_probe_succeeds() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        one = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(3)
        limiter.driver.record_payment_required(paid())
        limiter.driver.release(one, 0)
        errors = await waiters.ended()
        assert [type(error) for error in errors] == [PaymentRequiredError] * 3
        assert len(set(map(id, errors))) == 3
        with pytest.raises(PaymentRequiredError, match="nothing was sent"):
            limiter.driver.acquire(MODEL).send(None)
        assert limiter.state.stopped
        assert timers(asyncio.get_running_loop()) == []
        await asyncio.sleep(STOP_S)
        probe = await taken(limiter)
        with pytest.raises(PaymentRequiredError):
            await taken(limiter)
        limiter.driver.record_response(probe, None, good=True)
        limiter.driver.release(probe)
        assert limiter.state.stopped is None
        limiter.driver.release(await taken(limiter))

    run(main())


# ---------------------------------------------------------------------------------------------------------- event loops


def test_limiter_in_a_second_loop_knows_what_it_has_learned() -> None:
    limiter = RateLimiter(Limits(concurrency=1))

    async def main(told: AccountLimits | None) -> float | None:
        async with limiter.reserve(MODEL, 10):
            pass
        one = await taken(limiter)
        limiter.driver.record_response(one, told, good=True)
        limiter.driver.release(one)
        return limiter.state.models[MODEL].server_requests_per_minute

    assert run(main(AccountLimits(ReportedLimit(5_000, None), ReportedLimit())), asyncio.new_event_loop()) == 300_000
    assert run(main(None), asyncio.new_event_loop()) == 300_000


def test_calls_left_over_in_a_closed_loop_hold_no_place() -> None:
    """One is under way, one is first in line, one waits; their loop was stopped and closed over them."""
    clock = itertools.count().__next__
    limiter = RateLimiter(Limits(concurrency=1, requests_per_minute=6e6), clock=clock)
    old = asyncio.new_event_loop()

    async def first() -> tuple[Reservation, list[asyncio.Task[Reservation]]]:
        one = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(2)
        return one, waiters.tasks

    one, tasks = old.run_until_complete(first())
    old.close()
    state = limiter.state
    assert (state.in_flight, state.queued) == (1, 2)

    async def second() -> None:
        two = await taken(limiter)
        assert two.granted
        assert (limiter.state.in_flight, limiter.state.queued) == (1, 0)
        limiter.driver.release(one, 0)  # as when a stream of the old loop is dropped only now
        limiter.driver.withdraw(one)
        limiter.driver.record_rate_limit(one, None, wait_s=100, kind=None)
        assert limiter.state.in_flight == 1
        waiters = Waiters(limiter)
        await waiters.add(1)
        assert waiters.order == []
        limiter.driver.release(two)
        limiter.driver.release(await waiters.tasks[0])
        assert limiter.state.in_flight == 0

    run(second(), asyncio.new_event_loop())
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    del tasks, task
    gc.collect()  # the waits end with their coroutines, and touch nothing
    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)


def test_waiters_that_die_with_their_closed_loop_disturb_nobody() -> None:
    """The wait of a coroutine that is thrown away withdraws, and whom that wakes may be of the closed loop too."""
    limiter = RateLimiter(Limits(concurrency=1))
    old = asyncio.new_event_loop()

    async def first() -> list[asyncio.Task[Reservation]]:
        waiters = Waiters(limiter)
        await waiters.add(3)
        return waiters.tasks

    tasks = old.run_until_complete(first())
    one = tasks[0].result()
    old.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    limiter.driver.release(one)
    del tasks, task
    gc.collect()

    async def second() -> None:
        limiter.driver.release(await asyncio.wait_for(taken(limiter), 5))

    run(second(), asyncio.new_event_loop())
    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)


def test_use_in_two_loops_at_once_is_one_clear_error() -> None:
    """At once, not a wait for ever; and the first loop isn't disturbed."""
    limiter = RateLimiter(Limits(concurrency=2))
    old, new = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        one = old.run_until_complete(taken(limiter))
        with pytest.raises(APIConnectionError, match="another event loop that still runs") as caught:
            new.run_until_complete(taken(limiter))
        assert caught.value.attempts == 0
        assert isinstance(caught.value, TogetherError)
        assert limiter.state.in_flight == 1
        old.run_until_complete(taken(limiter))
        for held in (one, *[one] * 2):
            limiter.driver.release(held)
        assert limiter.state.in_flight == 1
    finally:
        old.close()
        new.close()


def test_idle_limiter_goes_from_loop_to_loop() -> None:
    """Two loops that both stay open, one after the other, with nothing under way in between."""
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
    """`asyncio.run` cancels what is left; what they held is free in the second."""
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


# -------------------------------------------------------------------------------------------------------------- reserve


@contextlib.asynccontextmanager
async def level_of(limiter: RateLimiter) -> AsyncIterator[list[float]]:
    """How the level of the tokens changes within the block."""
    lane = limiter.driver.admission.lane(MODEL, now())
    limiter.state  # noqa: B018 - brings it up to date
    found: list[float] = []
    before = lane.tokens.level
    yield found
    found.append(lane.tokens.level - before)


@pytest.mark.parametrize(
    ("used", "error", "spent"),
    [(None, None, 50), (40, None, 40), (60, None, 60), (0, None, 0), (None, ValueError, 0), (30, ValueError, 30)],
)
def test_block_settles_what_it_says_it_has_used(
    used: float | None, error: type[Exception] | None, spent: float
) -> None:
    """What was expected, if it says nothing; nothing, if it failed and says nothing."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1, tokens_per_minute=600_000))
        async with limiter.reserve(MODEL, 50):
            pass
        await asyncio.sleep(10)
        async with level_of(limiter) as change:
            with contextlib.suppress(ValueError):
                async with limiter.reserve(MODEL, 50) as reservation:
                    assert limiter.state.in_flight == 1
                    if used is not None:
                        reservation.tokens_used = used
                    if error is not None:
                        raise error
        assert change == [pytest.approx(-spent)]
        assert limiter.state.in_flight == 0

    run(main())


def test_block_waits_as_long_as_it_may() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        started = now()
        async with limiter.reserve(MODEL):
            with pytest.raises(APITimeoutError) as caught:
                async with limiter.reserve(MODEL, timeout=3):
                    raise AssertionError("entered")
            assert caught.value.phase == "queue"
            assert now() - started == pytest.approx(3)
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run(main())


def test_block_that_is_cancelled_frees_its_place() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))

        async def hold() -> None:
            async with limiter.reserve(MODEL, 10):
                await asyncio.sleep(1_000)

        task = asyncio.create_task(hold())
        await turns()
        assert limiter.state.in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert limiter.state.in_flight == 0

    run(main())


@pytest.mark.parametrize("priority", ["urgent", "", None, 5])
def test_priority_that_is_none(priority: Any) -> None:
    with pytest.raises(ValueError, match=r"priority: got .*, expected one of '"):
        RateLimiter().reserve(MODEL, priority=priority)


@pytest.mark.parametrize("limits", [{}, 5, "auto"])
def test_limits_that_are_none(limits: Any) -> None:
    with pytest.raises(ValueError, match="expected Limits"):
        RateLimiter(limits)


def test_repr_says_how_it_stands() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=2, requests_per_minute=600))
        async with limiter.reserve(MODEL):
            shown = repr(limiter)
        assert "1 of 2 in flight, 0 queued" in shown
        assert "600 requests/min" in shown

    run(main())
