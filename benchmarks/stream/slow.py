"""A reader that stops reading while the server has 100 MB to send.

Measured: the growth of the client's resident memory while its loop body waits after the first token, and how much the
server could send in that time (most of it is in the kernel's socket buffers).
"""

from __future__ import annotations

import asyncio
import gc
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.this_process import rss_kib
from benchmarks.stream.readers import TokenCounter

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

TOKENS = 312_500  # of 320 bytes: 100 MB
PAUSE_S = 3.0
CLIENTS = ("ours", "raw loop", "openai")


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.stream.benchmark import server_state

    rss: list[int] = []

    async def pause() -> None:
        gc.collect()
        rss.append(rss_kib())
        await asyncio.sleep(PAUSE_S)
        rss.append(rss_kib())

    async with module.connect(Settings.for_job(job)) as client:
        for _ in range(3):
            await module.consume(client, "bench.blast.2000.1", TokenCounter().note)
        before = server_state(job["base_url"])["sent_bytes"]
        await module.slowly(client, f"bench.blast.{TOKENS}.1", pause)
        sent = server_state(job["base_url"])["sent_bytes"] - before
    return {"growth_mib": (rss[1] - rss[0]) / 1024, "sent_mb": sent / 1e6}


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.processes import ServerProcess

    for loop in benchmark.loops:
        benchmark.say(f"slow consumer, {loop}")
        for name in benchmark.wanted(*CLIENTS):
            with ServerProcess() as server, benchmark.started([name], loop) as processes:
                result = benchmark.attempt(processes[name], "slow", server.base_url) if name in processes else None
            if result is not None:
                target = Target(2, 1) if name == "ours" else None
                note = f"server sent {result['sent_mb']:.1f} MB of {TOKENS * 320 / 1e6:.0f}"
                benchmark.add(Figure("slow consumer", name, loop, result["growth_mib"], "MiB more", target, note=note))
