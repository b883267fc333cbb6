"""`sockets`: how they are made, and how much is read at once."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import socket
import types

import pytest
import trustme

from support.clients import client_of, transport_of
from support.servers import LAST_CHUNK, MODEL, Call, ScriptedServer, answers, delta, response, say, sse, whole
from support.tls import client_tls, server_tls
from together_async.http import sockets

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_reads_are_small_on_plain_connections() -> None:
    """asyncio reads 64 KiB at a time; if its attribute is gone, this test fails."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        await going_on.wait()
        await call.chunk(*(sse(delta("x" * 3000)) for _ in range(300)), say("b"))
        await call.send(LAST_CHUNK)

    going_on = asyncio.Event()
    async with ScriptedServer(script) as server, client_of(server) as client:
        async with client.stream("Hi", model=MODEL) as stream:
            connection = stream._reading.response._response.connection  # type: ignore[union-attr]  # it is open
            assert connection.transport.max_size == sockets.READ_SIZE
            going_on.set()
            assert (await stream.completion()).text == "a" + "x" * 900_000 + "b"


async def test_reads_are_small_for_whole_responses() -> None:
    """Their connection is back in the pool when the head is known, so it is set up before."""
    async with ScriptedServer(answers(response(whole()))) as server, client_of(server) as client:
        await client.create("Hi", model=MODEL)
        connector = transport_of(client)._session.connector  # type: ignore[union-attr]  # it is open
        ((pooled,),) = connector._conns.values()  # type: ignore[union-attr]  # one host, one connection
        assert pooled[0].transport.max_size == sockets.READ_SIZE


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
                connection = stream._reading.response._response.connection  # type: ignore[union-attr]  # it is open
                protocol = connection.transport._ssl_protocol
                assert len(protocol._ssl_buffer) == protocol.max_size == sockets.TLS_READ_SIZE
                going_on.set()
                assert (await stream.completion()).text == "a" + "x" * 900_000 + "b"


def test_a_dead_peer_is_found_out_within_a_minute() -> None:
    """After 30 seconds of silence TCP sends 3 probes, 10 seconds apart."""
    with sockets.make_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 1))) as made:
        assert not made.getblocking()
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            made.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
    assert (idle, interval, count) == (30, 10, 3)


def test_a_transport_without_the_attributes_is_left_alone() -> None:
    """uvloop's transports have none of them, and a response whose body has ended has no connection."""
    bare = types.SimpleNamespace(connection=types.SimpleNamespace(transport=types.SimpleNamespace()))
    sockets.set_read_size(bare, sockets.READ_SIZE)  # type: ignore[arg-type]  # a fake
    assert not vars(bare.connection.transport)
    sockets.set_read_size(types.SimpleNamespace(connection=None), sockets.READ_SIZE)  # type: ignore[arg-type]  # a fake
