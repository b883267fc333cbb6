"""Fixtures of more than one file."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import settings

from support.leaks import open_sockets
from together_async import Retry, client

# A generated case that takes 200 ms says something about the machine, not about the code.
settings.register_profile("together_async", deadline=None)
settings.load_profile("together_async")


@pytest.fixture(autouse=True)
def one_attempt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of these tests don't retry by default: what most look at is what becomes of one attempt.

    Tests of retries pass a `Retry`; those of the default are marked `default_retry`. (A budget of nothing, and not one
    attempt, which would forbid to replace a stale connection too.)
    """
    if request.node.get_closest_marker("default_retry") is None:
        monkeypatch.setattr(client, "DEFAULT_RETRY", Retry(budget=0))


@pytest.fixture(autouse=True, scope="module")
def freeze_what_stays() -> None:
    """Takes modules, reports of earlier tests and their like out of every later collection.

    There are two for each test that looks for leaks, and a session gathers 200,000 objects: 2 ms instead of 90.
    """
    gc.collect()
    gc.freeze()


@pytest_asyncio.fixture
async def no_leaks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Fails a test that leaves a task or a socket behind; the environment's proxies, key and URL don't count."""
    for name in tuple(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("TOGETHER_"):
            monkeypatch.delenv(name)
    gc.collect()
    before = open_sockets()
    yield
    gc.collect()
    for _ in range(20):  # transports close one turn after they are told to
        if not (open_sockets() - before) and len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.005)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"
    assert not open_sockets() - before, "sockets left open"
