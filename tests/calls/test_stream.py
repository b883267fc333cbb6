"""`ChatCompletionStream`: its facts, interrupted reads, several readers, and fairness to other tasks."""

import asyncio
import pickle

import pytest

from support.clients import read_all, served, transport_of
from support.servers import (
    DONE,
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    chunked,
    delta,
    hangs,
    heartbeat,
    say,
    sse,
    starts_and_hangs,
    streams,
)
from support.virtual_time import virtual

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "Hi"


async def test_facts_of_a_stream() -> None:
    """Headers, request id, stats and repr, before, during and after."""

    async def script(call: Call) -> None:
        await call.head(extra=b"X-Request-Id: r-7\r\nset-cookie: a\r\nset-cookie: b\r\n")
        await call.chunk(say("a", "b"))
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        assert (stream.response_headers, stream.request_id, stream.stats.chunks) == ({}, None, 0)
        assert "not opened" in repr(stream)
        async with stream:
            assert stream.request_id == "r-7"
            await anext(stream)
            assert "open" in repr(stream)
            await stream.completion()
        assert stream.response_headers["set-cookie"] == "a, b"
        assert stream.request_id == "r-7"
        assert stream.stats.chunks >= 2
        assert stream.stats.first_token_s is not None
        assert KEY not in repr(stream)


async def test_headers_that_are_asked_for_after_the_end() -> None:
    """Nobody has looked before, and the response is gone."""

    async def script(call: Call) -> None:
        await call.head(extra=b"X-Request-Id: r-7\r\n")
        await call.chunk(say("a"))
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        async with stream:
            await stream.completion()
        assert stream.response_headers["x-request-id"] == "r-7"
        assert stream.request_id == "r-7"


async def test_a_stream_cannot_be_pickled() -> None:
    """A stream is a connection; pickle refuses."""
    async with served(hangs) as (_, client):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(client.stream(PROMPT, model=MODEL))


def test_no_task_is_made_for_a_stream() -> None:
    """Reading a stream makes no task."""

    async def main() -> None:
        async with served(starts_and_hangs) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
            before = asyncio.all_tasks()
            await anext(stream)
            await anext(stream)
            assert asyncio.all_tasks() <= before

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------------- reading on


async def test_a_loop_in_a_block_may_be_left_and_taken_up() -> None:
    """Inside `async with` a break loses nothing; the block's end closes."""
    async with served(streams(*"abcdef")) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
        first = []
        async for text in stream.text():
            first.append(text)
            if len(first) == 2:
                break
        chunk = await anext(stream)
        assert chunk.choices[0].delta is not None
        others = [text async for text in stream.text()]
        assert (first, chunk.choices[0].delta.content, others) == (["a", "b"], "c", ["d", "e", "f"])
        assert (await stream.completion()).text == "abcdef"


@virtual
async def test_waiting_with_a_timeout_in_a_block_loses_nothing() -> None:
    """wait_for(anext(stream)) may time out any number of times: every chunk comes once."""

    async def script(call: Call) -> None:
        await call.head()
        for letter in "abcdefgh":
            data = chunked(sse(delta(letter, role="assistant")))
            await call.send(data[:20])
            await asyncio.sleep(13)
            await call.send(data[20:])
        await call.chunk(DONE)
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client):
        got, gave_up = [], 0
        async with client.stream(PROMPT, model=MODEL) as stream:
            while True:
                try:
                    chunk = await asyncio.wait_for(anext(stream), 5)
                except TimeoutError:
                    gave_up += 1
                except StopAsyncIteration:
                    break
                else:
                    got.append(chunk.choices[0].delta.content)  # type: ignore[union-attr]  # each has a delta
        assert ("".join(got), gave_up) == ("abcdefgh", 16)


# ---------------------------------------------------------------------------------------------------------- two readers


async def test_two_readers_share_a_stream() -> None:
    """Two tasks over one stream: every chunk goes to one of them, or the second gets an error; the first goes on."""

    async def script(call: Call) -> None:
        await call.head()
        for letter in "abcdef":
            await call.chunk(sse(delta(letter, role="assistant")))
            await asyncio.sleep(0.005)
        await call.chunk(DONE)
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client):
        async with client.stream(PROMPT, model=MODEL) as stream:

            async def reader() -> list[str]:
                return [text async for text in stream.text()]

            results = await asyncio.gather(reader(), reader(), return_exceptions=True)
        texts = sorted(text for result in results if isinstance(result, list) for text in result)
        assert texts == list("abcdef")


async def test_two_readers_open_a_stream_once() -> None:
    """Two tasks that take the first chunk together send one request."""
    async with served(streams("a", "b")) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        await asyncio.gather(anext(stream), anext(stream), return_exceptions=True)
        await stream.aclose()
        assert len(server.calls) == 1
        assert not transport_of(client).responses


# --------------------------------------------------------------------------------------------------------- fast servers


async def test_a_loop_over_a_blast_lets_others_run() -> None:
    """A server that sends as fast as it can does not keep other tasks waiting."""

    async def script(call: Call) -> None:
        await call.head()
        data = sse(delta("token ")) * 500
        for _ in range(100):
            await call.chunk(data)
        await call.chunk(DONE)
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client), heartbeat() as gaps:
        assert len(await read_all(client)) == 50_000
    assert max(gaps) < 0.25


@virtual
async def test_an_idle_reader_pauses_the_server() -> None:
    """Nobody reads, so the server can't send for ever: the data that waits is bounded."""
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.head()
        while True:
            await call.chunk(sse(delta("x" * 10_000)))
            sent += 10_000

    async with served(script) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
        await anext(stream)
        before = -1
        async with asyncio.timeout(20):
            while before != sent:
                before = sent
                await asyncio.sleep(1)
        assert sent < 20_000_000
