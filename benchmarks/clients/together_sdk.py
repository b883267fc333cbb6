"""Together's own SDK, the newest and the one before it; the variant `aiohttp` uses the transport of its extra."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import together

from benchmarks.clients import MESSAGES, Note, Settings

ERRORS = together.TogetherError


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[together.AsyncTogether]:
    if int(together.__version__.split(".")[0] if hasattr(together, "__version__") else 1) < 2:
        yield together.AsyncTogether(api_key="x", base_url=settings.base_url)
        return
    options: dict[str, Any] = {}
    if settings.streams > 100:
        import httpx

        options["limits"] = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    http_client = None
    if settings.variant == "aiohttp":
        http_client = together.DefaultAioHttpClient(**options)
    elif options:
        http_client = together.DefaultAsyncHttpxClient(**options)
    # Documented: "timeout, which accepts a float or an httpx.Timeout", and max_retries=0 to switch retries off.
    time_limits: dict[str, Any] = (
        {} if settings.timeout_s is None else {"timeout": settings.timeout_s, "max_retries": 0}
    )
    async with together.AsyncTogether(
        api_key="x", base_url=settings.base_url, http_client=http_client, **time_limits
    ) as client:
        yield client


async def consume(client: together.AsyncTogether, model: str, note: Note) -> None:
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    async for chunk in stream:
        if note(chunk.choices[0].delta.content):
            break


async def chunks(
    client: together.AsyncTogether, model: str, messages: list[Any], options: dict[str, Any]
) -> AsyncIterator[Any]:
    known = {name: value for name, value in options.items() if name != "stream_options"}
    extra = {
        name: value for name, value in options.items() if name not in known
    }  # documented for fields that it has no keyword for
    stream = await client.chat.completions.create(
        model=model, messages=messages, stream=True, extra_body=extra or None, **known
    )
    async for chunk in stream:
        yield chunk
