"""How many streams of 50 tokens/s one core carries while 99 of 100 tokens are less than 20 ms late.

Measured: every token carries the time at which the server sent it; its delay is the time at which the loop body sees
it, less that, by the same monotonic clock. The largest number of streams that passes is found by steps, then by
bisection. The clients are searched one after the other, minutes apart, so here a machine that changes meanwhile affects
the ratios: read them with their range, and not from one search. The server has the other core; if it falls behind, that
does not count against the client, since a stamp is the time of the actual write.
"""

from __future__ import annotations

import asyncio
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings
from benchmarks.harness.figures import percentile
from benchmarks.stream.readers import running

if TYPE_CHECKING:
    from benchmarks.harness.processes import ClientProcess
    from benchmarks.stream.benchmark import StreamBenchmark

RATE = 50  # tokens/s in each stream
LIMIT_MS = 20.0
WARM_UP_S = 1.5
WINDOW_S = 4.0
HOPELESS_S = 0.25  # a delay in the warm-up that ends the attempt
STEP = 1.3
NEAR_ENOUGH = 1.06
FIRST_TRY = {"ours": 400, "raw loop": 400, "together<2": 250, "openai": 70, "openai+aiohttp": 80, "together": 70}
READ_BYTES = 65536


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    streams = job["streams"]
    delays: list[float] = []

    def note(text: str) -> None:
        delays.append(time.monotonic() - float(text))

    async with (
        module.connect(Settings.for_job(job)) as client,
        running(module, client, f"bench.paced.{job['rate']}.{streams}", streams, note),
    ):
        deadline = time.monotonic() + 60
        while len(delays) < 3 * streams and time.monotonic() < deadline:  # noqa: ASYNC110 - an `asyncio.Event` would cost time per token
            await asyncio.sleep(0.05)
        await asyncio.sleep(WARM_UP_S)
        if percentile(delays[-streams:], 50) > HOPELESS_S:
            return {"p99_ms": percentile(delays[-streams:], 99) * 1e3, "share": 0.0}
        delays.clear()
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(job["window_s"])
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        window = delays.copy()
    return {
        "p99_ms": percentile(window, 99) * 1e3,
        "p50_ms": percentile(window, 50) * 1e3,
        "share": len(window) / (wall * job["rate"] * streams),
        "busy": cpu / wall,
    }


def passes_at(benchmark: StreamBenchmark, process: ClientProcess, base_url: str, streams: int) -> bool:
    """Whether so many streams are in time; a failure gets a second chance, as another program may be its cause."""
    job = {"streams": streams, "rate": RATE, "read_bytes": READ_BYTES, "window_s": 2.0 if benchmark.quick else WINDOW_S}
    for _ in range(2):
        result = benchmark.attempt(process, "capacity", base_url, **job)
        if result is None:
            return False
        good: bool = result["p99_ms"] < LIMIT_MS and result["share"] > 0.97
        benchmark.say(f"    {streams}: p99 {result['p99_ms']:.1f} ms, {'passes' if good else 'fails'}")
        if good or result["p99_ms"] > HOPELESS_S * 1e3:
            return good
    return False


def search(benchmark: StreamBenchmark, process: ClientProcess, base_url: str, first: int) -> int:
    """The largest number of streams that passes, to within NEAR_ENOUGH; 0 if no number does."""
    passes, fails, streams = 0, 0, first
    while streams >= 4 and (not (passes and fails) or fails / passes > NEAR_ENOUGH):
        good = passes_at(benchmark, process, base_url, streams)
        passes, fails = (streams, fails) if good else (passes, streams)
        if passes and fails:
            streams = round((passes * fails) ** 0.5)
            if streams in (passes, fails):
                break
        else:
            streams = round(streams * STEP) if good else round(streams / STEP)
    return passes


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.processes import ServerProcess
    from benchmarks.stream.ratios import CAPACITY_RATIOS, add_ratios, add_values

    names = benchmark.wanted("ours", "raw loop", "together<2", "together", "openai")
    searches = 1 if benchmark.quick else min(2, benchmark.rounds)
    with ServerProcess() as server:
        for loop in benchmark.loops:
            carried: dict[str, list[float]] = {}
            with benchmark.started(names, loop) as processes:
                start = FIRST_TRY.copy()
                for name, process in list(processes.items()) * searches:
                    benchmark.say(f"streams one core carries, {name}, {loop}")
                    if found := search(benchmark, process, server.base_url, start[name]):
                        start[name] = found
                        carried.setdefault(name, []).append(found)
            add_values(benchmark, "capacity", loop, carried, "streams")
            add_ratios(benchmark, "capacity", loop, carried, CAPACITY_RATIOS)
