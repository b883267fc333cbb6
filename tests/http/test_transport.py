"""`transport`: connections, their reuse and their end; redirects, proxies, TLS; every failure is one of ours."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import base64
import gc
import gzip
import logging
import ssl
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from support import virtual_time
from support.paths import ROOT
from support.servers import (
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    ScriptedServer,
    answers,
    delta,
    gone,
    hangs,
    heartbeat,
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
    AsyncTogether,
    BadRequestError,
    InternalServerError,
    Limits,
    StreamConnectionError,
    StreamProtocolError,
    Timeouts,
    TogetherError,
)
from together_async.http import response as response_module
from together_async.http import sockets
from together_async.http.transport import ClientClosedError, Opening

pytestmark = pytest.mark.usefixtures("no_leaks")


def client_of(server: ScriptedServer, **options: Any) -> AsyncTogether:
    return AsyncTogether(KEY, base_url=server.base_url, **options)


async def text_of(client: AsyncTogether, **options: Any) -> str:
    return "".join([text async for text in client.stream("Hi", model=MODEL, **options).text()])


def causes(error: BaseException) -> list[BaseException]:
    """An error and what it came from; fails on a circle."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        assert cause not in found, "the chain of causes is a circle"
        found.append(cause)
        cause = cause.__cause__
    return found


# --------------------------------------------------------------------------------------------------------------- reuse


async def test_five_streams_need_one_connection() -> None:
    """A stream read to [DONE] gives its connection back."""
    async with ScriptedServer(streams("a", "b")) as server, client_of(server) as client:
        for _ in range(5):
            assert await text_of(client) == "ab"
        assert len(server.connections) == 1


async def test_end_of_the_body_may_come_after_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminating chunk that comes a moment after [DONE] still lets the connection be reused."""
    monkeypatch.setattr(response_module, "DRAIN_SECONDS", 10)
    reading = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(say("a"))
        await asyncio.wait_for(reading.wait(), 5)
        reading.clear()
        await call.send(LAST_CHUNK)

    async with ScriptedServer(script) as server, client_of(server) as client:
        for _ in range(5):
            assert await text_of(client) == "a"
            exchange = next(iter(client._connections.current.responses))  # type: ignore[union-attr]
            reading.set()
            async with asyncio.timeout(5):
                while exchange in client._connections.current.responses:  # type: ignore[union-attr]  # noqa: ASYNC110
                    await asyncio.sleep(0)
        assert len(server.connections) == 1


@virtual
async def test_a_body_without_end_is_closed_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps the body open after [DONE] does not keep us: the stream ends, the connection is dropped."""
    monkeypatch.setattr(response_module, "DRAIN_SECONDS", 100)

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(say("a"))
        await call.hang()

    async with ScriptedServer(script) as server, client_of(server) as client:
        with lasts(100):
            with lasts(0):
                assert await text_of(client) == "a"
            call = await server.call()
            assert not call.left.is_set()
            await gone(call, 1_000)
        assert await text_of(client) == "a"
        assert len(server.connections) == 2


async def test_endless_data_after_done_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows [DONE] is no reason to stay: the connection is dropped, and nothing more is delivered."""
    monkeypatch.setattr(response_module, "DRAIN_SECONDS", 0.1)

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(say("a"))
        while True:
            await call.chunk(sse(delta("x")) * 100)

    async with ScriptedServer(script) as server, client_of(server) as client:
        assert await text_of(client) == "a"
        await gone(await server.call(), 5)


async def test_create_reuses_its_connection() -> None:
    """Whole responses and streams and complete errors share one connection."""
    bad = answers(response({"error": {"message": "no"}}, status=400))
    async with ScriptedServer(answers(response(whole())), streams("a"), bad, streams("b")) as server:
        async with client_of(server) as client:
            await client.create("Hi", model=MODEL)
            await text_of(client)
            with pytest.raises(BadRequestError):
                await client.create("Hi", model=MODEL)
            assert await text_of(client) == "b"
        assert len(server.connections) == 1


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("own_session", [False, True], ids=["session of ours", "session of the caller"])
async def test_a_stale_pooled_connection_is_replaced_at_once(reset: bool, own_session: bool) -> None:
    """A server that closes after each response though it promised keep-alive costs no call."""
    used: set[int] = set()

    async def script(call: Call) -> None:
        if call.connection.number in used:
            call.reset() if reset else call.close()
            return
        used.add(call.connection.number)
        await call.send(response(whole()))

    async with ScriptedServer(script) as server:
        session = aiohttp.ClientSession() if own_session else None
        async with client_of(server, session=session) as client:
            for _ in range(50):
                assert (await client.create("Hi", model=MODEL)).text == "Hello"
        if session is not None:
            await session.close()
        assert len(server.calls) > 50, "no connection was stale"


async def test_a_server_that_closes_each_connection_after_its_response() -> None:
    """The FIN right behind the response is seen in time or retried, never an error."""

    async def script(call: Call) -> None:
        await call.send(response(whole()))
        call.close()

    async with ScriptedServer(script) as server, client_of(server) as client:
        for _ in range(50):
            assert (await client.create("Hi", model=MODEL)).text == "Hello"


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_fresh_connection_closed_without_an_answer_is_an_error(reset: bool) -> None:
    """Closed without a byte on a new connection: the request may have been seen, so it is not sent again."""

    async def script(call: Call) -> None:
        call.reset() if reset else call.close()

    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
        assert len(server.calls) == 1
        assert caught.value.attempts == 1
        assert "ServerDisconnected" in str(caught.value) or "reset" in str(caught.value)


@pytest.mark.parametrize("size", [1, 12, 17, 30])
async def test_no_second_try_after_a_part_of_a_head(size: int) -> None:
    """A response that had begun means that the server works on the request: it is not sent again."""

    async def cut(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"[:size])
        call.close()

    async with ScriptedServer(answers(response(whole())), cut) as server, client_of(server) as client:
        await client.create("Hi", model=MODEL)
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
        assert len(server.calls) == 2
        assert len(server.connections) == 1
        assert caught.value.attempts == 1


async def test_a_response_that_nobody_asked_for_answers_nobody() -> None:
    """Bytes that come on an idle connection are not the answer to the next request."""
    sent = asyncio.Event()

    async def twice(call: Call) -> None:
        await call.send(response(whole("first")))
        await got_first.wait()
        await call.send(response(whole("for somebody else")))
        sent.set()

    got_first = asyncio.Event()
    async with ScriptedServer(twice, answers(response(whole("second")))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "first"
        got_first.set()
        await sent.wait()
        await asyncio.sleep(0.02)  # the bytes have crossed the loopback
        assert (await client.create("Hi", model=MODEL)).text == "second"
        assert len(server.connections) == 2


async def test_two_responses_in_one_piece() -> None:
    """The second of two responses to one request is nobody's."""
    both = answers(response(whole("first")) + response(whole("for somebody else")))
    async with ScriptedServer(both, answers(response(whole("second")))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "first"
        assert (await client.create("Hi", model=MODEL)).text == "second"


async def test_two_hundred_streams_at_once() -> None:
    """Nothing queues behind a pool's limit: all 200 requests are there before the first answer."""
    everybody = asyncio.Event()

    async def script(call: Call) -> None:
        if len(server.calls) == 200:
            everybody.set()
        await everybody.wait()
        await streams("a", "b")(call)

    limits = Limits(concurrency=200)  # a model that never answered is asked with gaps of time
    async with ScriptedServer(script) as server, client_of(server, limits=limits) as client, asyncio.timeout(10):
        assert await asyncio.gather(*(text_of(client) for _ in range(200))) == ["ab"] * 200


# --------------------------------------------------------------------------------------------------------------- heads


async def test_a_head_of_60_kilobytes() -> None:
    """Long headers of proxies are read."""
    extra = b"x-long: " + b"y" * 60_000 + b"\r\n"
    async with ScriptedServer(answers(response(whole(), extra=extra))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "Hello"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 60_000) for i in range(64)) + b"\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x00\xff" * 1000,
    ],
    ids=["line too long", "many lines", "ssh", "no status", "negative length", "two lengths", "bad chunk", "noise"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["create", "stream"])
async def test_a_broken_head_is_a_typed_error(head: bytes, stream: bool) -> None:
    """Nothing of aiohttp's escapes, whatever stands where HTTP should."""

    async def script(call: Call) -> None:
        await call.send(head)
        call.close()

    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(TogetherError) as caught:
            await (text_of(client) if stream else client.create("Hi", model=MODEL))
        assert len(str(caught.value)) < 1000
        causes(caught.value)


async def test_early_hints_before_the_response() -> None:
    """Informational responses are not the response."""
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with ScriptedServer(answers(early + response(whole()))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "Hello"


# ------------------------------------------------------------------------------------------------------------- sizes

BOMB_CLIENT = """
import asyncio, resource, sys, time
from together_async import AsyncTogether, TogetherError

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

async def main(url, kind):
    worst = peak = 0
    async def beat():
        nonlocal worst, peak
        last = time.thread_time()  # which other work on the machine does not lengthen
        while True:
            await asyncio.sleep(0.005)
            now = time.thread_time()
            worst, last = max(worst, now - last), now
            peak = max(peak, rss())
    async with AsyncTogether("k" * 20, base_url=url) as client:
        async def call(kind):
            if kind == "create":
                return await client.create("Hi", model="m")
            async for _ in client.stream("Hi", model="m"):
                pass
        await call("create")  # everything is imported and warm
        before = rss()
        task = asyncio.create_task(beat())
        try:
            await call(kind)
            said = "nothing"
        except TogetherError as error:
            said = type(error).__name__
        await asyncio.sleep(0.01)
        task.cancel()
    print(said, (max(peak, rss()) - before) >> 20, round(worst * 1000))

asyncio.run(main(*sys.argv[1:]))
"""


def bomb(piece: bytes, megabytes: int) -> bytes:
    """`megabytes` of `piece`, compressed."""
    packer = zlib.compressobj(9, wbits=31)
    piece *= 2**20 // len(piece)
    return b"".join(packer.compress(piece) for _ in range(megabytes)) + packer.flush()


async def run_client(code: str, *args: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *args, stdout=subprocess.PIPE, cwd=ROOT)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return out.decode().split()


@pytest.mark.parametrize(
    ("kind", "piece", "expected"),
    [
        ("create", b" ", "APIResponseValidationError"),
        ("stream", b"data: " + b"x" * 58, "StreamProtocolError"),
        ("stream", b"\n", "StreamProtocolError"),
        ("stream", b": ping\n\n", "StreamProtocolError"),
        ("stream", b"data: {}\n\n", "StreamProtocolError"),
        ("stream", b"data: x\n", "StreamProtocolError"),
        ("stream", b" ", "StreamProtocolError"),
        ("error", b"x", "InternalServerError"),
    ],
    ids=[
        "create",
        "one line",
        "empty lines",
        "pings",
        "empty objects",
        "one event of many lines",
        "blanks",
        "error body",
    ],
)
async def test_a_gzip_bomb_costs_little(kind: str, piece: bytes, expected: str) -> None:
    """200 MiB in 200 KB: a typed error, less than 16 MiB more memory, and a loop that goes on turning."""
    data = bomb(piece, 200)
    media_type = "text/event-stream" if kind == "stream" else "application/json"
    status = 500 if kind == "error" else 200
    packed = response(data, status=status, media_type=media_type, extra=b"content-encoding: gzip\r\n")
    async with ScriptedServer(answers(response(whole())), answers(packed)) as server:
        said, megabytes, blocked_ms = await run_client(
            BOMB_CLIENT, server.base_url, "create" if kind == "error" else kind
        )
    assert said == expected
    assert int(megabytes) < 16
    assert int(blocked_ms) < 150


async def test_gzip_of_reasonable_size_is_read() -> None:
    """A proxy that compresses against our wish does no harm."""
    body = gzip.compress(say("a", "b"))
    packed = response(body, media_type="text/event-stream", extra=b"content-encoding: gzip\r\n")
    async with ScriptedServer(answers(packed)) as server, client_of(server) as client:
        assert await text_of(client) == "ab"


async def test_broken_gzip_is_a_typed_error() -> None:
    """What can't be inflated is an error of ours."""
    for body in (b"no gzip at all", gzip.compress(say("a" * 1000))[:-20]):
        packed = response(body, media_type="text/event-stream", extra=b"content-encoding: gzip\r\n")
        async with ScriptedServer(answers(packed)) as server, client_of(server) as client:
            with pytest.raises(TogetherError):
                await text_of(client)


async def test_a_line_of_64_mebibytes() -> None:
    """One endless line is refused at the size cap: the rest is not read, and the server sees us leave."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(b"data: ")
        for _ in range(1024):
            await call.chunk(b"x" * 65_536)
        all_sent.set()

    all_sent = asyncio.Event()
    async with ScriptedServer(script) as server, client_of(server) as client, heartbeat() as gaps:
        with pytest.raises(StreamProtocolError, match="8388608"):
            await text_of(client)
        await gone(await server.call(), 5)
        assert not all_sent.is_set()
    assert max(gaps) < 0.25


async def test_a_body_above_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole response has a size limit, and what is above it is not read."""
    monkeypatch.setattr(response_module.HTTPResponse.read_all, "__defaults__", (100_000,))

    async def script(call: Call) -> None:
        await call.head(media_type="application/json")
        while True:
            await call.chunk(b" " * 65_536)

    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(APIResponseValidationError, match="at most 100000"):
            await client.create("Hi", model=MODEL)
        await gone(await server.call(), 5)


# ----------------------------------------------------------------------------------------------------------- redirects


def redirects(location: Callable[[], str], status: int = 307) -> Script:
    async def script(call: Call) -> None:
        await call.send(response(b"", status=status, extra=f"location: {location()}\r\n".encode()))

    return script


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_inside_the_origin_keeps_the_key(status: int) -> None:
    """The same scheme, host and port may know the key; method and body stay."""
    scripts = (redirects(lambda: "/v2/chat/completions", status), answers(response(whole())))
    async with ScriptedServer(*scripts) as server, client_of(server, headers={"x-mine": "1"}) as client:
        await client.create("Hi", model=MODEL)
    first, second = server.calls
    assert second.target == "/v2/chat/completions"
    assert second.method == "POST"
    assert second.body == first.body
    assert second.headers["authorization"] == f"Bearer {KEY}"
    assert second.headers["x-mine"] == "1"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_to_another_origin_loses_key_and_headers(status: int) -> None:
    """Another port is another origin: it sees neither the key nor a header of the caller."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"{other.origin}/v1/x", status)) as server:
            async with client_of(server, headers={"X-Mine": "secret", "cookie": "a=b"}) as client:
                await client.create("Hi", model=MODEL, headers={"x-call": "secret"})
    (call,) = other.calls
    assert call.headers.keys() <= {"host", "accept", "accept-encoding", "content-type", "user-agent", "content-length"}
    assert KEY not in str(call.headers)


async def test_a_redirect_there_and_back_does_not_bring_the_key_back() -> None:
    """What was dropped stays dropped: another origin could choose where the key goes."""
    async with ScriptedServer(redirects(lambda: f"{server.base_url}/back")) as other:
        async with ScriptedServer(redirects(lambda: other.base_url), answers(response(whole()))) as server:
            async with client_of(server) as client:
                await client.create("Hi", model=MODEL)
    assert "authorization" not in server.calls[1].headers


async def test_a_redirect_of_a_callers_session_does_not_take_its_headers_along() -> None:
    """The session's own headers, credentials and cookies stay at the origin too."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"{other.origin}/v1/x")) as server:
            async with (
                aiohttp.ClientSession(headers={"x-tenant": "secret"}) as session,
                client_of(server, session=session) as client,
            ):
                with pytest.raises(APIStatusError, match="not followed"):
                    await client.create("Hi", model=MODEL)
    assert not other.calls


async def test_a_redirect_of_a_callers_session_without_headers_is_followed() -> None:
    """A session that has nothing to betray follows as ours does."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"{other.origin}/v1/x")) as server:
            async with aiohttp.ClientSession() as session, client_of(server, session=session) as client:
                await client.create("Hi", model=MODEL)
    assert "authorization" not in other.calls[0].headers


async def test_redirects_in_a_circle_end() -> None:
    """After five redirects it's an error, whose causes are no circle either."""
    async with ScriptedServer(redirects(lambda: "/again")) as server, client_of(server) as client:
        with pytest.raises(APIConnectionError, match="redirected more than 5") as caught:
            await client.create("Hi", model=MODEL)
        causes(caught.value)
        assert caught.value.attempts == len(server.calls) == 6


@pytest.mark.parametrize("status", [300, 303, 304, 307])
async def test_a_redirect_that_is_not_followed_is_a_status(status: int) -> None:
    """303 wants a GET, a 307 without a location wants nothing: the status is the answer."""
    extra = b"location: /x\r\n" if status != 307 else b""
    async with ScriptedServer(answers(response(b"", status=status, extra=extra))) as server:
        async with client_of(server) as client:
            with pytest.raises(APIStatusError) as caught:
                await client.create("Hi", model=MODEL)
            assert caught.value.status_code == status
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "http://[::1", "//", "http://a:b@127.0.0.1:1/x", ""],
)
async def test_a_redirect_to_nowhere_is_a_typed_error(location: str) -> None:
    """Whatever a location says, the error is ours."""
    async with ScriptedServer(redirects(lambda: location), answers(response(b"", status=500))) as server:
        async with client_of(server) as client:
            with pytest.raises(TogetherError) as caught:
                await client.create("Hi", model=MODEL)
            causes(caught.value)


async def test_credentials_in_a_location_are_not_sent() -> None:
    """A location cannot set the Authorization header."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"http://u:p@127.0.0.1:{other.port}/")) as server:
            async with client_of(server) as client:
                await client.create("Hi", model=MODEL)
    assert "authorization" not in other.calls[0].headers


# ---------------------------------------------------------------------------------------------- connecting, TLS, proxy


async def test_refused(unused_tcp_port: int) -> None:
    """Nobody listens: a typed error with aiohttp's as its cause, and no key in it."""
    async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}/v1") as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)
    assert KEY not in "".join(traceback.format_exception(caught.value))


async def test_unresolvable() -> None:
    """A host that does not exist is a typed error."""
    async with AsyncTogether(KEY, base_url="http://no-such-host.invalid/v1") as client:
        with pytest.raises(APIConnectionError, match=r"no-such-host\.invalid"):
            await client.create("Hi", model=MODEL)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_with_a_context(authority: trustme.CA) -> None:
    """`ssl=` brings a private CA; connections are reused as without TLS."""
    async with ScriptedServer(streams("a", "b"), ssl_context=server_tls(authority)) as server:
        async with client_of(server, ssl=client_tls(authority)) as client:
            for _ in range(3):
                assert await text_of(client) == "ab"
            assert len(server.connections) == 1


@pytest.mark.parametrize("name", ["127.0.0.1", "example.org"], ids=["unknown CA", "other name"])
async def test_a_bad_certificate(authority: trustme.CA, name: str) -> None:
    """A certificate that does not verify is a typed error, and nothing is sent."""
    async with ScriptedServer(hangs, ssl_context=server_tls(authority, name)) as server:
        context = None if name == "127.0.0.1" else client_tls(authority)
        async with client_of(server, ssl=context) as client:
            with pytest.raises(APIConnectionError, match=r"(?i)certificate") as caught:
                await client.create("Hi", model=MODEL)
        assert isinstance(caught.value.__cause__, aiohttp.ClientError)
        assert not server.calls


@virtual
async def test_leaving_a_tls_stream(authority: trustme.CA) -> None:
    """Leaving is as quick on TLS."""
    async with ScriptedServer(starts_and_hangs, ssl_context=server_tls(authority)) as server:
        async with client_of(server, ssl=client_tls(authority)) as client:
            async for _ in client.stream("Hi", model=MODEL):
                break
            await left_at_once(await server.call())


@pytest.mark.parametrize("live", [False, True])
def test_tls_in_one_loop_after_the_other(authority: trustme.CA, live: bool) -> None:
    """TLS connections of a loop that ended are closed without a warning, pooled or in the middle of a stream."""
    with threaded(
        starts_and_hangs if live else streams("a"), streams("b"), ssl_context=server_tls(authority)
    ) as server:
        client = client_of(server, ssl=client_tls(authority))
        kept = []

        async def first() -> None:
            stream = client.stream("Hi", model=MODEL)
            await anext(stream)
            if live:
                kept.append(stream)
            else:
                await stream.completion()

        async def second() -> str:
            async with client:
                return await text_of(client)

        asyncio.run(first())
        assert asyncio.run(second()) == "b"
        kept.clear()
        gc.collect()


@virtual
async def test_closing_the_client_with_a_live_tls_stream(authority: trustme.CA) -> None:
    """aclose() does not wait for anybody's TLS farewell."""
    async with ScriptedServer(starts_and_hangs, ssl_context=server_tls(authority)) as server:
        async with client_of(server, ssl=client_tls(authority)) as client:
            stream = client.stream("Hi", model=MODEL)
            await anext(stream)
            with lasts(0):
                await client.aclose()
                await gone(await server.call(), 5)
            with pytest.raises(StreamConnectionError):
                await stream.completion()


async def test_reads_are_small_on_plain_connections() -> None:
    """asyncio is told to read 64 KiB at a time; where the attribute is missing this test says so."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        await going_on.wait()
        await call.chunk(*(sse(delta("x" * 3000)) for _ in range(300)), say("b"))
        await call.send(LAST_CHUNK)

    going_on = asyncio.Event()
    async with ScriptedServer(script) as server, client_of(server) as client:
        async with client.stream("Hi", model=MODEL) as stream:
            connection = stream._reading.response._response.connection  # type: ignore[union-attr]
            assert connection.transport.max_size == sockets.READ_SIZE
            going_on.set()
            assert (await stream.completion()).text == "a" + "x" * 900_000 + "b"


async def test_reads_are_small_on_tls_connections(authority: trustme.CA) -> None:
    """The buffer that every TLS connection keeps is 32 KiB, and long bodies are read right through it."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        await going_on.wait()
        await call.chunk(*(sse(delta("x" * 3000)) for _ in range(300)), say("b"))
        await call.send(LAST_CHUNK)

    going_on = asyncio.Event()
    async with ScriptedServer(script, ssl_context=server_tls(authority)) as server:
        async with client_of(server, ssl=client_tls(authority)) as client:
            async with client.stream("Hi", model=MODEL) as stream:
                connection = stream._reading.response._response.connection  # type: ignore[union-attr]
                protocol = connection.transport._ssl_protocol
                assert len(protocol._ssl_buffer) == protocol.max_size == sockets.TLS_READ_SIZE
                going_on.set()
                assert (await stream.completion()).text == "a" + "x" * 900_000 + "b"


def proxying(target: ScriptedServer, *, credentials: str | None = None) -> Script:
    """A proxy for plain HTTP and for CONNECT, which asks for credentials if given."""

    async def script(call: Call) -> None:
        wanted = credentials and "Basic " + base64.b64encode(credentials.encode()).decode()
        if wanted and call.headers.get("proxy-authorization") != wanted:
            await call.send(response(b"who are you", status=407, media_type="text/plain"))
            return
        if call.method != "CONNECT":
            await call.send(response(whole(f"by proxy to {call.target}")))
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        await call.send(b"HTTP/1.1 200 go\r\n\r\n")

        async def upstream() -> None:
            connection = call.connection
            while not connection.left.is_set():
                if connection._buffer:
                    writer.write(bytes(connection._buffer))
                    connection._buffer.clear()
                await connection._fill()

        pumping = asyncio.create_task(upstream())
        try:
            while data := await reader.read(65_536):
                await call.send(data)
        finally:
            pumping.cancel()
            writer.close()
            call.close()

    return script


@pytest.mark.parametrize("credentials", [None, "user:p%40ss"])
@pytest.mark.parametrize("how", ["argument", "HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_plain_http_by_proxy(monkeypatch: pytest.MonkeyPatch, how: str, credentials: str | None) -> None:
    """The proxy gets the whole URL, and its credentials in their own header."""
    async with ScriptedServer(hangs) as target:
        async with ScriptedServer(proxying(target, credentials=credentials and "user:p@ss")) as proxy:
            url = f"http://{credentials + '@' if credentials else ''}127.0.0.1:{proxy.port}"
            options = {"proxy": url} if how == "argument" else {}
            if how != "argument":
                monkeypatch.setenv(how, url)
            async with AsyncTogether(KEY, base_url="http://api.invalid/v1", **options) as client:
                completion = await client.create("Hi", model=MODEL)
    assert completion.text == "by proxy to http://api.invalid/v1/chat/completions"
    assert proxy.calls[0].headers["authorization"] == f"Bearer {KEY}"


async def test_https_by_proxy(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNECT: the proxy sees host and port, never the key."""
    async with ScriptedServer(streams("a", "b"), ssl_context=server_tls(authority)) as target:
        async with ScriptedServer(proxying(target, credentials="user:pass")) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass@127.0.0.1:{proxy.port}")
            async with client_of(target, ssl=client_tls(authority)) as client:
                assert await text_of(client) == "ab"
            (call,) = proxy.calls
            assert call.target == f"127.0.0.1:{target.port}"
            assert KEY not in str(call.headers)
            assert "proxy-authorization" not in target.calls[0].headers


async def test_a_proxy_that_refuses(authority: trustme.CA) -> None:
    """A refused CONNECT is a typed error in which neither the proxy's password nor the key shows."""
    async with ScriptedServer(hangs, ssl_context=server_tls(authority)) as target:
        async with ScriptedServer(proxying(target, credentials="user:other")) as proxy:
            url = f"http://user:hunter22@127.0.0.1:{proxy.port}"
            async with client_of(target, ssl=client_tls(authority), proxy=url) as client:
                with pytest.raises(APIConnectionError, match="407") as caught:
                    await client.create("Hi", model=MODEL)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "hunter22" not in str(caught.value)
    assert base64.b64encode(b"user:hunter22").decode() not in shown
    assert KEY not in shown


@pytest.mark.parametrize("bypass", ["127.0.0.1", "*", "localhost,127.0.0.1"])
async def test_no_proxy(monkeypatch: pytest.MonkeyPatch, bypass: str) -> None:
    """Hosts of NO_PROXY are asked directly."""
    async with ScriptedServer(answers(response(whole()))) as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", bypass)
        async with client_of(server) as client:
            await client.create("Hi", model=MODEL)


async def test_an_empty_proxy_argument_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`proxy=""` switches the environment's off."""
    async with ScriptedServer(answers(response(whole()))) as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        async with client_of(server, proxy="") as client:
            await client.create("Hi", model=MODEL)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://u:hunter22@h:port", "http://", "x y"])
async def test_a_bad_proxy_is_a_typed_error(proxy: str) -> None:
    """A proxy that can't be one is an error of ours which does not repeat its password."""
    async with ScriptedServer(hangs) as server, client_of(server, proxy=proxy) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
        assert all("hunter22" not in str(error) for error in causes(caught.value))


async def test_netrc_does_not_replace_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A .netrc entry for the host is not sent in place of the key."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with ScriptedServer(answers(response(whole()))) as server, client_of(server) as client:
        await client.create("Hi", model=MODEL)
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


# ---------------------------------------------------------------------------------------------------- caller's session


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"raise_for_status": True},
        {"base_url": "http://elsewhere.invalid/api/"},
        {"auto_decompress": False},
        {"timeout": aiohttp.ClientTimeout(total=0.001)},
        {"read_bufsize": 1024},
        {"json_serialize": str},
        {"requote_redirect_url": False},
        {"headers": {"Authorization": "Bearer other", "content-type": "text/plain", "x-tenant": "7"}},
    ],
    ids=lambda settings: next(iter(settings), "plain"),
)
async def test_a_session_of_the_callers(settings: dict[str, Any]) -> None:
    """It is used whatever its defaults are, ours win where they must, and it stays open."""
    body = gzip.compress(say("a", "b"))
    packed = response(body, media_type="text/event-stream", extra=b"content-encoding: gzip\r\n")
    refused = answers(response({"error": {"message": "no"}}, status=400))
    async with ScriptedServer(answers(packed), refused, streams("c")) as server:
        async with aiohttp.ClientSession(**settings) as session:
            async with client_of(server, session=session) as client:
                assert await text_of(client) == "ab"
                with pytest.raises(BadRequestError, match="no"):
                    await client.create("Hi", model=MODEL)
                assert await text_of(client) == "c"
            assert not session.closed
            assert len(server.connections) == 1
    headers = server.calls[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    if "headers" in settings:
        assert headers["x-tenant"] == "7"


async def test_a_closed_session_of_the_callers_is_a_typed_error() -> None:
    """A session closed behind our back says so in our words."""
    session = aiohttp.ClientSession()
    await session.close()
    async with AsyncTogether(KEY, base_url="http://127.0.0.1:1/v1", session=session) as client:
        with pytest.raises(APIConnectionError, match="closed"):
            await client.create("Hi", model=MODEL)


async def test_a_session_closed_in_the_middle_of_a_stream() -> None:
    """The caller closes the session while a stream runs: a typed error with what came, no hanging."""
    async with ScriptedServer(starts_and_hangs) as server:
        session = aiohttp.ClientSession()
        async with client_of(server, session=session) as client, asyncio.timeout(5):
            async with client.stream("Hi", model=MODEL) as stream:
                await anext(stream)
                await anext(stream)
                await session.close()
                with pytest.raises(StreamConnectionError) as caught:
                    await anext(stream)
                assert caught.value.partial.text == "ab"


# -------------------------------------------------------------------------------------------------------------- uvloop


def test_uvloop() -> None:
    """The same on uvloop: streams, reuse, leaving, TLS off; private attributes of asyncio are not needed."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with ScriptedServer(streams("a", "b"), streams("a", "b"), starts_and_hangs) as server:
            async with client_of(server) as client:
                assert [await text_of(client) for _ in range(2)] == ["ab", "ab"]
                assert len(server.connections) == 1
                async for _ in client.stream("Hi", model=MODEL):
                    break
                await gone(await server.call(2), 5)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# ------------------------------------------------------------------------------------------------------------- secrets


async def test_the_key_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Not at DEBUG, not in asyncio's debug mode, not in the repr of anything that a request goes through."""
    caplog.set_level(logging.DEBUG)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    try:
        async with ScriptedServer(streams("a"), answers(response(b"", status=500))) as server:
            async with client_of(server) as client:
                await text_of(client)
                with pytest.raises(InternalServerError):
                    await client.create("Hi", model=MODEL)
                assert KEY not in repr(client) + repr(client._connections.current) + repr(
                    vars(client._connections.current)
                )
    finally:
        loop.set_debug(False)
    mine = [record.getMessage() for record in caplog.records if "test_transport" not in record.getMessage()]
    assert mine
    assert all(KEY not in message for message in mine)


# ------------------------------------------------------------------------------------------- what ends an opening


async def opened(opening: list[Opening], after_s: float = 100.0) -> tuple[bool, BaseException, int]:
    """Waits as a request does. Returns whether what ended the wait came from the opening, what it was, and how many
    cancellations its task has left to be told of."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    opening.append(Opening(loop.time() + after_s, loop))
    try:
        await asyncio.sleep(1_000)
    except BaseException as error:  # noqa: BLE001 - looked at by the test
        return opening[0].end(error), error, task.cancelling()
    raise AssertionError


CLOSED = ClientClosedError("closed")
ENDS: dict[str, tuple[str, ...]] = {
    "late": ("late",),
    "closed": ("abort",),
    "late twice": ("late", "late"),
    "closed twice": ("abort", "abort"),
    "late, then closed": ("late", "abort"),
    "closed, then late": ("abort", "late"),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("cancelled", ["not", "before", "after"])
async def test_what_ends_an_opening_in_one_turn_of_the_loop(name: str, cancelled: str) -> None:
    """The deadline, the client's end and somebody's cancellation, in any order and all at once: only the latter is seen
    as a cancellation by anybody else, and it always is."""
    opening: list[Opening] = []
    task = asyncio.ensure_future(opened(opening))
    await asyncio.sleep(0)
    if cancelled == "before":
        task.cancel()
    for end in ENDS[name]:
        opening[0].expire() if end == "late" else opening[0].abort(CLOSED)
    if cancelled == "after":
        task.cancel()
    was_ours, error, left = await task
    assert isinstance(error, asyncio.CancelledError)
    assert was_ours is (cancelled == "not")
    assert left == (0 if cancelled == "not" else 1)
    assert (opening[0].failure is CLOSED) is (ENDS[name][0] == "abort")


async def test_an_opening_that_has_ended_hears_of_nothing() -> None:
    """A timer or a close that comes later cancels nobody, whatever the task does now."""
    opening = Opening(0.0, asyncio.get_running_loop())
    assert not opening.end(None)
    opening.expire()
    opening.abort(CLOSED)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert opening.failure is None


async def test_an_opening_in_a_task_that_was_cancelled_before() -> None:
    """A `finally` that asks something more, within a cancellation: its own deadline is told from that."""

    async def main() -> tuple[bool, BaseException, int]:
        try:
            await asyncio.sleep(1_000)
        finally:
            opening: list[Opening] = []
            asyncio.get_running_loop().call_later(0.01, lambda: opening[0].expire())  # noqa: PLW0108 - there is none yet
            return await opened(opening)  # noqa: B012 - the cancellation is over

    task = asyncio.ensure_future(main())
    await asyncio.sleep(0)
    task.cancel()
    was_ours, error, left = await task
    assert was_ours
    assert isinstance(error, asyncio.CancelledError)
    assert left == 1


@pytest.mark.parametrize("order", ["close first", "deadline first"])
def test_closed_in_the_turn_in_which_it_is_late(order: str) -> None:
    """A client that is closed at the very moment the first token is due: a typed error, and no cancellation."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ScriptedServer(hangs) as server:
            client = client_of(server, proxy="", timeouts=Timeouts(first_token=5.0))
            call = asyncio.ensure_future(client.create("Hi", model=MODEL))
            await server.call()
            transport = client._connections.current
            assert transport is not None
            (opening,) = (one for one in transport.openings if isinstance(one, Opening))
            await asyncio.sleep(opening.at - loop.time() - 0.02)  # the deadline has a timer of its own now
            loop.call_at(opening.at + (0.0001 if order == "deadline first" else -0.0001), transport.abort_all)
            time.sleep(0.03)  # noqa: ASYNC251 - both are due when the loop goes on
            with pytest.raises(APIConnectionError):
                await call
            await client.aclose()

    virtual_time.run(main())


async def test_no_timer_is_left_by_requests() -> None:
    """However many were made: the last one takes the timer along."""
    async with ScriptedServer(answers(response(whole()))) as server, client_of(server) as client:
        await asyncio.gather(*(client.create("Hi", model=MODEL) for _ in range(20)))
        transport = client._connections.current
        assert transport is not None
        assert not transport._deadlines._waiting
        assert not transport.openings
