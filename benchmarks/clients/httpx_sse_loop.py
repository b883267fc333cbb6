"""httpx with httpx-sse and json, as people write it themselves."""

import contextlib
import json
from collections.abc import AsyncIterator

import httpx
from httpx_sse import aconnect_sse

from benchmarks.clients import MESSAGES, Note, Settings


class Client:
    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self.client = client
        self.url = url


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Client]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        yield Client(client, f"{settings.base_url}/chat/completions")


async def consume(client: Client, model: str, note: Note) -> None:
    body = {"model": model, "messages": MESSAGES, "stream": True}
    headers = {"Authorization": "Bearer x"}
    async with aconnect_sse(client.client, "POST", client.url, json=body, headers=headers) as source:
        async for event in source.aiter_sse():
            if event.data == "[DONE]":
                break
            if note(json.loads(event.data)["choices"][0]["delta"]["content"]):
                break
