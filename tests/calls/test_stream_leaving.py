"""`ChatCompletionStream`: left, dropped or cancelled, a stream closes its connection."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from support.clients import served, transport_of
from support.scripts import slow_ticks
from support.servers import (
    DONE,
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    delta,
    hangs,
    left_at_once,
    sse,
    starts_and_hangs,
    streams,
)
from support.virtual_time import lasts, virtual
from together_async import (
    APIConnectionError,
    AsyncTogether,
    ChatCompletionStream,
    IncompleteStreamError,
    Limits,
    StreamError,
    TogetherError,
)
from together_async.calls import reading

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "Hi"


async def by_break(stream: ChatCompletionStream) -> None:
    async for _ in stream:
        break


async def by_break_of_text(stream: ChatCompletionStream) -> None:
    async for _ in stream.text():
        break


async def by_exception(stream: ChatCompletionStream) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async for _ in stream:
            raise ZeroDivisionError


async def by_return_of_a_generator(stream: ChatCompletionStream) -> None:
    async def generator() -> AsyncIterator[Any]:
        async for chunk in stream:
            yield chunk

    chunks = generator()
    await anext(chunks)
    await chunks.aclose()


async def by_block(stream: ChatCompletionStream) -> None:
    async with stream:
        await anext(stream)


async def by_exception_in_block(stream: ChatCompletionStream) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with stream:
            async for _ in stream:
                raise ZeroDivisionError


async def by_aclose(stream: ChatCompletionStream) -> None:
    await anext(stream)
    await stream.aclose()
    await stream.aclose()


async def by_cancellation(stream: ChatCompletionStream) -> None:
    got = asyncio.Event()

    async def reader() -> None:
        async for _ in stream:
            got.set()

    task = asyncio.create_task(reader())
    await got.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(stream: ChatCompletionStream) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(50):
            async for _ in stream:
                pass


@virtual
@pytest.mark.parametrize(
    "leave",
    [
        by_break,
        by_break_of_text,
        by_exception,
        by_return_of_a_generator,
        by_block,
        by_exception_in_block,
        by_aclose,
        by_cancellation,
        by_timeout,
    ],
)
@pytest.mark.parametrize("script", [starts_and_hangs, slow_ticks])
async def test_leaving_closes_the_connection(
    leave: Callable[[ChatCompletionStream], Awaitable[None]], script: Script
) -> None:
    """However it is left, although a variable still holds it: the server sees it, and the connection is not reused."""
    async with served(script, streams("b")) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        await leave(stream)
        await left_at_once(await server.call())
        assert "".join([text async for text in client.stream(PROMPT, model=MODEL).text()]) == "b"
        assert len(server.connections) == 2
        assert not transport_of(client).responses
        del stream


@virtual
async def test_dropping_a_stream_closes_the_connection() -> None:
    """`del`, without any loop."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        await anext(stream)
        del stream
        await left_at_once(await server.call())


@virtual
async def test_garbage_collection_closes_the_connection() -> None:
    """A stream in a circle of references is closed when the circle is collected."""
    async with served(starts_and_hangs) as (server, client):
        circle: list[Any] = [client.stream(PROMPT, model=MODEL)]
        await anext(circle[0])
        circle.append(circle)
        del circle
        gc.collect()
        await left_at_once(await server.call())


@virtual
async def test_leaving_a_kept_text_iterator_closes_the_connection() -> None:
    """`texts = stream.text()` kept in a variable is left like the stream itself."""
    async with served(starts_and_hangs) as (server, client):
        texts = client.stream(PROMPT, model=MODEL).text()
        async for _ in texts:
            break
        await left_at_once(await server.call())
        del texts


@virtual
async def test_leaving_chunks_taken_by_hand() -> None:
    """An iterator made by aiter() owns the connection until it is dropped."""
    async with served(slow_ticks) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        chunks = aiter(stream)
        await anext(chunks)
        await anext(chunks)
        call = await server.call()
        assert not call.left.is_set()
        del chunks
        await left_at_once(call)


# ------------------------------------------------------------------------------------------------------------ cancelled


async def cancelled_when(client: AsyncTogether, reached: Awaitable[Any]) -> None:
    """Cancels a reading task a second after `reached` is done."""

    async def reader() -> None:
        async with client.stream(PROMPT, model=MODEL) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(reader())
    await reached
    await asyncio.sleep(1)  # the client waits for the next thing now
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@virtual
@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\ncontent-ty", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"all"]
)
async def test_cancelled_while_waiting(head: bytes) -> None:
    """Cancelled before, in or after the head, or in the body: passes through untouched, and the server sees it."""

    async def script(call: Call) -> None:
        if head == b"all":
            await starts_and_hangs(call)
        await call.send(head)
        await call.hang()

    async with served(script) as (server, client):
        await cancelled_when(client, server.call())
        await left_at_once(await server.call())
        assert not transport_of(client).responses
        assert not transport_of(client).openings


async def test_cancelled_while_connecting() -> None:
    """Cancelled before there is a connection: nothing is left behind (the fixture looks)."""
    sock_server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = sock_server.sockets[0].getsockname()[1]
    async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{port}/v1") as client:
        for turns in range(12):
            task = asyncio.create_task(client.stream(PROMPT, model=MODEL).completion())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, APIConnectionError)):
                await task
    sock_server.close()
    await sock_server.wait_closed()


@pytest.mark.parametrize("in_block", [False, True])
async def test_cancelled_at_every_turn(in_block: bool) -> None:
    """Cancellation at any turn of the loop ends in CancelledError or in the whole answer, and nothing else."""

    async def use(client: AsyncTogether) -> str:
        stream = client.stream(PROMPT, model=MODEL)
        if not in_block:
            return "".join([text async for text in stream.text()])
        async with stream:
            return (await stream.completion()).text

    async def script(call: Call) -> None:
        await call.head()
        for letter in "abc":
            await call.chunk(sse(delta(letter, role="assistant")))
            await asyncio.sleep(0)
        await call.chunk(DONE)
        await call.send(LAST_CHUNK)

    # (Limits that say how much at once: a model that never answered is asked with gaps of time.)
    async with served(script, limits=Limits(concurrency=8)) as (_, client):
        outcomes = []
        for turns in range(40):
            task = asyncio.create_task(use(client))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                outcomes.append(await task)
            except asyncio.CancelledError:
                outcomes.append("cancelled")
        assert set(outcomes) == {"cancelled", "abc"}
        assert all(not response._waiting for response in transport_of(client).responses)


@virtual
async def test_a_loop_after_a_cancelled_opening_is_not_taken_for_a_finished_one() -> None:
    """A stream whose opening was cancelled is lost; a later loop raises instead of ending silently."""
    async with served(hangs) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 5)
        with pytest.raises(TogetherError):
            async for _ in stream:
                pass


# --------------------------------------------------------------------------------------------------------------- closed


async def test_completion_after_leaving_is_an_error() -> None:
    """A stream that its reader left has no completion."""
    async with served(starts_and_hangs) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        async for _ in stream:
            break
        with pytest.raises(IncompleteStreamError) as caught:
            await stream.completion()
        assert caught.value.partial.text == "a"


@virtual
async def test_closing_from_another_task_wakes_the_reader() -> None:
    """aclose() while a task waits: the wait ends at once with a typed error."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        task = asyncio.create_task(stream.completion())
        call = await server.call()
        await asyncio.sleep(1)
        await stream.aclose()
        with lasts(0), pytest.raises(StreamError) as caught:
            await task
        assert caught.value.partial.text == "ab"
        await left_at_once(call)


async def test_closing_before_anything_was_sent() -> None:
    """A stream closed before its first chunk sends nothing, and does not open itself later."""
    async with served(hangs) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        await stream.aclose()
        async with stream:
            with pytest.raises(IncompleteStreamError):
                assert [chunk async for chunk in stream] == []
        with pytest.raises(IncompleteStreamError):
            await stream.completion()
        assert not server.calls


@virtual
async def test_a_stream_given_up_is_not_taken_for_finished() -> None:
    """Without `async with`, a wait_for that gives up ends the stream; a later read raises instead of stopping."""
    async with served(starts_and_hangs) as (_, client):
        texts = client.stream(PROMPT, model=MODEL).text()
        await anext(texts)
        await anext(texts)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(texts), 5)
        with pytest.raises(IncompleteStreamError):
            await anext(texts)


@virtual
async def test_closing_while_the_head_is_awaited_is_seen_at_once() -> None:
    """aclose() from another task ends the wait for the response, and the server sees the client leave."""
    async with served(hangs) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        reader = asyncio.create_task(anext(stream))
        call = await server.call()
        await stream.aclose()
        with lasts(0), pytest.raises(IncompleteStreamError):
            await reader
        await left_at_once(call)


async def read_by_loop(stream: ChatCompletionStream) -> list[Any]:
    return [chunk async for chunk in stream]


async def read_texts(stream: ChatCompletionStream) -> list[str]:
    return [text async for text in stream.text()]


async def read_completion(stream: ChatCompletionStream) -> Any:
    return await stream.completion()


@virtual
@pytest.mark.parametrize("how", [read_by_loop, read_texts, read_completion])
async def test_closing_while_the_stream_opens(how: Callable[[ChatCompletionStream], Awaitable[Any]]) -> None:
    """aclose() while the head is awaited: the response that comes later is closed, and nothing is delivered."""
    answer = asyncio.Event()

    async def script(call: Call) -> None:
        await answer.wait()
        await starts_and_hangs(call)

    async with served(script) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        task = asyncio.create_task(how(stream))  # type: ignore[arg-type]  # a coroutine
        call = await server.call()
        await stream.aclose()
        answer.set()
        with lasts(0), contextlib.suppress(TogetherError):
            assert not await task
        await left_at_once(call)
        assert not transport_of(client).responses


@virtual
async def test_a_loop_that_is_cancelled_while_it_skips_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between payloads that hold nothing for it, and while the error is kept, whose traceback holds the iterator."""
    monkeypatch.setattr(reading, "_SKIPS_PER_TURN", 1)

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta(role="assistant", reasoning="r")) * 1_000)
        await call.hang()

    async def reader(stream: ChatCompletionStream) -> None:
        async for _ in stream.text():
            pass

    async with served(script) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        task = asyncio.create_task(reader(stream))
        while not stream._reading._skipped:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as kept:
            await task
        assert any(entry.name == "skip" for entry in kept.traceback)
        assert not transport_of(client).responses
        await left_at_once(await server.call())
