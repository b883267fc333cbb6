"""`sse`: what only the iterator does, which has no status and no request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.relay_doors import KINDS, PROMPT, by_loop
from support.servers import MODEL
from together_async import AsyncTogether
from together_async.relay import End, passthrough, sse
from together_async.relay.browser_errors import AllReadError
from together_async.testing import EmulatorServer, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_the_loop_refuses_when_it_is_made(client: AsyncTogether) -> None:
    """And not at its first step, when the framework has sent a 200."""
    stream = client.stream(PROMPT, model=MODEL)
    with pytest.raises(TypeError, match=r"expected what `client\.stream"):
        sse(client.create(PROMPT, model=MODEL))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="format: got 'json'"):
        sse(stream, format="json")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="format: a pass-through has none"):
        sse(passthrough(stream), format="text")
    with pytest.raises(ValueError, match="heartbeat: got 0"):
        sse(stream, heartbeat=0)


@pytest.mark.parametrize("stage", ["head", "silence"])
@pytest.mark.parametrize("how", ["aclose", "cancel", "drop"])
async def test_leaving_the_loop(client: AsyncTogether, upstream: EmulatorServer, stage: str, how: str) -> None:
    """By `aclose`, cancellation, or when it is dropped: the upstream is closed."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    ended: list[End] = []
    iterator: Any = sse(client.stream(PROMPT, model=MODEL), on_end=ended.append)
    if stage == "silence":
        await anext(iterator)
    reading = asyncio.create_task(anext(iterator))
    entry = await upstream.journal.wait(1)
    for _ in range(3):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    if how == "aclose":
        await iterator.aclose()
    del iterator, reading
    await entry.wait_left()
    assert ended[0].left


async def test_a_loop_that_never_began_has_asked_nothing(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """It can be dropped or closed without a warning."""
    await sse(client.stream(PROMPT, model=MODEL)).aclose()  # type: ignore[attr-defined]  # a generator, typed as an iterator
    del client
    assert upstream.journal.total == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", [False, True])
async def test_the_loop_sends_who_comes_back_to_it_nothing(
    client: AsyncTogether, upstream: EmulatorServer, kind: str, opened: bool
) -> None:
    """It has no status: no event at all is sent, nothing is requested again, and an open stream is closed."""
    stream, ended = client.stream(PROMPT, model=MODEL), list[End]()
    if opened:
        await stream.__aenter__()
    answer = await by_loop(KINDS[kind](stream), {"last-event-id": "3"}, on_end=ended.append)
    assert answer.body == b""
    assert upstream.journal.total == int(opened)
    if kind != "own" or not opened:  # an app that opens a stream for its own loop closes it
        assert client.limits.in_flight == 0
    else:
        await stream.aclose()
    (end,) = ended
    assert isinstance(end.error, AllReadError)
    assert not end.left
