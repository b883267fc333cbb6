"""`Driver`: places that finalizers give back, in the middle of the limiter's own code and in other threads."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from typing import Any

import pytest

from support.admission import MODEL
from support.garbage import collected_at_steps, in_a_cycle, no_collection
from support.limiters import limiter_of, taken, turns
from together_async import Limits, RateLimiter
from together_async.ratelimit.queue import Reservation
from together_async.tasks import error_of

SEEDS = int(os.environ.get("SEEDS", "50"))
"""How many times the random lives are lived; with 250 they are 10,000."""
LIVES = 40
"""Calls of one seed."""


class Place:
    """Gives a reservation back when it is dropped, as a stream does."""

    def __init__(self, limiter: RateLimiter, reservation: Reservation) -> None:
        self.limiter = limiter
        self.reservation = reservation

    def __del__(self) -> None:
        self.limiter.driver.release(self.reservation, 0)


async def live(limiter: RateLimiter, rng: random.Random) -> None:
    """One call's life."""
    for _ in range(rng.randrange(3)):
        await asyncio.sleep(0)
    reservation = await taken(limiter, tokens=rng.randrange(50), priority=rng.choice(("interactive", "batch")))
    place = Place(limiter, reservation)  # gives it back if the task is cancelled
    end = rng.choice(("cycle", "cycle", "release", "withdraw"))
    for _ in range(rng.randrange(3)):
        await asyncio.sleep(0)
    if end == "cycle":
        in_a_cycle(place)
    elif end == "release":
        limiter.driver.release(reservation, rng.choice((None, 0, 7)))
    else:
        limiter.driver.withdraw(reservation)


async def lives(rng: random.Random, errors: list[Any]) -> tuple[int, int]:
    limiter = limiter_of(Limits(concurrency=rng.choice((1, 2, 3)), requests_per_minute=rng.choice((None, 6e6))))
    tasks = [asyncio.ensure_future(live(limiter, rng)) for _ in range(LIVES)]
    for task in rng.sample(tasks, 5):
        asyncio.get_running_loop().call_later(rng.random() * 1e-3, task.cancel)
    while tasks:
        errors += [error for task in tasks if task.done() and (error := error_of(task)) is not None]
        tasks = [task for task in tasks if not task.done()]
        gc.collect()  # or the places that nobody gives back would be waited for
        await asyncio.sleep(0)
    del task
    gc.collect()
    await turns()
    admission = limiter.driver.admission
    return admission.in_flight, admission.queued


@pytest.mark.parametrize("debug", [False, True], ids=["usual", "debug"])
def test_a_collection_at_any_step_of_the_limiter_loses_nothing(debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random lives, half of whose places only a collection gives back, forced at lines of the limiter."""
    errors: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", errors.append)
    places: set[str] = set()
    for seed in range(SEEDS // 10 if debug else SEEDS):
        rng = random.Random(seed)
        with (
            collected_at_steps("/ratelimit/", share=0.02, rng=rng) as steps,
            asyncio.Runner(debug=debug) as runner,
        ):
            left = runner.run(lives(rng, errors))
        assert left == (0, 0), seed
        assert not errors, seed
        places |= set(steps)
    assert {"ask", "advance", "release", "_pump", "try_grant"} <= places


@pytest.mark.parametrize("debug", [False, True], ids=["usual", "debug"])
async def test_a_place_that_another_thread_gives_back(debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that waits for it goes on at once: the loop is woken."""
    errors: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", errors.append)
    asyncio.get_running_loop().set_debug(debug)
    limiter = limiter_of(Limits(concurrency=1))
    for collects in (True, False):
        reservation = await taken(limiter)
        place = [Place(limiter, reservation)]
        waiting = asyncio.ensure_future(taken(limiter))
        await turns()
        assert not waiting.done()
        with no_collection():
            if collects:
                in_a_cycle(place.pop())
            thread = threading.Thread(target=gc.collect if collects else place.clear)
            thread.start()
            async with asyncio.timeout(10):
                limiter.driver.release(await waiting)
            thread.join()
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
    assert not errors


def test_a_place_of_an_ended_loop_is_given_back_amid_the_next() -> None:
    """The limiter is in the second loop, in the middle of `ask`; what the first loop left counts no more."""
    limiter = RateLimiter(Limits(concurrency=2), clock=iter(range(10_000)).__next__)

    async def first() -> None:
        in_a_cycle(Place(limiter, await taken(limiter)))

    async def second() -> None:
        rng = random.Random(1)
        with collected_at_steps("/ratelimit/", share=1.0, rng=rng):
            reservation = await taken(limiter)
            limiter.driver.release(reservation)
        await turns()
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    with no_collection():
        asyncio.run(first())
        asyncio.run(second())
    assert limiter.state.models[MODEL].in_flight == 0
