"""`Connections` with a session of the caller's."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import gzip
from typing import Any

import aiohttp
import pytest

from support.clients import client_of, text_of
from support.servers import KEY, MODEL, ScriptedServer, answers, response, say, starts_and_hangs, streams, threaded
from together_async import APIConnectionError, AsyncTogether, BadRequestError, StreamConnectionError

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"raise_for_status": True},
        {"base_url": "http://elsewhere.invalid/api/"},
        {"auto_decompress": False},
        {"timeout": aiohttp.ClientTimeout(total=0.001)},
        {"read_bufsize": 1024},
        {"json_serialize": str},
        {"requote_redirect_url": False},
        {"headers": {"Authorization": "Bearer other", "content-type": "text/plain", "x-tenant": "7"}},
    ],
    ids=lambda settings: next(iter(settings), "plain"),
)
async def test_a_session_of_the_callers(settings: dict[str, Any]) -> None:
    """It is used whatever its defaults are; ours override them where necessary; it stays open."""
    body = gzip.compress(say("a", "b"))
    packed = response(body, media_type="text/event-stream", extra=b"content-encoding: gzip\r\n")
    refused = answers(response({"error": {"message": "no"}}, status=400))
    async with ScriptedServer(answers(packed), refused, streams("c")) as server:
        async with aiohttp.ClientSession(**settings) as session:
            async with client_of(server, session=session) as client:
                assert await text_of(client) == "ab"
                with pytest.raises(BadRequestError, match="no"):
                    await client.create("Hi", model=MODEL)
                assert await text_of(client) == "c"
            assert not session.closed
            assert len(server.connections) == 1
    headers = server.calls[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    if "headers" in settings:
        assert headers["x-tenant"] == "7"


async def test_a_closed_session_of_the_callers_is_a_typed_error() -> None:
    """A session that its owner has closed is reported as closed."""
    session = aiohttp.ClientSession()
    await session.close()
    async with AsyncTogether(KEY, base_url="http://127.0.0.1:1/v1", session=session) as client:
        with pytest.raises(APIConnectionError, match="closed"):
            await client.create("Hi", model=MODEL)


async def test_a_session_closed_in_the_middle_of_a_stream() -> None:
    """The caller closes the session while a stream runs: a typed error with what came, no hanging."""
    async with ScriptedServer(starts_and_hangs) as server:
        session = aiohttp.ClientSession()
        async with client_of(server, session=session) as client, asyncio.timeout(5):
            async with client.stream("Hi", model=MODEL) as stream:
                await anext(stream)
                await anext(stream)
                await session.close()
                with pytest.raises(StreamConnectionError) as caught:
                    await anext(stream)
                assert caught.value.partial.text == "ab"


def test_a_callers_session_in_another_loop() -> None:
    """A session of the caller's belongs to its loop: in another loop it is a typed error or works, and never hangs."""
    with threaded(streams("a"), streams("b")) as server:
        made: list[aiohttp.ClientSession] = []

        async def first() -> None:
            made.append(aiohttp.ClientSession())
            client = client_of(server, session=made[0])
            await client.stream("Hi", model=MODEL).completion()
            await made[0].close()

        async def second() -> None:
            async with client_of(server, session=made[0]) as client:
                with pytest.raises(APIConnectionError):
                    await asyncio.wait_for(client.create("Hi", model=MODEL), 10)

        asyncio.run(first())
        asyncio.run(second())


async def test_a_session_and_its_settings_exclude_each_other() -> None:
    """proxy= and ssl= are only for a session that the client opens."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ValueError, match="session"):
            AsyncTogether(KEY, session=session, proxy="http://h")
