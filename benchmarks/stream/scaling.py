"""Whether a token costs the same in a long stream as in a short one, and a stream the same among many as among few.

Measured: process time per token of a stream of 10,000 to 1,000,000 tokens, from its second token on; process time per
stream of 10 to 5,000 streams of 20 tokens opened at once, call and connection included; growth of the resident memory.
"""

from __future__ import annotations

import asyncio
import gc
import time
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.this_process import rss_kib
from benchmarks.stream import blast
from benchmarks.stream.readers import TokenCounter

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

TOKENS = (10_000, 100_000, 1_000_000)
STREAMS = (10, 100, 1000, 5000)
TOKENS_PER_STREAM = 20
CLIENTS = ("ours", "raw loop")


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """One long stream, or many short ones; small sizes are repeated, so that every measurement is long enough."""
    if "tokens" in job:
        await blast.measure(module, job | {"streams": 1, "tokens": 2000})  # imports what a first request imports
        before = rss_kib()
        repeats = max(1, 200_000 // job["tokens"])
        us = [(await blast.measure(module, job | {"streams": 1}))["us"] for _ in range(repeats)]
        return {"us": sum(us) / len(us), "growth_kib": rss_kib() - before}
    return await _streams(module, job, max(1, 1000 // job["streams"]))


async def _streams(module: ModuleType, job: dict[str, Any], repeats: int) -> dict[str, Any]:
    streams, model = job["streams"], f"bench.small.{TOKENS_PER_STREAM}"
    async with module.connect(Settings.for_job(job)) as client:
        await asyncio.gather(*(module.consume(client, model, TokenCounter().note) for _ in range(10)))
    gc.collect()
    before, cpu = rss_kib(), 0.0
    for _ in range(repeats):
        async with module.connect(Settings.for_job(job)) as client:  # all connections are new
            started = time.process_time()
            await asyncio.gather(*(module.consume(client, model, TokenCounter().note) for _ in range(streams)))
            cpu += time.process_time() - started
    return {"us": cpu * 1e6 / streams / repeats, "growth_kib": rss_kib() - before}


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.processes import ServerProcess

    sizes = [{"tokens": tokens} for tokens in (TOKENS[:2] if benchmark.quick else TOKENS)]
    crowds = [{"streams": streams} for streams in (STREAMS[:3] if benchmark.quick else STREAMS)]
    with ServerProcess() as server:
        for loop in benchmark.loops:
            benchmark.say(f"scaling, {loop}")
            for name in benchmark.wanted(*CLIENTS):
                _flat(benchmark, server.base_url, loop, name, "tokens in a stream", sizes, Target(1.15))
                _flat(benchmark, server.base_url, loop, name, "streams at once", crowds, Target(1.25))


def _flat(
    benchmark: StreamBenchmark,
    base_url: str,
    loop: str,
    name: str,
    what: str,
    jobs: list[dict[str, int]],
    target: Target,
) -> None:
    """The jobs in turn, `rounds` times, each in a fresh process for its memory; the dearest divided by the cheapest."""
    samples: dict[int, list[float]] = {}
    for _ in range(min(3, benchmark.rounds)):
        for job in jobs:
            size = next(iter(job.values()))
            with benchmark.started([name], loop) as processes:
                result = benchmark.attempt(processes[name], "scaling", base_url, **job) if name in processes else None
            if result is None:
                return
            samples.setdefault(size, []).append(result["us"])
            if len(samples[size]) == 1:
                benchmark.add(
                    Figure("scaling", name, f"{size:,} {what}, {loop}", result["growth_kib"] / 1024, "MiB more")
                )
    unit = "us/token" if "tokens" in jobs[0] else "us/stream"
    costs = {size: median(values) for size, values in samples.items()}
    for size, cost in costs.items():
        benchmark.add(Figure("scaling", name, f"{size:,} {what}, {loop}", cost, unit, samples=tuple(samples[size])))
    flat = max(costs.values()) / min(costs.values())
    benchmark.add(Figure("scaling", name, f"{what}, {loop}", flat, "x dearest", target if name == "ours" else None))
