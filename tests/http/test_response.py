"""`HTTPResponse`: the end of a body, its clock, and the bodies of errors."""

import asyncio

import pytest

from support.clients import client_of, served, text_of, transport_of
from support.scripts import stalls
from support.servers import (
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    ScriptedServer,
    answers,
    delta,
    gone,
    left_at_once,
    say,
    sse,
)
from support.virtual_time import lasts, virtual
from together_async import APIConnectionError, InternalServerError, RateLimitError
from together_async.http import response as response_module
from together_async.http.response import ERROR_BODY_SECONDS

pytestmark = pytest.mark.usefixtures("no_leaks")


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
            responses = transport_of(client).responses
            pending = next(iter(responses))
            reading.set()
            async with asyncio.timeout(5):
                while pending in responses:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(0)
        assert len(server.connections) == 1


@virtual
async def test_a_body_without_end_is_closed_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps the body open after [DONE] does not hold up the client: the connection is dropped."""
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
    """Data after [DONE] is not delivered, and its connection is dropped."""
    monkeypatch.setattr(response_module, "DRAIN_SECONDS", 0.1)

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(say("a"))
        while True:
            await call.chunk(sse(delta("x")) * 100)

    async with ScriptedServer(script) as server, client_of(server) as client:
        assert await text_of(client) == "a"
        await gone(await server.call(), 5)


# -------------------------------------------------------------------------------------------------------------- reading


# ----------------------------------------------------------------------------------------------------- bodies of errors


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
            await client.create("Hi", model=MODEL)
        assert isinstance(caught.value, InternalServerError) or not seconds
        assert "half" not in str(caught.value) or seconds


async def test_an_error_body_cut_off() -> None:
    """The error shows what came of its body before the connection broke."""

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 429 X\r\ncontent-length: 100\r\n\r\nslow down")
        call.close()

    async with served(script) as (_, client):
        with pytest.raises(RateLimitError, match="slow down"):
            await client.create("Hi", model=MODEL)


@virtual
async def test_an_endless_error_body() -> None:
    """Only a limited part of it is read."""

    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(b"HTTP/1.1 500 X\r\nconnection: close\r\n\r\n")
        while True:
            await call.send(b"x" * 65_536)
            sent += 65_536

    async with served(script) as (server, client):
        with pytest.raises(InternalServerError):
            await client.create("Hi", model=MODEL)
        await left_at_once(await server.call())
    assert sent < 20_000_000  # the network holds some
