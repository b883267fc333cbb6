"""Chunks that are kept in a list: bytes of each, and how long a full collection over them takes.

Measured: the memory that Python's allocator has handed out since before the stream (`tracemalloc`), divided by the
chunks; in another stream, the median time of `gc.collect()` with everything but the chunks frozen.
"""

import gc
import time
import tracemalloc
from statistics import median
from types import ModuleType
from typing import Any

from benchmarks.clients import Settings

COLLECTIONS = 5


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    async with module.connect(Settings.for_job(job)) as client:
        await keep(module, client, 1_000)
        size = await bytes_each(module, client, job["chunks"] // 10)
        gc.collect()
        gc.freeze()
        chunks = await keep(module, client, job["chunks"])
        times = [collection_s() for _ in range(COLLECTIONS)]
        gc.unfreeze()
    return {"bytes": size, "ms": median(times) * 1e3, "chunks": len(chunks)}


async def keep(module: ModuleType, client: Any, chunks: int) -> list[Any]:
    kept: list[Any] = []
    async for chunk in module.chunks(client, f"bench.blast.{chunks}.1", [{"role": "user", "content": "Why?"}], {}):
        kept.append(chunk)  # noqa: PERF401 - the list shall grow as a user's does
    return kept


async def bytes_each(module: ModuleType, client: Any, chunks: int) -> float:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = await keep(module, client, chunks)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / len(kept)
    finally:
        tracemalloc.stop()


def collection_s() -> float:
    started = time.process_time()
    gc.collect()
    return time.process_time() - started
