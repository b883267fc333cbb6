"""The end of a relay: `on_end` is called once, with what happened, and nothing is kept."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from typing import Any

import pytest

from support.relay_doors import KINDS, PROMPT, SOON, TEXT, ASGIClient, scope_of, stream_of
from support.servers import MODEL
from together_async import AsyncTogether, Broadcast
from together_async.relay import End, EventSourceResponse, sse
from together_async.relay.feed import EventFeed
from together_async.relay.session import RelaySession
from together_async.testing import EmulatorServer, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_on_end_hears_of_the_end(door: Any, client: AsyncTogether, kind: str) -> None:
    """Once, with the completion; it may be a function or a coroutine function."""
    ended: list[End] = []

    async def later(end: End) -> None:
        await asyncio.sleep(0)
        ended.append(end)

    await door(client.stream(PROMPT, model=MODEL), on_end=later if kind == "coroutine" else ended.append)
    (end,) = ended
    assert end.completion is not None
    assert end.completion.text == TEXT
    assert end.error is None
    assert not end.left


async def test_who_made_the_error_and_who_left(response: Any) -> None:
    """An error of the stream or of a function before the first event does not count as the client's leaving."""
    ended: list[End] = []
    with pytest.raises(ConnectionResetError):
        await response(stream_of(ConnectionResetError("a database of the app's")), on_end=ended.append)
    with pytest.raises(ZeroDivisionError):
        await response(stream_of("a"), format=lambda _: 1 / 0, on_end=ended.append)
    assert [(type(end.error), end.left) for end in ended] == [(ConnectionResetError, False), (ZeroDivisionError, False)]


def asks(door: str, stream: Any, **options: Any) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Returns a task that relays, and an event that is set when something was sent."""
    visitor = ASGIClient()

    async def loop() -> None:
        async for _ in sse(stream, **options):
            visitor.received.set()

    if door == "sse":
        return asyncio.create_task(loop()), visitor.received
    made: Any = EventSourceResponse(stream, **options)
    return asyncio.create_task(made(scope_of(), visitor.receive, visitor.send)), visitor.received


@pytest.mark.parametrize("stage", ["head", "silence"])
@pytest.mark.parametrize("door", ["sse", "asgi"])
async def test_on_end_is_not_cut_off(client: AsyncTogether, upstream: EmulatorServer, door: str, stage: str) -> None:
    """Even if the reader is cancelled at every `await`, as by anyio: it ends after `on_end`, and as cancelled."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    begun, saved, ended = asyncio.Event(), asyncio.Event(), list[End]()

    async def on_end(end: End) -> None:
        begun.set()
        await saved.wait()
        await asyncio.sleep(0)
        ended.append(end)

    task, received = asks(door, client.stream(PROMPT, model=MODEL), on_end=on_end)
    await upstream.journal.wait(1)
    if stage == "silence":
        await received.wait()
    for turn in itertools.count():
        if task.done():
            break
        task.cancel()
        await asyncio.sleep(0)
        if turn > 20 and begun.is_set():
            assert saved.is_set() or not ended
            saved.set()
        assert turn < 100_000
    assert len(ended) == 1
    assert task.cancelled()
    assert client.limits.in_flight == 0


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("door", ["sse", "asgi"])
async def test_an_on_end_that_raises_hides_no_cancellation(
    client: AsyncTogether, upstream: EmulatorServer, caplog: pytest.LogCaptureFixture, door: str, times: int
) -> None:
    """The task ends as cancelled, also if it is cancelled again meanwhile; the error is in the log."""
    upstream.faults = Stall(after_token=2)
    begun, goes_on = asyncio.Event(), asyncio.Event()
    lost: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))

    async def on_end(_: End) -> None:
        begun.set()
        await goes_on.wait()
        raise LookupError("no database")

    task, received = asks(door, client.stream(PROMPT, model=MODEL), on_end=on_end)
    await received.wait()
    task.cancel()
    await asyncio.wait_for(begun.wait(), SOON)
    if times == 2:
        task.cancel()
        await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait([task], timeout=SOON)
    assert task.cancelled()
    gc.collect()
    assert not lost
    assert "on_end of a relay failed" in caplog.text
    assert "LookupError: no database" in caplog.text


async def test_an_on_end_that_raises_is_told_its_author(door: Any, client: AsyncTogether) -> None:
    """Where no other exception is being raised."""

    def on_end(_: End) -> None:
        raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        await door(client.stream(PROMPT, model=MODEL), on_end=on_end)


@pytest.mark.parametrize("how", ["left", "cancelled"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", ["sse", "asgi"])
async def test_what_was_left_is_freed_at_once(
    client: AsyncTogether, upstream: EmulatorServer, door: str, kind: str, how: str
) -> None:
    """Without the garbage collector, for which thousands of relays may not wait."""
    upstream.faults = Stall(after_token=2)
    stream = client.stream(PROMPT, model=MODEL)
    alive = weakref.ref(stream)
    visitor = ASGIClient()
    feed: Any = KINDS[kind](stream)
    del stream
    gc.collect()
    gc.disable()
    try:
        if door == "sse":
            iterator: Any = sse(feed)
            del feed
            while b"two" not in await anext(iterator):
                pass
            if how == "left":
                await iterator.aclose()
            else:
                reading = asyncio.create_task(anext(iterator))
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait([reading])
                del reading
            del iterator
        else:
            made: Any = EventSourceResponse(feed)
            del feed
            task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
            del made
            while not visitor.sent or b"two" not in visitor.answer.body:
                visitor.received.clear()
                await asyncio.wait_for(visitor.received.wait(), SOON)
            if how == "left":
                visitor.left.set()
            else:
                task.cancel()
            await asyncio.wait([task])
            del task
        for _ in range(100):  # transports close some turns after they are told to
            if alive() is None:
                break
            await asyncio.sleep(0.001)
        assert alive() is None
    finally:
        gc.enable()


def test_the_end_in_a_loop_that_is_closed_starts_nothing() -> None:
    """As when the coroutine of a response is destroyed after its server: no task can run there."""

    async def made() -> RelaySession:
        return RelaySession(
            EventFeed(Broadcast(stream_of("a")).subscribe(), "chunks", ids=True), heartbeat=None, grace=1
        )

    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(made())
    loop.close()
    session.close()
    ending = session.end(None, left=True)
    with pytest.raises(StopIteration):
        ending.send(None)
