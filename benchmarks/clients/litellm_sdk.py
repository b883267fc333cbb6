"""litellm with its Together provider."""

import contextlib
import os
from collections.abc import AsyncIterator

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import fetches a price list

import litellm

from benchmarks.clients import MESSAGES, Note, Settings


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[str]:
    yield settings.base_url


async def consume(client: str, model: str, note: Note) -> None:
    stream = await litellm.acompletion(
        model=f"together_ai/{model}", messages=MESSAGES, stream=True, api_base=client, api_key="x"
    )
    async for chunk in stream:
        if note(chunk.choices[0].delta.content):
            break
