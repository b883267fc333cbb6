"""Fixtures of the examples' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from support.example_apps import ANSWER
from together_async.testing import EmulatorServer


@pytest_asyncio.fixture
async def emulator(no_leaks: None) -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer(ANSWER) as server:
        yield server


@pytest_asyncio.fixture
async def http(no_leaks: None) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
