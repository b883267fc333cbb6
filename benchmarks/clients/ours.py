"""This library: chunks, or with the variant `text` the text deltas."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import together_async
from benchmarks.clients import MESSAGES, Note, Settings
from together_async import AsyncTogether


class Client:
    def __init__(self, client: AsyncTogether, settings: Settings) -> None:
        self.client = client
        self.text = settings.variant == "text"


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Client]:
    options: dict[str, Any] = {"ssl": settings.tls()} if settings.ca else {}
    if hasattr(together_async, "Limits"):
        options["limits"] = together_async.Limits(concurrency=max(64, settings.streams))
    async with AsyncTogether(api_key="x", base_url=settings.base_url, **options) as client:
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


async def slowly(client: Client, model: str, pause: Callable[[], Awaitable[None]]) -> None:
    async for _chunk in client.client.stream(MESSAGES, model=model):
        await pause()
        break
