"""`stream`: complete or an error, leaving, and time; on real sockets."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import contextlib
import gc
import json
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from support.servers import (
    DONE,
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    ScriptedServer,
    answers,
    chunked,
    delta,
    gone,
    hangs,
    heartbeat,
    left_at_once,
    say,
    sse,
    starts_and_hangs,
    streams,
    whole,
)
from support.virtual_time import lasts, virtual
from together_async import (
    APIConnectionError,
    APITimeoutError,
    AsyncTogether,
    ChatCompletionStream,
    IncompleteStreamError,
    Limits,
    StreamAPIError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    Timeouts,
    TogetherError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "Hi"


def client_of(server: ScriptedServer, **options: Any) -> AsyncTogether:
    return AsyncTogether(KEY, base_url=server.base_url, **options)


@contextlib.asynccontextmanager
async def served(*scripts: Script, **options: Any) -> AsyncIterator[tuple[ScriptedServer, AsyncTogether]]:
    async with ScriptedServer(*scripts) as server, client_of(server, **options) as client:
        yield server, client


async def read(client: AsyncTogether) -> tuple[list[str], TogetherError | None]:
    """Reads a stream chunk by chunk; returns what was delivered, and the error that ended it."""
    delivered: list[str] = []
    try:
        async for chunk in client.stream(PROMPT, model=MODEL):
            delivered += [choice.delta.content or "" for choice in chunk.choices if choice.delta and not choice.index]
    except TogetherError as error:
        return delivered, error
    return delivered, None


async def read_text(client: AsyncTogether) -> tuple[list[str], TogetherError | None]:
    """The same by `text()`."""
    delivered: list[str] = []
    try:
        async for text in client.stream(PROMPT, model=MODEL).text():
            delivered.append(text)  # noqa: PERF401
    except TogetherError as error:
        return delivered, error
    return delivered, None


def sends(body: bytes, *, media_type: str = "text/event-stream") -> Script:
    """A script that sends this body, chunked, and ends it."""

    async def script(call: Call) -> None:
        await call.head(media_type=media_type)
        if body:
            await call.chunk(body)
        await call.send(LAST_CHUNK)

    return script


def then_only(*pieces: bytes, every: float = 20.0) -> Script:
    """Sends the pieces, then the last one every so many seconds for ever."""

    async def script(call: Call) -> None:
        await call.head()
        for piece in pieces:
            await call.chunk(piece)
        while not call.left.is_set():
            await call.chunk(pieces[-1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(call.left.wait(), every)

    return script


async def ticks(call: Call) -> None:
    """A script that sends a token every 20 seconds for ever."""
    await then_only(sse(delta("t", role="assistant")))(call)


# --------------------------------------------------------------------------------------------------- complete or error

BODY = sse(delta("", role="assistant")) + sse(delta("Hé")) + sse(delta("llo")) + sse(delta(finish="stop")) + DONE
HEADS = {
    "chunked": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    "length": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(BODY),
    "close": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
}
BODIES = {"chunked": b"".join(map(chunked, BODY.splitlines(keepends=True))) + LAST_CHUNK, "length": BODY, "close": BODY}


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("framing", HEADS)
async def test_cut_at_every_byte(framing: str, reset: bool) -> None:  # noqa: C901
    """Wherever the connection breaks: all of it, or one error whose `.partial` is what was delivered."""
    wire = HEADS[framing] + BODIES[framing]
    finished_at = wire.index(b'"finish_reason": "stop"')

    async def script(call: Call) -> None:
        size = int(call.json["seed"])
        await call.send(wire[:size])
        if reset:
            await asyncio.sleep(0.001)  # else the RST overtakes what was sent, mostly
            call.reset()
        else:
            call.close()

    async def check(client: AsyncTogether, size: int, *, by_text: bool) -> None:
        stream = client.stream(PROMPT, model=MODEL, seed=size)
        delivered: list[str] = []
        try:
            if by_text:
                async for text in stream.text():
                    delivered.append(text)  # noqa: PERF401
            else:
                async for chunk in stream:
                    delivered += [choice.delta.content or "" for choice in chunk.choices if choice.delta]
        except StreamError as error:
            assert error.partial.text == "".join(delivered), size  # noqa: PT017
            assert "Héllo".startswith(error.partial.text), size  # noqa: PT017
            reasons = [choice.finish_reason for choice in error.partial.choices]
            assert reasons in ([], [None]), size
            assert size < finished_at + 60, f"{size} of {len(wire)} bytes had the finish reason"
            assert size >= len(HEADS[framing]) or "content-type" in stream.response_headers, size
        except APIConnectionError:
            assert not delivered, size
            assert size < len(HEADS[framing]) + 5 or reset, size
        else:
            assert "".join(delivered) == "Héllo", size
            assert size > finished_at, f"{size} bytes of {len(wire)} are no whole stream"
            completion = await stream.completion()
            assert completion.text == "Héllo"
            assert completion.choices[0].finish_reason == "stop"

    async with served(script) as (_, client):
        sizes = iter(range(len(wire) + 1))

        async def worker() -> None:
            for size in sizes:
                await check(client, size, by_text=bool(size % 2))

        await asyncio.gather(*(worker() for _ in range(20)))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pieces_of_any_size(size: int) -> None:
    """The pieces in which bytes arrive change nothing, even one by one in a chunk each."""

    async def script(call: Call) -> None:
        await call.head()
        for start in range(0, len(BODY), size):
            await call.chunk(BODY[start : start + size])
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client):
        for how in (read, read_text):
            delivered, error = await how(client)
            assert ("".join(delivered), error) == ("Héllo", None)


@pytest.mark.parametrize(
    ("body", "media_type", "error", "text"),
    [
        (b"<html><title>Bad gateway</title></html>", "text/html", StreamProtocolError, ""),
        (b"  <!doctype html>\n<p>Hello</p>", "text/event-stream", StreamProtocolError, ""),
        (b'{"error": {"message": "no", "code": 500}}', "application/json", StreamAPIError, ""),
        (b'{"error": "no"}', "application/json", StreamAPIError, ""),
        (b'{"detail": "no"}', "application/json", StreamAPIError, ""),
        (b'{\n  "error": {\n    "message": "no"\n  }\n}', "text/event-stream", StreamAPIError, ""),
        (b"", "text/event-stream", IncompleteStreamError, ""),
        (b"", "application/json", TogetherError, ""),
        (b"upstream connect error", "text/plain", TogetherError, ""),
        (b"[]", "application/json", TogetherError, ""),
        (b"null", "application/json", TogetherError, ""),
        (b'"text"', "application/json", TogetherError, ""),
        (b"{}", "application/json", TogetherError, ""),
        (json.dumps(whole()).encode()[:-3], "application/json", StreamProtocolError, ""),
        (b"\n\n: only comments\n\n", "text/event-stream", IncompleteStreamError, ""),
        (DONE, "text/event-stream", None, ""),
        (sse(delta("a")) + b"data: {broken\n\n" + DONE, "text/event-stream", StreamProtocolError, "a"),
        (sse(delta("a")) + b'data: "text"\n\n' + DONE, "text/event-stream", StreamProtocolError, "a"),
        (sse(delta("a")) + b"data: \xff\xfe\n\n" + DONE, "text/event-stream", StreamProtocolError, "a"),
        (
            sse(delta("a")) + b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n' + DONE,
            "text/event-stream",
            StreamProtocolError,
            "a",
        ),
        (sse(delta("a")) + sse({"choices": "none"}) + DONE, "text/event-stream", StreamProtocolError, "a"),
        (
            sse(delta("a")) + sse({"choices": [{"delta": {"content": 7}}]}) + DONE,
            "text/event-stream",
            StreamProtocolError,
            "a",
        ),
        (sse(delta("a")) + b"data: " + b"[" * 100_000 + b"\n\n" + DONE, "text/event-stream", StreamProtocolError, "a"),
        (sse(delta("a")), "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a", finish="")), "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a")) + b"data: [DONE]", "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a")) + sse(delta(finish="stop")), "text/event-stream", None, "a"),
        (sse(delta("a")) + sse(delta("b", index=1, finish="stop")), "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a")) + DONE, "text/event-stream", None, "a"),
        (sse(delta("a")) + b"data:[DONE]\n\n", "text/event-stream", None, "a"),
        (say("a") + sse(delta("never")) + b"data: {broken\n\n", "text/event-stream", None, "a"),
        (say("a").replace(b"\n", b"\r\n"), "text/event-stream", None, "a"),
        (say("a").replace(b"\n", b"\r"), "text/event-stream", None, "a"),
        (b"\xef\xbb\xbf" + say("a"), "text/event-stream", None, "a"),
        (say("a"), "application/octet-stream", None, "a"),
        (say("a"), "text/plain", None, "a"),
        (json.dumps(whole("a")).encode(), "application/json", None, "a"),
        (json.dumps(whole("a"), indent=2).encode(), "application/json", None, "a"),
        (b"data: " + json.dumps(whole("a")).encode() + b"\n\n" + DONE, "text/event-stream", None, "a"),
    ],
)
async def test_what_a_200_may_be(body: bytes, media_type: str, error: type[TogetherError] | None, text: str) -> None:
    """Each thing that comes with status 200 has one right answer, the same by chunks and by text."""
    async with served(sends(body, media_type=media_type)) as (_, client):
        for how in (read, read_text):
            delivered, caught = await how(client)
            assert "".join(delivered) == text
            if error is None:
                assert caught is None
            else:
                assert isinstance(caught, error)
                if isinstance(caught, StreamError):
                    assert caught.partial.text == text
                    assert all(not choice.finish_reason for choice in caught.partial.choices if choice.index == 0)


@pytest.mark.parametrize("status", [204, 205])
async def test_no_content_is_an_error(status: int) -> None:
    """A success without a body is no stream."""
    head = b"HTTP/1.1 %d No Content\r\n%s\r\n" % (status, b"content-length: 0\r\n" if status == 205 else b"")
    async with served(answers(head)) as (_, client):
        delivered, error = await read(client)
        assert not delivered
        assert isinstance(error, StreamProtocolError)


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (sse({"error": {"message": "overloaded", "code": 503}}), 503),
        (sse({"error": {"message": "overloaded", "type": "x", "code": "503"}}), 503),
        (sse({"error": "overloaded"}), None),
        (sse({"object": "error", "message": "overloaded", "code": 503}), 503),
        (sse({"detail": "overloaded"}), None),
        (sse({**delta("never"), "error": {"message": "overloaded"}}), None),
        (b"event: error\n" + sse({"message": "overloaded"}), None),
        (b"event: error\ndata: overloaded\n\n", None),
        (b"event: error\n" + sse({"error": {"message": "overloaded", "status": 503}}), 503),
    ],
)
async def test_an_error_in_the_stream(event: bytes, status: int | None) -> None:
    """Each shape of an error object ends the stream with the server's words, also when [DONE] follows."""
    for after in (b"", DONE, sse(delta("never")) + DONE):
        async with served(sends(sse(delta("a")) + event + after)) as (_, client):
            for how in (read, read_text):
                delivered, error = await how(client)
                assert delivered == ["a"]
                assert isinstance(error, StreamAPIError)
                assert "overloaded" in str(error)
                assert error.status_code == status
                assert error.partial.text == "a"


async def test_an_error_in_the_stream_does_not_repeat_key_or_prompt() -> None:
    """What a server echoes inside the stream is redacted, as in any error's text."""
    prompt = "the secret plans of the company"
    event = sse({"error": {"message": f"bad key {KEY} for {prompt!r}"}})
    async with served(sends(sse(delta("a")) + event)) as (_, client):
        with pytest.raises(StreamAPIError) as caught:
            await client.stream(prompt, model=MODEL).completion()
        assert KEY not in str(caught.value)
        assert prompt not in str(caught.value)


async def test_the_error_is_raised_again_by_every_later_read() -> None:
    """A broken stream stays broken: no later loop ends as if all were well."""
    async with served(sends(sse(delta("a")))) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        with pytest.raises(IncompleteStreamError) as first:
            async for _ in stream:
                pass
        for again in (anext(stream), stream.completion(), anext(stream.text())):
            with pytest.raises(IncompleteStreamError) as caught:
                await again
            assert caught.value is first.value


async def test_two_choices() -> None:
    """n = 2 with index 1 first; text() tells them apart, and both have to be finished."""
    body = sse(delta("x", index=1)) + sse(delta("a", index=0)) + sse(delta("y", index=1, finish="stop"))
    async with served(sends(body), sends(body + sse(delta("b", index=0, finish="length")))) as (_, client):
        with pytest.raises(IncompleteStreamError) as caught:
            await client.stream(PROMPT, model=MODEL, n=2).completion()
        assert [choice.finish_reason for choice in caught.value.partial.choices] == [None, "stop"]
        async with client.stream(PROMPT, model=MODEL, n=2) as stream:
            assert "".join([text async for text in stream.text(choice=1)]) == "xy"
            completion = await stream.completion()
        assert [choice.message.content for choice in completion.choices if choice.message] == ["ab", "xy"]


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


# -------------------------------------------------------------------------------------------------------------- leaving


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
@pytest.mark.parametrize("script", [starts_and_hangs, ticks])
async def test_leaving_closes_the_connection(
    leave: Callable[[ChatCompletionStream], Awaitable[None]], script: Script
) -> None:
    """However a stream is left, though its variable lives: the server sees it, and the connection is not reused."""
    async with served(script, streams("b")) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        await leave(stream)
        await left_at_once(await server.call())
        assert "".join([text async for text in client.stream(PROMPT, model=MODEL).text()]) == "b"
        assert len(server.connections) == 2
        assert not client._connections.current.responses  # type: ignore[union-attr]
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
    async with served(ticks) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        chunks = aiter(stream)
        await anext(chunks)
        await anext(chunks)
        call = await server.call()
        assert not call.left.is_set()
        del chunks
        await left_at_once(call)


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
        rest = [text async for text in stream.text()]
        assert (first, chunk.choices[0].delta.content, rest) == (["a", "b"], "c", ["d", "e", "f"])
        assert (await stream.completion()).text == "abcdef"


@virtual
async def test_waiting_with_a_timeout_in_a_block_loses_nothing() -> None:
    """wait_for(anext(stream)) may give up as often as it likes: every chunk comes, once."""

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
                    got.append(chunk.choices[0].delta.content)  # type: ignore[union-attr]
        assert ("".join(got), gave_up) == ("abcdefgh", 16)


async def cancelled_when(client: AsyncTogether, reached: Awaitable[Any]) -> None:
    """Cancels a reading task once something is reached."""

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
        assert not client._connections.current.responses  # type: ignore[union-attr]
        assert not client._connections.current.openings  # type: ignore[union-attr]


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
    """Cancellation at any turn of the loop ends in CancelledError or in the whole answer, never between."""

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
        assert all(not exchange._waiting for exchange in client._connections.current.responses)  # type: ignore[union-attr]


@virtual
async def test_a_loop_after_a_cancelled_opening_is_not_taken_for_a_finished_one() -> None:
    """Giving up while a stream opens loses it; a loop over it says so instead of ending without a word."""
    async with served(hangs) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 5)
        with pytest.raises(TogetherError):
            async for _ in stream:
                pass


async def test_completion_after_leaving_is_an_error() -> None:
    """What was left by its reader is not a completion."""
    async with served(starts_and_hangs) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        async for _ in stream:
            break
        with pytest.raises(IncompleteStreamError) as caught:
            await stream.completion()
        assert caught.value.partial.text == "a"


@virtual
async def test_closing_from_another_task_wakes_the_reader() -> None:
    """aclose() while somebody waits: the waiting ends at once, with an error of ours."""
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
    """Without `async with`, a wait_for that gives up ends the stream; a later read says so instead of stopping."""
    async with served(starts_and_hangs) as (_, client):
        texts = client.stream(PROMPT, model=MODEL).text()
        await anext(texts)
        await anext(texts)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(texts), 5)
        with pytest.raises(IncompleteStreamError):
            await anext(texts)


async def test_fewer_choices_than_asked_for_are_not_complete() -> None:
    """n=2, and the body ends after the first choice's finish reason without `[DONE]`."""
    async with served(sends(sse(delta("a", finish="stop")))) as (_, client):
        with pytest.raises(IncompleteStreamError):
            await client.stream(PROMPT, model=MODEL, n=2).completion()
        assert (await client.stream(PROMPT, model=MODEL).completion()).text == "a"


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


@pytest.mark.parametrize("value", [b'"\xff"', b"1e999"])
async def test_what_cannot_be_read_in_a_value_nobody_reads(value: bytes) -> None:
    """Broken text or a huge number under a key that is not ours breaks nothing, `to_dict` included."""
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"x":' + value + b"}\n\n"
    async with served(sends(first + sse(delta("b", finish="stop")) + DONE)) as (_, client):
        chunks = [chunk async for chunk in client.stream(PROMPT, model=MODEL)]
        assert [chunk.to_dict()["choices"][0]["delta"]["content"] for chunk in chunks] == ["a", "b"]
        assert [text async for text in client.stream(PROMPT, model=MODEL).text()] == ["a", "b"]


@virtual
async def test_tokens_under_a_key_that_is_not_known_are_no_silence() -> None:
    """A server's new kind of delta keeps the stream alive, although nothing of it is added up."""

    async def thinks(call: Call) -> None:
        await call.head()
        for _ in range(6):
            await call.chunk(sse(delta(thinking="hm")))
            await asyncio.sleep(50)
        await call.chunk(sse(delta("a", finish="stop")) + DONE)
        await call.send(LAST_CHUNK)

    async with served(thinks) as (_, client):
        limits = Timeouts(idle=60, first_token=60)
        assert (await client.stream(PROMPT, model=MODEL, timeouts=limits).completion()).text == "a"


async def test_two_readers_share_a_stream() -> None:
    """Two tasks over one stream: every chunk goes to one of them, or the second is told; the first is not hurt."""

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


async def read_by_loop(stream: ChatCompletionStream) -> list[Any]:
    return [chunk async for chunk in stream]


async def read_texts(stream: ChatCompletionStream) -> list[str]:
    return [text async for text in stream.text()]


async def read_completion(stream: ChatCompletionStream) -> Any:
    return await stream.completion()


async def test_two_readers_open_a_stream_once() -> None:
    """Two tasks that take the first chunk together send one request."""
    async with served(streams("a", "b")) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        await asyncio.gather(anext(stream), anext(stream), return_exceptions=True)
        await stream.aclose()
        assert len(server.calls) == 1
        assert not client._connections.current.responses  # type: ignore[union-attr]


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
        assert not client._connections.current.responses  # type: ignore[union-attr]


async def test_a_stream_cannot_be_pickled() -> None:
    """A stream is a connection; pickle refuses."""
    async with served(hangs) as (_, client):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(client.stream(PROMPT, model=MODEL))


# ----------------------------------------------------------------------------------------------------------------- time


@virtual
@pytest.mark.parametrize(
    "script",
    [
        hangs,
        then_only(b": ping\n\n"),
        then_only(sse(delta("", role="assistant"))),
        then_only(sse({"type": "ping"})),
        then_only(b"event: ping\ndata: {}\n\n"),
        then_only(b" "),
        then_only(b"data: {", b"x"),
        then_only(sse({**delta(), "choices": []})),
    ],
    ids=["silence", "comments", "role only", "json pings", "named pings", "blanks", "dripping", "no choices"],
)
async def test_the_first_token_is_late(script: Script) -> None:
    """first_token counts from the call to the first content; nothing else stops its clock."""
    async with served(script, timeouts=Timeouts(first_token=150, idle=5_000)) as (server, client):
        with lasts(150), pytest.raises(APITimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.seconds) == ("first_token", 150)
        assert isinstance(caught.value, TimeoutError)
        await left_at_once(await server.call())


async def read_all(client: AsyncTogether, **options: Any) -> list[Any]:
    return [chunk async for chunk in client.stream(PROMPT, model=MODEL, **options)]


@virtual
async def test_the_head_does_not_start_the_first_token_anew() -> None:
    """A head that comes late leaves only the rest of first_token for the token."""

    async def script(call: Call) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.left.wait(), 150)
        await call.head()
        await call.hang()

    async with served(script, timeouts=Timeouts(first_token=200)) as (_, client):
        with lasts(200), pytest.raises(APITimeoutError) as caught:
            await read_all(client)
        assert caught.value.phase == "first_token"


@virtual
@pytest.mark.parametrize("first_token", [50, 5_000, None])
@pytest.mark.parametrize("total", [5_000, None])
@pytest.mark.parametrize(
    "after",
    [
        None,
        b": ping\n\n",
        sse({"type": "ping"}),
        sse(delta("")),
        sse({**delta(), "choices": []}),
        b"x",
        sse({**delta(), "choices": [], "usage": {"total_tokens": 1}}),
    ],
    ids=["silence", "comments", "json pings", "empty content", "no choices", "dripping", "usage"],
)
async def test_silence_after_a_token(after: bytes | None, first_token: float | None, total: float | None) -> None:
    """idle is silence between contents, whatever the other limits are and whatever else arrives."""
    token = sse(delta("a", role="assistant"))
    script = starts_and_hangs if after is None else then_only(token, b"data: " if after == b"x" else after, after)
    async with served(script, timeouts=Timeouts(first_token=first_token, idle=130, total=total)) as (server, client):
        with lasts(130), pytest.raises(StreamTimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.seconds) == ("idle", 130)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.partial.text.startswith("a")
        await left_at_once(await server.call())


@virtual
@pytest.mark.parametrize("total", [None, 5_000])
@pytest.mark.parametrize("first", [sse(delta("a")), sse(delta("", role="assistant"))], ids=["token", "role"])
async def test_a_slow_consumer_is_not_silence(first: bytes, total: float | None) -> None:
    """The time the consumer takes does not count, before or after the first token, once or often."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(first)
        for letter in "bcd":
            await asked.wait()
            asked.clear()
            await call.chunk(sse(delta(letter)))
        await asked.wait()
        await call.chunk(DONE)
        await call.send(LAST_CHUNK)

    asked = asyncio.Event()
    timeouts = Timeouts(first_token=300, idle=300, total=total)
    async with served(script, timeouts=timeouts) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
        async for _ in stream:
            await asyncio.sleep(200)
            asyncio.get_running_loop().call_later(150, asked.set)
        assert (await stream.completion()).text.endswith("bcd")


@virtual
async def test_idle_is_noticed_after_a_slow_consumer() -> None:
    """A consumer that was away for longer than idle does not switch idle off."""
    async with served(starts_and_hangs, timeouts=Timeouts(first_token=100, idle=100, total=5_000)) as (_, client):
        async with client.stream(PROMPT, model=MODEL) as stream:
            await anext(stream)
            await anext(stream)
            await asyncio.sleep(250)
            with lasts(100), pytest.raises(StreamTimeoutError):
                await anext(stream)


@virtual
async def test_total_ends_a_busy_stream() -> None:
    """total is over everything, however busy the stream is."""
    async with served(ticks, timeouts=Timeouts(total=150)) as (server, client):
        with lasts(150), pytest.raises(StreamTimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.seconds) == ("total", 150)
        assert caught.value.partial.text == "t" * 9
        await left_at_once(await server.call())


@virtual
@pytest.mark.parametrize("reads", [0, 1])
async def test_total_runs_while_nobody_reads(reads: int) -> None:
    """A stream that nobody reads is closed when its time is over, and says why when it is read."""
    async with served(ticks, timeouts=Timeouts(total=150)) as (server, client):
        with lasts(150):
            async with client.stream(PROMPT, model=MODEL) as stream:
                for _ in range(reads):
                    await anext(stream)
                await gone(await server.call(), 1_000)
                with pytest.raises(TogetherError) as caught:
                    await stream.completion()
                assert getattr(caught.value, "phase", None) == "total"


@virtual
@pytest.mark.parametrize("script", [hangs, starts_and_hangs], ids=["before the head", "in the body"])
async def test_a_call_may_bring_its_own_limits(script: Script) -> None:
    """timeouts= of a call replaces the client's, and None switches off."""
    async with served(script, timeouts=Timeouts(first_token=10, idle=10)) as (_, client):
        with lasts(100), pytest.raises(TogetherError) as caught:
            await read_all(client, timeouts=Timeouts(first_token=None, idle=None, total=100))
        assert getattr(caught.value, "phase", None) == "total"


@virtual
async def test_none_switches_everything_off() -> None:
    """Without limits a silent stream is waited for."""
    off = Timeouts(connect=None, first_token=None, idle=None, total=None)
    async with served(starts_and_hangs, timeouts=off) as (_, client):
        with lasts(9_000), pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(read_all(client), 9_000)
        assert not isinstance(caught.value, TogetherError)


@virtual
async def test_a_finished_stream_that_stays_open_is_complete() -> None:
    """Finish reasons, no [DONE], no end of the body: after idle it counts as complete."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a")) + sse(delta(finish="stop")))
        await call.hang()

    async with served(script, timeouts=Timeouts(idle=100)) as (_, client):
        with lasts(100):
            assert (await client.stream(PROMPT, model=MODEL).completion()).text == "a"


async def test_a_loop_over_a_blast_lets_others_run() -> None:
    """A server that sends as fast as it can does not keep the rest of the program waiting."""

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
    """Nobody reads, so the server can't send for ever: what waits is bounded."""
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


def test_no_task_is_made_for_a_stream() -> None:
    """Reading a stream makes no task of ours."""

    async def main() -> None:
        async with served(starts_and_hangs) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
            before = asyncio.all_tasks()
            await anext(stream)
            await anext(stream)
            assert asyncio.all_tasks() <= before

    asyncio.run(main())
