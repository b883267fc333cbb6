"""`buffered` and sources: reading ahead of a slower consumer, over anything that gives chunks, and leaving it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest

from support.any_chunks import chunk
from support.servers import (
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    ScriptedServer,
    delta,
    gone,
    say,
    sse,
    starts_and_hangs,
    ticks,
)
from together_async import (
    AsyncTogether,
    Broadcast,
    Buffer,
    ChatCompletionStream,
    IncompleteStreamError,
    InternalServerError,
    StreamConnectionError,
    buffered,
    relay,
)
from together_async.flow.buffered import Buffered, source_of
from together_async.flow.loops import Loopable
from together_async.flow.source import Source, StreamSource
from together_async.models import ChatCompletionChunk, text_of
from together_async.relay.hub import Hub

pytestmark = pytest.mark.usefixtures("no_leaks")


@contextlib.asynccontextmanager
async def served(*scripts: Script, **options: Any) -> AsyncIterator[tuple[ScriptedServer, AsyncTogether]]:
    async with ScriptedServer(*scripts) as server, AsyncTogether(KEY, base_url=server.base_url, **options) as client:
        yield server, client


def text(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(text_of(choice) for one in chunks for choice in one.choices)


class Upstream:
    """An async generator of chunks, and what became of it.

    It gives each of `said`, waits for ever if it `hangs`, and ends, or raises `error`.
    """

    def __init__(self, said: str = "", *, hangs: bool = False, error: BaseException | None = None) -> None:
        self.said, self.hangs, self.error = said, hangs, error
        self.given = 0
        self.began = False
        self.closed = asyncio.Event()

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        self.began = True
        try:
            for one in self.said:
                self.given += 1
                yield chunk(one)
            if self.hangs:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def rest_of(source: Any, said: list[str] | None = None) -> str:
    """What is read until the end; in `said` also what came before an error."""
    said = [] if said is None else said
    while batch := await source.read():
        said.append(text(batch))
        await asyncio.sleep(0)
    return "".join(said)


# ------------------------------------------------------------------------------------------------------------ all of it


BUFFERS: dict[str, Callable[[], Buffer | None]] = {
    "block": lambda: Buffer(4),
    "one": lambda: Buffer(1),
    "coalesce": lambda: Buffer(4, "coalesce"),
    "default": lambda: None,
}
WORDS = [f"w{i} " for i in range(300)]


async def big(call: Call) -> None:
    """A stream of 300 tokens, at once."""
    await call.head()
    await call.chunk(say(*WORDS))
    await call.send(LAST_CHUNK)


@pytest.mark.parametrize("kind", BUFFERS)
async def test_all_of_a_stream_comes_through(kind: str) -> None:
    """Over a real stream, for a consumer that is slower: everything once, its usage and finish reason too."""
    async with served(big) as (server, client):
        source = buffered(client.stream("Hi", model=MODEL), BUFFERS[kind]())
        chunks = []
        async for one in source:
            chunks.append(one)
            await asyncio.sleep(0)
        assert text(chunks) == "".join(WORDS)
        assert source.position == len(WORDS) + 2
        completion = source.so_far()
        assert completion.text == "".join(WORDS)
        assert completion.choices[0].finish_reason == "stop"
        assert len(server.connections) == 1


@pytest.mark.parametrize("kind", BUFFERS)
async def test_all_of_a_generator_comes_through(kind: str) -> None:
    """Over anybody's async generator, which is closed at its end; what it comes to is known too."""
    upstream = Upstream("abcdefghij")
    source = buffered(upstream.chunks(), BUFFERS[kind]())
    chunks = []
    async for one in source:
        chunks.append(one)
        await settle()
    assert text(chunks) == "abcdefghij"
    assert source.position == 10
    assert source.so_far().text == "abcdefghij"
    assert upstream.closed.is_set()


async def test_a_buffer_over_a_buffer_over_a_broadcast() -> None:
    """A source may be made of a source; the innermost is what `so_far` speaks of."""
    async with served(big) as (_, client):
        broadcast = Broadcast(client.stream("Hi", model=MODEL))
        source = buffered(buffered(broadcast.subscribe(), Buffer(2)), Buffer(3, "coalesce"))
        async with source:
            assert await rest_of(source) == "".join(WORDS)
            assert source.so_far().text == "".join(WORDS)
        await broadcast.aclose()


LOOPED: dict[str, Callable[[Any], Any]] = {
    "buffered": buffered,
    "subscription": lambda stream: Broadcast(stream).subscribe(),
}


@pytest.mark.parametrize("kind", LOOPED)
async def test_it_is_read_as_a_stream_is(kind: str) -> None:
    """`anext`, a loop, one choice's texts, and the rest as a completion, in turn: each goes on where the last was."""

    async def chunks() -> AsyncIterator[ChatCompletionChunk]:
        yield chunk("", role="assistant")
        for one in "abc":
            yield chunk(one)
            yield chunk(one.upper(), index=1)
        yield chunk(finish="stop")

    async with LOOPED[kind](chunks()) as source:
        assert text([await anext(source), await anext(source)]) == "a"
        async for one in source.text(1):
            assert one == "A"
            break
        async for one in source.text():
            assert one == "b"
            break
        assert source.position == 4
        completion = await source.completion()
        assert source.position == 8
        assert [choice.message.content for choice in completion.choices] == ["abc", "ABC"]
        assert source.so_far() == completion == await source.completion()
        with pytest.raises(StopAsyncIteration):
            await anext(source)
    assert [one async for one in LOOPED[kind](chunks()).text()] == ["a", "b", "c"]
    assert [one async for one in LOOPED[kind](chunks()).text(1)] == ["A", "B", "C"]


@pytest.mark.parametrize("kind", LOOPED)
async def test_texts_of_one_choice_in_one_chunk_are_one(kind: str) -> None:
    """A choice that stands in a chunk twice says both, as it does in the completion."""

    async def chunks() -> AsyncIterator[ChatCompletionChunk]:
        yield attrs.evolve(chunk("a"), choices=(*chunk("a").choices, *chunk("b").choices))

    async with LOOPED[kind](chunks()) as source:
        assert [one async for one in source.text()] == ["ab"]
        assert source.so_far().choices[0].message.content == "ab"


@pytest.mark.parametrize("kind", LOOPED)
async def test_so_far_reads_nothing(kind: str) -> None:
    """It is what has come, and what has come still waits."""
    source: Loopable = LOOPED[kind](Upstream("ab").chunks())
    assert source.so_far().text == ""
    await anext(source)
    await settle()
    assert source.so_far().text == "ab"
    assert text(await source.read()) == "b"
    assert await source.read() == []


@pytest.mark.parametrize("kind", LOOPED)
async def test_what_a_loop_has_left_goes_out_through_a_door(kind: str) -> None:
    """Somebody looks at the first chunk, for a status, and hands the rest over: all of it, under its own ids."""
    async with LOOPED[kind](Upstream("abcdefgh").chunks()) as source:
        await settle_until(lambda: source.so_far().text == "abcdefgh")  # all come together
        async for one in source:
            assert text([one]) == "a"
            break
        body = b"".join([data async for data in relay.sse(source, format="text")])
    said = [event.removeprefix(b"data: ") for event in body.split(b"\n") if event.startswith(b"data: ")]
    assert (b"".join(said[:-1]), said[-1]) == (b"bcdefgh", b"[DONE]")
    if kind == "buffered":
        assert body.startswith(b"id: 2\ndata: b\n\nid: 3\n")


async def test_a_loop_reads_no_further_than_the_buffer() -> None:
    """What the loop has not been given counts as waiting: the generator is asked for one more than fits."""
    upstream, ahead = Upstream("x" * 30), set[int]()
    for_the_loop = buffered(upstream.chunks(), Buffer(4, low=1))
    had = 0
    async for _ in for_the_loop:
        had += 1
        await settle()
        ahead.add(upstream.given - had)
    assert had == 30
    assert max(ahead) == 5


async def test_it_begins_with_the_first_read() -> None:
    """Making it asks for nothing."""
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
    """A generator is asked for one more than fits, and then for nothing until somebody reads."""
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
    """A stream that breaks in the middle: its texts, then its error; and again for who asks again."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(*(sse(delta(x)) for x in "abcdefgh"))
        call.close()

    async with served(script) as (_, client):
        source = buffered(client.stream("Hi", model=MODEL), BUFFERS[kind]())
        said: list[str] = []
        with pytest.raises(StreamConnectionError) as caught:
            await rest_of(source, said)
        assert "".join(said) == "abcdefgh"
        assert caught.value.partial.text == "abcdefgh"
        with pytest.raises(StreamConnectionError):
            await source.read()


async def test_an_error_of_a_generator_comes_as_it_is() -> None:
    """Whatever it is, after what had come."""
    upstream = Upstream("ab", error=KeyError("mine"))
    source = buffered(upstream.chunks(), Buffer(1))
    assert [text(await source.read()), text(await source.read())] == ["a", "b"]
    with pytest.raises(KeyError, match="mine"):
        await source.read()


@pytest.mark.parametrize("by", ["open", "read", "__aenter__"])
async def test_a_refusal_is_known_when_it_is_opened(by: str) -> None:
    """A 500 comes with `open`, which is before anything was passed on."""

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")

    async with served(script) as (_, client):
        source = buffered(client.stream("Hi", model=MODEL))
        with pytest.raises(InternalServerError):
            await getattr(source, by)()


async def test_a_generator_that_is_cancelled_from_within_is_no_end() -> None:
    """An answer that stops because something in its producer was cancelled does not look finished."""
    upstream = Upstream("ab", error=asyncio.CancelledError())
    source = buffered(upstream.chunks(), Buffer(4))
    assert text(await source.read()) == "ab"
    for _ in range(2):
        with pytest.raises(IncompleteStreamError):
            await source.read()


async def test_an_iterable_that_can_not_be_begun() -> None:
    """Its error comes to who reads."""

    class Broken:
        def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
            raise KeyError("no")

    source = buffered(Broken())
    async with asyncio.timeout(1):
        with pytest.raises(KeyError):
            await source.read()


async def test_a_generator_that_breaks_when_it_is_closed() -> None:
    """Who reads it gets the error of its `finally`, and does not wait for ever."""

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
            await rest_of(source)


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


async def settle_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


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
    """In every way a consumer may go, the server sees it at once, and no task is left."""
    async with served(ticks) as (server, client):
        await way(buffered(client.stream("Hi", model=MODEL), BUFFERS[kind]()))
        await gone(server.calls[0], within=1)


@pytest.mark.parametrize("kind", ["block", "coalesce"])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_closes_a_generator(way: Callable[[Buffered], Awaitable[None]], kind: str) -> None:
    """Its `finally` runs at once, also while it waits."""
    upstream = Upstream("ab" * 4, hangs=True)
    await way(buffered(upstream.chunks(), BUFFERS[kind]()))
    async with asyncio.timeout(1):
        await upstream.closed.wait()


@pytest.mark.parametrize("kind", LOOPED)
async def test_leaving_a_loop_over_texts_closes_a_generator(kind: str) -> None:
    """As a loop over chunks does."""
    upstream = Upstream("ab", hangs=True)
    source = LOOPED[kind](upstream.chunks())
    async for one in source.text():
        assert one == "a"
        break
    async with asyncio.timeout(1):
        await upstream.closed.wait()


class Careful:
    """An async generator whose cleanup takes a while, as that of a connection does."""

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
    """Its `finally` may wait, however it is read, and has run when what closes it returns."""
    upstream = Careful()
    async with asyncio.timeout(2):
        await closing(upstream.chunks(hangs=hangs))
    assert (upstream.begun, upstream.cleaned) == (True, True)


@pytest.mark.parametrize("kind", BUFFERS)
async def test_a_loop_may_be_left_and_taken_up_again(kind: str) -> None:
    """Inside of a block: the second loop goes on where the first was left."""
    upstream = Upstream("abcdefgh", hangs=True)
    async with buffered(upstream.chunks(), BUFFERS[kind]()) as source:
        said = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while len(said) < 8:
                    async for one in source:
                        said += text([one])
                        break
        assert said == "abcdefgh"


async def test_dropping_it_closes_the_stream() -> None:
    """Nobody closes what nobody holds: its finalizer does, while its task reads on and while it waits for room."""
    for scripts, options in ((ticks, Buffer(1)), (starts_and_hangs, Buffer(8, "coalesce"))):
        async with served(scripts) as (server, client):
            source = buffered(client.stream("Hi", model=MODEL), options)
            await source.read()
            del source
            gc.collect()
            await gone(server.calls[0], within=1)
            await settle()


async def test_leaving_while_it_is_opened() -> None:
    """The request is on its way: it is given up, and who opened it is told."""

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
async def test_who_reads_what_was_left_is_told(when: str, over: str) -> None:
    """Left before it was opened, before its task had its first turn, or in the turn of the first read: never silence,
    and never an end as of something complete."""
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
                await rest_of(source)
        await source.aclose()
    assert upstream.given < 20


async def test_a_reader_is_told_when_somebody_else_leaves() -> None:
    """It was waiting for a chunk; the end it gets is an error, as of every stream that was cut off."""
    for over in ("stream", "generator"):
        async with served(starts_and_hangs) as (_, client):
            upstream = Upstream("ab", hangs=True)
            source = buffered(client.stream("Hi", model=MODEL) if over == "stream" else upstream.chunks())
            task = asyncio.create_task(rest_of(source))
            await settle_until(lambda source=source: source.position == 2)
            source.leave()
            async with asyncio.timeout(1):
                with pytest.raises(IncompleteStreamError) as caught:
                    await task
            if over == "stream":  # of a generator nobody knows what it adds up to
                assert caught.value.partial.text


async def test_a_cancelled_read_loses_nothing() -> None:
    """A consumer may give up a read, as a relay does for its heartbeat, and read again."""

    async def slow(call: Call) -> None:
        await call.head()
        for one in "abcde":
            await call.chunk(sse(delta(one)))
            await asyncio.sleep(0.003)
        await call.chunk(say())
        await call.send(LAST_CHUNK)

    async with served(slow) as (_, client):
        for make in (lambda s: buffered(s, Buffer(2)), source_of):
            source = make(client.stream("Hi", model=MODEL))
            await source.open()
            said, timeouts = "", 0
            while True:
                try:
                    async with asyncio.timeout(0.001):
                        batch = await source.read()
                except TimeoutError:
                    timeouts += 1
                    continue
                if not batch:
                    break
                said += text(batch)
            assert said == "abcde"
            assert timeouts
            source.leave()


# -------------------------------------------------------------------------------------------------------------- sources


async def test_what_is_a_source() -> None:
    """A stream is read as it is; what has the interface is taken as it is; an iterator gets a task and a place."""
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
    """Positions by batch; the end stays the end; `repr` shows the stream."""
    async with served(big) as (_, client):
        source = StreamSource(client.stream("Hi", model=MODEL))
        assert await rest_of(source) == "".join(WORDS)
        assert source.position == len(WORDS) + 2
        assert await source.read() == []
        assert repr(source).startswith("<StreamSource of <ChatCompletionStream closed")


class Wrapping:
    """An iterable of a stream's chunks, as somebody's own class may be."""

    def __init__(self, stream: ChatCompletionStream) -> None:
        self.stream = stream
        self.asked = 0

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        self.asked += 1
        return aiter(self.stream)


async def test_an_iterable_is_asked_for_one_iterator() -> None:
    """A second one might begin anew, or end what the first is about to read as soon as it is dropped."""
    async with served(big) as (server, client):
        wrapping = Wrapping(client.stream("Hi", model=MODEL))
        assert await rest_of(source_of(wrapping)) == "".join(WORDS)
        assert (wrapping.asked, len(server.calls)) == (1, 1)


async def test_an_iterator_is_not_kept_when_it_was_left() -> None:
    """Some are closed by being dropped: who still holds the source does not hold its connection."""
    async with served(ticks) as (server, client):
        wrapping = Wrapping(client.stream("Hi", model=MODEL))
        source = buffered(wrapping, Buffer(1))
        await source.read()
        await settle_until(lambda: source._buffer._producer.waiting)  # between two reads of the iterator
        await source.aclose()
        await gone(server.calls[0], within=1)
        with pytest.raises(IncompleteStreamError):
            await rest_of(source)
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
    """Ways to read a stream are no streams: who reads is told what to hand over, and the model is not asked."""
    async with served(big) as (server, client), Hub() as hub:
        source = READERS[reader](hub, WRONG[wrong](client.stream("Hi", model=MODEL)))
        for read in (source.open, source.read):
            with pytest.raises(TypeError, match=r"stream: got a \w+ where chunks are needed; hand over what"):
                await read()
        assert not server.calls


@pytest.mark.parametrize("reader", READERS)
async def test_what_gives_no_chunks_is_refused_with_the_first(reader: str) -> None:
    """Of somebody's own iterable that shows with what it gives; it is closed."""
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
    """The error names the type that was got and what to give instead."""
    for make in (buffered, source_of, Broadcast):
        with pytest.raises(TypeError, match=rf"stream: got a {type(wrong).__name__}, expected what `client\.stream"):
            make(wrong)


async def test_a_coroutine_is_no_stream() -> None:
    """`await` forgotten or put where it does not belong: a clear error, and no warning about the coroutine."""
    async with served(big) as (_, client):
        with pytest.raises(TypeError, match="stream: got a coroutine"):
            buffered(client.create("Hi", model=MODEL))  # type: ignore[arg-type]


async def test_a_buffer_is_used_once() -> None:
    """A second stream in the same buffer would be mixed with the first, or seem empty."""
    buffer = Buffer(4)
    source = buffered(Upstream("ab").chunks(), buffer)
    with pytest.raises(ValueError, match="buffer: it is in use, or was"):
        buffered(Upstream("cd").chunks(), buffer)
    assert await rest_of(source) == "ab"
    with pytest.raises(ValueError, match="buffer: it is in use, or was"):
        buffered(Upstream("cd").chunks(), buffer)


async def test_repr_says_how_it_is() -> None:
    """Without a text."""
    source = buffered(Upstream("abc").chunks(), Buffer(8))
    assert repr(source) == "<Buffered <Buffer open, 0 of 8 chunks wait, on_full='block'>>"
    await rest_of(source)
    assert repr(source) == "<Buffered <Buffer closed, 0 of 8 chunks wait, on_full='block'>>"
