"""`Connector`: what an observer of a request is told about the connections that are opened for it."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import socket
from typing import Any

import aiohttp
import pytest
import trustme

from support.clients import bodies_ended, client_of
from support.servers import KEY, Call, Script, ScriptedServer, answers, hangs, response, whole
from support.tls import client_tls, server_tls
from together_async import APIConnectionError, APITimeoutError, AsyncTogether, Timeouts, TogetherError
from together_async.http.connections import Connections
from together_async.wire.http_request import HTTPRequest

pytestmark = pytest.mark.usefixtures("no_leaks")

GOOD = answers(response(whole()))


class Dial:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.began = asyncio.Event()

    def begun(self) -> None:
        self.events.append("begun")
        self.began.set()

    def ended(self, connected: bool) -> None:
        self.events.append("open" if connected else "failed")


async def send(client: AsyncTogether, dial: Dial | None, timeouts: Timeouts | None = None) -> None:
    """Sends one request, reads its response to the end, and leaves its connection to the pool."""
    connections: Connections = client._connections
    transport = connections.transport()
    request = HTTPRequest("chat/completions", b'{"model":"m","messages":[]}', stream=False)
    response = await transport.open(
        request, headers=None, timeouts=timeouts or Timeouts(), started=transport.loop.time(), dial=dial
    )
    await response.read_all()
    response.close()


async def told(client: AsyncTogether, timeouts: Timeouts | None = None) -> list[str]:
    """What an observer of one request is told, and whatever becomes of the request."""
    dial = Dial()
    try:
        await send(client, dial, timeouts)
    except TogetherError as error:
        dial.events.append(type(error).__name__)
    assert not client._connections.transport()._diallers
    return dial.events


async def test_only_a_new_connection_is_reported() -> None:
    """A pooled one is not: it costs nothing, and the request is written at once."""
    async with ScriptedServer(GOOD) as server, client_of(server) as client:
        assert await told(client) == ["begun", "open"]
        await bodies_ended(client)
        assert await told(client) == []
        assert len(server.connections) == 1


async def test_requests_without_an_observer_are_not_watched() -> None:
    """Also next to others that are: each is told of its own connection."""
    async with ScriptedServer(GOOD) as server, client_of(server) as client:
        dials = [Dial() for _ in range(5)]
        await asyncio.gather(*(send(client, dial) for dial in dials), *(send(client, None) for _ in range(5)))
        assert [dial.events for dial in dials] == [["begun", "open"]] * 5
        assert len(server.connections) == 10


async def test_a_session_of_the_callers_reports_nothing() -> None:
    """Its connector is not ours."""
    async with ScriptedServer(GOOD) as server, aiohttp.ClientSession() as session:
        async with client_of(server, session=session) as client:
            assert await told(client) == []


async def test_a_connection_that_fails_has_an_end(unused_tcp_port: int) -> None:
    """Refused, and a name that does not exist."""
    for host in (f"127.0.0.1:{unused_tcp_port}", "no-such-host.invalid"):
        async with AsyncTogether(KEY, base_url=f"http://{host}/v1") as client:
            assert await told(client) == ["begun", "failed", "APIConnectionError"]


async def test_a_connection_ends_with_its_tls(authority: trustme.CA) -> None:
    """It is open when TLS is; a certificate that does not verify is a failure."""
    async with ScriptedServer(GOOD, ssl_context=server_tls(authority)) as server:
        async with client_of(server, ssl=client_tls(authority)) as client:
            assert await told(client) == ["begun", "open"]
        async with client_of(server) as client:
            assert await told(client) == ["begun", "failed", "APIConnectionError"]


def unanswering() -> socket.socket:
    """A listener whose TLS handshake never comes: TCP connects, and nothing is said."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


async def test_a_connection_that_is_given_up_has_an_end() -> None:
    """By `Timeouts.connect`, by a cancellation, by closing the client."""
    with unanswering() as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with AsyncTogether(KEY, base_url=url) as client:
            assert await told(client, Timeouts(connect=0.05)) == ["begun", "failed", APITimeoutError.__name__]
            dial = Dial()
            task = asyncio.create_task(send(client, dial))
            await dial.began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert dial.events == ["begun", "failed"]
            assert not client._connections.transport()._diallers
            dial = Dial()
            task = asyncio.create_task(send(client, dial))
            await dial.began.wait()
            await client.aclose()
            with pytest.raises(APIConnectionError):
                await task
            assert dial.events == ["begun", "failed"]


async def test_a_connection_through_a_proxy_ends_when_the_proxy_has_made_it() -> None:
    """Plain HTTP by a proxy is open with the proxy; a tunnel that the proxy refuses has failed."""
    refuses = answers(response(b"no", status=407, media_type="text/plain"))
    async with ScriptedServer(GOOD) as proxy:
        async with AsyncTogether(KEY, base_url="http://api.invalid/v1", proxy=proxy.origin) as client:
            assert await told(client) == ["begun", "open"]
    async with ScriptedServer(refuses) as proxy:
        async with AsyncTogether(KEY, base_url="https://api.invalid/v1", proxy=proxy.origin) as client:
            assert await told(client) == ["begun", "failed", "APIConnectionError"]


async def test_a_redirect_and_a_stale_connection_open_another() -> None:
    """Each connection that is opened for the request is a pair."""
    async with ScriptedServer(GOOD) as target:

        async def redirects(call: Call) -> None:
            place = f"location: {target.origin}{call.target}\r\n".encode()
            await call.send(response(b"", status=307, media_type="text/plain", extra=place))

        async with ScriptedServer(redirects) as server, client_of(server) as client:
            assert await told(client) == ["begun", "open", "begun", "open"]
    for script in (closes_second, resets_second):
        async with ScriptedServer(script()) as server, client_of(server) as client:
            assert await told(client) == ["begun", "open"]
            await bodies_ended(client)
            assert await told(client) == ["begun", "open"]
            assert len(server.calls) == 3


def closes_second() -> Script:
    return _ends_second(lambda call: call.close())


def resets_second() -> Script:
    return _ends_second(lambda call: call.reset())


def _ends_second(end: Any) -> Script:
    """A pooled connection turns out to be stale with the second request on it."""
    used: set[int] = set()

    async def script(call: Call) -> None:
        number = call.connection.number
        if number in used:
            end(call)
            return
        used.add(number)
        await call.send(response(whole()))

    return script


async def test_a_request_that_is_late_after_its_connection_is_open_has_one_end() -> None:
    """What comes after the connection is no business of the observer."""
    async with ScriptedServer(hangs) as server, client_of(server) as client:
        assert await told(client, Timeouts(first_token=0.05)) == ["begun", "open", APITimeoutError.__name__]
