"""Responses on the wire: pieces, compression, lengths, and clients that read slowly or not at all."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest

from support.raw_client import TEXT, Client, ask, get, narrow, plain, post, raw, same
from support.virtual_time import virtual
from together_async.testing import (
    Cut,
    Drip,
    EmulatorServer,
    EndlessHeaders,
    Fault,
    Frame,
    Gzip,
    HugeLine,
    Insert,
    LineEndings,
    Reply,
    Split,
    Stall,
    WrongLength,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


@virtual
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_gzip_is_decompressed_as_it_comes(framing):
    """The place counts uncompressed bytes, and each event can be decompressed as soon as it has arrived."""
    body, events = await plain(stream=True)
    fault = Gzip() + Frame(framing) + Stall(after_token=2)
    async with EmulatorServer(TEXT, faults=fault) as server, await Client.to(server) as client:
        client.writer.write(post(stream=True))
        head, _, data = (await client.silence()).partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in head
        server.release()
        remaining = bytearray()
        while framing == "close" or not remaining.endswith(b"0\r\n\r\n"):
            piece = await client.reader.read(65_536)
            if not piece:
                break
            remaining += piece

    def payload(data: bytes) -> bytes:
        if framing == "close":
            return data
        got = b""
        while data and not data.startswith(b"0\r\n"):
            size, _, data = data.partition(b"\r\n")
            got, data = got + data[: int(size, 16)], data[int(size, 16) + 2 :]
        return got

    inflate = zlib.decompressobj(wbits=31)
    assert same(inflate.decompress(payload(data))) == same(b"".join(events[:2]))
    assert same(gzip.decompress(payload(data) + payload(bytes(remaining)))) == same(body)


async def test_a_gzip_cut_off():
    """The compressed stream has no end."""
    _, events = await plain(stream=True)
    fault = Gzip() + Frame("close") + Cut(after_token=1, how="close")
    async with EmulatorServer(TEXT, faults=fault) as server:
        got, _ = await raw(server, post(stream=True))
    inflate = zlib.decompressobj(wbits=31)
    assert same(inflate.decompress(got.partition(b"\r\n\r\n")[2])) == same(events[0])
    assert not inflate.eof


@pytest.mark.parametrize(
    ("fault", "sizes"),
    [
        (Split(every=100), [100]),
        (Split(at=(1, 3)), [1, 2]),
        (Drip(size=7, every_s=0), [7, 7, 7]),
        (Split(inside="utf-8"), []),
    ],
    ids=repr,
)
async def test_pieces_are_chunks_of_their_own(fault, sizes):
    """The same body in other chunks."""
    async with EmulatorServer("é ö 🌊") as server:
        plain = await ask(server, post(stream=True))
        server.journal.clear()
        server.faults = fault
        split = await ask(server, post(stream=True))
    assert same(split.body) == same(plain.body)
    assert len(split.chunks) > len(plain.chunks)
    assert [len(chunk) for chunk in split.chunks[: len(sizes)]] == sizes
    if isinstance(fault, Split) and fault.inside:
        inside = [chunk for chunk in split.chunks if chunk[:1] >= b"\x80"]
        assert len(inside) == 6  # each character of two in `content` and in `text`


async def test_line_endings_on_the_wire():
    """CR LF, each cut in two."""
    body, _ = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=LineEndings() + Split(inside="crlf")) as server:
        answer = await ask(server, post(stream=True))
    assert same(answer.body) == same(body.replace(b"\n", b"\r\n"))
    assert all(not chunk.endswith(b"\r\n") or chunk == b"\n" for chunk in answer.chunks)


@pytest.mark.parametrize(("by", "end"), [(5, "eof"), (-5, "eof")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_length(by, end, stream):
    """The whole body comes, with another length, then a FIN without a word."""
    body, _ = await plain(stream=stream)
    async with EmulatorServer(TEXT, faults=WrongLength(by)) as server:
        got, ended = await raw(server, post(stream=stream))
    head, _, data = got.partition(b"\r\n\r\n")
    assert f"content-length: {len(body) + by}".encode() in head
    assert b"connection" not in head
    assert (same(data), ended) == (same(body), end)


ENDLESS: dict[str, Fault] = {
    "huge line": HugeLine(size=10**9, after_token=1),
    "pings": Stall(after_token=1, ping_every=0),
    "headers": EndlessHeaders(),
    "insert": Insert(after_token=1, data=b"x" * 1000, times=10**9),
}


@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
async def test_a_flood_stops_when_nobody_reads_and_ends_when_the_client_leaves(fault):
    """No more is written than the kernel takes; when the client leaves, everything is freed."""
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
    """`tokens_written` stops short of the end; when the client reads again, it gets every token."""
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


@pytest.mark.parametrize(
    "request_",
    [post(headers="connection: close\r\n"), get("/v1/models").replace(b"1.1", b"1.0")],
    ids=["close", "HTTP/1.0"],
)
async def test_a_client_that_reads_to_the_end(request_):
    """With `connection: close` or HTTP/1.0, the connection ends after the response."""
    async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
        client.writer.write(request_)
        await client.read_to_end()
