"""Clients of scripted servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from support.servers import KEY, MODEL, Script, ScriptedServer
from together_async import AsyncTogether
from together_async.http.transport import Transport


@contextlib.asynccontextmanager
async def served(*scripts: Script, **options: Any) -> AsyncIterator[tuple[ScriptedServer, AsyncTogether]]:
    """A server that runs the scripts, one for each request and the last for all others, and a client of it."""
    async with ScriptedServer(*scripts) as server, AsyncTogether(KEY, base_url=server.base_url, **options) as client:
        yield server, client


def transport_of(client: AsyncTogether) -> Transport:
    """The transport that a client uses now."""
    transport = client._connections.current
    assert transport is not None
    return transport


async def bodies_ended(client: AsyncTogether) -> None:
    """Waits until no response of a client is being read any more: each connection is in the pool, or closed."""
    responses = transport_of(client).responses
    async with asyncio.timeout(5):
        while responses:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


def client_of(server: ScriptedServer, **options: Any) -> AsyncTogether:
    """A client of a server; the caller closes it."""
    return AsyncTogether(KEY, base_url=server.base_url, **options)


async def read_all(client: AsyncTogether, **options: Any) -> list[Any]:
    """All chunks of a stream."""
    return [chunk async for chunk in client.stream("Hi", model=MODEL, **options)]


async def text_of(client: AsyncTogether, **options: Any) -> str:
    """The text of a stream."""
    return "".join([text async for text in client.stream("Hi", model=MODEL, **options).text()])
