"""Many calls with `openai` or `together`.

`gather` makes all calls at once, with the client's defaults. `advised` has more than the default's two retries, with
their exponential backoff, as both readmes advise against 429s (`max_retries=5` is their example); they offer nothing
else. The semaphore in front is ours, as most people add one: of ten, a little more than the account can have under way.
"""

import asyncio
import contextlib
import importlib
from typing import Any

from benchmarks.limits.clients.job import Job

AT_ONCE, RETRIES = 10, 5


async def run(job: Job) -> None:
    package, _, how = job.how.partition(":")
    made: Any = {"openai": "AsyncOpenAI", "together": "AsyncTogether"}[package]
    advised = how == "advised"
    options = {"max_retries": RETRIES} if advised else {}
    places: Any = asyncio.Semaphore(AT_ONCE) if advised else contextlib.nullcontext()
    async with getattr(importlib.import_module(package), made)(api_key="x", base_url=job.base_url, **options) as client:

        async def call(text: str) -> str | None:
            messages = [{"role": "user", "content": text}]
            async with places:
                completion = await client.chat.completions.create(
                    model=job.model, messages=messages, max_tokens=job.max_tokens
                )
            answer: str | None = completion.choices[0].message.content
            return answer

        await asyncio.gather(*(job.attempt(call, text) for text in job.texts))
