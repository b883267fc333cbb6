"""The driver of a limiter: turns on an event loop, one timer, 402s."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter

import pytest

from support.admission import MODEL, ROOM_S, ROUNDING, paid
from support.limiters import UNLIMITED, Waiters, limiter_of, taken, turns
from support.virtual_time import now, run_in_fake_time, timers
from together_async import (
    Limits,
    PaymentRequiredError,
    RateLimiter,
)
from together_async.ratelimit.admission import MAX_LANES, MOST_LOOKS, STOP_S
from together_async.ratelimit.estimator import Size


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
    """It is granted before it ever waits: the coroutine never suspends."""

    async def main() -> None:
        limiter = RateLimiter(limits, clock=now)
        loop = asyncio.get_running_loop()
        acquiring = limiter.driver.acquire(MODEL, 100)
        with pytest.raises(StopIteration) as stopped:
            acquiring.send(None)
        reservation = stopped.value.value
        assert reservation.granted
        limiter.driver.record_response(reservation, UNLIMITED, good=True, latency_s=0.1)
        limiter.driver.release(reservation, 90)
        assert limiter.driver.timer is None
        assert timers(loop) == []
        assert not loop._ready  # type: ignore[attr-defined]  # asyncio shows it nowhere else
        assert len(asyncio.all_tasks()) == 1
        assert (limiter.state.in_flight, limiter.state.queued, limiter.state.sent) == (0, 0, 1)

    run_in_fake_time(main())


def test_call_without_contest_takes_microseconds() -> None:
    """15 us is the aim on a quiet machine; ten times as much is allowed here, since other work may run next to it."""

    async def main() -> float:
        limiter = RateLimiter(Limits(concurrency=100, requests_per_minute=6e7, tokens_per_minute=6e10))
        best = float("inf")
        for _ in range(5):
            started = time.process_time()
            for _ in range(500):
                reservation = await limiter.driver.acquire(MODEL, 100)
                limiter.driver.record_response(reservation, UNLIMITED, good=True, latency_s=0.1)
                limiter.driver.release(reservation, 90)
            best = min(best, (time.process_time() - started) / 500)
        return best

    assert run_in_fake_time(main(), asyncio.new_event_loop()) < 150e-6


def test_all_that_wait_share_one_timer() -> None:
    """There is one timer, and no timer once no call waits."""

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

    run_in_fake_time(main())


def test_no_timer_while_only_places_are_missing() -> None:
    """The end of another call wakes the waiting ones; the clock can't."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(3)
        assert timers(asyncio.get_running_loop()) == []
        for place in range(3):
            limiter.driver.release(reservation)
            await turns()
            assert waiters.order == list(range(place + 1))
            reservation = waiters.tasks[place].result()
        limiter.driver.release(reservation)

    run_in_fake_time(main())


# ------------------------------------------------------------------------------------------------------------- waiting


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

    run_in_fake_time(main())


def test_settled_tokens_let_others_go_earlier() -> None:
    """Ten times as many tokens were expected as were used."""

    async def main() -> None:
        limiter = limiter_of(Limits(tokens_per_minute=600_000))
        reservation = await taken(limiter, tokens=50_000)
        waiters = Waiters(limiter)
        await waiters.add(tokens=100)
        await asyncio.sleep(0.1)
        assert waiters.order == []
        limiter.driver.release(reservation, 500)
        await asyncio.wait_for(waiters.tasks[0], 0.5)

    run_in_fake_time(main())


def test_pause_wakes_nobody_before_its_end_and_everybody_after() -> None:
    """A longer pause and a call of another model set the timer anew."""

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

    run_in_fake_time(main())


def test_clock_of_the_limiter_need_not_be_the_loops() -> None:
    """It may start at any time; only differences count."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(Limits(concurrency=9, requests_per_minute=60), clock=lambda: loop.time() - 5_000)
        started = now()
        for _ in range(3):
            limiter.driver.release(await taken(limiter))
        assert now() - started == pytest.approx(2, rel=0.12)

    run_in_fake_time(main())


def test_interactive_call_goes_before_batch_calls_that_wait() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter, priority="batch")
        waiters = Waiters(limiter)
        await waiters.add(2, priority="batch")
        await waiters.add(1, priority="interactive")
        for _ in range(3):
            limiter.driver.release(reservation)
            await turns()
            reservation = waiters.tasks[waiters.order[-1]].result()
        assert waiters.order == [2, 0, 1]
        limiter.driver.release(reservation)

    run_in_fake_time(main())


def test_two_that_share_a_limiter_keep_within_it_together() -> None:
    """A hundred calls, five at once: never more, and all get their turn in the order of arrival."""

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

    run_in_fake_time(main())


def test_estimate_is_learned() -> None:
    """The real cost of a model's responses is booked for later calls; each model learns for itself."""

    async def main() -> None:
        limiter = limiter_of(Limits(tokens_per_minute=6e6))
        size = Size(100, 1_000, 1)
        reservation = await limiter.driver.acquire(MODEL, size)
        assert reservation.tokens == 1_100
        limiter.driver.estimator(MODEL).learn(size, 120, 250)
        limiter.driver.release(reservation, 370)
        reservation = await limiter.driver.acquire(MODEL, size)
        assert 370 <= reservation.tokens < 1_100
        limiter.driver.release(reservation)
        reservation = await limiter.driver.acquire("other", size)
        assert reservation.tokens == 1_100
        limiter.driver.release(reservation)

    run_in_fake_time(main())


# ----------------------------------------------------------------------------------------------------------------- 402


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

    run_in_fake_time(main())


def test_402_ends_every_wait_and_every_call_that_comes_until_a_probe_succeeds() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await taken(limiter)
        waiters = Waiters(limiter)
        await waiters.add(3)
        limiter.driver.record_payment_required(paid())
        limiter.driver.release(reservation, 0)
        errors = await waiters.ended()
        assert [type(error) for error in errors] == [PaymentRequiredError] * 3
        assert len(set(map(id, errors))) == 3
        with pytest.raises(PaymentRequiredError, match="this one was not sent"):
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

    run_in_fake_time(main())


# -------------------------------------------------------------------------------------------------------- connections


def test_dialling_concerns_only_requests_that_were_sent_blindly() -> None:
    """The lane hears when a connection begins and ends, and how long it took; the calls that this lets go are woken."""

    async def main() -> None:
        limiter = limiter_of(Limits())
        reservation = await taken(limiter)
        reservation.blind = False
        assert limiter.driver.dialling(reservation) is None
        reservation.blind = True
        seen: list[tuple[object, ...]] = []

        class Seen:
            def record_dialling(self, at: float) -> None:
                seen.append(("begun", at))

            def record_dialled(self, at: float, seconds: float, *, connected: bool) -> None:
                seen.append(("ended", at, connected, seconds))

        started = now()
        dial = limiter.driver.dialling(reservation)
        assert dial is not None
        kept = reservation.lane.start
        reservation.lane.start = Seen()  # type: ignore[assignment]  # it only writes down
        dial.ended(connected=True)  # never begun
        dial.begun()
        dial.begun()
        await asyncio.sleep(0.25)
        dial.ended(connected=True)
        dial.ended(connected=False)
        assert seen == [("begun", started), ("ended", started + 0.25, True, 0.25)]
        reservation.lane.start = kept
        limiter.driver.release(reservation)

    run_in_fake_time(main())


def test_call_without_a_descriptor_waits_until_another_ends() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits())
        held, failed = await taken(limiter), await taken(limiter)
        assert limiter.driver.record_descriptors_exhausted(failed)
        waiters = Waiters(limiter)
        await waiters.add(number=failed.number)
        assert waiters.order == []
        limiter.driver.release(held)
        limiter.driver.release(await waiters.tasks[0])

    run_in_fake_time(main())


def test_thousand_models_whose_pause_ends_at_once_leave_the_loop_its_turns() -> None:
    """No callback lets more calls go than one `advance` may, the loop has a turn in between, and none is forgotten."""

    async def main() -> None:
        limiter = limiter_of(Limits())
        driver = limiter.driver
        for place in range(MAX_LANES - 1):
            reservation = await driver.acquire(f"m{place}")
            driver.record_rate_limit(reservation, UNLIMITED, wait_s=5, kind=None)
            driver.release(reservation, 0)
        went_at: list[int] = []
        turn = 0

        async def call(place: int) -> None:
            reservation = await driver.acquire(f"m{place}")
            went_at.append(turn)
            driver.release(reservation, 0)

        calls = [asyncio.create_task(call(place)) for place in range(MAX_LANES - 1)]
        await asyncio.sleep(5 - 1e-3)
        assert went_at == []
        await asyncio.sleep(1e-3)
        while len(went_at) < MAX_LANES - 1:
            turn += 1
            await asyncio.sleep(0)
        assert max(Counter(went_at).values()) <= MOST_LOOKS
        for task in calls:
            await task
        assert limiter.driver.timer is None

    run_in_fake_time(main())
