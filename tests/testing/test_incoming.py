"""Requests as they may come, in pieces or malformed."""

from __future__ import annotations

import asyncio
import json

import pytest

from support.raw_client import BODY, CHAT, Client, outcome, post
from support.virtual_time import virtual
from together_async.testing import (
    EmulatorServer,
)
from together_async.testing.incoming import MAX_HEAD

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /v1/models\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: \xb2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 268435457\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffff1\r\n", 413),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD, 431),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(garbage, status):
    """The body has the reason, and a FIN follows; the journal has no entry."""
    async with EmulatorServer() as server, await Client.to(server) as client:
        answer = await client.ask(garbage)
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert answer.json["error"]["message"]
        assert await client.read_to_end() == (b"", "eof")
        assert len(server.journal) == 0


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


async def test_tls_spoken_to_a_plain_server_is_answered():
    """The text that speaks of https is for this."""
    async with EmulatorServer() as server:
        assert (await outcome(server, b"\x16\x03\x01\x02\x00\x01\x00" + bytes(100))).status == 400


async def test_an_empty_line_before_a_request_is_skipped():
    """RFC 9112, 2.2."""
    async with EmulatorServer("x") as server:
        assert (await outcome(server, b"\r\n" + post())).status == 200
