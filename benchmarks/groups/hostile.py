"""What a server can do to a client: an event of 64 MiB without a line break; 1 GiB in 1 MB of gzip, as a stream and as
an error's body.

Measured: how the call ends, growth of the peak resident memory, and the longest time the event loop could not run a
task that wakes up every 5 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.groups.common import Counter, rss_kib, settings
from benchmarks.stats import Figure, Target

if TYPE_CHECKING:
    from benchmarks.bench import Bench

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
    async with module.connect(settings(job)) as client:
        for _ in range(3):
            await module.consume(client, "bench.small.10", Counter().note)
        with contextlib.suppress(Exception):  # the server compresses its bomb on first use
            await asyncio.wait_for(module.consume(client, f"bench.{job['scenario']}", Counter().note), 0.001)
        await asyncio.sleep(3.0 if "bomb" in job["scenario"] else 0.2)
        before = max(rss_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        ticking = asyncio.create_task(tick(gaps))
        try:
            await asyncio.wait_for(module.consume(client, f"bench.{job['scenario']}", Counter().note), 60)
            outcome = "no error"
        except Exception as exc:
            outcome = type(exc).__name__
        ticking.cancel()
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"outcome": outcome, "growth_mib": max(0, growth) / 1024, "blocked_ms": max(gaps) * 1e3}


def run(bench: Bench) -> None:
    from benchmarks.processes import ServerProcess

    loop = bench.loops[0]
    for scenario, title in SCENARIOS.items():
        bench.say(f"hostile: {title}, {loop}")
        for name in bench.wanted(*CLIENTS):
            with ServerProcess() as server, bench.started([name], loop) as processes:
                job = {"scenario": scenario}
                result = bench.attempt(processes[name], "hostile", server.base_url, **job) if processes else None
            if result is not None:
                _add(bench, name, title, result)


def _add(bench: Bench, name: str, title: str, result: dict[str, Any]) -> None:
    ours = name == "ours"
    note = f"ends with {result['outcome']}"
    growth, blocked = (Target(16), Target(150)) if ours else (None, None)
    bench.add(Figure("hostile", name, title, result["growth_mib"], "MiB more", growth, note=note))
    bench.add(Figure("hostile", name, title, result["blocked_ms"], "ms blocked", blocked))
