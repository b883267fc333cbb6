"""How many streams of 50 tokens/s one core carries while 99 of 100 tokens are less than 20 ms late.

Measured: every token carries the time when the server sent it; its delay is the time when the loop body sees it minus
that, by the same monotonic clock. The largest number of streams that passes is searched by steps, then by bisection.
Every client is searched on its own, minutes after the one before, so unlike elsewhere a machine that changes meanwhile
shows up in the ratios: read them with their range, and not from one search.
The server has the other core; when it falls behind itself, a try does not count against the client: stamps are of the
real sending.
"""

from __future__ import annotations

import asyncio
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.groups.common import running, settings
from benchmarks.stats import percentile

if TYPE_CHECKING:
    from benchmarks.bench import Bench, ClientProcess

RATE = 50  # tokens/s in each stream
LIMIT_MS = 20.0
WARM_UP_S = 1.5
WINDOW_S = 4.0
HOPELESS_S = 0.25  # a delay in the warm-up that ends the try
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
        module.connect(settings(job)) as client,
        running(module, client, f"bench.paced.{job['rate']}.{streams}", streams, note),
    ):
        deadline = time.monotonic() + 60
        while len(delays) < 3 * streams and time.monotonic() < deadline:  # noqa: ASYNC110 - an event costs per token
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


def passes_at(bench: Bench, process: ClientProcess, base_url: str, streams: int) -> bool:
    """Whether so many streams are in time; what fails gets a second chance, for another program's sake."""
    job = {"streams": streams, "rate": RATE, "read_bytes": READ_BYTES, "window_s": 2.0 if bench.quick else WINDOW_S}
    for _ in range(2):
        result = bench.attempt(process, "capacity", base_url, **job)
        if result is None:
            return False
        good: bool = result["p99_ms"] < LIMIT_MS and result["share"] > 0.97
        bench.say(f"    {streams}: p99 {result['p99_ms']:.1f} ms, {'passes' if good else 'fails'}")
        if good or result["p99_ms"] > HOPELESS_S * 1e3:
            return good
    return False


def search(bench: Bench, process: ClientProcess, base_url: str, first: int) -> int:
    """The largest number of streams that passes, within NEAR_ENOUGH; 0 if none does."""
    passes, fails, streams = 0, 0, first
    while streams >= 4 and (not (passes and fails) or fails / passes > NEAR_ENOUGH):
        good = passes_at(bench, process, base_url, streams)
        passes, fails = (streams, fails) if good else (passes, streams)
        if passes and fails:
            streams = round((passes * fails) ** 0.5)
            if streams in (passes, fails):
                break
        else:
            streams = round(streams * STEP) if good else round(streams / STEP)
    return passes


def run(bench: Bench) -> None:
    from benchmarks.groups.ratios import CAPACITY_RATIOS, add_ratios, add_values
    from benchmarks.processes import ServerProcess

    names = bench.wanted("ours", "raw loop", "together<2", "together", "openai")
    searches = 1 if bench.quick else min(2, bench.rounds)
    with ServerProcess() as server:
        for loop in bench.loops:
            carried: dict[str, list[float]] = {}
            with bench.started(names, loop) as processes:
                start = FIRST_TRY.copy()
                for name, process in list(processes.items()) * searches:
                    bench.say(f"streams one core carries, {name}, {loop}")
                    if found := search(bench, process, server.base_url, start[name]):
                        start[name] = found
                        carried.setdefault(name, []).append(found)
            add_values(bench, "capacity", loop, carried, "streams")
            add_ratios(bench, "capacity", loop, carried, CAPACITY_RATIOS)
