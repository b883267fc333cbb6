"""The emulator's lifetime: starting and stopping, threads, errors of scripts, TLS and other sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
import sys
import threading
from typing import Any

import pytest
import trustme

from support.raw_client import BODY, CHAT, TEXT, Client, ask, get, post, raw
from together_async.testing import (
    ByModel,
    Cut,
    EmulatorServer,
    HugeLine,
    InTurn,
    Model,
    Stall,
    Status,
)

pytestmark = pytest.mark.usefixtures("no_leaks")
NO_RULE: Any = "x"


async def test_drop_connections_ends_all_of_them():
    """The idle one and the one in the middle of a stream; the server goes on."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=1)) as server:
        async with await Client.to(server) as busy, await Client.to(server) as idle:
            busy.writer.write(post(stream=True))
            await busy.reader.readuntil(b'"one"')
            assert (await idle.ask(get("/v1/models"))).status == 200
            server.drop_connections()
            await busy.read_to_end()
            await idle.read_to_end()
            assert server.journal[0].outcome == "broken off"
        server.faults = None
        assert (await ask(server, post(stream=True))).text == TEXT


async def test_drop_connections_is_a_reset():
    """As a server does that crashes."""
    async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
        await client.ask(post())
        server.drop_connections()
        assert await client.read_to_end() == (b"", "reset")


async def test_the_end_of_the_server_ends_everything():
    """A stall, a paced stream, a flood nobody reads, an idle connection, half a request: all are left and gone."""
    faults = ByModel({"stall": Stall(), "flood": Stall(ping_every=0, after_token=0)})
    models = ["stall", "flood", Model("slow", tokens_per_second=0.1)]
    async with contextlib.AsyncExitStack() as clients:
        async with EmulatorServer(TEXT, faults=faults, models=models) as server:
            open_ = [await clients.enter_async_context(await Client.to(server)) for _ in range(5)]
            for client, model in zip(open_, ("stall", "slow", "flood"), strict=False):
                client.writer.write(post(stream=True, model=model))
            open_[3].writer.write(b"POST / HT")
            await server.journal.wait(3)
            entries = list(server.journal)
        assert {entry.outcome for entry in entries} == {"broken off"}
        assert server.open_connections == 0
        for client in open_:
            await client.read_to_end()
        with pytest.raises(OSError, match=r"."):
            await Client.to(server)


async def test_a_script_that_raises_is_a_500_and_raised_at_the_end():
    """The client gets a 500 that names the emulator; the author gets the error."""

    def script(request: Any) -> str:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - raised on leaving - the end of the block raises
        async with EmulatorServer(script) as server:
            answer = await ask(server, post())
            assert answer.status == 500
            assert "KeyError('mine')" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "rule", ["x", lambda _: 1 / 0, HugeLine(size=10**6) + Cut(at_byte=100)], ids=["type", "raises", "place"]
)
async def test_a_rule_that_raises_is_a_500_and_raised_at_the_end(rule):
    """Likewise."""
    with pytest.raises((TypeError, ZeroDivisionError, ValueError)):
        async with EmulatorServer(faults=rule) as server:
            assert (await ask(server, post(stream=True))).status == 500


async def test_what_the_body_raises_is_not_hidden_by_it():
    """The test's own failure comes first."""
    with pytest.raises(LookupError):  # noqa: PT012 - raised on leaving - the end of the block could raise another
        async with EmulatorServer(faults=NO_RULE) as server:
            await ask(server, post())
            raise LookupError


async def test_a_script_that_raises_a_value_error_is_a_500_too():
    """Such as json.loads in it."""
    with pytest.raises(ValueError, match="Expecting value"):
        async with EmulatorServer(lambda _: json.loads("")) as server:
            assert (await ask(server, post())).status == 500


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": 5}},
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": 5},
        },
    ],
    ids=["response_format", "tool_choice"],
)
async def test_a_request_of_the_wrong_shape_is_no_failure(fields):
    """Or answered as if it were not there; nothing is raised at the end."""
    async with EmulatorServer() as server:
        assert (await ask(server, post(**fields))).status in (200, 400)


async def test_two_servers_at_once():
    """Each on its port, with its journal and seed."""
    async with EmulatorServer("a") as server, EmulatorServer("b", seed=9) as other:
        assert server.port != other.port
        first, second = await ask(server, post()), await ask(other, post())
        assert [answer.json["choices"][0]["message"]["content"] for answer in (first, second)] == ["a", "b"]
        assert [server.journal.total, other.journal.total] == [1, 1]


async def test_a_port_in_use_is_an_os_error():
    """In both ways to run it; nothing is left behind."""
    async with EmulatorServer() as server:
        with pytest.raises(OSError, match="address already in use"):
            async with EmulatorServer(port=server.port):
                pass
        with pytest.raises(OSError, match="address already in use"), EmulatorServer(port=server.port):
            pass


async def test_an_emulator_is_entered_once_at_a_time():
    """Entering it while it runs is an error, entering it again later is not; before the first time there is no port."""
    server = EmulatorServer("x")
    assert repr(server) == "<EmulatorServer not running, 0 requests>"
    for call in (lambda: server.base_url, server.release, server.drop_connections):
        with pytest.raises(RuntimeError, match="the emulator does"):
            call()
    for _ in range(2):
        async with server:
            assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
            with pytest.raises(RuntimeError, match="runs already"):
                await server.__aenter__()
            assert (await ask(server, post())).status == 200
    assert server.journal.total == 2


async def test_settings_change_while_it_runs():
    """Script and faults, each beginning its turns anew."""
    async with EmulatorServer(InTurn("a", "b", then="z")) as server, await Client.to(server) as client:

        async def text() -> str:
            return str((await client.ask(post())).json["choices"][0]["message"]["content"])

        assert [await text() for _ in range(3)] == ["a", "b", "z"]
        server.script = server.script
        assert await text() == "a"
        server.faults = InTurn(Status(500))
        assert [(await client.ask(post())).status for _ in range(2)] == [500, 200]
        server.faults = InTurn(Status(500))
        assert (await client.ask(post())).status == 500
        server.api_key = "k"
        assert (await client.ask(post())).status == 401


def test_a_thread_of_its_own():
    """`with`: http.client in this thread; the journal may be waited for in a loop of this thread; no thread is left."""
    before = threading.active_count()
    with EmulatorServer(TEXT, faults=InTurn(None, Stall(after_token=1))) as server:
        assert threading.active_count() == before + 1
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("POST", CHAT, json.dumps(BODY))
        assert json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] == TEXT
        connection.request("POST", CHAT, json.dumps({**BODY, "stream": True}))
        response = connection.getresponse()
        assert b"one" in response.readline()
        server.release()
        assert response.read().endswith(b"[DONE]\n\n")
        connection.request("POST", CHAT, json.dumps(BODY))
        connection.getresponse().read()

        async def watch() -> None:
            assert (await server.journal.wait(3)).number == 2
            waiting = asyncio.create_task(server.journal.wait(4))
            await asyncio.sleep(0)
            server.faults = Stall()
            connection.request("POST", CHAT, json.dumps(BODY))
            entry = await waiting
            connection.close()
            await entry.wait_left()

        asyncio.run(watch())
    assert threading.active_count() == before
    assert server.open_connections == 0


def test_a_thread_raises_what_its_script_raised():
    """At the end of the `with`, unless its body raised."""
    with pytest.raises(TypeError, match="among the faults"), EmulatorServer(faults=NO_RULE) as server:  # noqa: PT012 - raised on leaving
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("POST", CHAT, json.dumps(BODY))
        assert connection.getresponse().status == 500
        connection.close()


def test_many_threads_ask_one_server():
    """Four threads of 50 requests: each answered, all in the journal, waiters of another loop woken."""

    def talk() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        for _ in range(50):
            connection.request("POST", CHAT, json.dumps(BODY))
            assert connection.getresponse().read()
        connection.close()

    with EmulatorServer("x") as server:
        threads = [threading.Thread(target=talk) for _ in range(4)]

        async def watch() -> list[int]:
            waiting = [asyncio.create_task(server.journal.wait(number)) for number in (1, 50, 150, 200)]
            for thread in threads:
                thread.start()
            return [(await entry).number for entry in waiting]

        numbers = asyncio.run(watch())
        for thread in threads:
            thread.join()
        assert numbers[-1] == 199
        assert [entry.number for entry in server.journal] == list(range(200))


async def test_release_may_be_called_from_any_thread():
    """Also where the server runs in the event loop."""
    async with EmulatorServer(TEXT, faults=Stall()) as server, await Client.to(server) as client:
        client.writer.write(post())
        await client.silence()
        await asyncio.to_thread(server.release)
        assert (await client.answer()).status == 200


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_tls(authority):
    """Whole responses and streams over https, on one connection."""
    server_side, client_side = contexts(authority)
    async with EmulatorServer(TEXT, ssl=server_side) as server:
        assert server.base_url == f"https://127.0.0.1:{server.port}/v1"
        async with await Client.to(server, ssl=client_side) as client:
            assert (await client.ask(post(stream=True))).text == TEXT
            assert (await client.ask(post())).status == 200
        assert server.connections == 1


async def test_tls_with_faults(authority):
    """A cut is a reset, a stall goes on, leaving is seen, over https too."""
    server_side, client_side = contexts(authority)
    faults = InTurn(Cut(after_token=1), Stall(after_token=1))
    async with EmulatorServer(TEXT, ssl=server_side, faults=faults) as server, asyncio.timeout(10):
        async with await Client.to(server, ssl=client_side) as client:
            client.writer.write(post(stream=True))
            got, ended = await client.read_to_end()
            assert got.count(b"\n\n") == 1
            assert ended == "reset"
        async with await Client.to(server, ssl=client_side) as client:
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b'"one"')
            server.release()
            await client.reader.readuntil(b"[DONE]")
        async with await Client.to(server, ssl=client_side) as client:
            server.faults = Stall(after_token=1)
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b'"one"')
        await server.journal[-1].wait_left()


async def test_a_failed_handshake_leaves_no_connection(authority):
    """A client that does not trust the certificate."""
    server_side, _ = contexts(authority)
    async with EmulatorServer(TEXT, ssl=server_side) as server:
        with pytest.raises(ssl.SSLError):
            await Client.to(server, ssl=ssl.create_default_context())
        async with asyncio.timeout(5):
            while server.open_connections:  # noqa: ASYNC110 - no event for connections
                await asyncio.sleep(0.001)


async def test_ipv6():
    """Brackets in the URL."""
    try:
        async with EmulatorServer(TEXT, host="::1") as server:
            assert server.base_url == f"http://[::1]:{server.port}/v1"
            reader, writer = await asyncio.open_connection("::1", server.port)
            async with Client(reader, writer) as client:
                assert (await client.ask(post())).status == 200
    except OSError:
        pytest.skip("no IPv6 here")


@pytest.mark.skipif(sys.platform == "win32", reason="no uvloop")
def test_uvloop():
    """Streams, resets, stalls and leaving on another event loop."""
    uvloop = pytest.importorskip("uvloop")

    async def talk() -> None:
        async with EmulatorServer(TEXT, faults=InTurn(None, Cut(after_token=1), Stall(after_token=1))) as server:
            assert (await ask(server, post(stream=True))).text == TEXT
            got, ended = await raw(server, post(stream=True))
            assert (got.count(b"\n\n"), ended) == (1, "reset")
            async with await Client.to(server) as client:
                client.writer.write(post(stream=True))
                await client.reader.readuntil(b'"one"')
            await server.journal[2].wait_left()

    uvloop.run(talk())
