"""A connection: requests as they may come, backpressure, requests that are none."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import socket

import pytest

from support.raw_client import BODY, CHAT, TEXT, Answer, Client, ask, get, post, raw
from support.virtual_time import virtual
from together_async.testing import (
    MODELS,
    Cut,
    EmulatorServer,
    EndlessHeaders,
    Fault,
    Frame,
    HugeLine,
    Insert,
    Raw,
    Reply,
    Split,
    Stall,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_request_may_come_byte_by_byte():
    """The head and the body in pieces of one byte."""
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        for at in range(len(request := post())):
            client.writer.write(request[at : at + 1])
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        assert server.journal[0].body == BODY


@virtual
async def test_a_request_body_may_be_chunked():
    """In chunks of any size, with extensions, in pieces."""
    data = json.dumps(BODY).encode()
    body = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (data[:1], data[1:20], data[20:]))
    request = f"POST {CHAT} HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n".encode() + body + b"0\r\n\r\n"
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        assert (await client.ask(request)).status == 200
        client.writer.write(request[:90])
        await client.silence()
        assert (await client.ask(request[90:])).status == 200
        assert [entry.body for entry in server.journal] == [BODY, BODY]


async def test_expect_100_continue():
    """The interim response comes before the body is sent, once."""
    request = post(headers="Expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        client.writer.write(head + b"\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(body[:5])
        await asyncio.sleep(0)
        assert (await client.ask(body[5:])).status == 200


async def test_pipelined_requests_are_answered_in_order():
    """Streams, whole responses and refusals in one write, each after the one before has ended."""
    requests = [post(stream=True), get("/v1/models"), post(n=0), post(), post(stream=True)]
    async with EmulatorServer(TEXT, faults=Split(every=50)) as server, await Client.to(server) as client:
        client.writer.write(b"".join(requests))
        assert (await client.answer()).text == TEXT
        assert isinstance((await client.answer()).json, list)
        assert (await client.answer()).status == 400
        assert (await client.answer()).json["choices"][0]["message"]["content"] == TEXT
        assert (await client.answer()).text == TEXT
        assert [entry.number for entry in server.journal] == [0, 1, 2, 3, 4]
        assert server.connections == 1


async def test_a_large_request_and_a_large_response():
    """One MiB each way."""
    content = "word " * 200_000
    async with EmulatorServer(lambda request: request.messages[0]["content"]) as server:
        answer = await ask(server, post(messages=[{"role": "user", "content": content}], max_tokens=None))
        assert answer.status == 403  # above the context
        server.script = Reply([content])
        assert (await ask(server, post())).json["choices"][0]["message"]["content"] == content


async def test_a_standard_library_client_understands_it():
    """http.client, in another thread: a whole response, a stream, on one connection."""

    def talk(port: int) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        got = []
        for stream in (False, True):
            connection.request("POST", CHAT, json.dumps({**BODY, "stream": stream}))
            got.append(connection.getresponse().read())
        connection.close()
        return got

    async with EmulatorServer(TEXT) as server:
        whole, stream = await asyncio.to_thread(talk, server.port)
        assert json.loads(whole)["choices"][0]["message"]["content"] == TEXT
        assert stream.endswith(b"data: [DONE]\n\n")
        assert server.connections == 1


def narrow() -> socket.socket:
    """A socket that takes little without being read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    return sock


ENDLESS: dict[str, Fault] = {
    "huge line": HugeLine(size=10**9, after_token=1),
    "pings": Stall(after_token=1, ping_every=0),
    "headers": EndlessHeaders(),
    "insert": Insert(after_token=1, data=b"x" * 1000, times=10**9),
}


@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
async def test_a_flood_stops_when_nobody_reads_and_ends_when_the_client_leaves(fault):
    """What is written stays what the kernel took; then the leaving is seen, and nothing is left."""
    async with EmulatorServer(TEXT, faults=fault) as server:
        async with await Client.to(server, sock=narrow()) as client:
            client.writer.write(post(stream=True))
            await client.reader.readexactly(1_000)
            entry = server.journal[0]
            written = -1
            while written != entry.bytes_written:  # the pause has come when nothing was added in some time
                written = entry.bytes_written
                await asyncio.sleep(0.05)
            assert 1_000 <= written < 16 * 1024 * 1024
            assert entry.outcome == "open"
        await entry.wait_left()
        assert entry.outcome == "client left"
        assert entry.bytes_written == written


async def test_a_stream_pauses_when_nobody_reads_and_goes_on():
    """`tokens_written` stops short of the end; the reader who comes back gets every token."""
    tokens = [f" {number:x}".ljust(4_000, "x") for number in range(2_000)]
    async with EmulatorServer(Reply(tokens)) as server, await Client.to(server, sock=narrow()) as client:
        client.writer.write(post(stream=True))
        await client.reader.readexactly(100)
        entry = server.journal[0]
        written = -1
        while written != entry.tokens_written:
            written = entry.tokens_written
            await asyncio.sleep(0.05)
        assert 0 < written < 1_500
        assert entry.tokens == 2_000
        while not entry.ended_at:
            await client.reader.read(1 << 20)
        assert (entry.tokens_written, entry.outcome) == (2_000, "complete")


async def test_pipelined_requests_pause_when_nobody_reads():
    """Requests that come in are not answered while the answers before are not taken; later they are."""
    async with EmulatorServer("x" * 9_000) as server, await Client.to(server, sock=narrow()) as client:
        client.writer.write(post() * 2_000)
        await server.journal.wait()
        answered = -1
        while answered != server.journal.total:
            answered = server.journal.total
            await asyncio.sleep(0.05)
        assert answered < 1_000
        while server.journal.total < 2_000:
            assert await client.reader.read(1 << 20)


async def outcome(server: EmulatorServer, request: bytes) -> Answer:
    async with asyncio.timeout(5):
        return await ask(server, request)


@pytest.mark.parametrize(
    "request_",
    [post(headers="connection: close\r\n"), get("/v1/models").replace(b"1.1", b"1.0")],
    ids=["close", "HTTP/1.0"],
)
async def test_a_client_that_reads_to_the_end(request_):
    """Who says so, and who speaks HTTP/1.0, gets the end of the connection after the response."""
    async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
        client.writer.write(request_)
        await client.rest()


async def test_a_plan_that_cannot_be_carried_out_is_a_500_and_raised_at_the_end():
    """A body without an end has no content-length: the client is told, and so is the author."""

    async def talk() -> None:
        faults = Insert(after_token=0, data=b"x", times=math.inf) + Frame("length")
        async with EmulatorServer(TEXT, faults=faults) as server:
            assert (await ask(server, post())).status == 500
            assert server.journal[0].outcome == "refused"

    with pytest.raises(ValueError, match="without an end"):
        await talk()


async def test_a_content_length_of_many_digits_is_refused():
    """400 or 413, not silence."""
    async with EmulatorServer() as server:
        answer = await outcome(server, b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 5_000 + b"\r\n\r\n")
        assert answer.status in (400, 413)


@pytest.mark.parametrize("size", [b"+1", b"-6", b"0x1", b"1_0", b""])
async def test_a_chunk_size_is_hexadecimal_digits_only(size):
    """Signs, prefixes and the like are refused; a negative one must not lead back."""
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        client.writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + size + b"\r\nx\r\n0\r\n\r\n")
        assert (await client.answer()).status == 400


async def test_a_pipelined_request_after_a_cut_was_never_seen():
    """The cut ended the connection with all that waited on it."""
    async with EmulatorServer(TEXT, faults=Cut(after_token=1, how="close")) as server:
        await raw(server, post(stream=True) + post(stream=True))
        assert len(server.journal) == 1


@virtual
async def test_a_stall_before_raw_bytes():
    """What is listed as a fault happens."""
    async with EmulatorServer(TEXT, faults=Stall() + Raw(b"x")) as server, await Client.to(server) as client:
        client.writer.write(post())
        assert await client.silence() == b""


async def test_tls_spoken_to_a_plain_server_is_answered():
    """The text that speaks of https is for this."""
    async with EmulatorServer() as server:
        assert (await outcome(server, b"\x16\x03\x01\x02\x00\x01\x00" + bytes(100))).status == 400


async def test_an_empty_line_before_a_request_is_skipped():
    """RFC 9112, 2.2."""
    async with EmulatorServer("x") as server:
        assert (await outcome(server, b"\r\n" + post())).status == 200


def test_models_that_are_there_when_nothing_is_said():
    """Three, one in each of the service's shapes; any other name is answered too."""
    assert [model.dialect.name for model in MODELS] == ["together", "gpt-oss", "deepseek"]
