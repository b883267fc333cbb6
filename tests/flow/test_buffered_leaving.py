"""Leaving `buffered`: in every way the stream or generator is closed, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from support.any_chunks import chunk
from support.clients import served
from support.servers import (
    LAST_CHUNK,
    MODEL,
    Call,
    delta,
    gone,
    say,
    sse,
    starts_and_hangs,
    ticks,
)
from support.sources import BUFFERS, Upstream, rest_as_text, settle, settle_until, text
from together_async import (
    Broadcast,
    Buffer,
    IncompleteStreamError,
    buffered,
    relay,
)
from together_async.flow.buffered import Buffered, source_of
from together_async.models import ChatCompletionChunk
from together_async.relay.hub import Hub

pytestmark = pytest.mark.usefixtures("no_leaks")


# -------------------------------------------------------------------------------------------------------------- leaving


async def by_break(source: Buffered) -> None:
    async for _ in source:
        break


async def by_exception(source: Buffered) -> None:
    with contextlib.suppress(KeyError):
        async for _ in source:
            raise KeyError


async def by_cancelling(source: Buffered) -> None:
    async def loop() -> None:
        async for _ in source:
            pass

    task = asyncio.create_task(loop())
    await settle_until(lambda: source.position > 0)
    task.cancel()
    await asyncio.wait((task,))


async def by_aclose(source: Buffered) -> None:
    await source.read()
    await source.aclose()
    await source.aclose()


async def by_leave(source: Buffered) -> None:
    await source.read()
    source.leave()


async def by_block(source: Buffered) -> None:
    async with source:
        await source.read()


async def by_broken_block(source: Buffered) -> None:
    with contextlib.suppress(KeyError):
        async with source:
            async for _ in source:
                raise KeyError


WAYS: list[Callable[[Buffered], Awaitable[None]]] = [
    by_break,
    by_exception,
    by_cancelling,
    by_aclose,
    by_leave,
    by_block,
    by_broken_block,
]


@pytest.mark.parametrize("kind", ["block", "coalesce"])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_closes_the_stream(way: Callable[[Buffered], Awaitable[None]], kind: str) -> None:
    """However the consumer leaves, the server sees it at once, and no task is left."""
    async with served(ticks) as (server, client):
        await way(buffered(client.stream("Hi", model=MODEL), BUFFERS[kind]()))
        await gone(server.calls[0], within=1)


@pytest.mark.parametrize("kind", ["block", "coalesce"])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_closes_a_generator(way: Callable[[Buffered], Awaitable[None]], kind: str) -> None:
    """Its `finally` runs at once, even while it waits."""
    upstream = Upstream("ab" * 4, hangs=True)
    await way(buffered(upstream.chunks(), BUFFERS[kind]()))
    async with asyncio.timeout(1):
        await upstream.closed.wait()


class Careful:
    """An async generator whose cleanup takes a while, as a connection's does."""

    def __init__(self) -> None:
        self.begun = self.cleaned = False

    async def chunks(self, *, hangs: bool) -> AsyncIterator[ChatCompletionChunk]:
        try:
            for number in itertools.count():
                if hangs and number == 2:
                    await asyncio.Event().wait()
                yield chunk("a")
                await asyncio.sleep(0)
        finally:
            self.begun = True
            for _ in range(20):
                await asyncio.sleep(0)
            self.cleaned = True


async def close_buffered(chunks: Any) -> None:
    source = buffered(chunks, Buffer(1))
    await source.read()
    await source.aclose()


async def leave_and_close(chunks: Any) -> None:
    source = buffered(chunks, Buffer(1))
    await source.read()
    source.leave()
    await settle()
    source.leave()
    await source.aclose()


async def close_outer(chunks: Any) -> None:
    source = buffered(buffered(chunks, Buffer(1)), Buffer(1))
    await source.read()
    await source.aclose()


async def close_broadcast(chunks: Any) -> None:
    broadcast = Broadcast(chunks, on_slow="block", size=1)
    await broadcast.subscribe().read()
    await broadcast.aclose()


async def close_hub(chunks: Any) -> None:
    async with Hub() as hub:
        await hub.join(hub.start(chunks)).read()


async def stop_in_hub(chunks: Any) -> None:
    async with Hub() as hub:
        key = hub.start(chunks)
        await hub.join(key).read()
        await hub.stop(key)
        assert hub.so_far(key).text


async def close_events(chunks: Any) -> None:
    events: Any = relay.sse(chunks)
    await anext(events)
    await events.aclose()


async def vanish(chunks: Any) -> None:
    gone_away = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone_away.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            gone_away.set()

    await relay.EventSourceResponse(chunks)({"type": "http", "method": "GET", "headers": []}, receive, send)


CLOSERS = [
    close_buffered,
    leave_and_close,
    close_outer,
    close_broadcast,
    close_hub,
    stop_in_hub,
    close_events,
    vanish,
]


@pytest.mark.parametrize("hangs", [True, False], ids=["waiting", "between chunks"])
@pytest.mark.parametrize("closing", CLOSERS)
async def test_what_a_generator_has_to_close_is_not_cut_off(
    closing: Callable[[Any], Awaitable[None]], hangs: bool
) -> None:
    """Its `finally` may wait, however it is read, and has run when the closing call returns."""
    upstream = Careful()
    async with asyncio.timeout(2):
        await closing(upstream.chunks(hangs=hangs))
    assert (upstream.begun, upstream.cleaned) == (True, True)


async def test_dropping_it_closes_the_stream() -> None:
    """Its finalizer closes the stream, while the task reads on and while the task waits for room."""
    for scripts, options in ((ticks, Buffer(1)), (starts_and_hangs, Buffer(8, "coalesce"))):
        async with served(scripts) as (server, client):
            source = buffered(client.stream("Hi", model=MODEL), options)
            await source.read()
            del source
            gc.collect()
            await gone(server.calls[0], within=1)
            await settle()


async def test_leaving_while_it_is_opened() -> None:
    """The request is on its way: it is given up, and the task that opened it gets an error."""

    async def silent(call: Call) -> None:
        await call.hang()

    async with served(silent) as (server, client):
        source = buffered(client.stream("Hi", model=MODEL))
        task = asyncio.create_task(source.read())
        call = await server.call()
        source.leave()
        with pytest.raises(IncompleteStreamError):
            await task
        await gone(call, within=1)


@pytest.mark.parametrize("over", ["stream", "generator"])
@pytest.mark.parametrize("when", ["before", "opened", "same turn"])
async def test_a_read_of_what_was_left_is_an_error(when: str, over: str) -> None:
    """Left before it was opened, before its task had its first turn, or in the turn of the first read: reading never
    waits for ever, and never ends as a complete stream does."""
    upstream = Upstream("a" * 20)
    async with served(ticks) as (_, client):
        stream = client.stream("Hi", model=MODEL) if over == "stream" else upstream.chunks()
        source = buffered(stream, Buffer(4))
        if when == "opened":
            await source.open()
        reader = asyncio.create_task(source.read()) if when == "same turn" else None
        if when == "same turn":
            asyncio.get_running_loop().call_soon(source.leave)
        else:
            source.leave()
        async with asyncio.timeout(1):
            if reader is not None:
                await asyncio.wait((reader,))
            with pytest.raises(IncompleteStreamError):
                await rest_as_text(source)
        await source.aclose()
    assert upstream.given < 20


async def test_a_waiting_reader_gets_an_error_when_another_task_leaves() -> None:
    """A waiting reader gets an error, as of every stream that was cut off."""
    for over in ("stream", "generator"):
        async with served(starts_and_hangs) as (_, client):
            upstream = Upstream("ab", hangs=True)
            source = buffered(client.stream("Hi", model=MODEL) if over == "stream" else upstream.chunks())
            task = asyncio.create_task(rest_as_text(source))
            await settle_until(lambda source=source: source.position == 2)
            source.leave()
            async with asyncio.timeout(1):
                with pytest.raises(IncompleteStreamError) as caught:
                    await task
            if over == "stream":  # of a generator nobody knows what it adds up to
                assert caught.value.partial.text


async def test_a_cancelled_read_loses_nothing() -> None:
    """A consumer may cancel a read, as a relay does for its heartbeat, and read again."""

    async def slow(call: Call) -> None:
        await call.head()
        for letter in "abcde":
            await call.chunk(sse(delta(letter)))
            await asyncio.sleep(0.003)
        await call.chunk(say())
        await call.send(LAST_CHUNK)

    async with served(slow) as (_, client):
        for make in (lambda s: buffered(s, Buffer(2)), source_of):
            source = make(client.stream("Hi", model=MODEL))
            await source.open()
            received, timeouts = "", 0
            while True:
                try:
                    async with asyncio.timeout(0.001):
                        batch = await source.read()
                except TimeoutError:
                    timeouts += 1
                    continue
                if not batch:
                    break
                received += text(batch)
            assert received == "abcde"
            assert timeouts
            source.leave()
