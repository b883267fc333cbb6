"""How a batch stands: its progress, its rates and its summary."""

from __future__ import annotations

import asyncio
from typing import Any

from support.batches import Files, Service
from support.servers import KEY
from together_async import AsyncTogether
from together_async.batch import Batch, BatchOptions, BatchSummary, Record
from together_async.batch.progress import RATE_S, Throughput


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


def test_rates_are_those_of_the_last_minute() -> None:
    """Since the first result while there was less than a minute, and at least a second."""
    throughput = Throughput()
    assert throughput.rates(5.0) == (0.0, 0.0)
    throughput.add(Record("first", prompt_tokens=6, completion_tokens=4, attempts=2), 100.0)
    assert throughput.rates(100.0) == (60.0, 600.0)
    for number in range(1, 600):
        throughput.add(Record(str(number), code="500" if number % 10 == 0 else None, prompt_tokens=1), 100.0 + number)
    assert (throughput.done, throughput.failed, throughput.retried) == (541, 59, 1)
    assert throughput.rates(699.5) == (60.0, 60.0)
    assert throughput.rates(699.5 + RATE_S) == (0.0, 0.0)


def summary_of(**changes: Any) -> BatchSummary:
    fields: dict[str, Any] = {
        "input": "in.jsonl",
        "output": "out.jsonl",
        "total": 3,
        "done": 3,
        "failed": 0,
        "resumed": 0,
        "edited": 0,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "cost": None,
        "elapsed_s": 61.2,
        "retried": 0,
        "limited_s": 0.1,
        "stopped": None,
        "strangers": 0,
        "models": ("m",),
    }
    return BatchSummary(**fields | changes)


def test_a_summary_counts_what_remains() -> None:
    assert (summary_of().remaining, summary_of().ok) == (0, True)
    assert (summary_of(done=1, failed=1).remaining, summary_of(done=2, failed=1).ok) == (1, False)
    assert not summary_of(stopped="enough").ok


def test_facts_leave_out_what_is_empty_or_zero() -> None:
    assert summary_of().facts() == {
        "input": "in.jsonl",
        "output": "out.jsonl",
        "models": "m",
        "requests": "3",
        "this run": "0:01:01",
    }
    facts = summary_of(total=5_000, resumed=2, cost=1.5, stopped="enough", models=tuple("abcdef")).facts()
    assert facts["models"] == "a, b, c, d, e, ..."
    assert (facts["requests"], facts["without a result yet"], facts["cost"]) == ("5,000", "4,997", "$1.5000")
    assert (facts["from earlier runs"], facts["stopped"]) == ("2", "enough")
