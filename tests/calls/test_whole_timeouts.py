"""Whole responses: the limits of time; every test is exact in virtual time."""

import asyncio

import pytest

from support.clients import served
from support.scripts import JSON_HEAD, stalls
from support.servers import KEY, MODEL, Script, hangs, left_at_once
from support.virtual_time import lasts, virtual
from together_async import APITimeoutError, AsyncTogether, Timeouts, TogetherError

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "the secret plans of the company"


@virtual
@pytest.mark.parametrize(
    ("script", "timeouts", "phase"),
    [
        (stalls(), Timeouts(first_token=100), "first_token"),
        (stalls(JSON_HEAD[:30]), Timeouts(first_token=100), "first_token"),
        (stalls(JSON_HEAD), Timeouts(first_token=100, idle=5_000), "first_token"),
        (stalls(JSON_HEAD, b"{"), Timeouts(first_token=5_000, idle=100), "idle"),
        (stalls(JSON_HEAD, b"{"), Timeouts(first_token=None, idle=100), "idle"),
        (stalls(), Timeouts(total=100), "total"),
        (stalls(JSON_HEAD), Timeouts(total=100), "total"),
        (stalls(JSON_HEAD, every=10), Timeouts(total=100, idle=50), "total"),
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
    """A TLS handshake that nobody answers is `connect`. (aiohttp's own would be rounded up.)"""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    timeouts = Timeouts(connect=9.5, first_token=first_token)
    async with AsyncTogether(KEY, base_url=f"https://127.0.0.1:{port}/v1", timeouts=timeouts) as client:
        with lasts(9.5), pytest.raises(APITimeoutError) as caught:
            await client.create(PROMPT, model=MODEL)
        assert (caught.value.phase, caught.value.seconds) == ("connect", 9.5)
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
