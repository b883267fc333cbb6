"""Many models at once: how long the limiter keeps the event loop from everything else.

Three calls to each of a thousand models that nothing is known of, against a server that answers after a while; the
figure is the longest processor time of one callback of the event loop, without the garbage collector's. Processor time,
since a busy machine may stop a process for longer than anything that is looked for here. And, without a server, what an
event costs while so many models wait, for places or for their rates: with a thousand it may not cost much more than
with ten.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from statistics import median
from types import ModuleType
from typing import Any, cast

from benchmarks.harness.figures import Figure, Target, paired_ratio
from benchmarks.harness.processes import ChildError, ClientProcess
from benchmarks.limits.cold import LateServer
from benchmarks.limits.without_server import limiter_round, timed
from together_async import AsyncTogether, Limits, RateLimiter

MODELS, QUICK_MODELS, FEW_MODELS = 1_000, 200, 10
CALLS = 3
"""To each model."""
ANSWER_S = 0.2
PLACES = 20
STARTED_AT_ONCE = 20
"""Tasks that the benchmark itself starts in one turn of the loop: it must not be what takes long."""
LONGEST_MS, TIMES_FEW = Target(20), Target(2)
EVENTS = 3_000
FREE = "limits/free"
WAYS = {"ours, Limits()": None, f"ours, concurrency={PLACES}": PLACES}


@contextlib.contextmanager
def longest_callback() -> Iterator[list[float]]:
    """Measures the processor time of every callback of the event loop; the list holds the longest, in seconds.

    The collector of cyclic garbage is not counted: it comes to whoever makes an object next, and takes tens of
    milliseconds for the objects of thousands of calls.
    """
    longest, collecting = [0.0], [0.0, 0.0]
    handles = cast("Any", asyncio.Handle)
    run = handles._run

    def note_collection(phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            collecting[1] = time.thread_time()
        else:
            collecting[0] += time.thread_time() - collecting[1]

    def measured(handle: asyncio.Handle) -> None:
        before = time.thread_time() - collecting[0]
        run(handle)
        longest[0] = max(longest[0], time.thread_time() - collecting[0] - before)

    gc.callbacks.append(note_collection)
    handles._run = measured  # there is no hook for it
    try:
        yield longest
    finally:
        handles._run = run
        gc.callbacks.remove(note_collection)


async def measure(_module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """In the client's process: the longest callback, in milliseconds, and how long the calls took, in seconds."""
    limits, started = Limits(concurrency=job["places"]), time.perf_counter()
    gc.collect()
    async with AsyncTogether("key-of-the-benchmarks", base_url=job["base_url"], limits=limits) as client:
        with longest_callback() as longest:
            async with asyncio.TaskGroup() as tasks:
                for number in range(CALLS * job["models"]):
                    tasks.create_task(client.create("Why?", model=f"limits/model-{number % job['models']}"))
                    if number % STARTED_AT_ONCE == 0:
                        await asyncio.sleep(0)
    return {"longest_ms": longest[0] * 1000, "took_s": time.perf_counter() - started}


async def place_event_us(models: int, events: int) -> float:
    """Microseconds from one release to the next while calls to so many models wait for the only place.

    Each call that has had its turn asks again, so that there are always as many that wait.
    """
    limiter, enough = RateLimiter(Limits(concurrency=1)), asyncio.Event()
    done = 0

    async def caller(model: str) -> None:
        nonlocal done
        while done < events:
            reservation = await limiter.acquire(model, 100)
            done += 1
            if done == events:
                enough.set()
            limiter.release(reservation)

    place = await limiter.acquire(FREE, 100)
    callers = [asyncio.create_task(caller(f"limits/model-{number % models}")) for number in range(CALLS * models)]
    await asyncio.sleep(0)
    started = time.thread_time()
    limiter.release(place)
    await enough.wait()
    took_s = time.thread_time() - started
    await asyncio.gather(*callers)
    return took_s / events * 1e6


async def rate_event_us(models: int, events: int) -> float:
    """Microseconds of an admission, with its answer, while calls to so many other models wait for their rates."""
    # The model of the events themselves waits for nothing.
    limiter = RateLimiter(Limits.per_model({FREE: Limits()}, requests_per_minute=1))
    waiting = []
    for number in range(models):
        model = f"limits/model-{number}"
        limiter.release(await limiter.acquire(model, 100))
        waiting += [asyncio.create_task(limiter.acquire(model, 100)) for _ in range(CALLS - 1)]
    await asyncio.sleep(0)
    try:
        return await timed(events, limiter_round(limiter, FREE))
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# ------------------------------------------------------------------------------------------------ in this process


def figures(quick: bool, rounds: int) -> list[Figure]:
    """Measures everything."""
    models = QUICK_MODELS if quick else MODELS
    made: list[Figure] = []
    print(f"models: {models:,}", file=sys.stderr, flush=True)
    try:
        with LateServer(ANSWER_S) as server, ClientProcess("ours") as client:
            base_url = f"http://127.0.0.1:{server.hello['port']}/v1"
            for way, places in WAYS.items():
                results = [client.run("limits.models", base_url, places=places, models=models) for _ in range(rounds)]
                made += _callbacks(way, models, results)
    except ChildError as error:
        print(f"  left out: {error}", file=sys.stderr, flush=True)
    return made + asyncio.run(_events(models, rounds, EVENTS // 4 if quick else EVENTS))


def _callbacks(way: str, models: int, results: list[dict[str, Any]]) -> list[Figure]:
    group = f"models: {CALLS} calls to each of {models:,}"
    longest = tuple(result["longest_ms"] for result in results)
    took = tuple(result["took_s"] for result in results)
    note = f"worst of {len(longest)}: {max(longest):.1f}"
    return [
        Figure(group, way, "longest callback", median(longest), "ms of CPU", LONGEST_MS, longest, note),
        Figure(group, way, "all calls", median(took), "s", None, took),
    ]


async def _events(models: int, rounds: int, events: int) -> list[Figure]:
    """What an event costs with few and with many models, in turns."""
    costs: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for count in (FEW_MODELS, models):
            each = await place_event_us(count, events), await rate_event_us(count, events // 10)
            for name, microseconds in zip(("places", "rates"), each, strict=True):
                costs.setdefault((name, count), []).append(microseconds)
    made = []
    for (name, count), samples in costs.items():
        what, who = f"event while {count:,} models wait for {name}", "ours"
        made.append(Figure("models", who, what, median(samples), "us of CPU", None, tuple(samples)))
        if count == models:
            few = costs[name, FEW_MODELS]
            ratio = Figure(
                "models", f"{who}, {count:,} : {FEW_MODELS}", what, paired_ratio(samples, few), "times", TIMES_FEW
            )
            made.append(ratio)
    return made
