"""litellm with its Together provider."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import fetches a price list

import litellm
import openai

from benchmarks.clients import MESSAGES, Note, Settings

ERRORS = openai.OpenAIError  # documented: "all exceptions inherit from OpenAI's exception types"


@dataclass(frozen=True, slots=True)
class Client:
    """What litellm's calls share: the base URL and the time limits."""

    base_url: str
    time_limits: dict[str, Any]


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Client]:
    time_limits: dict[str, Any] = {}
    if settings.timeout_s is not None:
        # Documented: timeout in seconds, stream_timeout for streams, num_retries (its own), max_retries (openai's).
        time_limits |= {"timeout": settings.timeout_s, "stream_timeout": settings.timeout_s}
        time_limits |= {"num_retries": 0, "max_retries": 0}
        litellm.suppress_debug_info = True
    yield Client(settings.base_url, time_limits)


async def consume(client: Client, model: str, note: Note) -> None:
    stream = await litellm.acompletion(
        model=f"together_ai/{model}", messages=MESSAGES, stream=True, api_base=client.base_url, api_key="x"
    )
    async for chunk in stream:
        if note(chunk.choices[0].delta.content):
            break


async def chunks(client: Client, model: str, messages: list[Any], options: dict[str, Any]) -> AsyncIterator[Any]:
    stream = await litellm.acompletion(
        model=f"together_ai/{model}",
        messages=messages,
        stream=True,
        api_base=client.base_url,
        api_key="x",
        allowed_openai_params=list(options),  # documented, for models that are not on its list
        **client.time_limits,
        **options,
    )
    async for chunk in stream:
        yield chunk
