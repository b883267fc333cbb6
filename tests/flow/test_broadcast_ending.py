"""The end of a `Broadcast`: consumers who leave, streams that break, and who hears of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.any_chunks import chunk
from support.servers import KEY, MODEL, SOON, Call, ScriptedServer, delta, gone, sse, ticks
from support.sources import BROKEN, Tap, closing, doing, rest_of, settle, text
from together_async import (
    AsyncTogether,
    Broadcast,
    IncompleteStreamError,
    InternalServerError,
    StreamConnectionError,
    relay,
    tee,
)
from together_async.models import ChatCompletionChunk

pytestmark = pytest.mark.usefixtures("no_leaks")


# -------------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("way", ["loop", "leave", "aclose", "block", "drop"])
async def test_the_stream_is_closed_when_the_last_leaves(way: str) -> None:
    """The server sees it at once, however the last consumer leaves, and not before."""
    async with ScriptedServer(ticks) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        first, last = tee(client.stream("Hi", model=MODEL))
        await asyncio.gather(first.read(), last.read())
        first.leave()
        await last.read()
        await last.read()
        assert not server.calls[0].left.is_set()
        if way == "loop":
            async for _ in last:
                break
        elif way == "leave":
            last.leave()
        elif way == "aclose":
            await last.aclose()
        elif way == "block":
            async with last:
                pass
        else:
            del last
            gc.collect()
        await gone(server.calls[0], within=max(1, SOON))
        await settle()


async def test_it_goes_on_without_anybody_if_asked() -> None:
    """With on_empty="continue" the stream is read to its end, and later consumers get it."""
    tap = Tap("ab")
    async with closing(Broadcast(tap, on_empty="continue")) as broadcast:
        reader = broadcast.subscribe()
        await reader.read()
        reader.leave()
        tap.give("cd")
        tap.end()
        await broadcast.wait()
        assert (broadcast.over, broadcast.error, broadcast.position) == (True, None, 4)
        assert "".join(await rest_of(broadcast.subscribe())) == "abcd"


async def test_who_comes_after_the_last_has_left() -> None:
    """It gets the chunks that had come, then an error that says the stream is not complete."""
    tap = Tap("ab")
    async with closing(Broadcast(tap)) as broadcast:
        reader = broadcast.subscribe()
        await reader.read()
        reader.leave()
        await settle()
        assert broadcast.over
        received: list[str] = []
        with pytest.raises(IncompleteStreamError) as caught:
            await rest_of(broadcast.subscribe(), received)
        assert "".join(received) == "ab"
        assert caught.value.partial.text == "ab"


async def test_leaving_twice_and_reading_what_was_left() -> None:
    """Leaving twice is fine; what was left never looks like a complete stream."""
    tap = Tap("ab")
    async with closing(Broadcast(tap)) as broadcast:
        leaver, other = broadcast.subscribe(), broadcast.subscribe()
        await leaver.read()
        leaver.leave()
        leaver.leave()
        assert broadcast.consumers == 1
        with pytest.raises(IncompleteStreamError) as caught:
            await leaver.read()
        assert caught.value.partial.text == "ab"
        assert text(await other.read()) == "ab"


async def test_a_reader_that_waits_ends_when_its_subscription_is_left() -> None:
    """Another task leaves it, as a server's shutdown does."""
    async with closing(Broadcast(Tap())) as broadcast:
        reader, other = broadcast.subscribe(), broadcast.subscribe()
        async with doing(reader.read()) as task:
            reader.leave()
            async with asyncio.timeout(1):
                with pytest.raises(IncompleteStreamError):
                    await task
        other.leave()


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "between reads"])
async def test_a_door_tells_a_subscription_that_is_left_by_others_from_an_end(waits: bool) -> None:
    """A stop button, for example: the client gets an error event and never `[DONE]`; the other consumers go on."""
    tap = Tap("abc")
    async with closing(Broadcast(tap)) as broadcast:
        reader, other = broadcast.subscribe(), broadcast.subscribe()
        events = relay.sse(reader, format="text")
        body = [await anext(events)]

        async def read_on() -> None:
            async for data in events:
                body.append(data)  # noqa: PERF401 - what had come before an error counts

        async with asyncio.timeout(2):
            if waits:
                async with doing(read_on()) as task:
                    reader.leave()
                    await task
            else:
                reader.leave()
                await read_on()
        assert b"event: error" in b"".join(body)
        assert b"[DONE]" not in b"".join(body)
        assert text(await other.read()) == "abc"
        assert not tap.left


async def test_closing_ends_everybody() -> None:
    """Waiting readers get an error, and the task has ended; closing twice is fine."""
    tap = Tap("ab")
    broadcast = Broadcast(tap)
    readers = [broadcast.subscribe() for _ in range(3)]
    for reader in readers:
        await reader.read()
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    await settle()
    await broadcast.aclose()
    assert (tap.left, broadcast.over) == (True, True)
    for task in tasks:
        with pytest.raises(IncompleteStreamError, match="closed while others were reading it"):
            await task
    await broadcast.aclose()


@pytest.mark.parametrize("when", ["before", "same turn"])
async def test_closing_what_has_not_begun(when: str) -> None:
    """Before its task was made, or before the task's first turn: nobody waits for ever, and nothing was opened."""
    tap = Tap("ab")
    broadcast = Broadcast(tap)
    reader = broadcast.subscribe()
    if when == "same turn":
        broadcast.start()
    broadcast.leave(BROKEN)
    for _ in range(2):
        with pytest.raises(StreamConnectionError):
            await rest_of(reader)
    with pytest.raises(StreamConnectionError):
        await reader.open()
    assert tap.opened == 0
    assert tap.left
    await broadcast.aclose()
    await broadcast.wait()
    assert broadcast.over


async def test_it_is_closed_in_the_turn_of_the_first_read() -> None:
    """The read has just made the task, which never gets a turn."""
    broadcast = Broadcast(Tap("ab"))
    task = asyncio.create_task(broadcast.subscribe().read())
    asyncio.get_running_loop().call_soon(broadcast.leave)
    async with asyncio.timeout(1):
        with pytest.raises(IncompleteStreamError):
            await task
    await broadcast.aclose()


async def test_nobody_subscribed() -> None:
    """The stream is not opened, and needs no closing."""
    tap = Tap("ab")
    broadcast = Broadcast(tap)
    await settle()
    assert tap.opened == 0
    assert repr(broadcast) == "<Broadcast not opened, 0 chunks, 0 consumers>"
    await broadcast.aclose()


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("on_slow", ["coalesce", "block", "drop"])
async def test_an_error_reaches_everybody_after_what_had_come(on_slow: Any) -> None:
    """Consumers that wait, lag or join afterwards; at every read."""
    tap = Tap("abc")
    async with closing(Broadcast(tap, size=8, on_slow=on_slow)) as broadcast:
        waiting, lagging = broadcast.subscribe(), broadcast.subscribe()
        assert text(await waiting.read()) == "abc"
        async with doing(waiting.read()) as task:
            tap.end(BROKEN)
            with pytest.raises(StreamConnectionError):
                await task
        for reader in (lagging, broadcast.subscribe()):
            received: list[str] = []
            for _ in range(2):
                with pytest.raises(StreamConnectionError):
                    await rest_of(reader, received)
            assert "".join(received) == "abc"
        assert broadcast.error is BROKEN
        assert tap.left


async def test_an_error_that_is_no_exception_reaches_everybody() -> None:
    """A BaseException, as `pytest.fail` raises: nobody waits for ever, and the chunks before it are not lost."""

    class OddError(BaseException):
        pass

    async def upstream() -> AsyncIterator[ChatCompletionChunk]:
        yield chunk("a")
        await settle()
        raise OddError

    async with closing(Broadcast(upstream())) as broadcast:
        readers = [broadcast.subscribe() for _ in range(2)]
        had: list[list[str]] = [[] for _ in readers]
        outcomes = await asyncio.gather(*map(rest_of, readers, had), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OddError, OddError]
        assert had == [["a"], ["a"]]
        assert broadcast.over
        with pytest.raises(OddError):
            await broadcast.subscribe(1).read()


async def test_a_refusal_reaches_everybody() -> None:
    """Consumers that open and that read, at the same time and later."""

    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")

    async with ScriptedServer(refuse) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        broadcast = Broadcast(client.stream("Hi", model=MODEL))
        readers = [broadcast.subscribe() for _ in range(4)]
        work = [readers[0].open(), readers[1].read(), readers[2].__aenter__(), readers[3].open()]
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            assert isinstance(outcome, InternalServerError)
        with pytest.raises(InternalServerError):
            await broadcast.subscribe().open()
        assert len(server.calls) == 1


async def test_the_first_who_opens_may_be_cancelled() -> None:
    """Its read opened the stream; the others get everything all the same."""
    tap = Tap("ab")
    tap.held.clear()
    async with closing(Broadcast(tap)) as broadcast:
        first, second = broadcast.subscribe(), broadcast.subscribe()
        async with doing(first.open()), doing(second.read()) as other:
            pass
        assert other.cancelled()
        tap.held.set()
        assert text(await second.read()) == "ab"
        assert text(await first.read()) == "ab"
        assert tap.opened == 1


async def test_a_broken_stream_of_ours_says_what_had_come() -> None:
    """The error of every consumer has the partial completion."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(*(sse(delta(x)) for x in "abc"))
        call.close()

    async with ScriptedServer(script) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        for reader in tee(client.stream("Hi", model=MODEL), 3):
            received: list[str] = []
            with pytest.raises(StreamConnectionError) as caught:
                await rest_of(reader, received)
            assert "".join(received) == caught.value.partial.text == "abc"
