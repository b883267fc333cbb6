"""`Connecting`: `Timeouts.connect` holds for new connections only, for all of their opening, and is exact."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from support.clients import bodies_ended, client_of, served, transport_of
from support.late_loops import LateVirtualTimeLoop
from support.servers import KEY, MODEL, ScriptedServer, answers, hangs, response, whole
from support.virtual_time import lasts, run, virtual
from together_async import APITimeoutError, AsyncTogether, Timeouts

pytestmark = pytest.mark.usefixtures("no_leaks")

GOOD = answers(response(whole()))


async def never(*_: Any, **__: Any) -> Any:
    """What is waited for does not come."""
    await asyncio.Event().wait()


async def to_a_name(monkeypatch: pytest.MonkeyPatch) -> AsyncTogether:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    return AsyncTogether(KEY, base_url="http://api.example/v1", proxy="")


async def to_an_address(monkeypatch: pytest.MonkeyPatch) -> AsyncTogether:
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    return AsyncTogether(KEY, base_url="http://192.0.2.1/v1", proxy="")


@virtual
@pytest.mark.parametrize("way", [to_a_name, to_an_address])
async def test_every_part_of_connecting_counts(monkeypatch: pytest.MonkeyPatch, way: Callable[[Any], Any]) -> None:
    """The look-up of the host, and TCP. (TLS: `test_whole_timeouts`.)"""
    client: AsyncTogether = await way(monkeypatch)
    async with client:
        with lasts(7.25), pytest.raises(APITimeoutError) as caught:
            await client.create("Hi", model=MODEL, timeouts=Timeouts(connect=7.25))
        assert (caught.value.phase, caught.value.seconds, caught.value.attempts) == ("connect", 7.25, 1)
        assert isinstance(caught.value.__cause__, TimeoutError)
        transport = transport_of(client)
        assert not transport.openings
        assert not transport._diallers
        assert not transport._deadlines._waiting


@virtual
async def test_a_proxy_that_does_not_connect_counts() -> None:
    """The proxy has accepted, and says nothing to CONNECT."""
    async with ScriptedServer(hangs) as proxy:
        async with AsyncTogether(KEY, base_url="https://api.invalid/v1", proxy=proxy.origin) as client:
            with lasts(7.25), pytest.raises(APITimeoutError) as caught:
                await client.create("Hi", model=MODEL, timeouts=Timeouts(connect=7.25))
            assert caught.value.phase == "connect"


@virtual
async def test_a_wait_for_the_head_is_not_connecting() -> None:
    """On a new connection and on a pooled one: nothing watches them but the limits of the call."""
    limits = Timeouts(connect=5, first_token=None, idle=None)
    async with served(GOOD, GOOD, hangs, timeouts=limits) as (server, client):
        for _ in range(2):
            await client.create("Hi", model=MODEL)
            await bodies_ended(client)
        call = asyncio.create_task(client.create("Hi", model=MODEL))
        await server.call(2)
        assert not transport_of(client)._deadlines._waiting
        await asyncio.sleep(100)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(server.connections) == 1


@virtual
@pytest.mark.parametrize("own", [True, False])
async def test_nothing_is_kept_for_limits_that_vary(own: bool) -> None:
    """Neither with a session of ours, nor with one of the caller's."""
    async with ScriptedServer(GOOD) as server, aiohttp.ClientSession() as session:
        async with client_of(server, session=None if own else session) as client:
            await client.create("Hi", model=MODEL)
            transport = transport_of(client)
            options = dict(transport._options)
            for n in range(20):
                await client.create("Hi", model=MODEL, timeouts=Timeouts(connect=1 + n / 16))
            assert transport._options == options
            assert not transport._deadlines._waiting


async def test_a_session_of_the_callers_has_the_limit_of_aiohttp() -> None:
    """A TLS handshake that nobody answers, and a pool whose places are taken, which is no connecting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with aiohttp.ClientSession() as session, AsyncTogether(KEY, base_url=url, session=session) as client:
            with pytest.raises(APITimeoutError) as caught:
                await client.create("Hi", model=MODEL, timeouts=Timeouts(connect=0.05))
            assert (caught.value.phase, caught.value.seconds) == ("connect", 0.05)


def test_a_host_whose_address_comes_while_the_process_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of connecting has as long as the timer was late, at most a second."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LateVirtualTimeLoop)

        async def slow(host: str, port: int, **_: Any) -> Any:
            await asyncio.sleep(1)
            loop.suspend(100)
            await asyncio.sleep(delay_s)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(loop, "getaddrinfo", slow)
        async with ScriptedServer(GOOD) as server:
            for delay_s in (0.5, 1.5):
                url = f"http://api.example:{server.port}/v1"
                async with AsyncTogether(KEY, base_url=url, proxy="", timeouts=Timeouts(connect=10)) as client:
                    if delay_s < 1:
                        assert (await client.create("Hi", model=MODEL)).text == "Hello"
                        continue
                    with lasts(102), pytest.raises(APITimeoutError) as caught:
                        await client.create("Hi", model=MODEL)
                    assert caught.value.phase == "connect"

    run(main(), LateVirtualTimeLoop())
