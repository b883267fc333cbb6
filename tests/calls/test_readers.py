"""`batches()`, `leave()` and `so_far()`: chunks that arrived together, leaving without waiting, and what was read."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Sequence
from typing import Any

import pytest

from support.clients import bodies_ended, served
from support.scripts import sends
from support.servers import (
    DONE,
    LAST_CHUNK,
    MODEL,
    Call,
    answers,
    delta,
    gone,
    hangs,
    response,
    say,
    sse,
    starts_and_hangs,
    ticks,
    whole,
)
from support.virtual_time import run
from together_async import (
    ChatCompletionStream,
    IncompleteStreamError,
    Retry,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    Timeouts,
    TogetherError,
)
from together_async.models import ChatCompletionChunk, text_of

pytestmark = pytest.mark.usefixtures("no_leaks")

MOST = 64
WORDS = [f"w{i} " for i in range(300)]
ERROR = sse({"error": {"message": "overloaded", "code": 503}})


def texts(chunks: Sequence[ChatCompletionChunk]) -> list[str]:
    return [text for chunk in chunks for choice in chunk.choices if (text := text_of(choice))]


async def read(stream: ChatCompletionStream) -> tuple[list[list[ChatCompletionChunk]], TogetherError | None]:
    """All batches, and the error that ended them."""
    batches: list[list[ChatCompletionChunk]] = []
    try:
        async with asyncio.timeout(5):
            async for batch in stream.batches():
                batches.append(batch)  # noqa: PERF401 - those before an error count
    except TogetherError as error:
        return batches, error
    return batches, None


async def read_each(stream: ChatCompletionStream) -> tuple[list[ChatCompletionChunk], TogetherError | None]:
    chunks: list[ChatCompletionChunk] = []
    try:
        async for chunk in stream:
            chunks.append(chunk)  # noqa: PERF401 - those before an error count
    except TogetherError as error:
        return chunks, error
    return chunks, None


# ------------------------------------------------------------------------------------------------- the same, in batches

CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
RICH = [
    sse(delta("", role="assistant")),
    sse(delta("a")),
    sse(delta(reasoning="hm")),
    sse(delta("b", annotations=["unknown"])),
    b": ping\n\n",
    sse({"type": "ping"}),
    sse(delta("x", index=1)),
    sse(delta(tool_calls=[CALL])),
    sse({**delta("c"), "x_gateway": 1, "warnings": ["w"]}),
    b"data: " + json.dumps(delta("d")).encode().replace(b'"d"', b'"\\ud83d\\ude00"') + b"\n\n",
    sse(delta(finish="length", index=1)),
    sse(delta(finish="stop")),
    sse({**delta(), "choices": [], "usage": {"total_tokens": 3}}),
]
STREAMS = {
    "one read": [b"".join(RICH) + DONE],
    "one each": [*RICH, DONE],
    "byte by byte": [bytes([byte]) for byte in b"".join(RICH) + DONE],
    "in two": [b"".join(RICH)[:1000], b"".join(RICH)[1000:] + DONE],
    "no done": [b"".join(RICH)],
    "no end": [b"".join(RICH[:6])],
    "done in the middle": [b"".join(RICH) + DONE + RICH[1] * 5],
    "done, then garbage": [b"".join(RICH) + DONE + b"data: {{{\n\n"],
    "error in the middle": [b"".join(RICH[:5]) + ERROR + RICH[6]],
    "error first": [ERROR],
    "garbage in the middle": [b"".join(RICH[:5]) + b"data: {{{\n\n"],
    "nothing": [],
}


@pytest.mark.parametrize("name", STREAMS)
async def test_the_chunks_are_those_of_a_loop(name: str) -> None:
    """In the same order, with the same end, the same error, and adding up to the same."""
    async with served(sends(*STREAMS[name])) as (_, client):
        stream, other = (client.stream("Hi", model=MODEL, n=2) for _ in range(2))
        batches, error = await read(stream)
        chunks, expected = await read_each(other)
        assert (type(error), str(error)) == (type(expected), str(expected))
        assert [chunk for batch in batches for chunk in batch] == chunks
        assert all(1 <= len(batch) <= MOST for batch in batches)
        assert stream.so_far().to_dict() == other.so_far().to_dict()
        assert stream.complete is other.complete is (error is None)
        if isinstance(error, StreamError):
            assert error.partial == stream.so_far()


async def test_each_chunk_is_exactly_what_came() -> None:
    """To the last key, also where the first chunk of the stream had no unknown keys."""
    sent = [json.loads(event.removeprefix(b"data: ")) for event in RICH if b'"choices"' in event]
    async with served(sends(b"".join(RICH) + DONE)) as (_, client):
        batches, _ = await read(client.stream("Hi", model=MODEL, n=2))
        assert [chunk.to_dict() for batch in batches for chunk in batch] == sent


async def test_what_has_come_together_comes_together() -> None:
    """Three hundred tokens in one write are a handful of batches, each with 1 to 64 chunks."""
    async with served(sends(say(*WORDS))) as (_, client):
        batches, error = await read(client.stream("Hi", model=MODEL))
        assert error is None
        assert texts([chunk for batch in batches for chunk in batch]) == WORDS
        assert max(map(len, batches)) == MOST
        assert min(map(len, batches)) >= 1
        assert len(batches) <= 8


async def test_what_comes_alone_comes_alone() -> None:
    """A batch waits for nothing: each token is given before the next is sent."""
    step = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head()
        for word in "abc":
            await call.chunk(sse(delta(word)))
            step.clear()
            await step.wait()
        await call.chunk(say())
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client):
        got = []
        async with asyncio.timeout(5):
            async for batch in client.stream("Hi", model=MODEL).batches():
                got.append(texts(batch))
                step.set()
        assert got[:3] == [["a"], ["b"], ["c"]]


async def test_a_whole_completion_is_a_batch_of_one() -> None:
    """A server that answers with JSON."""
    async with served(answers(response(whole("Hello")))) as (_, client):
        batches, error = await read(client.stream("Hi", model=MODEL))
        assert error is None
        assert [texts(batch) for batch in batches] == [["Hello"]]


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("last", "end", "error"),
    [
        (ERROR, "hang", StreamAPIError),
        (b"data: {{{\n\n", "hang", StreamProtocolError),
        (b"", "end", IncompleteStreamError),
        (b"", "close", StreamConnectionError),
    ],
)
async def test_an_error_comes_after_all_that_had_come(last: bytes, end: str, error: type[StreamError]) -> None:
    """In one read with it, more than one batch; it is raised again by a later read."""
    body = b"".join(sse(delta(word)) for word in WORDS[:100])
    async with served(sends(body + last, end=end)) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        batches, caught = await read(stream)
        assert texts([chunk for batch in batches for chunk in batch]) == WORDS[:100]
        assert type(caught) is error
        assert isinstance(caught, StreamError)
        assert caught.partial.text == "".join(WORDS[:100])
        with pytest.raises(error):
            await anext(stream.batches())
        if end == "hang":
            await gone(server.calls[0], within=1)


async def test_what_breaks_before_a_chunk_is_asked_again() -> None:
    """The caller sees the second response alone."""
    retry = Retry(attempts=2, budget=1.0, base_delay=0.0)
    for first in (sends(ERROR), sends(end="close"), sends(b": ping\n\n" + ERROR)):
        async with served(first, sends(say("a", "b")), retry=retry) as (server, client):
            stream = client.stream("Hi", model=MODEL)
            batches, error = await read(stream)
            assert texts([chunk for batch in batches for chunk in batch]) == ["a", "b"]
            assert (error, len(server.calls), stream.attempts) == (None, 2, 2)


async def test_what_breaks_after_a_chunk_is_not_asked_again() -> None:
    """Also when both came in one read."""
    retry = Retry(attempts=2, budget=1.0, base_delay=0.0)
    async with served(sends(sse(delta("a")) + ERROR), sends(say("x")), retry=retry) as (server, client):
        batches, error = await read(client.stream("Hi", model=MODEL))
        assert [texts(batch) for batch in batches] == [["a"]]
        assert isinstance(error, StreamAPIError)
        assert len(server.calls) == 1


# ----------------------------------------------------------------------------------------------------------- reading on


async def test_a_cancelled_read_loses_nothing() -> None:
    """In a block: cancelled every millisecond, and repeated."""

    async def script(call: Call) -> None:
        await call.head()
        for word in WORDS[:30]:
            data = sse(delta(word))
            await call.chunk(data[:20])
            await asyncio.sleep(0.001)
            await call.chunk(data[20:])
        await call.chunk(say())
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client), client.stream("Hi", model=MODEL) as stream:
        got, timeouts = list[str](), 0
        while not stream.complete:
            try:
                async with asyncio.timeout(0.001):
                    got += texts(await anext(stream.batches(), []))
            except TimeoutError:
                timeouts += 1
        assert got == WORDS[:30]
        assert timeouts


async def test_a_cancelled_read_without_a_block_leaves() -> None:
    """The loop owned the connection, and it has ended."""
    async with served(starts_and_hangs) as (server, client):

        async def loop() -> None:
            async for _ in client.stream("Hi", model=MODEL).batches():
                pass

        task = asyncio.create_task(loop())
        call = await server.call()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
        await gone(call, within=1)


async def some_of(stream: ChatCompletionStream, way: str) -> Any:
    """Reads once, in one of the ways to read."""
    ways: dict[str, Any] = {"chunks": lambda: stream, "batches": stream.batches, "text": stream.text, "raw": stream.raw}
    return await anext(ways[way]())


@pytest.mark.parametrize("way", ["chunks", "batches", "text", "raw"])
def test_what_follows_an_interrupted_read_is_not_the_servers_silence(way: str) -> None:
    """The consumer cancels a read, and is away for longer than a server may be silent: the stream goes on."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        await asyncio.sleep(3)
        for word in WORDS[:100]:
            await call.chunk(sse(delta(word)))
            await asyncio.sleep(1)
        await call.chunk(say())
        await call.send(LAST_CHUNK)

    async def main() -> None:
        async with (
            served(script, timeouts=Timeouts(idle=5)) as (_, client),
            client.stream("Hi", model=MODEL) as stream,
        ):
            await some_of(stream, way)
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(1):
                    await some_of(stream, way)
            assert not isinstance(caught.value, StreamTimeoutError)
            await asyncio.sleep(30)
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    await some_of(stream, way)
            assert stream.complete

    run(main())


@pytest.mark.parametrize("way", ["chunks", "batches", "text", "raw"])
def test_interrupted_reads_do_not_put_off_the_idle_limit(way: str) -> None:
    """A reader that gives up each second, and reads again at once, has waited all the time."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            served(sends(sse(delta("a", role="assistant")), end="hang"), timeouts=Timeouts(idle=10)) as (_, client),
            client.stream("Hi", model=MODEL) as stream,
        ):
            await some_of(stream, way)
            began = loop.time()
            with pytest.raises(StreamTimeoutError):  # noqa: PT012 - any of the reads may raise it
                while loop.time() < began + 60:
                    with contextlib.suppress(asyncio.CancelledError):
                        await interrupted(some_of(stream, way), 1)
            assert 9 <= loop.time() - began <= 13

    run(main())


async def interrupted(reading: Any, after_s: float) -> None:
    """Cancels the task of a read after so many seconds."""
    task = asyncio.ensure_future(reading)
    asyncio.get_running_loop().call_later(after_s, task.cancel)
    await task


async def test_a_loop_may_be_left_and_taken_up_again_in_a_block() -> None:
    """By batches, by chunks and by text in turn: each goes on where the last was left."""
    async with served(sends(say(*WORDS))) as (_, client), client.stream("Hi", model=MODEL) as stream:
        got = list[str]()
        async for batch in stream.batches():
            got += texts(batch)
            break
        async for chunk in stream:
            got += texts([chunk])
            break
        async for text in stream.text():
            got.append(text)
            break
        async for batch in stream.batches():
            got += texts(batch)
        assert got == WORDS
        assert (await stream.completion()).text == "".join(WORDS)


async def test_two_tasks_read_batches() -> None:
    """The second gets an error; the first goes on."""
    async with served(starts_and_hangs) as (server, client), client.stream("Hi", model=MODEL) as stream:
        got = list[str]()
        while len(got) < 2:
            got += texts(await anext(stream.batches()))
        first = asyncio.ensure_future(anext(stream.batches()))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks read one stream"):
            await anext(stream.batches())
        await server.calls[0].chunk(sse(delta("c")))
        assert texts(await first) == ["c"]


# --------------------------------------------------------------------------------------------------------------- so_far


async def test_so_far_is_what_was_read() -> None:
    """No more, although more has come; before the first chunk it is empty."""
    async with served(sends(say(*WORDS))) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        assert (stream.so_far().choices, len(server.calls)) == ((), 0)
        got = ""
        async with stream:
            async for batch in stream.batches():
                got += "".join(texts(batch))
                assert stream.so_far().text == got
        assert stream.complete
        assert stream.so_far() == await stream.completion()


async def test_complete_is_the_rule_and_nothing_less() -> None:
    """Not open, running, cut off, left: no; at `[DONE]`, or at the body's end with every finish reason: yes."""
    async with served(sends(say("a")), starts_and_hangs, sends(sse(delta("a")))) as (_, client):
        stream = client.stream("Hi", model=MODEL)
        assert not stream.complete
        await read(stream)
        assert stream.complete
        async with client.stream("Hi", model=MODEL) as stream:
            await anext(stream)
            assert not stream.complete
        assert not stream.complete
        stream = client.stream("Hi", model=MODEL)
        await read(stream)
        assert not stream.complete


# ---------------------------------------------------------------------------------------------------------------- leave


@pytest.mark.parametrize("how", ["loop", "block", "callback", "reader", "drop"])
async def test_leaving_closes_the_connection(how: str) -> None:
    """At once and without an await; a later read says that the stream is not complete."""
    async with served(ticks) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        if how == "loop":
            async for _ in stream.batches():
                break
        elif how == "block":
            async with stream:
                await anext(stream.batches())
        elif how == "drop":
            reader = stream.batches()
            await anext(reader)
            del reader
            gc.collect()
        else:
            async with stream:
                await anext(stream.batches())
                reading = asyncio.ensure_future(read(stream)) if how == "reader" else None
                asyncio.get_running_loop().call_soon(stream.leave)
                await gone(server.calls[0], within=1)
                if reading is not None:
                    _, error = await reading
                    assert isinstance(error, StreamError)
        await gone(server.calls[0], within=1)
        stream.leave()
        stream.leave()
        with pytest.raises(StreamError):
            await anext(stream.batches())


async def test_leaving_before_it_is_opened() -> None:
    """No request is sent, and the stream does not look complete."""
    async with served(ticks) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        stream.leave()
        with pytest.raises(IncompleteStreamError):
            await anext(stream.batches())
        assert not server.calls


async def test_leaving_while_it_is_opened() -> None:
    """The request is given up; its task gets an error, and does not wait for the service."""
    async with served(hangs) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        task = asyncio.create_task(read(stream))
        call = await server.call()
        stream.leave()
        _, error = await task
        assert isinstance(error, IncompleteStreamError)
        await gone(call, within=1)


async def test_leaving_at_the_end_leaves_the_connection_to_the_next() -> None:
    """There is nothing left to close."""
    async with served(sends(say("a"))) as (server, client):
        for _ in range(3):
            stream = client.stream("Hi", model=MODEL)
            await read(stream)
            await bodies_ended(client)
            stream.leave()
            assert stream.complete
        assert len(server.connections) == 1
