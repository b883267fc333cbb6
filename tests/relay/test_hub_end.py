"""`Hub`: stopping completions, closing the hub, dropping readers."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.any_chunks import chunk
from support.clients import served
from support.hubs import ended_completion
from support.servers import MODEL, gone, ticks
from support.sources import Tap, doing, rest_of, settle, text
from together_async import ChatCompletionStream, TogetherError
from together_async.models import ChatCompletionChunk
from together_async.relay import Hub
from together_async.relay.browser_errors import NotKeptError, StoppedError
from together_async.relay.hub import HubReader

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_stop_stops_one_and_keeps_what_had_come() -> None:
    """Its reader, and a client that comes back, get what had come, then the error; the id stays taken."""
    async with Hub() as hub:
        tap, other = Tap("abc"), Tap("x")
        hub.start(tap, "a")
        hub.start(other, "b")
        reader = hub.join("a")
        assert text(await reader.read()) == "abc"
        async with doing(reader.read()) as task:
            assert await hub.stop("a") is True
            with pytest.raises(StoppedError, match="the completion was stopped"):
                await task
        assert (tap.left, other.left) == (True, False)
        assert await hub.stop("a") is False
        assert await hub.stop("x") is False
        read: list[str] = []
        with pytest.raises(StoppedError):
            await rest_of(hub.join("a", "a:1"), read)
        assert "".join(read) == "bc"


async def test_stop_in_the_turn_of_the_start() -> None:
    """Its task never ran: nothing is opened, and no reader waits for ever."""
    async with Hub() as hub:
        tap = Tap("abc")
        hub.start(tap, "a")
        assert await hub.stop("a") is True
        assert tap.opened == 0
        async with asyncio.timeout(1):
            with pytest.raises(StoppedError):
                await hub.join("a").read()
        assert repr(hub).startswith("<Hub 0 running, 1 kept, ")


async def test_leaving_the_block_ends_everything() -> None:
    """Readers get an error, upstreams are closed, nothing is kept; twice is fine."""
    async with Hub() as hub:
        tap = Tap("abc")
        hub.start(tap, "a")
        hub.start(Tap(), "b")
        await ended_completion(hub, "c")
        reader = hub.join("a")
        await reader.read()
        task = asyncio.create_task(reader.read())
        await settle()
    with pytest.raises(TogetherError, match=r"closed|stopped"):
        await task
    assert tap.left
    assert (len(hub), hub.size) == (0, 0)
    with pytest.raises(NotKeptError):
        await hub.join("a").read()
    await hub.aclose()


async def test_all_are_left_at_once() -> None:
    """All are told to close before any of them is waited for."""
    begun, free = list[int](), asyncio.Event()

    async def slow(number: int) -> AsyncIterator[ChatCompletionChunk]:
        try:
            yield chunk("a")
            await asyncio.Event().wait()
        finally:
            begun.append(number)
            await free.wait()

    hub = Hub()
    for number in range(3):
        hub.start(slow(number))
    tap = Tap("a")
    hub.start(tap)
    await settle()
    async with doing(hub.aclose()) as task:
        before = (begun.copy(), tap.left, task.done())
        free.set()
        await task
    assert before == ([0, 1, 2], True, False)


def test_a_reader_may_be_dropped_when_its_loop_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, and nothing raised: there is nobody to tell."""
    read: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", read.append)

    async def main() -> tuple[Hub, HubReader]:
        hub = Hub()
        hub.start(Tap("abc"), "a")
        reader = hub.join("a")
        await reader.read()
        return hub, reader

    hub, reader = asyncio.run(main())
    del reader
    gc.collect()
    assert hub._kept["a"].broadcast.consumers == 0
    assert read == []


async def test_a_reader_may_be_dropped_by_another_thread() -> None:
    """The garbage collector runs in any thread: the reader counts as gone, and the completion is stopped."""
    async with Hub(abandon=0) as hub:
        tap = Tap("abc")
        readers = [hub.open(tap, "a")]
        await readers[0].read()
        await asyncio.to_thread(readers.clear)
        async with asyncio.timeout(1):
            while not tap.left:  # noqa: ASYNC110 - a timer of the loop sets it
                await asyncio.sleep(0.001)


async def test_what_wraps_a_stream_is_asked_once_and_left() -> None:
    """Its iterator holds the stream: it is not made twice, and not kept as long as the chunks are."""

    class Wrapping:
        asked = 0

        def __init__(self, stream: ChatCompletionStream) -> None:
            self.stream = stream

        def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
            self.asked += 1
            return aiter(self.stream)

    async with served(ticks) as (server, client), Hub() as hub:
        wrapping = Wrapping(client.stream("Hi", model=MODEL))
        hub.start(wrapping, "a")
        reader = hub.join("a")
        while reader.position < 3:
            await reader.read()
        await hub.stop("a")
        await gone(server.calls[0], within=1)
        assert wrapping.asked == 1


async def test_a_real_upstream_is_left() -> None:
    """By `stop` and by the hub's end, but not when a reader leaves."""
    async with served(ticks) as (server, client):
        async with Hub() as hub:
            ids = [hub.start(client.stream("Hi", model=MODEL)) for _ in range(2)]
            readers = [hub.join(key) for key in ids]
            for reader in readers:
                await reader.read()
                reader.leave()
            later = hub.join(ids[0])
            position = readers[0].position
            while later.position <= position:
                await later.read()
            assert not any(call.left.is_set() for call in server.calls)
            await hub.stop(ids[0])
            async with asyncio.timeout(1):
                while not any(call.left.is_set() for call in server.calls):  # noqa: ASYNC110 - either of them
                    await asyncio.sleep(0.001)
            assert [call.left.is_set() for call in server.calls].count(True) == 1
        for call in server.calls:
            await gone(call, within=1)


async def test_a_loop_over_a_reader_leaves_it() -> None:
    """The completion goes on, and the hub knows that it has no reader."""
    async with Hub() as hub:
        tap = Tap("abc")
        hub.start(tap, "a")
        async for _ in hub.join("a"):
            break
        await settle()
        assert hub._kept["a"].broadcast.consumers == 0
        assert not tap.left
