"""Resident memory per open stream that has received one token and waits, plain and with TLS.

Measured: the growth of the client's RSS from a warm-up of a few streams to 1,000 and 5,000 open streams, divided by
their number. Not measured: the kernel's socket buffers, the server.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.clients import Settings
from benchmarks.harness.this_process import rss_kib
from benchmarks.stream.readers import TokenCounter, until

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

STREAMS = (1000, 5000)
QUICK_STREAMS = (100, 500)
WARM_UP_STREAMS = 20
OPENING_AT_ONCE = 50
CLIENTS = ("ours", "raw loop", "openai")


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    counter = TokenCounter()
    tasks: list[asyncio.Task[None]] = []
    growth = {}
    async with module.connect(Settings.for_job(job, streams=max(job["steps"]))) as client:
        warm_up = (module.consume(client, "bench.small.10", TokenCounter().note) for _ in range(WARM_UP_STREAMS))
        await asyncio.gather(*warm_up)
        gc.collect()
        before = rss_kib()
        try:
            for step in job["steps"]:
                while len(tasks) < step:
                    opening = range(min(OPENING_AT_ONCE, step - len(tasks)))
                    tasks += [asyncio.create_task(module.consume(client, "bench.hold", counter.note)) for _ in opening]
                    await until(counter, len(tasks), tasks)
                await asyncio.sleep(0.2)
                gc.collect()
                growth[step] = (rss_kib() - before) / step
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return {"kib": growth}


def run(benchmark: StreamBenchmark) -> None:
    from benchmarks.harness.certificate import certificate
    from benchmarks.harness.processes import ServerProcess

    with tempfile.TemporaryDirectory() as name:
        cert, ca = certificate(Path(name))
        for tls in (False, True):
            with ServerProcess(cert if tls else None) as server:
                for loop in benchmark.loops:
                    _measure_all(benchmark, server.base_url, loop, ca if tls else None)


def _measure_all(benchmark: StreamBenchmark, base_url: str, loop: str, ca: str | None) -> None:
    from benchmarks.harness.figures import Figure, Target

    targets = {
        ("asyncio", False): Target(20, 17),
        ("uvloop", False): Target(20, 17),
        ("asyncio", True): Target(95),
        ("uvloop", True): Target(66),
    }
    tls = ca is not None
    benchmark.say(f"memory per idle stream, {'TLS' if tls else 'plain'}, {loop}")
    largest: dict[str, float] = {}
    job = {"steps": QUICK_STREAMS if benchmark.quick else STREAMS, "ca": ca, "read_bytes": 65536}
    for name in benchmark.wanted(*CLIENTS):
        with benchmark.started([name], loop) as processes:  # a fresh process, since memory is not given back
            result = benchmark.attempt(processes[name], "memory", base_url, **job) if name in processes else None
        for streams, kib in (result or {"kib": {}})["kib"].items():
            target = targets[loop, tls] if name == "ours" else None
            what = f"{streams} streams, {'TLS' if tls else 'plain'}, {loop}"
            benchmark.add(Figure("memory", name, what, kib, "KiB/stream", target))
            largest[name] = kib
    if tls and loop == "uvloop" and {"ours", "openai"} <= set(largest):
        ratio = largest["ours"] / largest["openai"]
        benchmark.add(Figure("memory", "ours : openai", "TLS, uvloop", ratio, "x", Target(1.0, 0.8)))
