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

# A generated case that takes 200 ms is due to a busy machine, not to the code.
settings.register_profile("together_async", deadline=None)
settings.load_profile("together_async")


@pytest.fixture(autouse=True)
def one_attempt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients don't retry by default, because most tests look at one attempt.

    Tests of retries pass a `Retry`; those of the default are marked `default_retry`. The budget is 0 rather than the
    attempts 1, which would also forbid a client to replace a stale connection; and no 429 is waited for.
    """
    if request.node.get_closest_marker("default_retry") is None:
        monkeypatch.setattr(client, "DEFAULT_RETRY", Retry(budget=0, max_retry_after=0))


@pytest.fixture(autouse=True, scope="module")
def freeze_what_stays() -> None:
    """Excludes objects that stay, such as modules and reports of earlier tests, from later garbage collections.

    Each test that looks for leaks collects twice, and a session gathers 200,000 objects: 2 ms instead of 90.
    """
    gc.collect()
    gc.freeze()


@pytest_asyncio.fixture
async def no_leaks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Fails a test that leaves a task or a socket behind; the environment's proxies, key and URL are unset."""
    for name in tuple(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("TOGETHER_"):
            monkeypatch.delenv(name)
    gc.collect()
    before = open_sockets()
    yield
    gc.collect()
    for _ in range(20):  # transports close one turn after `close()`
        if not (open_sockets() - before) and len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.005)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"
    assert not open_sockets() - before, "sockets left open"
