"""Many calls with this library: all at once, since the limiter decides when each is sent.

`map` and `run_batch` read their input as they go, so they have begun before anything is read.
"""

import asyncio
import json
import ssl
from typing import Any

from benchmarks.limits.clients.job import Job
from together_async import AsyncTogether, Limits
from together_async.batch.record import Record


def limits(job: Job) -> Limits:
    if job.how == "given":
        return Limits(requests_per_minute=job.requests_per_minute, tokens_per_minute=job.tokens_per_minute)
    if job.how == "auto":
        return Limits(concurrency="auto")
    return Limits(concurrency=int(job.how)) if job.how.isdecimal() else Limits()


async def run(job: Job) -> str:
    options: dict[str, Any] = {"ssl": ssl.create_default_context(cafile=job.ca)} if job.ca else {}
    work = {"map": mapped, "run_batch": batch}.get(job.how, gathered)
    async with AsyncTogether("key-of-the-benchmarks", base_url=job.base_url, limits=limits(job), **options) as client:
        await work(client, job)
        return repr(client.limits)


async def gathered(client: AsyncTogether, job: Job) -> None:
    async def call(text: str) -> str | None:
        return (await client.create(text, model=job.model, max_tokens=job.max_tokens)).text

    await asyncio.gather(*(job.attempt(call, text) for text in job.texts))


async def mapped(client: AsyncTogether, job: Job) -> None:
    job.on_begun()
    async for result in client.map(job.texts, model=job.model, max_tokens=job.max_tokens):
        if result.completion is None:
            job.outcomes[type(result.error).__name__] += 1
        else:
            job.outcomes["ok" if result.completion.text else "no text"] += 1


async def batch(client: AsyncTogether, job: Job) -> None:
    lines = [
        {"custom_id": str(number), "body": {"messages": [{"role": "user", "content": text}]}}
        for number, text in enumerate(job.texts)
    ]
    path = job.folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def note(record: Record) -> None:
        job.outcomes[record.code or "ok"] += 1

    job.on_begun()
    output = job.folder / "out.jsonl"
    await client.run_batch(path, output, model=job.model, max_tokens=job.max_tokens, on_result=note)
