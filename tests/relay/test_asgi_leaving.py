"""The end of an ASGI response by its client or its server: the upstream is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.relay_doors import PROMPT, SOON, ASGIClient, scope_of
from support.servers import MODEL
from together_async import AsyncTogether
from together_async.relay import End, EventSourceResponse, ServerShutdownError
from together_async.testing import EmulatorServer, Fault, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("stage", ["head", "token", "silence", "not reading", "send fails"])
async def test_leaving_an_asgi_server(client: AsyncTogether, upstream: EmulatorServer, stage: str) -> None:
    """By `http.disconnect`, or an OSError of `send`: the response ends, the upstream is closed, its place is free."""
    faults: dict[str, Fault] = {"head": Stall(), "token": Stall(after_token=0)}
    upstream.faults = faults.get(stage, Stall(after_token=2))
    visitor, ended = ASGIClient(), list[End]()
    if stage == "not reading":
        visitor.reads.clear()
    if stage == "send fails":
        visitor.refuses = ConnectionResetError("gone")
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), on_end=ended.append)
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    entry = await upstream.journal.wait(1)
    if stage in ("silence", "not reading"):
        await visitor.received.wait()
    if stage != "send fails":
        visitor.left.set()
    await asyncio.wait_for(task, SOON)
    await entry.wait_left()
    assert client.limits.in_flight == 0
    assert ended[0].left
    assert ended[0].error is None


@pytest.mark.parametrize("stage", ["head", "silence"])
async def test_cancelling_an_asgi_response_leaves_the_upstream(
    client: AsyncTogether, upstream: EmulatorServer, stage: str
) -> None:
    """Servers cancel responses they no longer wait for. The client is still there, and gets the reason."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    visitor = ASGIClient()
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL))
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    entry = await upstream.journal.wait(1)
    if stage == "silence":
        await visitor.received.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, SOON)
    await entry.wait_left()
    assert visitor.finished
    assert visitor.answer.error_object["type"] == "ServerShutdownError"
    assert visitor.answer.status == (503 if stage == "head" else 200)


@pytest.mark.parametrize("stage", ["head", "silence"])
async def test_a_response_that_its_server_cancels_was_not_left(
    client: AsyncTogether, upstream: EmulatorServer, stage: str
) -> None:
    """The client is still there and gets the reason; so does `on_end`."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    visitor, ended = ASGIClient(), list[End]()
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), on_end=ended.append)
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    await upstream.journal.wait(1)
    if stage == "silence":
        await visitor.received.wait()
    task.cancel()
    await asyncio.wait([task], timeout=SOON)
    assert visitor.answer.error_object["type"] == "ServerShutdownError"
    assert isinstance(ended[0].error, ServerShutdownError)
    assert not ended[0].left
