"""Fixtures of the tests of whole batches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.batches import Files, Service, connected
from together_async import AsyncTogether


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def service(no_leaks: None) -> AsyncIterator[Service]:
    async with Service() as service:
        yield service


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncTogether]:
    async with connected(service) as client:
        yield client
