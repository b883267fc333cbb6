"""`client`: whole responses and their errors, limits, closing, event loops, and what nobody may see."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import contextlib
import copy
import gc
import json
import logging
import os
import pickle
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from support.servers import (
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
    left_at_once,
    response,
    say,
    sse,
    starts_and_hangs,
    streams,
    threaded,
    whole,
)
from support.virtual_time import lasts, virtual
from together_async import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncTogether,
    AuthenticationError,
    BadRequestError,
    ChatCompletionRequest,
    ContextLengthError,
    InternalServerError,
    Limits,
    Message,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    StreamConnectionError,
    StreamError,
    Timeouts,
    TogetherError,
    UnprocessableEntityError,
)
from together_async.http.response import ERROR_BODY_SECONDS

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "the secret plans of the company"


def client_of(server: ScriptedServer, **options: Any) -> AsyncTogether:
    return AsyncTogether(KEY, base_url=server.base_url, **options)


@contextlib.asynccontextmanager
async def served(*scripts: Script, **options: Any) -> AsyncIterator[tuple[ScriptedServer, AsyncTogether]]:
    async with ScriptedServer(*scripts) as server, client_of(server, **options) as client:
        yield server, client


# --------------------------------------------------------------------------------------------------------------- create


async def test_a_whole_completion() -> None:
    """What is asked for is sent, what comes is returned, exactly."""
    async with served(answers(response(whole("Hé")))) as (server, client):
        completion = await client.create(
            [Message.system("Be brief."), {"role": "user", "content": PROMPT}],
            model=MODEL,
            max_tokens=5,
            headers={"X-Mine": "1"},
            extra_body={"novelty": [1]},
        )
    assert completion.to_dict() == whole("Hé")
    (call,) = server.calls
    assert (call.method, call.target) == ("POST", "/v1/chat/completions")
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.headers["x-mine"] == "1"
    assert call.json["novelty"] == [1]
    assert call.json["max_tokens"] == 5
    assert "stream" not in call.json


async def test_a_request_made_before() -> None:
    """A ChatCompletionRequest goes as it is, with fields replaced."""
    request = ChatCompletionRequest(messages="Hi", model="m", max_tokens=5)
    async with served(answers(response(whole())), answers(response(whole()))) as (server, client):
        await client.create(request)
        await client.create(request, model="other", max_tokens=6)
    assert [(call.json["model"], call.json["max_tokens"]) for call in server.calls] == [("m", 5), ("other", 6)]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"messages": "Hi"}, ValueError, "model"),
        ({"messages": "Hi", "model": MODEL, "temprature": 1}, TypeError, "temprature"),
        ({"messages": "Hi", "model": MODEL, "n": 0}, ValueError, "n"),
        ({"messages": [], "model": MODEL}, ValueError, "messages"),
        ({"messages": "Hi", "model": MODEL, "extra_body": {"x": object()}}, ValueError, "JSON"),
        ({"messages": "Hi", "model": MODEL, "headers": {"x": "a\r\nb: c"}}, ValueError, "control"),
        ({"messages": "Hi", "model": MODEL, "headers": {"x": 1}}, ValueError, "str"),
    ],
)
async def test_a_mistake_is_told_before_anything_is_sent(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    """Wrong arguments are the caller's error, and no connection is made for them."""
    async with served(hangs) as (server, client):
        messages = arguments.pop("messages")
        with pytest.raises(error, match=said):
            await client.create(messages, **arguments)
        with pytest.raises(error, match=said):
            client.stream(messages, **arguments)
        assert not server.connections


STATUSES = [
    (400, BadRequestError),
    (401, AuthenticationError),
    (402, PaymentRequiredError),
    (403, PermissionDeniedError),
    (404, NotFoundError),
    (408, APIStatusError),
    (409, APIStatusError),
    (415, APIStatusError),
    (422, UnprocessableEntityError),
    (429, RateLimitError),
    (500, InternalServerError),
    (502, InternalServerError),
    (503, InternalServerError),
    (504, InternalServerError),
    (520, InternalServerError),
    (529, InternalServerError),
    (599, InternalServerError),
]


@pytest.mark.parametrize("stream", [False, True], ids=["create", "stream"])
@pytest.mark.parametrize(("status", "error"), STATUSES)
async def test_each_status_has_its_error(status: int, error: type[APIStatusError], stream: bool) -> None:
    """Status, headers, body, request id, attempts and retry-after are on the error."""
    body = {"error": {"message": "no such luck", "type": "t", "param": None, "code": "c"}}
    extra = b"X-Request-ID: r-1\r\nretry-after: 1.5\r\n"
    async with served(answers(response(body, status=status, extra=extra))) as (server, client):
        with pytest.raises(APIStatusError) as caught:  # noqa: PT012
            if stream:
                await anext(client.stream(PROMPT, model=MODEL))
            else:
                await client.create(PROMPT, model=MODEL)
        assert len(server.calls) == 1
    assert type(caught.value) is error
    assert caught.value.status_code == status
    assert caught.value.headers["x-request-id"] == caught.value.request_id == "r-1"
    assert caught.value.body == body
    assert caught.value.attempts == 1
    assert caught.value.retry_after == 1.5
    assert "no such luck" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert (type(again), str(again), again.body) == (error, str(caught.value), body)


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize(
    "message",
    ["This model's maximum context length is 8193 tokens", "Input length 9000 exceeds the maximum context of 8192"],
)
async def test_a_context_that_is_too_long(status: int, message: str) -> None:
    """Together says 403, others 400; both are ContextLengthError."""
    async with served(answers(response({"error": {"message": message}}, status=status))) as (_, client):
        with pytest.raises(ContextLengthError):
            await client.create(PROMPT, model=MODEL)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": "plain"}', "plain"),
        (b'{"detail": [{"loc": ["body", "n"], "msg": "plain", "input": "the secret plans of the company"}]}', "plain"),
        (b'{"message": "plain", "code": 1}', "plain"),
        (b"plain", "plain"),
        (b"<html><style>x</style><h1>plain</h1></html>", "plain"),
        (b"", "no message"),
        (b"\xff\xfe plain", "plain"),
        (b"{broken", "broken"),
        (b"[" * 100_000, "500"),
        (b"null", "500"),
        (b'{"error": {"message": {"deep": 1}}}', "500"),
        (b'{"error": []}', "500"),
        (b"x" * 9_000, "xxx"),
    ],
)
async def test_error_bodies(body: bytes, said: str) -> None:
    """Whatever an error's body is, the status decides the class, and the text stays short."""
    async with served(answers(response(body, status=500, media_type="x/y"))) as (_, client):
        with pytest.raises(InternalServerError) as caught:
            await client.create(PROMPT, model=MODEL)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700
    assert PROMPT not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (response(b"<html>hello</html>", media_type="text/html"), APIResponseValidationError),
        (response(b""), APIResponseValidationError),
        (response(b"  \n "), APIResponseValidationError),
        (b"HTTP/1.1 204 No Content\r\n\r\n", APIResponseValidationError),
        (response(b"hello", media_type="text/plain"), APIResponseValidationError),
        (response(b"[]"), APIResponseValidationError),
        (response(b"null"), APIResponseValidationError),
        (response(b"{}"), APIResponseValidationError),
        (response(b'{"choices": {}}'), APIResponseValidationError),
        (response(b"[" * 100_000), APIResponseValidationError),
        (response(b"\xff"), APIResponseValidationError),
        (response(json.dumps(whole()).encode()[:-2]), APIResponseValidationError),
        (response(json.dumps(whole()).encode() * 2), APIResponseValidationError),
        (response(say("a"), media_type="text/event-stream"), APIResponseValidationError),
        (response({"error": {"message": "no"}}), APIStatusError),
        (response({"error": {"message": "no", "code": 503}}), InternalServerError),
        (response({"error": "no"}), APIStatusError),
        (response({**whole(), "error": {"message": "no"}}), APIStatusError),
    ],
)
async def test_a_200_that_is_no_completion(data: bytes, error: type[TogetherError]) -> None:
    """Each is a typed error with the request id and attempts; none is a completion."""
    data = data.replace(b"\r\n\r\n", b"\r\nx-request-id: r-1\r\n\r\n", 1)
    async with served(answers(data)) as (_, client):
        with pytest.raises(error) as caught:
            await client.create(PROMPT, model=MODEL)
    assert caught.value.request_id == "r-1"
    assert caught.value.attempts == 1


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_response_cut_at_every_byte(framing: str, reset: bool) -> None:
    """All of it or one error of ours."""
    body = json.dumps(whole("Hé")).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    wire = {
        "length": head + b"content-length: %d\r\n\r\n" % len(body) + body,
        "chunked": head + b"transfer-encoding: chunked\r\n\r\n" + chunked(body[:50]) + chunked(body[50:]) + LAST_CHUNK,
        "close": head + b"connection: close\r\n\r\n" + body,
    }[framing]
    done = 0

    async def script(call: Call) -> None:
        await call.send(wire[: call.json["seed"]])
        if reset:
            await asyncio.sleep(0.001)
            call.reset()
        else:
            call.close()

    async def check(client: AsyncTogether, size: int) -> None:
        nonlocal done
        try:
            completion = await client.create(PROMPT, model=MODEL, seed=size)
        except TogetherError:
            assert size < len(wire) or reset
        else:
            assert completion.to_dict() == whole("Hé")
            # An until-close body is whole as JSON the moment the last brace is there.
            assert size == len(wire) or (framing == "chunked" and size > len(wire) - 8), size
            done += 1

    async with served(script) as (_, client):
        sizes = iter(range(len(wire) + 1))

        async def worker() -> None:
            for size in sizes:
                await check(client, size)

        await asyncio.gather(*(worker() for _ in range(20)))
    assert done or reset


async def test_create_cancelled_at_every_turn() -> None:
    """Cancelled at any turn of the loop: CancelledError or the answer, and nothing left open."""
    # (Limits that say how much at once: a model that never answered is asked with gaps of time.)
    async with served(answers(response(whole())), limits=Limits(concurrency=8)) as (_, client):
        outcomes = []
        for turns in range(40):
            task = asyncio.create_task(client.create(PROMPT, model=MODEL))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                outcomes.append((await task).text)
            except asyncio.CancelledError:
                outcomes.append("cancelled")
        assert set(outcomes) == {"cancelled", "Hello"}
        assert not client._connections.current.responses  # type: ignore[union-attr]
        assert not client._connections.current.openings  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------------------- limits


def stalls(*pieces: bytes, every: float | None = None) -> Script:
    async def script(call: Call) -> None:
        await call.send(*pieces)
        while every is not None and not call.left.is_set():
            await call.send(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(call.left.wait(), every)
        await call.hang()

    return script


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n"


@virtual
@pytest.mark.parametrize(
    ("script", "timeouts", "phase"),
    [
        (stalls(), Timeouts(first_token=100), "first_token"),
        (stalls(HEAD[:30]), Timeouts(first_token=100), "first_token"),
        (stalls(HEAD), Timeouts(first_token=100, idle=5_000), "first_token"),
        (stalls(HEAD, b"{"), Timeouts(first_token=5_000, idle=100), "idle"),
        (stalls(HEAD, b"{"), Timeouts(first_token=None, idle=100), "idle"),
        (stalls(), Timeouts(total=100), "total"),
        (stalls(HEAD), Timeouts(total=100), "total"),
        (stalls(HEAD, every=10), Timeouts(total=100, idle=50), "total"),
        (stalls(), Timeouts(total=100, first_token=200), "total"),
        (stalls(), Timeouts(total=200, first_token=100), "first_token"),
    ],
)
@pytest.mark.parametrize("per_call", [False, True])
async def test_a_late_response_names_its_limit(script: Script, timeouts: Timeouts, phase: str, per_call: bool) -> None:
    """Before the head, in the head, in the body: the limit that ran out is named, and the connection closed."""
    async with served(script, timeouts=None if per_call else timeouts) as (server, client):
        with lasts(100), pytest.raises(APITimeoutError) as caught:
            await client.create(PROMPT, model=MODEL, timeouts=timeouts if per_call else None)
        assert (caught.value.phase, caught.value.seconds) == (phase, 100)
        assert caught.value.attempts == 1
        await left_at_once(await server.call())


@virtual
@pytest.mark.parametrize("first_token", [5_000.0, None])
async def test_connecting_takes_too_long(first_token: float | None) -> None:
    """A TLS handshake that nobody answers is `connect`. (aiohttp rounds more than 5 seconds up.)"""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    timeouts = Timeouts(connect=4, first_token=first_token)
    async with AsyncTogether(KEY, base_url=f"https://127.0.0.1:{port}/v1", timeouts=timeouts) as client:
        with lasts(4), pytest.raises(APITimeoutError) as caught:
            await client.create(PROMPT, model=MODEL)
        assert (caught.value.phase, caught.value.seconds) == ("connect", 4)
        with lasts(4), pytest.raises(APITimeoutError) as caught:
            await client.create(PROMPT, model=MODEL, timeouts=Timeouts(connect=None, total=4))
        assert caught.value.phase == "total"
    server.close()
    await server.wait_closed()


@virtual
async def test_a_caller_gives_up_first() -> None:
    """The caller's own timeout stays the caller's: cancellation passes through untouched."""
    async with served(hangs) as (server, client):
        with lasts(10), pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(10):
                await client.create(PROMPT, model=MODEL)
        assert not isinstance(caught.value, TogetherError)
        await left_at_once(await server.call())


@virtual
@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        (stalls(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\n", b'{"error": "half'), ERROR_BODY_SECONDS),
        (stalls(b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n"), ERROR_BODY_SECONDS),
        (stalls(b"HTTP/1.1 500 X\r\ncontent-length: 9999999\r\n\r\n", every=2), ERROR_BODY_SECONDS),
        (answers(b"HTTP/1.1 500 X\r\ncontent-length: 3\r\n\r\nhalf of what is there"), 0),
        (answers(b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhalf"), 0),
    ],
    ids=["stalls", "stalls at once", "drips", "says too little", "broken chunks"],
)
async def test_an_error_body_that_does_not_end(script: Script, seconds: float) -> None:
    """The status is known, so nothing about the body may hide it or take long."""
    async with served(script) as (_, client):
        # Broken framing that arrives together with the head takes the head with it, in aiohttp.
        with lasts(seconds), pytest.raises((InternalServerError, APIConnectionError)) as caught:
            await client.create(PROMPT, model=MODEL)
        assert isinstance(caught.value, InternalServerError) or not seconds
        assert "half" not in str(caught.value) or seconds


async def test_an_error_body_cut_off() -> None:
    """What came of an error's body before the connection broke is shown."""

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 429 X\r\ncontent-length: 100\r\n\r\nslow down")
        call.close()

    async with served(script) as (_, client):
        with pytest.raises(RateLimitError, match="slow down"):
            await client.create(PROMPT, model=MODEL)


@virtual
async def test_an_endless_error_body() -> None:
    """No more of it is read than somebody could want."""

    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(b"HTTP/1.1 500 X\r\nconnection: close\r\n\r\n")
        while True:
            await call.send(b"x" * 65_536)
            sent += 65_536

    async with served(script) as (server, client):
        with pytest.raises(InternalServerError):
            await client.create(PROMPT, model=MODEL)
        await left_at_once(await server.call())
    assert sent < 20_000_000  # the network holds some


async def test_an_answer_before_the_request_was_read() -> None:
    """A server that refuses a large request at once and closes: an error of ours, soon."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response({"error": "too large"}, status=413))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{port}/v1") as client, asyncio.timeout(30):
        with pytest.raises(TogetherError):
            await client.create("x" * 20_000_000, model=MODEL)
    server.close()
    await server.wait_closed()


# -------------------------------------------------------------------------------------------------------------- closing


@virtual
@pytest.mark.parametrize(
    "script",
    [hangs, stalls(b"HTTP/1.1 200 OK\r\ncon"), starts_and_hangs],
    ids=["before the head", "in the head", "in the body"],
)
@pytest.mark.parametrize("kind", ["chunks", "text", "create", "completion", "block"])
async def test_closing_the_client_ends_what_is_under_way(script: Script, kind: str) -> None:
    """Every waiting call ends at once with an error of ours; closing twice is fine."""
    async with served(script) as (server, client):

        async def call() -> None:
            if kind == "create":
                await client.create(PROMPT, model=MODEL)
            stream = client.stream(PROMPT, model=MODEL)
            if kind == "block":
                async with stream:
                    async for _ in stream:
                        pass
            elif kind == "completion":
                await stream.completion()
            else:
                async for _ in stream if kind == "chunks" else stream.text():
                    pass

        task = asyncio.create_task(call())
        seen = await server.call()
        await asyncio.sleep(1)
        with lasts(0):
            await asyncio.gather(client.aclose(), client.aclose())
            with pytest.raises((APIConnectionError, StreamConnectionError), match="client was closed"):
                await task
            await gone(seen, 5)
        await client.aclose()


@virtual
async def test_closing_the_client_while_nobody_reads() -> None:
    """A stream that is not being read right now ends with what was delivered."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream(PROMPT, model=MODEL)
        await anext(stream)
        await client.aclose()
        await left_at_once(await server.call())
        with pytest.raises(StreamConnectionError, match="client was closed") as caught:  # noqa: PT012
            while True:
                await anext(stream)
        assert caught.value.partial.text in ("a", "ab")


async def test_a_closed_client_says_so() -> None:
    """Whatever is asked of it, nothing is sent."""
    async with served(hangs) as (server, client):
        await client.aclose()
        for call in (
            client.create(PROMPT, model=MODEL),
            client.stream(PROMPT, model=MODEL).completion(),
            anext(client.stream(PROMPT, model=MODEL)),
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True),
        ):
            with pytest.raises(APIConnectionError, match="closed") as caught:
                await call
            assert caught.value.attempts == 0
        assert not server.connections
        assert "closed" in repr(client)


async def test_a_client_that_was_never_used_needs_no_closing(recwarn: pytest.WarningsRecorder) -> None:
    """Without a connection there is nothing to warn of."""
    client = AsyncTogether(KEY)
    del client
    gc.collect()
    assert not list(recwarn)


@virtual
@pytest.mark.parametrize("kind", ["idle", "live stream", "finished stream"])
async def test_an_unclosed_client_warns_once(kind: str) -> None:
    """One ResourceWarning with the line that made it, none of aiohttp's, and the sockets are closed."""
    script = starts_and_hangs if kind == "live stream" else streams("a")
    async with ScriptedServer(script) as server:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            line = sys._getframe().f_lineno + 1
            client = AsyncTogether(KEY, base_url=server.base_url)
            stream = client.stream(PROMPT, model=MODEL)
            await anext(stream)
            if kind != "live stream":
                await stream.completion()
            if kind == "idle":
                await asyncio.sleep(1)
            del stream, client
            gc.collect()
            await asyncio.sleep(0)
            gc.collect()
            await left_at_once(await server.call())
        assert [warning.category for warning in caught] == [ResourceWarning], [str(w.message) for w in caught]
        assert f"{__file__}:{line}" in str(caught[0].message)
        assert KEY not in str(caught[0].message)


def test_an_unclosed_client_after_its_loop() -> None:
    """The same when the loop is gone: one warning, no 'Event loop is closed', no socket left."""
    with threaded(streams("a"), starts_and_hangs) as server:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client = client_of(server)

            async def main(client: AsyncTogether) -> Any:
                await client.stream(PROMPT, model=MODEL).completion()
                stream = client.stream(PROMPT, model=MODEL)
                await anext(stream)
                return stream

            stream = asyncio.run(main(client))
            del client, stream
            gc.collect()
        assert [warning.category for warning in caught] == [ResourceWarning], [str(w.message) for w in caught]
        assert "unclosed AsyncTogether" in str(caught[0].message)


# ---------------------------------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize("leave", ["finished", "live", "left", "opening"])
def test_one_client_in_one_loop_after_the_other(leave: str) -> None:
    """A second asyncio.run works without a warning, whatever the first left behind."""
    scripts = {"finished": streams("a"), "live": starts_and_hangs, "left": starts_and_hangs, "opening": hangs}
    with threaded(scripts[leave], streams("b")) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        client = client_of(server)
        kept: list[Any] = []

        async def first() -> None:
            stream = client.stream(PROMPT, model=MODEL)
            if leave == "opening":
                kept.append(asyncio.create_task(stream.completion()))
                while not server.calls:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                return
            await anext(stream)
            if leave == "finished":
                await stream.completion()
            if leave == "live":
                kept.append(stream)

        async def second() -> str:
            async with client:
                return (await client.stream(PROMPT, model=MODEL).completion()).text

        asyncio.run(first())
        assert asyncio.run(second()) == "b"
        kept.clear()
        gc.collect()


def test_a_stream_of_a_loop_that_ended() -> None:
    """Reading on in another loop is an error of ours at once, not 'Event loop is closed' and no hanging."""
    with threaded(starts_and_hangs) as server:
        client = client_of(server)
        kept = [client.stream(PROMPT, model=MODEL)]

        async def first() -> None:
            await anext(kept[0])
            await anext(kept[0])

        async def second() -> None:
            async with client:
                with pytest.raises(TogetherError):
                    await asyncio.wait_for(anext(kept[0]), 10)
                await kept[0].aclose()

        asyncio.run(first())
        asyncio.run(second())
        kept.clear()
        gc.collect()


def test_closing_in_another_loop() -> None:
    """aclose() in a second asyncio.run closes what the first had opened."""
    with threaded(streams("a")) as server:
        client = client_of(server)

        async def first() -> None:
            await client.stream(PROMPT, model=MODEL).completion()

        asyncio.run(first())
        asyncio.run(client.aclose())
        gc.collect()


def test_one_client_in_two_loops_at_once() -> None:
    """One clear error in the second loop; the first goes on, and may close."""
    with threaded(starts_and_hangs, streams("b")) as server:
        client = client_of(server)
        started, finish = threading.Event(), threading.Event()
        texts: list[str] = []

        async def first() -> None:
            async with client:
                async with client.stream(PROMPT, model=MODEL) as stream:
                    await anext(stream)
                    started.set()
                    await asyncio.to_thread(finish.wait, 5)
                texts.append((await client.stream(PROMPT, model=MODEL).completion()).text)

        async def second() -> None:
            with pytest.raises(APIConnectionError, match="another event loop") as caught:
                await client.create(PROMPT, model=MODEL)
            assert caught.value.attempts == 0
            with pytest.raises(APIConnectionError, match="another event loop"):
                await client.aclose()

        thread = threading.Thread(target=asyncio.run, args=(first(),))
        thread.start()
        assert started.wait(5)
        asyncio.run(second())
        finish.set()
        thread.join(5)
        assert texts == ["b"]


def test_a_callers_session_in_another_loop() -> None:
    """A session of the caller's belongs to its loop: in another one it is an error of ours or works, never a hang."""
    with threaded(streams("a"), streams("b")) as server:
        made: list[aiohttp.ClientSession] = []

        async def first() -> None:
            made.append(aiohttp.ClientSession())
            client = client_of(server, session=made[0])
            await client.stream(PROMPT, model=MODEL).completion()
            await made[0].close()

        async def second() -> None:
            async with client_of(server, session=made[0]) as client:
                with pytest.raises(APIConnectionError):
                    await asyncio.wait_for(client.create(PROMPT, model=MODEL), 10)

        asyncio.run(first())
        asyncio.run(second())


async def test_a_client_is_made_without_a_loop_and_used_in_one() -> None:
    """Making a client opens nothing."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts
    AsyncTogether(KEY)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# -------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "key",
    [
        KEY + "\n" + KEY,
        KEY + "\x00",
        "\x7f" + KEY,
        KEY[:5] + " " + KEY[5:],
        KEY + "é",
        KEY + "\u200b",
        KEY + "\t" + KEY,
    ],
)
def test_a_key_that_is_none(key: str) -> None:
    """Control characters, blanks inside, not ASCII: ValueError at once, and no trace of the key in it."""
    with pytest.raises(ValueError, match="api_key") as caught:
        AsyncTogether(key)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inside = "".join(
        line
        for frame, text in zip(shown.stack, shown.stack.format(), strict=True)
        for line in [text]
        if frame.filename != __file__
    )
    assert KEY not in str(caught.value)
    assert KEY[:8] not in inside
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("key", [7, b"bytes", object()])
def test_a_key_of_another_type(key: Any) -> None:
    """Only text is a key."""
    with pytest.raises(ValueError, match="api_key"):
        AsyncTogether(key)


@pytest.mark.parametrize("key", [f"  {KEY}\n", f"\t{KEY}\r\n"])
@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_blanks_around_a_key_are_dropped(monkeypatch: pytest.MonkeyPatch, key: str, how: str) -> None:
    """What a shell or an editor left at the key's ends does no harm."""
    if how == "environment":
        monkeypatch.setenv("TOGETHER_API_KEY", key)
    async with ScriptedServer(answers(response(whole()))) as server:
        async with AsyncTogether(None if how == "environment" else key, base_url=server.base_url) as client:
            await client.create(PROMPT, model=MODEL)
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


async def test_no_key_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together needs one and nothing is sent without; another server may need none."""
    async with AsyncTogether() as client:
        with pytest.raises(AuthenticationError, match="TOGETHER_API_KEY") as caught:
            await client.create(PROMPT, model=MODEL)
        assert caught.value.attempts == 0
    async with ScriptedServer(answers(response(whole()))) as server:
        monkeypatch.setenv("TOGETHER_BASE_URL", server.base_url + "/")
        async with AsyncTogether() as client:
            await client.create(PROMPT, model=MODEL)
    assert "authorization" not in server.calls[0].headers


@pytest.mark.parametrize(
    "url",
    ["", "api.together.xyz", "ftp://x/v1", "http://", "http://u:hunter22@h/v1", "http://h:99999/v1", "http://[::1", 7],
)
def test_a_base_url_that_is_none(url: Any) -> None:
    """AccountLimits when the client is made, without repeating credentials."""
    if url == "":
        assert "api.together.xyz" in repr(AsyncTogether(KEY, base_url=url))
        return
    with pytest.raises(ValueError, match=r"base_url|IPv6") as caught:
        AsyncTogether(KEY, base_url=url)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(("suffix", "target"), [("/v1/", "/v1"), ("", ""), ("/a/b?x=1", "/a/b"), ("/v1#top", "/v1")])
async def test_base_urls(suffix: str, target: str) -> None:
    """Slashes, deeper paths and queries of a base URL end where they should."""
    async with ScriptedServer(answers(response(whole()))) as server:
        async with AsyncTogether(KEY, base_url=server.origin + suffix) as client:
            await client.create(PROMPT, model=MODEL)
    query = "?x=1" if "?" in suffix else ""
    assert server.calls[0].target == f"{target}/chat/completions{query}"


def all_shown(error: BaseException) -> str:
    """What any log or crash reporter could make of an error: texts, reprs, tracebacks with locals of our frames."""
    texts = []
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        pending += [one.__cause__, one.__context__]
        texts += [str(one), repr(one), repr(one.args)]
        if isinstance(one, TogetherError):
            texts.append(repr({name: value for name, value in vars(one).items() if name != "body"}))
        shown = traceback.TracebackException.from_exception(one, capture_locals=True)
        texts += [repr(frame.locals) for frame in shown.stack if frame.filename != __file__]
    return "\n".join(texts)


@virtual
@pytest.mark.parametrize(
    "script",
    [
        answers(response({"error": {"message": "no"}}, status=401)),
        answers(response(b"", status=500)),
        answers(response(b"{", status=200)),
        answers(b"nonsense\r\n\r\n"),
        answers(response(b"", status=307, extra=b"location: file:///x\r\n")),
        stalls(),
        stalls(HEAD),
        starts_and_hangs,
    ],
)
async def test_no_error_shows_the_key(script: Script) -> None:
    """No error, cause, traceback with locals shows the key or the prompt."""
    for stream in (False, True):
        async with served(script, timeouts=Timeouts(first_token=100, idle=100), headers={"x-api-key": KEY}) as (
            _,
            client,
        ):
            with pytest.raises(TogetherError) as caught:  # noqa: PT012
                if stream:
                    await client.stream(PROMPT, model=MODEL).completion()
                else:
                    await client.create(PROMPT, model=MODEL)
            shown = all_shown(caught.value)
            assert KEY not in shown
            assert caught.value.__cause__ is not caught.value


async def test_a_refused_connection_does_not_show_the_key() -> None:
    """Nor do aiohttp's errors from connecting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{port}/v1") as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create(PROMPT, model=MODEL)
    assert KEY not in all_shown(caught.value)


ECHOES = [
    {"error": {"message": f"invalid key {KEY}"}},
    {"error": {"message": f"cannot process {PROMPT!r}"}},
    {"error": f"{KEY} {PROMPT}"},
    {"detail": [{"loc": ["body", "messages", 0], "msg": f"bad: {PROMPT}", "input": PROMPT}]},
]


@pytest.mark.parametrize("status", [200, 400, 401, 422, 500])
@pytest.mark.parametrize("body", ECHOES)
async def test_what_a_server_echoes_is_redacted(status: int, body: Any) -> None:
    """Servers repeat keys and prompts in their errors; our texts do not."""
    async with served(answers(response(body, status=status))) as (_, client):
        with pytest.raises(APIStatusError) as caught:
            await client.create([{"role": "user", "content": [{"type": "text", "text": PROMPT}]}], model=MODEL)
    assert KEY not in str(caught.value)
    assert PROMPT not in str(caught.value)
    assert KEY not in repr(caught.value)


async def test_a_prompt_that_is_echoed_as_json_is_redacted() -> None:
    """A plain-text error that quotes the request's JSON shows the prompt escaped; that is redacted too."""
    prompt = 'the "secret" plans\nof the company'

    async def script(call: Call) -> None:
        await call.send(response(b"cannot parse " + call.body, status=400, media_type="text/plain"))

    async with served(script) as (_, client):
        with pytest.raises(BadRequestError) as caught:
            await client.create(prompt, model=MODEL)
    assert "plans" not in str(caught.value)


async def test_a_location_that_repeats_the_key() -> None:
    """The note on a redirect that was not followed shows the origin alone."""
    location = f"location: http://h.invalid/?key={KEY}\r\n".encode()
    async with served(answers(response(b"", status=303, extra=location))) as (_, client):
        with pytest.raises(APIStatusError, match=r"http://h\.invalid was not followed") as caught:
            await client.create(PROMPT, model=MODEL)
    assert KEY not in str(caught.value)


async def test_a_client_shows_nothing_and_can_not_be_copied() -> None:
    """repr, pickle, copy."""
    async with served(streams("a"), headers={"x-secret": "hunter22"}) as (_, client):
        await client.stream(PROMPT, model=MODEL).completion()
        shown = repr(client) + repr(vars(client)) + repr(client.chat) + repr(client.chat.completions)
        assert KEY not in shown
        assert "hunter22" not in shown
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="key"):
                attempt(client)


async def test_logs_at_debug_show_neither_key_nor_prompt(caplog: pytest.LogCaptureFixture) -> None:
    """Errors included."""
    caplog.set_level(logging.DEBUG)
    async with served(streams("a"), answers(response(b"x", status=500)), answers(b"nonsense\r\n\r\n")) as (_, client):
        await client.stream(PROMPT, model=MODEL).completion()
        for _ in range(2):
            with pytest.raises(TogetherError):
                await client.create(PROMPT, model=MODEL)
    assert KEY not in caplog.text
    assert PROMPT not in caplog.text


# --------------------------------------------------------------------------------------------------------- construction


async def test_a_session_and_its_settings_exclude_each_other() -> None:
    """proxy= and ssl= are for a session of ours."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ValueError, match="session"):
            AsyncTogether(KEY, session=session, proxy="http://h")


async def test_headers_replace_ours() -> None:
    """A caller's header takes the place of ours, whatever its case."""
    async with served(answers(response(whole())), headers={"AUTHORIZATION": "Basic x", "user-agent": "me"}) as (
        server,
        client,
    ):
        await client.create(PROMPT, model=MODEL, headers={"User-Agent": "call"})
    (call,) = server.calls
    assert call.headers["authorization"] == "Basic x"
    assert call.headers["user-agent"] == "call"


async def test_a_partial_of_a_stream_error_is_picklable() -> None:
    """Errors of a stream travel between processes with what was delivered."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        call.close()

    async with served(script) as (_, client):
        with pytest.raises(StreamError) as caught:
            await client.stream(PROMPT, model=MODEL).completion()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert (type(again), again.partial, again.attempts) == (type(caught.value), caught.value.partial, 1)
