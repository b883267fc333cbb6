"""`aiohttp_response`: how it learns that the client has left."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from support.relay_doors import PROMPT, SOON, serving_handler
from support.servers import MODEL
from together_async import AsyncTogether
from together_async.relay import End, aiohttp_response
from together_async.testing import EmulatorServer, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("cancels", [False, True])
async def test_leaving_an_aiohttp_server(client: AsyncTogether, upstream: EmulatorServer, cancels: bool) -> None:
    """Whether or not it then cancels its handlers: `on_end` gets that the client has left."""
    upstream.faults = Stall(after_token=2)
    ended = asyncio.Queue[End]()

    async def answer(request: web.Request) -> web.StreamResponse:
        return await aiohttp_response(request, client.stream(PROMPT, model=MODEL), on_end=ended.put)

    async with serving_handler(answer, handler_cancellation=cancels) as url, aiohttp.ClientSession() as session:
        visitor = await session.get(url)
        await visitor.content.readany()
        visitor.close()
        end = await asyncio.wait_for(ended.get(), SOON)
    assert end.left
    assert end.error is None
