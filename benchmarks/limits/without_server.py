"""What can be measured without a server: a large request's wait among small ones, and what an admission costs."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

from benchmarks.harness.figures import Figure, Target
from benchmarks.limits.workload import FIXED, MODEL, REQUESTS_PER_MINUTE, SETTINGS, TOKENS_PER_MINUTE
from together_async import Limits, RateLimiter
from together_async.ratelimit.admission import Admission
from together_async.ratelimit.headers import read_limits
from together_async.testing import Rate

SMALL, LARGE = 10_000, 0.9
ROUNDS = 35
SEMAPHORE, COST = "asyncio.Semaphore", Target(20, 13)
"""What an admission is compared with, and how many times as dear it may be."""
COSTED = {
    "ours, Limits()": Limits(),
    "ours, rates given": Limits(requests_per_minute=6e6, tokens_per_minute=6e9),
    'ours, concurrency="auto"': Limits(concurrency="auto"),
}
HEADERS = {
    "x-ratelimit-limit": "100000",
    "x-ratelimit-remaining": "99999",
    "x-ratelimit-reset": "0",
    "x-tokenlimit-limit": "100000000",
    "x-tokenlimit-remaining": "99999900",
}


def first_come_first_served(rate: Rate, tokens: Sequence[float]) -> list[float]:
    """Returns when each of the requests, all waiting at time 0, is sent if the account itself serves them in order.

    Its buckets are full at first; the first in line is sent when there is enough for it, or when they are full.
    """
    buckets = [(limit, limit * rate.burst_s) for limit in (rate.requests_per_second, rate.tokens_per_second) if limit]
    levels = [size for _, size in buckets]
    at = 0.0
    times = []
    for amount in tokens:
        needed = (1.0, amount)
        each = [(*bucket, level, need) for bucket, level, need in zip(buckets, levels, needed, strict=True)]
        wait_s = max(max(0.0, min(need, size) - level) / limit for limit, size, level, need in each)
        at += wait_s
        times.append(at)
        levels = [min(size, level + limit * wait_s) - need for limit, size, level, need in each]
    return times


def waits(tokens: Sequence[float]) -> list[float]:
    """Returns how long each request waits in the admission, on a clock of its own; each is answered at once."""
    admission = Admission(Limits(requests_per_minute=REQUESTS_PER_MINUTE, tokens_per_minute=TOKENS_PER_MINUTE))
    now = 0.0
    reservations = [admission.ask(MODEL, amount, now) for amount in tokens]
    while admission.queued:
        for reservation in admission.advance(now):
            admission.record_response(reservation, now, None, good=True)
            admission.release(reservation, now)
        # At least the clock's smallest step: without it, the same moment would come again.
        now = max(admission.next_at, now + 1e-6) if admission.queued else now
    return [reservation.granted_at or 0.0 for reservation in reservations]


def fairness(small: int = SMALL) -> list[Figure]:
    """A request of 90 % of a minute's tokens in the middle of small ones."""
    rng = random.Random(1)
    tokens: list[float] = [rng.randint(20, 180) for _ in range(small)]
    place = small // 2
    tokens.insert(place, LARGE * TOKENS_PER_MINUTE)
    served, waited = first_come_first_served(SETTINGS[FIXED].rate, tokens), waits(tokens)
    overtaken = sum(wait < waited[place] for wait in waited[place + 1 :])
    # The throughput may lack 3 % of the ideal, and so may this wait.
    target = Target(round(served[place] / 0.97, 1))
    note = f"first come, first served: {served[place]:.1f} s at the account's full rate"
    who, what = "ours", f"a request of 54,000 tokens, {place:,} small before it"
    return [
        Figure("admission", who, f"wait of {what}", waited[place], "s", target, (), note),
        Figure("admission", who, "later ones that went before it", overtaken, f"of {small - place:,}", Target(0)),
    ]


async def timed(count: int, once: Callable[[], Awaitable[object]]) -> float:
    """Microseconds of processor time per call of `once`."""
    started = time.thread_time()
    for _ in range(count):
        await once()
    return (time.thread_time() - started) / count * 1e6


async def unlimited(model: str) -> RateLimiter:
    """Returns a limiter that has been told of limits which nothing here reaches."""
    limiter = RateLimiter(Limits())
    await limiter_round(limiter, model)()
    return limiter


def limiter_round(limiter: RateLimiter, model: str = MODEL) -> Callable[[], Awaitable[object]]:
    """Everything a limiter does for a call that need not wait: its turn, its response's head, its end."""

    async def once() -> None:
        reservation = await limiter.acquire(model, 100)
        limiter.driver.record_response(reservation, read_limits(HEADERS), good=True)
        limiter.driver.release(reservation, 90)

    return once


async def cost(count: int) -> list[Figure]:
    """What an uncontended admission costs, and which timers and tasks are left when it is idle."""
    rounds = {name: limiter_round(RateLimiter(limits)) for name, limits in COSTED.items()} | others()
    loop = asyncio.get_running_loop()
    tasks = len(asyncio.all_tasks())
    samples: dict[str, list[float]] = {name: [] for name in rounds}
    for number in range(ROUNDS + 1):
        for name, once in rounds.items():
            microseconds = await timed(count // ROUNDS, once)
            if number:  # the first round warms up
                samples[name].append(microseconds)
    await asyncio.sleep(0)
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]  # asyncio.s own list
    left = len(timers) + len(asyncio.all_tasks()) - tasks
    return [*_costs(samples), Figure("admission", "ours", "timers and tasks when idle", left, "", Target(0))]


def _costs(samples: dict[str, list[float]]) -> list[Figure]:
    """The costs, and ours as a multiple of a semaphore's in the same round."""
    figures = [
        Figure("admission", name, "cost, uncontended", median(each), "us of CPU", None, tuple(each))
        for name, each in samples.items()
    ]
    for name in COSTED:
        ratios = tuple(mine / other for mine, other in zip(samples[name], samples[SEMAPHORE], strict=True))
        note = f"{min(ratios):.3g} to {max(ratios):.3g}"
        ratio = Figure("admission", f"{name} : {SEMAPHORE}", "cost", median(ratios), "times", COST, ratios, note)
        figures.append(ratio)
    return figures


def others() -> dict[str, Callable[[], Awaitable[object]]]:
    """What people put in front of their calls themselves."""
    places = asyncio.Semaphore(10)

    async def semaphore() -> None:
        async with places:
            pass

    found: dict[str, Callable[[], Awaitable[object]]] = {SEMAPHORE: semaphore}
    try:
        from aiolimiter import AsyncLimiter
    except ImportError:
        return found
    capacity = AsyncLimiter(1e9, 60)

    async def aiolimiter() -> None:
        async with capacity:
            pass

    return {**found, "aiolimiter": aiolimiter}
