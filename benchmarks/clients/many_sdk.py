"""Many calls with `openai` or `together`.

`gather` is all of them at once, with the client as it comes. `advised` has more retries than the two of the default,
with their exponential backoff, as both readmes say of 429s (`max_retries=5` is their example). They know nothing else
against them; the semaphore in front is what everybody adds, of ten, somewhat more than the account can have under way.
"""

import asyncio
import contextlib
import importlib
from typing import Any

from benchmarks.clients.many import Job

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
