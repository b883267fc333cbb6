"""When the server is told to stop, every answer ends within its grace, with the reason."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from support.relay_doors import PROMPT, SOON, TEXT, ASGIClient, scope_of
from support.servers import MODEL
from together_async import AsyncTogether, ChatCompletionChunk
from together_async.relay import EventSourceResponse, shut_down, sse
from together_async.testing import EmulatorServer, Reply, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")


@contextlib.contextmanager
def a_servers_handler(number: signal.Signals) -> Iterator[list[int]]:
    """A signal handler as a server has it; yields the signals it has received."""
    received: list[int] = []
    before = signal.signal(number, lambda got, _: received.append(got))
    try:
        yield received
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_what_is_relayed_and_reaches_the_server(
    client: AsyncTogether, upstream: EmulatorServer, number: signal.Signals
) -> None:
    """All streams end with their event within `grace`; the server gets the signal too, and its handler is back."""
    upstream.faults = Stall(after_token=2)
    with a_servers_handler(number) as received:
        handler = signal.getsignal(number)
        visitors = [ASGIClient(), ASGIClient()]
        answers = []
        for visitor in visitors:
            made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), grace=0.01)
            answers.append(asyncio.create_task(made(scope_of(), visitor.receive, visitor.send)))
            await visitor.received.wait()
        assert signal.getsignal(number) is not handler
        signal.raise_signal(number)
        await asyncio.wait_for(asyncio.gather(*answers), SOON)
        assert received == [number]
        assert signal.getsignal(number) is handler
    for visitor in visitors:
        assert visitor.answer.error_object["type"] == "ServerShutdownError"
        assert visitor.finished
    assert client.limits.in_flight == 0


async def test_an_answer_that_ends_within_its_grace_is_whole(door: Any, client: AsyncTogether) -> None:
    """An answer that is about to end is not cut."""
    seen: list[str] = []

    def stopped_at_the_first(chunk: ChatCompletionChunk) -> str:
        if not seen:
            shut_down()
        seen.append(chunk.choices[0].delta.content or "")
        return seen[-1]

    answer = await door(client.stream(PROMPT, model=MODEL), format=stopped_at_the_first, grace=SOON)
    assert "".join(seen) == TEXT
    assert answer.events[-1].data == b"[DONE]"


async def test_where_no_server_listens_no_handler_is_ours(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """A signal that would end the process still does."""
    upstream.faults = Stall(after_token=2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    iterator: Any = sse(client.stream(PROMPT, model=MODEL))
    await anext(iterator)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    await iterator.aclose()


async def test_whoever_takes_the_signal_meanwhile_keeps_it(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """A handler that was set while something was relayed is not replaced by the one before it."""
    upstream.faults = Stall(after_token=2)
    with a_servers_handler(signal.SIGTERM):
        iterator: Any = sse(client.stream(PROMPT, model=MODEL))
        await anext(iterator)

        def mine(*_: object) -> None: ...

        signal.signal(signal.SIGTERM, mine)
        await iterator.aclose()
        assert signal.getsignal(signal.SIGTERM) is mine


async def test_a_reader_who_has_stopped_holds_up_no_shutdown(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """A client that does not read even the last event is given up after the grace has passed once more."""
    upstream.script = Reply(("tok ",) * 5_000)
    visitor = ASGIClient()
    visitor.reads.clear()
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), grace=0.01)
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    await visitor.received.wait()
    shut_down()
    await asyncio.wait([task], timeout=SOON)
    assert task.done()
    assert client.limits.in_flight == 0
