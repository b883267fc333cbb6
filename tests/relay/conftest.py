"""Fixtures of the relay's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from support.relay_doors import DOORS, KEY, TOKENS, Answer
from together_async import AsyncTogether
from together_async.testing import EmulatorServer, Reply


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Answer]]:
    return DOORS[request.param]


@pytest.fixture(params=["asgi", "aiohttp"])
def response(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Answer]]:
    """The doors that are a response, with a status."""
    return DOORS[request.param]


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer(Reply(TOKENS)) as server:
        yield server


@pytest_asyncio.fixture
async def client(upstream: EmulatorServer) -> AsyncIterator[AsyncTogether]:
    async with AsyncTogether(KEY, base_url=upstream.base_url) as together:
        yield together
        assert together.limits.in_flight == 0
