"""How a batch stands: its progress, its rates and its summary."""

from __future__ import annotations

import asyncio

from support.batches import Files, Service
from support.servers import KEY
from together_async import AsyncTogether
from together_async.batch.runner import Batch, BatchOptions


async def test_progress_tells_how_it_stands(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(10)
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=4))
    assert batch.progress.total == 0
    service.gate = asyncio.Event()
    task = asyncio.create_task(batch.run())
    await service.busy(4)
    during = batch.progress
    assert (during.total, during.done, during.in_flight, during.queued) == (10, 0, 4, 0)
    service.gate.set()
    await task
    after = batch.progress
    assert (after.done, after.failed, after.in_flight, after.tokens, after.state) == (10, 0, 0, 150, "")
    assert "in.jsonl" in repr(batch)
    assert KEY not in repr(batch)
