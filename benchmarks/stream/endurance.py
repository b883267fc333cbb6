"""10,000 streams one after the other, a tenth of them broken at random: half by the reader, half by the server.

Measured: the growth of the client's resident memory from the first 1,000 streams to the end, and what is open then:
the client's sockets, connections at the server, tasks.
"""

from __future__ import annotations

import asyncio
import gc
import random
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.this_process import open_sockets, rss_kib

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

STREAMS = 10_000
SETTLED_AFTER = 1000
TOKENS = 10
NO_GROWTH_MIB = 1.0  # counts as no growth: the allocator's arenas come and go by this much
CLIENTS = ("ours", "raw loop", "openai")


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.stream.benchmark import server_state

    rng = random.Random(job["seed"])
    errors: dict[str, int] = {}
    settled = 0
    async with module.connect(Settings.for_job(job)) as client:
        for number in range(job["count"]):
            if number == SETTLED_AFTER:
                gc.collect()
                settled = rss_kib()
            leaves_early, cut = rng.random() < 0.05, rng.random() < 0.05
            model = f"bench.{'cut' if cut else 'small'}.{TOKENS}"
            try:
                await module.consume(client, model, (lambda _text: True) if leaves_early else (lambda _text: None))
            except Exception as exc:
                errors[type(exc).__name__] = errors.get(type(exc).__name__, 0) + 1
        await asyncio.sleep(0.1)
        gc.collect()
        growth = rss_kib() - settled
        tasks, sockets = len(asyncio.all_tasks()) - 1, open_sockets()
        connections = server_state(job["base_url"])["open"]
    return {
        "growth_mib": growth / 1024,
        "tasks": tasks,
        "sockets": sockets,
        "connections": connections,
        "errors": errors,
    }


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.processes import ServerProcess

    job = {"count": 2 * SETTLED_AFTER if benchmark.quick else STREAMS, "seed": benchmark.seed, "timeout_s": 300}
    for loop in benchmark.loops:
        benchmark.say(f"endurance, {loop}")
        for name in benchmark.wanted(*CLIENTS):
            with ServerProcess() as server, benchmark.started([name], loop) as processes:
                result = benchmark.attempt(processes[name], "endurance", server.base_url, **job) if processes else None
            if result is not None:
                target = Target(NO_GROWTH_MIB) if name == "ours" else None
                note = (
                    f"{result['tasks']} tasks, {result['sockets']} sockets, {result['connections']} connections left; "
                    f"errors: {result['errors']}"
                )
                benchmark.add(Figure("endurance", name, loop, result["growth_mib"], "MiB more", target, note=note))
