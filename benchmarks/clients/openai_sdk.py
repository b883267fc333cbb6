"""The newest `openai`; the variant `aiohttp` uses the transport of its extra of that name."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai

from benchmarks.clients import MESSAGES, Note, Settings

ERRORS = openai.OpenAIError


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[openai.AsyncOpenAI]:
    """Made as documented; more than 1,000 connections, or our certificate, need an HTTP client of our own."""
    options: dict[str, Any] = {}
    if settings.ca:
        options["verify"] = settings.tls()
    if settings.streams > 1000:
        import httpx2

        options["limits"] = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
    http_client = None
    if settings.variant == "aiohttp":
        http_client = openai.DefaultAioHttpClient(**options)
    elif options:
        http_client = openai.DefaultAsyncHttpxClient(**options)
    # Documented: "timeout, which accepts a float or an httpx.Timeout", and max_retries=0 to switch retries off.
    time_limits: dict[str, Any] = (
        {} if settings.timeout_s is None else {"timeout": settings.timeout_s, "max_retries": 0}
    )
    async with openai.AsyncOpenAI(
        api_key="x", base_url=settings.base_url, http_client=http_client, **time_limits
    ) as client:
        yield client


async def consume(client: openai.AsyncOpenAI, model: str, note: Note) -> None:
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    async with stream:
        async for chunk in stream:
            if note(chunk.choices[0].delta.content):
                break


async def chunks(
    client: openai.AsyncOpenAI, model: str, messages: list[Any], options: dict[str, Any]
) -> AsyncIterator[Any]:
    stream = await client.chat.completions.create(model=model, messages=messages, stream=True, **options)
    async for chunk in stream:
        yield chunk


async def slowly(client: openai.AsyncOpenAI, model: str, pause: Callable[[], Awaitable[None]]) -> None:
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    async with stream:
        async for _chunk in stream:
            await pause()
            break
