"""CPU per token when every token arrives alone: 64 streams of 50 tokens/s, their phases spread evenly.

Measured: the client's process time over a window in which all streams run, divided by the tokens of the window. It
includes the event loop's turns and the reads, which are most of it. Not measured: calls, waiting, the server.
"""

from __future__ import annotations

import asyncio
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings
from benchmarks.stream.readers import TokenCounter, running, until

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

STREAMS = 64
RATE = 50  # tokens/s in each stream
WARM_UP_S = 1.0
WINDOW_S = 3.0
READ_BYTES = 65536  # the yardstick's reads, see `clients/raw.py`


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    streams = job["streams"]
    counter = TokenCounter()
    async with (
        module.connect(Settings.for_job(job)) as client,
        running(module, client, f"bench.paced.{job['rate']}.{streams}", streams, counter.note) as tasks,
    ):
        await until(counter, 2 * streams, tasks)
        await asyncio.sleep(job["warm_up_s"])
        tokens, cpu, wall = counter.tokens, time.process_time(), time.monotonic()
        await asyncio.sleep(job["window_s"])
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        tokens = counter.tokens - tokens
    return {"us": cpu * 1e6 / tokens, "rate": tokens / wall / streams}


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.processes import ServerProcess
    from benchmarks.stream.ratios import PACED_RATIOS, add_ratios, add_values

    names = benchmark.wanted()
    job = {
        "streams": STREAMS,
        "rate": RATE,
        "read_bytes": READ_BYTES,
        "warm_up_s": WARM_UP_S,
        "window_s": 1.0 if benchmark.quick else WINDOW_S,
    }
    with ServerProcess() as server:
        for loop in benchmark.loops:
            benchmark.say(f"paced, {STREAMS} streams of {RATE} tokens/s, {loop}")
            results = benchmark.rounds_of(names, loop, server, "paced", dict.fromkeys(names, job))
            microseconds = {name: [result["us"] for result in rounds] for name, rounds in results.items()}
            where = f"{STREAMS} x {RATE} tokens/s, {loop}"
            add_values(benchmark, "paced", where, microseconds, "us/token")
            add_ratios(benchmark, "paced", where, microseconds, PACED_RATIOS)
