"""`buffered`: reading ahead of a slower consumer, over anything that gives chunks, and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from support.any_chunks import chunk
from support.clients import served
from support.servers import (
    MODEL,
    Call,
    delta,
    sse,
)
from support.sources import BUFFERS, WORDS, Upstream, big, rest_as_text, settle, text
from together_async import (
    Broadcast,
    Buffer,
    IncompleteStreamError,
    InternalServerError,
    StreamConnectionError,
    buffered,
)
from together_async.models import ChatCompletionChunk

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("kind", BUFFERS)
async def test_all_of_a_stream_comes_through(kind: str) -> None:
    """A slower consumer of a real stream gets everything once, with its usage and finish reason."""
    async with served(big) as (server, client):
        source = buffered(client.stream("Hi", model=MODEL), BUFFERS[kind]())
        chunks = []
        async for item in source:
            chunks.append(item)
            await asyncio.sleep(0)
        assert text(chunks) == "".join(WORDS)
        assert source.position == len(WORDS) + 2
        completion = source.so_far()
        assert completion.text == "".join(WORDS)
        assert completion.choices[0].finish_reason == "stop"
        assert len(server.connections) == 1


@pytest.mark.parametrize("kind", BUFFERS)
async def test_all_of_a_generator_comes_through(kind: str) -> None:
    """A foreign async generator is closed at its end; its completion is known too."""
    upstream = Upstream("abcdefghij")
    source = buffered(upstream.chunks(), BUFFERS[kind]())
    chunks = []
    async for item in source:
        chunks.append(item)
        await settle()
    assert text(chunks) == "abcdefghij"
    assert source.position == 10
    assert source.so_far().text == "abcdefghij"
    assert upstream.closed.is_set()


async def test_a_buffer_over_a_buffer_over_a_broadcast() -> None:
    """A source may be made of a source; `so_far` is that of the innermost."""
    async with served(big) as (_, client):
        broadcast = Broadcast(client.stream("Hi", model=MODEL))
        source = buffered(buffered(broadcast.subscribe(), Buffer(2)), Buffer(3, "coalesce"))
        async with source:
            assert await rest_as_text(source) == "".join(WORDS)
            assert source.so_far().text == "".join(WORDS)
        await broadcast.aclose()


async def test_it_begins_with_the_first_read() -> None:
    """Making it sends nothing."""
    async with served(big) as (server, client):
        source = buffered(client.stream("Hi", model=MODEL))
        await settle()
        assert not server.calls
        upstream = Upstream("a")
        buffered(upstream.chunks())
        assert not upstream.began
        async with source:
            assert len(server.calls) == 1


async def test_blocking_reads_no_further_than_the_buffer() -> None:
    """A generator is asked for one more chunk than fits, and then for nothing until a read."""
    upstream = Upstream("x" * 100)
    async with buffered(upstream.chunks(), Buffer(8, low=2)) as source:
        for _ in range(5):
            await settle()
        assert upstream.given == 9
        await source.read()
        for _ in range(5):
            await settle()
        assert upstream.given == 17
    assert upstream.closed.is_set()


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", ["block", "coalesce"])
async def test_an_error_comes_after_all_that_had_come(kind: str) -> None:
    """A stream that breaks in the middle: its texts, then its error, at every later read too."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(*(sse(delta(x)) for x in "abcdefgh"))
        call.close()

    async with served(script) as (_, client):
        source = buffered(client.stream("Hi", model=MODEL), BUFFERS[kind]())
        received: list[str] = []
        with pytest.raises(StreamConnectionError) as caught:
            await rest_as_text(source, received)
        assert "".join(received) == "abcdefgh"
        assert caught.value.partial.text == "abcdefgh"
        with pytest.raises(StreamConnectionError):
            await source.read()


async def test_an_error_of_a_generator_comes_as_it_is() -> None:
    """Any exception, after the chunks before it."""
    upstream = Upstream("ab", error=KeyError("mine"))
    source = buffered(upstream.chunks(), Buffer(1))
    assert [text(await source.read()), text(await source.read())] == ["a", "b"]
    with pytest.raises(KeyError, match="mine"):
        await source.read()


@pytest.mark.parametrize("by", ["open", "read", "__aenter__"])
async def test_a_refusal_is_known_when_it_is_opened(by: str) -> None:
    """`open` raises the error of a 500, before anything is passed on."""

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")

    async with served(script) as (_, client):
        source = buffered(client.stream("Hi", model=MODEL))
        with pytest.raises(InternalServerError):
            await getattr(source, by)()


async def test_a_generator_that_is_cancelled_from_within_is_no_end() -> None:
    """A stream that stops because something in its producer was cancelled does not look complete."""
    upstream = Upstream("ab", error=asyncio.CancelledError())
    source = buffered(upstream.chunks(), Buffer(4))
    assert text(await source.read()) == "ab"
    for _ in range(2):
        with pytest.raises(IncompleteStreamError):
            await source.read()


async def test_an_iterable_that_can_not_be_begun() -> None:
    """The reader gets its error."""

    class Broken:
        def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
            raise KeyError("no")

    source = buffered(Broken())
    async with asyncio.timeout(1):
        with pytest.raises(KeyError):
            await source.read()


async def test_a_generator_that_breaks_when_it_is_closed() -> None:
    """The reader gets the error of its `finally`, and does not wait for ever."""

    async def rude() -> AsyncIterator[ChatCompletionChunk]:
        try:
            while True:
                yield chunk("a")
        finally:
            raise KeyError("rude")

    source = buffered(rude(), Buffer(1))
    await source.read()
    await settle()
    source.leave()
    async with asyncio.timeout(1):
        with pytest.raises((KeyError, IncompleteStreamError)):
            await rest_as_text(source)


async def test_a_buffer_is_used_once() -> None:
    """A second stream in the same buffer would be mixed with the first, or seem empty."""
    buffer = Buffer(4)
    source = buffered(Upstream("ab").chunks(), buffer)
    with pytest.raises(ValueError, match="buffer: it is in use, or was"):
        buffered(Upstream("cd").chunks(), buffer)
    assert await rest_as_text(source) == "ab"
    with pytest.raises(ValueError, match="buffer: it is in use, or was"):
        buffered(Upstream("cd").chunks(), buffer)


async def test_repr_says_how_it_is() -> None:
    """It shows no text."""
    source = buffered(Upstream("abc").chunks(), Buffer(8))
    assert repr(source) == "<Buffered <Buffer open, 0 of 8 chunks wait, on_full='block'>>"
    await rest_as_text(source)
    assert repr(source) == "<Buffered <Buffer closed, 0 of 8 chunks wait, on_full='block'>>"
