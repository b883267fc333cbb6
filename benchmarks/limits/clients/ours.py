"""Many calls with this library: all at once, since the limiter decides when each is sent."""

import asyncio

from benchmarks.limits.clients.job import Job
from together_async import AsyncTogether, Limits


def limits(job: Job) -> Limits:
    if job.how == "given":
        return Limits(requests_per_minute=job.requests_per_minute, tokens_per_minute=job.tokens_per_minute)
    return Limits(concurrency="auto") if job.how == "auto" else Limits()


async def run(job: Job) -> str:
    async with AsyncTogether("key-of-the-benchmarks", base_url=job.base_url, limits=limits(job)) as client:

        async def call(text: str) -> str | None:
            return (await client.create(text, model=job.model, max_tokens=job.max_tokens)).text

        await asyncio.gather(*(job.attempt(call, text) for text in job.texts))
        return repr(client.limits)
