"""What of the limits can be measured without a server: a large request's wait, and what an admission costs."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

from benchmarks.limits_load import FIXED, MODEL, RATES, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE
from benchmarks.stats import Figure, Target
from together_async import Limits, RateLimiter
from together_async.ratelimit.admission import Admission
from together_async.ratelimit.headers import read_limits
from together_async.testing import Rate

SMALL, LARGE = 10_000, 0.9
ROUNDS = 7
HEADERS = {
    "x-ratelimit-limit": "100000",
    "x-ratelimit-remaining": "99999",
    "x-ratelimit-reset": "0",
    "x-tokenlimit-limit": "100000000",
    "x-tokenlimit-remaining": "99999900",
}


def first_come_first_served(rate: Rate, tokens: Sequence[float]) -> list[float]:
    """Returns when each of the requests goes that wait at time 0, if the account itself served them in their order.

    Its buckets are full at first; the first in line goes when there is enough for it, or when they are full.
    """
    buckets = [(limit, limit * rate.burst_s) for limit in (rate.requests_per_second, rate.tokens_per_second) if limit]
    levels = [size for _, size in buckets]
    at = 0.0
    times = []
    for amount in tokens:
        taken = (1.0, amount)
        each = [(*bucket, level, take) for bucket, level, take in zip(buckets, levels, taken, strict=True)]
        wait_s = max(max(0.0, min(take, size) - level) / limit for limit, size, level, take in each)
        at += wait_s
        times.append(at)
        levels = [min(size, level + limit * wait_s) - take for limit, size, level, take in each]
    return times


def waits(tokens: Sequence[float]) -> list[float]:
    """Returns how long each of them waits in the admission, by a clock of its own; they are answered at once."""
    admission = Admission(Limits(requests_per_minute=REQUESTS_PER_MINUTE, tokens_per_minute=TOKENS_PER_MINUTE))
    now = 0.0
    reservations = [admission.ask(MODEL, amount, now) for amount in tokens]
    while admission.queued:
        for one in admission.advance(now):
            admission.record_response(one, now, None, good=True)
            admission.release(one, now)
        # A clock's least step: "in no time at all" would be the same moment again.
        now = max(admission.next_at, now + 1e-6) if admission.queued else now
    return [one.granted_at or 0.0 for one in reservations]


def fairness(small: int = SMALL) -> list[Figure]:
    """A request of 90 % of a minute's tokens, which comes in the middle of small ones."""
    luck = random.Random(1)
    tokens: list[float] = [luck.randint(20, 180) for _ in range(small)]
    place = small // 2
    tokens.insert(place, LARGE * TOKENS_PER_MINUTE)
    served, waited = first_come_first_served(RATES[FIXED], tokens), waits(tokens)
    overtaken = sum(wait < waited[place] for wait in waited[place + 1 :])
    # What the throughput may lack of the ideal, it may lack here.
    target = Target(round(served[place] / 0.97, 1))
    note = f"first come, first served says {served[place]:.1f} s at the most an account gives"
    who, what = "ours", f"a request of 54,000 tokens, {place:,} small before it"
    return [
        Figure("admission", who, f"wait of {what}", waited[place], "s", target, (), note),
        Figure("admission", who, "later ones that went before it", overtaken, f"of {small - place:,}", Target(0)),
    ]


async def timed(count: int, once: Callable[[], Awaitable[object]]) -> tuple[float, ...]:
    """Microseconds a round, several times."""
    samples = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(count):
            await once()
        samples.append((time.perf_counter() - started) / count * 1e6)
    return tuple(samples)


def limiter_round(limiter: RateLimiter) -> Callable[[], Awaitable[object]]:
    """All that a limiter hears of a call that need not wait: its turn, its answer's head, its end."""

    async def once() -> None:
        one = await limiter.acquire(MODEL, 100)
        limiter.driver.record_response(one, read_limits(HEADERS), good=True)
        limiter.driver.release(one, 90)

    return once


async def cost(count: int) -> list[Figure]:
    """What an uncontended admission costs, and what is left of it when nothing is going on."""
    limits = {
        "ours, Limits()": Limits(),
        "ours, rates given": Limits(requests_per_minute=6e6, tokens_per_minute=6e9),
        'ours, concurrency="auto"': Limits(concurrency="auto"),
    }
    rounds = {name: limiter_round(RateLimiter(one)) for name, one in limits.items()}
    rounds |= others()
    loop = asyncio.get_running_loop()
    tasks = len(asyncio.all_tasks())
    figures = []
    for name, once in rounds.items():
        await timed(count // 20, once)
        samples = await timed(count // ROUNDS, once)
        target = Target(15) if name.startswith("ours") else None
        figures.append(Figure("admission", name, "cost, uncontended", median(samples), "us", target, samples))
    await asyncio.sleep(0)
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    left = len(timers) + len(asyncio.all_tasks()) - tasks
    return [*figures, Figure("admission", "ours", "timers and tasks when idle", left, "", Target(0))]


def others() -> dict[str, Callable[[], Awaitable[object]]]:
    """What people put in front of their calls by hand."""
    places = asyncio.Semaphore(10)

    async def semaphore() -> None:
        async with places:
            pass

    found: dict[str, Callable[[], Awaitable[object]]] = {"asyncio.Semaphore": semaphore}
    try:
        from aiolimiter import AsyncLimiter
    except ImportError:
        return found
    capacity = AsyncLimiter(1e9, 60)

    async def aiolimiter() -> None:
        async with capacity:
            pass

    return {**found, "aiolimiter": aiolimiter}
