"""From the call to the first byte of the request at the server, on a connection that is already open.

Measured: the time from just before the call to the moment when the server's `recv` returned, by the same monotonic
clock in another process. It includes the time the kernel needs to wake the server, for every client. The calls are made
one after the other.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

CALLS = 150
WARM_UP_CALLS = 30
# Between two calls. Back to back, the processor's caches are warm and the times short and steady; after a pause they
# are several times as long, and the ratios differ too. No single pause is the right one, so all are reported.
PAUSES_S = (0.0, 0.002, 0.02)


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    delays: list[float] = []
    called = 0.0

    def note(text: str) -> None:
        if text:  # the last chunk has none
            delays.append(float(text) - called)

    async with module.connect(Settings.for_job(job)) as client:
        for _ in range(WARM_UP_CALLS + job["calls"]):
            await asyncio.sleep(job["pause_s"])
            called = time.monotonic()
            await module.consume(client, "bench.first_byte", note)
    return {"ms": median(delays[WARM_UP_CALLS:]) * 1e3, "calls": len(delays) - WARM_UP_CALLS}


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.processes import ServerProcess
    from benchmarks.stream.ratios import FIRST_BYTE_RATIOS, add_ratios, add_values

    names = benchmark.wanted("ours", "raw loop", "together<2", "openai", "together", "litellm")
    with ServerProcess() as server:
        for loop, pause_s in itertools.product(benchmark.loops, PAUSES_S):
            where = f"{pause_s * 1e3:g} ms between calls, {loop}"
            benchmark.say(f"call to first byte, {where}")
            job = {"calls": CALLS // 5 if benchmark.quick else CALLS, "pause_s": pause_s}
            results = benchmark.rounds_of(names, loop, server, "first_byte", dict.fromkeys(names, job))
            milliseconds = {name: [result["ms"] for result in rounds] for name, rounds in results.items()}
            add_values(benchmark, "first byte", where, milliseconds, "ms")
            add_ratios(benchmark, "first byte", where, milliseconds, FIRST_BYTE_RATIOS)
