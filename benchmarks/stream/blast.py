"""CPU per token when many events arrive with every read: one stream, and 64 at once.

Measured: the client's process time from the moment when every stream has its first token to the moment when the last
stream has ended, divided by the tokens in between. Not measured: the call and the connection (see `first_byte`),
waiting, the server.
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

STREAMS = (1, 64)
WARM_UP_TOKENS = 20  # per stream; opens the connections and fills the caches


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    streams, tokens = job["streams"], job["tokens"] // job["streams"]
    async with module.connect(Settings.for_job(job)) as client:
        for _ in range(2):
            warm = f"bench.blast.{WARM_UP_TOKENS}.{streams}"
            await asyncio.gather(*(module.consume(client, warm, TokenCounter().note) for _ in range(streams)))
        counter = TokenCounter()
        async with running(module, client, f"bench.blast.{tokens}.{streams}", streams, counter.note) as tasks:
            await until(counter, streams, tasks)
            first, wall, cpu = counter.tokens, time.monotonic(), time.process_time()
            await asyncio.gather(*tasks)
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    if first > 1.1 * streams:
        raise RuntimeError(f"the flood began before the client was ready: {first} tokens from {streams} streams")
    return {"us": cpu * 1e6 / (tokens * streams - first), "wall_us": wall * 1e6 / (tokens * streams - first)}


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.clients import PEERS
    from benchmarks.harness.processes import ServerProcess
    from benchmarks.stream.ratios import BLAST_RATIOS, add_ratios, add_values

    names = benchmark.wanted()
    with ServerProcess() as server:
        for loop in benchmark.loops:
            for streams in STREAMS:
                benchmark.say(f"blast, {streams} at once, {loop}")
                jobs = {
                    name: {"streams": streams, "tokens": PEERS[name].tokens // (10 if benchmark.quick else 1)}
                    for name in names
                }
                results = benchmark.rounds_of(names, loop, server, "blast", jobs)
                microseconds = {name: [result["us"] for result in rounds] for name, rounds in results.items()}
                where = f"{streams} at once, {loop}"
                add_values(benchmark, "blast", where, microseconds, "us/token")
                add_ratios(benchmark, "blast", where, microseconds, BLAST_RATIOS)
