"""`stream.raw()`: the bytes unchanged, and yet complete or an error."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import gzip
import json
from typing import Any

import pytest

from support.clients import bodies_ended, served
from support.event_bytes import cut, is_whole
from support.scripts import sends
from support.servers import (
    DONE,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    answers,
    chunked,
    delta,
    gone,
    response,
    say,
    sse,
    starts_and_hangs,
    ticks,
    whole,
)
from support.virtual_time import run
from together_async import (
    APITimeoutError,
    AsyncTogether,
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

pytestmark = pytest.mark.usefixtures("no_leaks")

ROLE = sse(delta("", role="assistant"))
FIRST = sse(delta("a", role="assistant"))
WORDS = [sse(delta(f" word{i}")) for i in range(40)]
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
FINISH = sse({**delta(finish="stop"), "usage": USAGE})
STREAM = ROLE + FIRST + b"".join(WORDS) + FINISH + DONE
sends_apart = functools.partial(sends, apart_s=0.002)
"""Most pieces arrive alone; none of the tests depends on it."""
ERROR = {"error": {"message": "overloaded", "code": 503}}


class Outcome:
    """What a stream came to, read as bytes."""

    def __init__(self, stream: ChatCompletionStream) -> None:
        self.stream = stream
        self.pieces: list[bytes] = []
        self.error: TogetherError | None = None

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def usage(self) -> dict[str, Any] | None:
        usage = self.stream.so_far().usage
        return None if usage is None else usage.to_dict()

    async def read(self) -> Outcome:
        try:
            async with asyncio.timeout(5):
                async for data in self.stream.raw():
                    self.pieces.append(data)
        except TogetherError as error:
            self.error = error
        assert self.stream.complete is (self.error is None)
        return self


async def outcome(*scripts: Script, request: dict[str, Any] | None = None, **options: Any) -> Outcome:
    async with served(*scripts, **options) as (_, client):
        return await Outcome(client.stream("Hi", model=MODEL, **(request or {}))).read()


async def chunks_of(*scripts: Script, **options: Any) -> tuple[int, TogetherError | None]:
    """How many chunks the same response has when it is read as chunks, and how it ends."""
    count = 0
    async with served(*scripts, **options) as (_, client):
        try:
            async with asyncio.timeout(5):
                async for _ in client.stream("Hi", model=MODEL):
                    count += 1
        except TogetherError as error:
            return count, error
    return count, None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
async def test_a_complete_stream_is_passed_on_byte_for_byte(end: bytes, size: int) -> None:
    """With its usage and its completeness known."""
    body = (b": hello\n\n" + ROLE + FIRST + b"id: 1\nevent: message\n" + WORDS[0] + FINISH + DONE).replace(b"\n", end)

    async def script(call: Call) -> None:
        await call.head()
        for i in range(0, len(body), size):
            await call.chunk(body[i : i + size])
        await call.send(LAST_CHUNK)

    got = await outcome(script)
    assert got.error is None
    assert got.data in (body, body.removesuffix(b"\n"))
    assert all(is_whole(b"".join(got.pieces[: i + 1])) for i in range(len(got.pieces)))
    assert got.usage == USAGE
    assert got.stream.so_far().choices[0].finish_reason == "stop"


BODY = ROLE + FIRST + WORDS[0] + FINISH + DONE
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
WIRES = {
    "chunked": HEAD
    + b"transfer-encoding: chunked\r\n\r\n"
    + b"".join(map(chunked, BODY.splitlines(keepends=True)))
    + LAST_CHUNK,
    "length": HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    "close": HEAD + b"connection: close\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("framing", WIRES)
async def test_cut_at_every_byte(framing: str) -> None:
    """Wherever the connection breaks: complete or the same error as read by chunks, and never a torn event."""
    wire = WIRES[framing]

    async def script(call: Call) -> None:
        await call.send(wire[: int(call.json["seed"])])
        call.close()

    async def check(client: AsyncTogether, size: int) -> None:
        got = await Outcome(client.stream("Hi", model=MODEL, seed=size)).read()
        error: TogetherError | None = None
        count = 0
        try:
            async for _ in client.stream("Hi", model=MODEL, seed=size):
                count += 1
        except TogetherError as failure:
            error = failure
        assert type(got.error) is type(error), size
        assert BODY.startswith(got.data), size
        if error is None:  # a `[DONE]` is passed on without its empty line too
            assert got.data in (BODY.removesuffix(DONE), BODY[:-2], BODY[:-1], BODY), size
            assert got.usage == USAGE, size
            return
        assert is_whole(got.data), size
        if count > 1:  # the first has no token, and nothing is passed on before the first token
            assert got.data.count(b"\n\n") == count, size
        else:
            assert got.data == b"", size

    async with served(script) as (_, client):
        for start in range(len(HEAD), len(wire), 64):
            await asyncio.gather(*(check(client, size) for size in range(start, min(start + 64, len(wire)))))


# ----------------------------------------------------------------------------------------------- how it ends, otherwise


@pytest.mark.parametrize("end", ["end", "close", "reset"])
async def test_without_done(end: str) -> None:
    """`transformers serve` never sends it: with every finish reason there, it is complete, however the body ends."""
    got = await outcome(sends_apart(FIRST, *WORDS[:3], FINISH, end=end))
    assert got.error is None
    assert got.data == FIRST + b"".join(WORDS[:3]) + FINISH
    assert got.usage == USAGE


@pytest.mark.parametrize(("end", "error"), [("end", IncompleteStreamError), ("reset", StreamConnectionError)])
async def test_without_a_finish_reason(end: str, error: type[StreamError]) -> None:
    """Cut off; the whole events that had come were passed on, and the torn one was not."""
    got = await outcome(sends_apart(FIRST, *WORDS[:3], WORDS[3][:20], end=end))
    assert type(got.error) is error
    assert got.data == FIRST + b"".join(WORDS[:3])


def framed(body: bytes, framing: str) -> Script:
    """A script that sends a body in two pieces, with an end that the framing makes."""

    async def script(call: Call) -> None:
        await call.head(framing=str(len(body)) if framing == "length" else framing)
        for piece in (body[: len(FIRST)], body[len(FIRST) :]):
            await (call.chunk(piece) if framing == "chunked" else call.send(piece))
        if framing == "chunked":
            await call.send(LAST_CHUNK)
        else:
            call.close()

    return script


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("finish", [FINISH, b""], ids=["with a reason", "without"])
@pytest.mark.parametrize(
    "done",
    [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]", b"data: [DONE]\r", b"data: [DONE]\r\n"],
    ids=["bare", "LF", "tight", "CR", "CRLF"],
)
async def test_done_without_an_empty_line_is_passed_on(done: bytes, finish: bytes, framing: str) -> None:
    """The body ends with it, without an empty line: it is passed on, since clients wait for it."""
    body = FIRST + WORDS[0] + finish + done
    script = framed(body, framing)
    got = await outcome(script)
    _, by_chunks = await chunks_of(script)
    assert type(got.error) is type(by_chunks)
    assert got.data == (body if got.error is None else FIRST + WORDS[0])
    assert got.error is None or not finish


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("torn", [b"data: [DONE", b"data: [DO", b"data", sse(delta("x"))[:-2], b": [DONE]"])
async def test_what_is_torn_at_the_end_is_not_passed_on(torn: bytes, framing: str) -> None:
    """With a finish reason the stream is complete all the same; nobody gets half of an event."""
    got = await outcome(framed(FIRST + WORDS[0] + FINISH + torn, framing))
    assert got.error is None
    assert got.data == FIRST + WORDS[0] + FINISH
    assert got.usage == USAGE


@pytest.mark.parametrize("done", [DONE[:5], DONE[:9], DONE[:-1]])
async def test_done_in_two_reads(done: bytes) -> None:
    """It is the end all the same."""
    got = await outcome(sends_apart(FIRST, *WORDS[:3], done, DONE[len(done) :], end="hang"))
    assert got.error is None
    assert got.data == FIRST + b"".join(WORDS[:3]) + DONE


@pytest.mark.parametrize("after", [b"", b": " + b"x" * 200 + b"\n\n", b": bye\n\n" * 30, WORDS[0] * 5])
async def test_done_is_the_end_of_a_body_that_stays_open(after: bytes) -> None:
    """Whatever stands behind it in the same read."""
    got = await outcome(sends_apart(FIRST, WORDS[0], FINISH + DONE + after, end="hang"), timeouts=Timeouts(idle=0.5))
    assert got.error is None
    assert got.data.startswith(FIRST + WORDS[0] + FINISH + DONE)


async def test_the_usage_may_come_after_the_finish_reason() -> None:
    """In a chunk of its own, far from the first events."""
    usage = sse({**delta(), "choices": [], "usage": USAGE})
    got = await outcome(sends_apart(FIRST, b"".join(WORDS), sse(delta(finish="stop")), usage, DONE))
    assert got.error is None
    assert got.usage == USAGE


NOT_AT_THE_START = {"first": b"", "role": ROLE, "middle": FIRST + WORDS[0], "last": FIRST + b"".join(WORDS) + FINISH}
ERRORS = {
    "object": sse(ERROR),
    "named": b"event: error\n" + sse(ERROR),
    "named, no key": b'event: error\ndata: {"message": "overloaded"}\n\n',
    "named, text": b"event: error\ndata: overloaded\n\n",
}


@pytest.mark.parametrize("end", ["end", "hang"])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("place", NOT_AT_THE_START)
async def test_an_error_in_the_stream(place: str, kind: str, end: str) -> None:
    """Its own event and all before it are passed on, then it is raised; before the first token nothing is passed on."""
    before = NOT_AT_THE_START[place]
    got = await outcome(sends_apart(*([before] if before else []), ERRORS[kind], end=end), timeouts=Timeouts(idle=2))
    assert isinstance(got.error, StreamAPIError)
    assert "overloaded" in str(got.error)
    assert got.data == (b"" if place in ("first", "role") else before + ERRORS[kind])


@pytest.mark.parametrize("begin", [b"", ROLE, ROLE[:20], b": ping\n\n"])
async def test_what_breaks_before_a_token_is_asked_again(begin: bytes) -> None:
    """Nothing of the first response is in the bytes of the second."""
    retry = Retry(attempts=2, budget=1.0, base_delay=0.0)
    breaks = sends_apart(*([begin] if begin else []), end="close")
    for first in (breaks, sends_apart(begin + sse(ERROR)) if begin.endswith(b"\n\n") else breaks):
        async with served(first, sends_apart(STREAM), retry=retry) as (server, client):
            got = await Outcome(client.stream("Hi", model=MODEL)).read()
            assert (got.error, len(server.calls), got.stream.attempts) == (None, 2, 2)
            assert got.data == STREAM
            assert got.usage == USAGE


async def test_what_breaks_after_a_token_is_not_asked_again() -> None:
    """It has been passed on."""
    retry = Retry(attempts=2, budget=1.0, base_delay=0.0)
    async with served(sends_apart(FIRST, end="close"), sends_apart(STREAM), retry=retry) as (server, client):
        got = await Outcome(client.stream("Hi", model=MODEL)).read()
        assert isinstance(got.error, StreamConnectionError)
        assert (got.data, len(server.calls)) == (FIRST, 1)


async def test_several_choices_that_end_at_different_times() -> None:
    """Every event is looked at then: an early finish reason, long before the end, is known there."""
    early = sse(delta(finish="length", index=1))
    body = [FIRST, sse(delta("x", index=1)), early, *WORDS * 10, sse(delta(finish="stop"))]
    got = await outcome(sends_apart(*body[:3], b"".join(body[3:])), request={"n": 2})
    assert got.error is None
    assert got.data == b"".join(body)
    assert [choice.finish_reason for choice in got.stream.so_far().choices] == ["stop", "length"]


# ---------------------------------------------------------------------------------------------------- what is no stream


@pytest.mark.parametrize("before", [b"", b"\n", b"\n\n", b"\n\n\n\n \r\n"])
async def test_a_whole_completion_becomes_a_stream(before: bytes) -> None:
    """A JSON body, also after the blanks by which gateways keep a connection alive, is passed on as events."""
    pieces = [*([before] if before else []), json.dumps(whole("Hello")).encode()]
    got = await outcome(sends_apart(*pieces, media_type="application/json"))
    assert got.error is None
    first, done, after = got.data.split(b"\n\n")
    chunk = json.loads(first.removeprefix(b"data: "))
    assert (done, after) == (b"data: [DONE]", b"")
    assert chunk["choices"][0]["delta"]["content"] == "Hello"
    assert chunk["choices"][0]["finish_reason"] == "stop"
    assert got.usage == USAGE


@pytest.mark.parametrize(
    ("body", "media_type", "error"),
    [
        (json.dumps(ERROR).encode(), "application/json", StreamAPIError),
        (b"<html>no</html>", "text/html", StreamProtocolError),
        (b"<html>no</html>", "text/event-stream", StreamProtocolError),
        (b'{"choices": [', "application/json", StreamProtocolError),
        (b"just text", "text/plain", StreamProtocolError),
        (b"", "text/event-stream", IncompleteStreamError),
        (b": ping\n\n", "text/event-stream", IncompleteStreamError),
    ],
)
async def test_what_is_not_a_stream_is_an_error(body: bytes, media_type: str, error: type[TogetherError]) -> None:
    """The same as read by chunks, and no byte is passed on."""
    script = answers(response(body, media_type=media_type))
    got = await outcome(script)
    assert type(got.error) is error
    assert got.data == b""
    _, by_chunks = await chunks_of(script)
    assert type(by_chunks) is error


async def test_compressed_bytes_are_passed_on_as_what_was_compressed() -> None:
    """A client of a relay has not asked the service for gzip."""
    got = await outcome(sends_apart(gzip.compress(STREAM), extra=b"content-encoding: gzip\r\n"))
    assert got.error is None
    assert got.data == STREAM


async def test_an_event_above_the_cap_ends_the_stream() -> None:
    """What came before it was passed on."""
    huge = b"data: " + b"x" * 3000 + b"\n\n"
    for pieces in ((FIRST, huge[:2500], huge[2500:]), (FIRST, WORDS[0], huge[:2500])):
        got = await outcome(sends_apart(*pieces), max_event_size=2000)
        assert isinstance(got.error, StreamProtocolError)
        assert got.data == b"".join(pieces[:-2]) or got.data == FIRST + WORDS[0]


# ----------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("ping", [b": ping\n\n", b'data: {"type": "ping"}\n\n'], ids=["comment", "json"])
@pytest.mark.parametrize("begun", [False, True], ids=["first token", "idle"])
def test_pings_are_not_tokens(begun: bool, ping: bytes) -> None:
    """They are passed on, and do not put off the timeouts."""

    async def script(call: Call) -> None:
        await call.head()
        if begun:
            await call.chunk(FIRST)
        while not call.left.is_set():
            await call.chunk(ping)
            await asyncio.sleep(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(script, timeouts=Timeouts(first_token=10, idle=10)) as (server, client):
            got = Outcome(client.stream("Hi", model=MODEL))
            began = loop.time()
            with contextlib.suppress(TogetherError):
                async for data in got.stream.raw():
                    got.pieces.append(data)
            assert 9 <= loop.time() - began <= 13
            with pytest.raises(StreamTimeoutError if begun else APITimeoutError):
                await anext(got.stream.raw())
            assert (got.data.count(ping) > 5) is begun
            await gone(server.calls[0], within=1)

    run(main())


# -------------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("way", ["break", "aclose", "leave", "drop", "block"])
async def test_leaving_closes_the_connection(way: str) -> None:
    """At once."""
    async with served(ticks) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        if way == "break":
            async for _ in stream.raw():
                break
        elif way == "block":
            async with stream:
                await anext(stream.raw())
        else:
            reader = stream.raw()
            await anext(reader)
            if way == "drop":
                del reader
                gc.collect()
            elif way == "aclose":
                await stream.aclose()
            else:
                stream.leave()
        await gone(server.calls[0], within=1)


async def test_a_cancelled_read_loses_no_byte() -> None:
    """In a block a read may be given up and repeated, also in the middle of an event."""
    pieces = cut(STREAM, range(0, len(STREAM), 97))
    async with served(sends_apart(*pieces)) as (_, client), client.stream("Hi", model=MODEL) as stream:
        data, timeouts = b"", 0
        while not data.endswith(DONE):
            try:
                async with asyncio.timeout(0.001):
                    data += await anext(stream.raw())
            except TimeoutError:
                timeouts += 1
        assert data == STREAM
        assert timeouts


async def test_two_readers_are_refused() -> None:
    """The second gets an error; the first gets the bytes."""
    async with served(starts_and_hangs) as (server, client), client.stream("Hi", model=MODEL) as stream:
        data = b""
        while data.count(b"\n\n") < 2:
            data += await anext(stream.raw())
        first = asyncio.ensure_future(anext(stream.raw()))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks read one stream"):
            await anext(stream.raw())
        await server.calls[0].chunk(WORDS[0])
        assert await first == WORDS[0]


async def test_bytes_that_were_read_as_chunks_are_gone() -> None:
    """Reading in another way is an error once something was read, and possible before that."""
    async with served(sends_apart(STREAM)) as (_, client):
        async with client.stream("Hi", model=MODEL) as stream:
            await anext(stream)
            with pytest.raises(RuntimeError, match="something of this stream has been read already"):
                stream.raw()
        async with client.stream("Hi", model=MODEL) as stream:
            assert b"".join([data async for data in stream.raw()]) == STREAM
            assert [data async for data in stream.raw()] == []


async def test_the_number_of_events_is_known() -> None:
    """Approximately: events that came one by one are counted exactly, those that came together by their size."""
    for pieces in ([ROLE, FIRST, *WORDS, FINISH, DONE], [STREAM]):
        got = await outcome(sends_apart(*pieces))
        assert abs(got.stream.stats.chunks - len(WORDS) - 1) <= 3
        assert got.stream.stats.total_tokens == 3


async def test_the_connection_is_used_again() -> None:
    """The body is read to its end, as of every stream."""
    async with served(sends_apart(say("a", "b"))) as (server, client):
        for _ in range(3):
            got = await Outcome(client.stream("Hi", model=MODEL)).read()
            assert got.error is None
            await bodies_ended(client)
        assert len(server.connections) == 1
