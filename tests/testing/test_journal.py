"""The journal: the facts of each request, clients that leave, waiting for either."""

from __future__ import annotations

import asyncio
import socket
import struct
import time

import pytest

from support.raw_client import BODY, CHAT, TEXT, Client, ask, post, raw
from support.virtual_time import virtual
from together_async.testing import (
    Cut,
    EmulatorServer,
    Stall,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_an_entry_has_the_facts_of_a_request():
    """Method, path, headers in lower case, body, request, times, counts; neither key nor prompt in its repr."""
    async with EmulatorServer(TEXT) as server:
        request = post(CHAT + "?a=b", headers="X-Own: Value\r\nAuthorization: Bearer secret\r\n", stream=True, n=1)
        await ask(server, request)
        entry = server.journal[-1]
        assert (entry.number, entry.method, entry.path, entry.connection) == (0, "POST", CHAT + "?a=b", 0)
        assert entry.headers["x-own"] == "Value"
        assert entry.body == {**BODY, "stream": True, "n": 1}
        assert entry.request is not None
        assert entry.request.n == 1
        assert (entry.model, entry.streamed, entry.status, entry.faults) == ("m", True, 200, ())
        assert (entry.tokens, entry.tokens_written, entry.outcome) == (4, 4, "complete")
        assert entry.first_byte_at is not None
        assert entry.ended_at is not None
        assert entry.received_at <= entry.first_byte_at <= entry.ended_at <= time.monotonic()
        assert (entry.left_at, entry.client_left) == (None, False)
        text = f"{entry!r} {server.journal!r} {server!r}"
        assert "secret" not in text
        assert "'hi'" not in text
        assert "<Entry 0 'm' 200 complete, 4 of 4 tokens>" in text


async def test_bytes_written_are_those_on_the_wire():
    """Head and framing included."""
    async with EmulatorServer(TEXT, faults=Cut(at_byte=200, how="close")) as server:
        got, _ = await raw(server, post(stream=True))
        assert server.journal[0].bytes_written == len(got)


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("goodbye", ["fin", "rst"])
async def test_a_client_that_leaves_is_seen_at_once(goodbye, tokens):
    """With a FIN and with a RST: when, and how many tokens were out by then."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=tokens)) as server:
        async with await Client.to(server) as client:
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b"\r\n\r\n")
            entry = server.journal[0]
            while entry.tokens_written < tokens:  # noqa: ASYNC110 - no event for single tokens
                await asyncio.sleep(0.001)
            if goodbye == "rst":
                sock = client.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            before = time.monotonic()
            client.writer.transport.abort()
            left_at = await entry.wait_left()
        assert before <= left_at < before + 1
        assert (entry.outcome, entry.client_left, entry.tokens_written) == ("client left", True, tokens)
        assert entry.left_at == left_at
        assert await entry.wait_ended() >= left_at


@virtual
async def test_a_client_that_leaves_between_requests_leaves_no_trace():
    """Neither an entry nor a connection."""
    async with EmulatorServer(TEXT) as server:
        await ask(server, post())
        async with await Client.to(server) as client:
            client.writer.write(post()[:30])
            await client.silence()
            assert server.open_connections >= 1
        while server.open_connections:  # noqa: ASYNC110 - no event for connections
            await asyncio.sleep(0.001)
        assert [entry.outcome for entry in server.journal] == ["complete"]


async def test_what_does_not_happen_is_an_assertion_error():
    """The message names the event that was waited for."""
    async with EmulatorServer(TEXT, faults=Stall()) as server, await Client.to(server) as client:
        with pytest.raises(AssertionError, match=r"request number 1 \(0 came\) did not happen within 0.01 s"):
            await server.journal.wait(timeout=0.01)
        with pytest.raises(IndexError, match="request 0: the journal holds 0"):
            _ = server.journal[0]
        client.writer.write(post())
        entry = await server.journal.wait()
        with pytest.raises(AssertionError, match="the client's leaving of request 0 did not happen"):
            await entry.wait_left(timeout=0.01)
        with pytest.raises(AssertionError, match="the end of request 0 did not happen"):
            await entry.wait_ended(timeout=0.01)


async def test_the_journal_keeps_the_last():
    """`total` counts all; an index counts from the oldest kept; `clear` begins anew."""
    async with EmulatorServer("x", journal_size=3) as server, await Client.to(server) as client:
        for _ in range(5):
            await client.ask(post())
        journal = server.journal
        assert (journal.total, len(journal)) == (5, 3)
        assert [entry.number for entry in journal] == [2, 3, 4]
        assert [entry.number for entry in journal[1:]] == [3, 4]
        assert journal[-1].number == 4
        assert (await journal.wait(4)).number == 3
        journal.clear()
        assert (journal.total, list(journal)) == (0, [])
        await client.ask(post())
        assert (await journal.wait(1)).number == 0
