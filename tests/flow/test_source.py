"""Sources: what can be read as one, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from support.clients import served
from support.servers import (
    MODEL,
    gone,
    ticks,
)
from support.sources import WORDS, Upstream, big, rest_as_text, settle_until
from together_async import (
    Broadcast,
    Buffer,
    ChatCompletionStream,
    IncompleteStreamError,
    buffered,
    relay,
)
from together_async.flow.buffered import Buffered, source_of
from together_async.flow.source import Source, StreamSource
from together_async.models import ChatCompletionChunk
from together_async.relay.hub import Hub

pytestmark = pytest.mark.usefixtures("no_leaks")


# -------------------------------------------------------------------------------------------------------------- sources


async def test_what_is_a_source() -> None:
    """A stream is read directly, a source is taken as it is, and a foreign iterator gets a task and a buffer."""
    async with served(big) as (_, client):
        stream = client.stream("Hi", model=MODEL)
        assert isinstance(source_of(stream), StreamSource)
        source = buffered(stream)
        assert isinstance(source, Source)
        assert source_of(source) is source
        assert isinstance(source_of(Upstream("a").chunks()), Buffered)
        subscription = Broadcast(Upstream("a").chunks()).subscribe()
        assert source_of(subscription) is subscription


async def test_a_stream_source_counts_and_repeats_its_end() -> None:
    """Positions by batch; every read after the end is the end; `repr` shows the stream."""
    async with served(big) as (_, client):
        source = StreamSource(client.stream("Hi", model=MODEL))
        assert await rest_as_text(source) == "".join(WORDS)
        assert source.position == len(WORDS) + 2
        assert await source.read() == []
        assert repr(source).startswith("<StreamSource of <ChatCompletionStream closed")


class Wrapping:
    """An iterable of a stream's chunks, as a caller's own class may be."""

    def __init__(self, stream: ChatCompletionStream) -> None:
        self.stream = stream
        self.asked = 0

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        self.asked += 1
        return aiter(self.stream)


async def test_an_iterable_is_asked_for_one_iterator() -> None:
    """A second one might start again, or close what the first reads when it is dropped."""
    async with served(big) as (server, client):
        wrapping = Wrapping(client.stream("Hi", model=MODEL))
        assert await rest_as_text(source_of(wrapping)) == "".join(WORDS)
        assert (wrapping.asked, len(server.calls)) == (1, 1)


async def test_an_iterator_is_not_kept_when_it_was_left() -> None:
    """Some iterators are closed by being dropped: a source that is kept must not keep a connection open."""
    async with served(ticks) as (server, client):
        wrapping = Wrapping(client.stream("Hi", model=MODEL))
        source = buffered(wrapping, Buffer(1))
        await source.read()
        await settle_until(lambda: source._buffer._producer.waiting)  # between two reads of the iterator
        await source.aclose()
        await gone(server.calls[0], within=1)
        with pytest.raises(IncompleteStreamError):
            await rest_as_text(source)
        assert wrapping.asked == 1


WRONG: dict[str, Callable[[ChatCompletionStream], Any]] = {
    "passthrough": relay.passthrough,
    "text": lambda stream: stream.text(),
    "batches": lambda stream: stream.batches(),
    "raw": lambda stream: stream.raw(),
}


READERS: dict[str, Callable[[Hub, Any], Any]] = {
    "buffered": lambda _, stream: buffered(stream),
    "broadcast": lambda _, stream: Broadcast(stream).subscribe(),
    "hub": lambda hub, stream: hub.join(hub.start(stream)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wrong", WRONG)
async def test_what_has_no_chunks_is_refused_before_it_is_asked(wrong: str, reader: str) -> None:
    """The other iterators of a stream are not sources: the error says what to pass instead, and no request is sent."""
    async with served(big) as (server, client), Hub() as hub:
        source = READERS[reader](hub, WRONG[wrong](client.stream("Hi", model=MODEL)))
        for read in (source.open, source.read):
            with pytest.raises(TypeError, match=r"stream: got a \w+ where chunks are needed; hand over what"):
                await read()
        assert not server.calls


@pytest.mark.parametrize("reader", READERS)
async def test_what_gives_no_chunks_is_refused_with_the_first(reader: str) -> None:
    """A foreign iterable shows it with its first item; it is closed."""
    closed = asyncio.Event()

    async def words() -> AsyncIterator[Any]:
        try:
            while True:
                yield "word"
        finally:
            closed.set()

    async with Hub() as hub:
        source = READERS[reader](hub, words())
        async with asyncio.timeout(1):
            with pytest.raises(TypeError, match="stream: got a async_generator with a str where chunks are needed"):
                await source.read()
            await closed.wait()


@pytest.mark.parametrize("wrong", [None, 1, "text", [], object()])
def test_what_is_no_stream(wrong: Any) -> None:
    """The error names the type that was given and what to give instead."""
    for make in (buffered, source_of, Broadcast):
        with pytest.raises(TypeError, match=rf"stream: got a {type(wrong).__name__}, expected what `client\.stream"):
            make(wrong)


async def test_a_coroutine_is_no_stream() -> None:
    """An `await` that is missing or misplaced: a clear error, and no warning about the coroutine."""
    async with served(big) as (_, client):
        with pytest.raises(TypeError, match="stream: got a coroutine"):
            buffered(client.create("Hi", model=MODEL))  # type: ignore[arg-type]  # the mistake under test
