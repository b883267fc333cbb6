"""CPU per token when many events come with every read: one stream, and 64 at once.

Measured: the client's process time from the moment when every stream is open and has its first token to the moment when
the last one has ended, divided by the tokens in between. Not measured: the call and the connection (see `first_byte`),
waiting, the server.
"""

from __future__ import annotations

import asyncio
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.groups.common import Counter, running, settings, until

if TYPE_CHECKING:
    from benchmarks.bench import Bench

STREAMS = (1, 64)
WARM_UP_TOKENS = 20  # per stream; opens the connections and fills the caches


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    streams, tokens = job["streams"], job["tokens"] // job["streams"]
    async with module.connect(settings(job)) as client:
        for _ in range(2):
            warm = f"bench.blast.{WARM_UP_TOKENS}.{streams}"
            await asyncio.gather(*(module.consume(client, warm, Counter().note) for _ in range(streams)))
        counter = Counter()
        async with running(module, client, f"bench.blast.{tokens}.{streams}", streams, counter.note) as tasks:
            await until(counter, streams, tasks)
            first, wall, cpu = counter.tokens, time.monotonic(), time.process_time()
            await asyncio.gather(*tasks)
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    if first > 1.1 * streams:
        raise RuntimeError(f"the flood began before the client was ready: {first} tokens from {streams} streams")
    return {"us": cpu * 1e6 / (tokens * streams - first), "wall_us": wall * 1e6 / (tokens * streams - first)}


def run(bench: Bench) -> None:
    from benchmarks.clients import PEERS
    from benchmarks.groups.ratios import BLAST_RATIOS, add_ratios, add_values
    from benchmarks.processes import ServerProcess

    names = bench.wanted()
    with ServerProcess() as server:
        for loop in bench.loops:
            for streams in STREAMS:
                bench.say(f"blast, {streams} at once, {loop}")
                jobs = {
                    name: {"streams": streams, "tokens": PEERS[name].tokens // (10 if bench.quick else 1)}
                    for name in names
                }
                results = bench.rounds_of(names, loop, server, "blast", jobs)
                microseconds = {name: [result["us"] for result in rounds] for name, rounds in results.items()}
                where = f"{streams} at once, {loop}"
                add_values(bench, "blast", where, microseconds, "us/token")
                add_ratios(bench, "blast", where, microseconds, BLAST_RATIOS)
