"""What a hostile server can do: send an event of 64 MiB without a line break, or 1 GiB in 1 MB of gzip, as a stream and
as the body of an error.

Measured: how the call ends, the growth of the peak resident memory, and the longest time for which the event loop could
not run a task that wakes up every 5 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.this_process import rss_kib
from benchmarks.stream.readers import TokenCounter

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

SCENARIOS = {"long_line": "64 MiB line", "bomb": "gzip bomb", "error_bomb": "gzip bomb as an error"}
TICK_S = 0.005
CLIENTS = ("ours", "openai")


async def tick(gaps: list[float]) -> None:
    last = time.monotonic()
    while True:
        await asyncio.sleep(TICK_S)
        now = time.monotonic()
        gaps.append(now - last - TICK_S)
        last = now


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    gaps = [0.0]
    async with module.connect(Settings.for_job(job)) as client:
        for _ in range(3):
            await module.consume(client, "bench.small.10", TokenCounter().note)
        with contextlib.suppress(Exception):  # the server compresses its bomb on first use
            await asyncio.wait_for(module.consume(client, f"bench.{job['scenario']}", TokenCounter().note), 0.001)
        await asyncio.sleep(3.0 if "bomb" in job["scenario"] else 0.2)
        before = max(rss_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        ticking = asyncio.create_task(tick(gaps))
        try:
            await asyncio.wait_for(module.consume(client, f"bench.{job['scenario']}", TokenCounter().note), 60)
            outcome = "no error"
        except Exception as exc:
            outcome = type(exc).__name__
        ticking.cancel()
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"outcome": outcome, "growth_mib": max(0, growth) / 1024, "blocked_ms": max(gaps) * 1e3}


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.processes import ServerProcess

    loop = benchmark.loops[0]
    for scenario, title in SCENARIOS.items():
        benchmark.say(f"hostile: {title}, {loop}")
        for name in benchmark.wanted(*CLIENTS):
            with ServerProcess() as server, benchmark.started([name], loop) as processes:
                job = {"scenario": scenario}
                result = benchmark.attempt(processes[name], "hostile", server.base_url, **job) if processes else None
            if result is not None:
                _add(benchmark, name, title, result)


def _add(benchmark: StreamBenchmark, name: str, title: str, result: dict[str, Any]) -> None:
    ours = name == "ours"
    note = f"ends with {result['outcome']}"
    growth, blocked = (Target(16), Target(150)) if ours else (None, None)
    benchmark.add(Figure("hostile", name, title, result["growth_mib"], "MiB more", growth, note=note))
    benchmark.add(Figure("hostile", name, title, result["blocked_ms"], "ms blocked", blocked))
