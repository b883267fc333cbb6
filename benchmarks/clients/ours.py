"""This library: its chunks, or in the variant `text` its text deltas."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benchmarks.clients import MESSAGES, Note, Settings
from together_async import AsyncTogether, Limits, RateLimiter, Retry, Timeouts, TogetherError

ERRORS = TogetherError


class Client:
    def __init__(self, client: AsyncTogether, limiter: RateLimiter, settings: Settings) -> None:
        self.client = client
        self.limiter = limiter
        self.text = settings.variant == "text"


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Client]:
    options: dict[str, Any] = {"ssl": settings.tls()} if settings.ca else {}
    limiter = options["limits"] = RateLimiter(Limits(concurrency=max(64, settings.streams)))
    if settings.timeout_s is not None:
        seconds = settings.timeout_s
        options["timeouts"] = Timeouts(connect=seconds, first_token=seconds, idle=seconds)
        options["retry"] = Retry(budget=0, max_retry_after=0)
    async with AsyncTogether(api_key="key-of-the-benchmarks", base_url=settings.base_url, **options) as client:
        yield Client(client, limiter, settings)


async def consume(client: Client, model: str, note: Note) -> None:
    if client.text:
        async for text in client.client.stream(MESSAGES, model=model).text():
            if note(text):
                break
        return
    async for chunk in client.client.stream(MESSAGES, model=model):
        if note(chunk.choices[0].delta.content):
            break


async def chunks(client: Client, model: str, messages: list[Any], options: dict[str, Any]) -> AsyncIterator[Any]:
    client.limiter.resume()  # a 402 of one case must not stop the next
    async for chunk in client.client.stream(messages, model=model, **options):
        yield chunk


async def whole(client: Client, messages: list[Any]) -> str | None:
    completion = await client.client.chat.completions.create(model="m", messages=messages)
    return completion.choices[0].message.content


async def slowly(client: Client, model: str, pause: Callable[[], Awaitable[None]]) -> None:
    async for _chunk in client.client.stream(MESSAGES, model=model):
        await pause()
        break
