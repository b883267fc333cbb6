"""`Connector`: connecting, TLS, and uvloop."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import gc
import traceback

import aiohttp
import pytest
import trustme

from support.clients import client_of, text_of
from support.servers import KEY, MODEL, ScriptedServer, gone, hangs, left_at_once, starts_and_hangs, streams, threaded
from support.tls import client_tls, server_tls
from support.virtual_time import lasts, virtual
from together_async import APIConnectionError, AsyncTogether, StreamConnectionError

pytestmark = pytest.mark.usefixtures("no_leaks")


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
    """aclose() does not wait for the peer's close_notify."""
    async with ScriptedServer(starts_and_hangs, ssl_context=server_tls(authority)) as server:
        async with client_of(server, ssl=client_tls(authority)) as client:
            stream = client.stream("Hi", model=MODEL)
            await anext(stream)
            with lasts(0):
                await client.aclose()
                await gone(await server.call(), 5)
            with pytest.raises(StreamConnectionError):
                await stream.completion()


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
