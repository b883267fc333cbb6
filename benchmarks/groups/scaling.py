"""Whether a token costs the same in a long stream as in a short one, and a stream the same among many as among few.

Measured: process time per token of one stream of 10,000 to 1,000,000 tokens after its first one, and per stream of 10
to 5,000 streams of 20 tokens opened at once, call and connection included; and how the resident memory grew.
"""

from __future__ import annotations

import asyncio
import gc
import time
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.groups import blast
from benchmarks.groups.common import Counter, rss_kib, settings
from benchmarks.stats import Figure, Target

if TYPE_CHECKING:
    from benchmarks.bench import Bench

TOKENS = (10_000, 100_000, 1_000_000)
STREAMS = (10, 100, 1000, 5000)
TOKENS_PER_STREAM = 20
CLIENTS = ("ours", "raw loop")


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """One long stream, or many short ones; small numbers are repeated, so that every measurement is long enough."""
    if "tokens" in job:
        await blast.measure(module, job | {"streams": 1, "tokens": 2000})  # imports what a first request imports
        before = rss_kib()
        repeats = max(1, 200_000 // job["tokens"])
        us = [(await blast.measure(module, job | {"streams": 1}))["us"] for _ in range(repeats)]
        return {"us": sum(us) / len(us), "growth_kib": rss_kib() - before}
    return await _streams(module, job, max(1, 1000 // job["streams"]))


async def _streams(module: ModuleType, job: dict[str, Any], repeats: int) -> dict[str, Any]:
    streams, model = job["streams"], f"bench.small.{TOKENS_PER_STREAM}"
    async with module.connect(settings(job)) as client:
        await asyncio.gather(*(module.consume(client, model, Counter().note) for _ in range(10)))
    gc.collect()
    before, cpu = rss_kib(), 0.0
    for _ in range(repeats):
        async with module.connect(settings(job)) as client:  # all connections are new
            started = time.process_time()
            await asyncio.gather(*(module.consume(client, model, Counter().note) for _ in range(streams)))
            cpu += time.process_time() - started
    return {"us": cpu * 1e6 / streams / repeats, "growth_kib": rss_kib() - before}


def run(bench: Bench) -> None:
    from benchmarks.processes import ServerProcess

    sizes = [{"tokens": tokens} for tokens in (TOKENS[:2] if bench.quick else TOKENS)]
    crowds = [{"streams": streams} for streams in (STREAMS[:3] if bench.quick else STREAMS)]
    with ServerProcess() as server:
        for loop in bench.loops:
            bench.say(f"scaling, {loop}")
            for name in bench.wanted(*CLIENTS):
                _flat(bench, server.base_url, loop, name, "tokens in a stream", sizes, Target(1.15))
                _flat(bench, server.base_url, loop, name, "streams at once", crowds, Target(1.25))


def _flat(
    bench: Bench, base_url: str, loop: str, name: str, what: str, jobs: list[dict[str, int]], target: Target
) -> None:
    """The jobs alternated in `rounds` rounds, each in a fresh process for its memory; dearest divided by cheapest."""
    samples: dict[int, list[float]] = {}
    for _ in range(min(3, bench.rounds)):
        for job in jobs:
            size = next(iter(job.values()))
            with bench.started([name], loop) as processes:
                result = bench.attempt(processes[name], "scaling", base_url, **job) if name in processes else None
            if result is None:
                return
            samples.setdefault(size, []).append(result["us"])
            if len(samples[size]) == 1:
                bench.add(Figure("scaling", name, f"{size:,} {what}, {loop}", result["growth_kib"] / 1024, "MiB more"))
    unit = "us/token" if "tokens" in jobs[0] else "us/stream"
    costs = {size: median(values) for size, values in samples.items()}
    for size, cost in costs.items():
        bench.add(Figure("scaling", name, f"{size:,} {what}, {loop}", cost, unit, samples=tuple(samples[size])))
    flat = max(costs.values()) / min(costs.values())
    bench.add(Figure("scaling", name, f"{what}, {loop}", flat, "x dearest", target if name == "ours" else None))
