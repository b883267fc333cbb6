"""The emulator that answers the batches."""

from collections.abc import AsyncIterator

import pytest_asyncio

from together_async.testing import EmulatorServer


@pytest_asyncio.fixture
async def server() -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer("The sky is blue.") as server:
        yield server
