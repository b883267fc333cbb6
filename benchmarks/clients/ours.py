"""This library: chunks, or with the variant `text` the text deltas."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import together_async
from benchmarks.clients import MESSAGES, Note, Settings
from together_async import AsyncTogether, TogetherError

ERRORS = TogetherError


class Client:
    def __init__(self, client: AsyncTogether, settings: Settings) -> None:
        self.client = client
        self.text = settings.variant == "text"


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Client]:
    options: dict[str, Any] = {"ssl": settings.tls()} if settings.ca else {}
    if hasattr(together_async, "Limits"):
        options["limits"] = together_async.Limits(concurrency=max(64, settings.streams))
    if settings.timeout_s is not None:
        seconds = settings.timeout_s
        options["timeouts"] = together_async.Timeouts(connect=seconds, first_token=seconds, idle=seconds)
        if hasattr(together_async, "Retry"):
            options["retry"] = together_async.Retry(attempts=1)
    async with AsyncTogether(api_key="key-of-the-benchmarks", base_url=settings.base_url, **options) as client:
        yield Client(client, settings)


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
    async for chunk in client.client.stream(messages, model=model, **options):
        yield chunk


async def slowly(client: Client, model: str, pause: Callable[[], Awaitable[None]]) -> None:
    async for _chunk in client.client.stream(MESSAGES, model=model):
        await pause()
        break
