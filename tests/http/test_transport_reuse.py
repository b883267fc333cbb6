"""`Transport`: connections are reused, and replaced when they are stale."""

import asyncio

import aiohttp
import pytest

from support.clients import client_of, text_of
from support.servers import MODEL, Call, ScriptedServer, answers, response, streams, whole
from together_async import APIConnectionError, BadRequestError, Limits

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_five_streams_need_one_connection() -> None:
    """A stream read to [DONE] gives its connection back."""
    async with ScriptedServer(streams("a", "b")) as server, client_of(server) as client:
        for _ in range(5):
            assert await text_of(client) == "ab"
        assert len(server.connections) == 1


async def test_create_reuses_its_connection() -> None:
    """Whole responses and streams and complete errors share one connection."""
    bad = answers(response({"error": {"message": "no"}}, status=400))
    async with ScriptedServer(answers(response(whole())), streams("a"), bad, streams("b")) as server:
        async with client_of(server) as client:
            await client.create("Hi", model=MODEL)
            await text_of(client)
            with pytest.raises(BadRequestError):
                await client.create("Hi", model=MODEL)
            assert await text_of(client) == "b"
        assert len(server.connections) == 1


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("own_session", [False, True], ids=["session of ours", "session of the caller"])
async def test_a_stale_pooled_connection_is_replaced_at_once(reset: bool, own_session: bool) -> None:
    """A server that closes after each response though it promised keep-alive fails no call."""
    used: set[int] = set()

    async def script(call: Call) -> None:
        if call.connection.number in used:
            call.reset() if reset else call.close()
            return
        used.add(call.connection.number)
        await call.send(response(whole()))

    async with ScriptedServer(script) as server:
        session = aiohttp.ClientSession() if own_session else None
        async with client_of(server, session=session) as client:
            for _ in range(50):
                assert (await client.create("Hi", model=MODEL)).text == "Hello"
        if session is not None:
            await session.close()
        assert len(server.calls) > 50, "no connection was stale"


async def test_a_server_that_closes_each_connection_after_its_response() -> None:
    """The FIN right behind the response is seen in time or retried, never an error."""

    async def script(call: Call) -> None:
        await call.send(response(whole()))
        call.close()

    async with ScriptedServer(script) as server, client_of(server) as client:
        for _ in range(50):
            assert (await client.create("Hi", model=MODEL)).text == "Hello"


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_fresh_connection_closed_without_an_answer_is_an_error(reset: bool) -> None:
    """Closed without a byte on a new connection: the request may have been seen, so it is not sent again."""

    async def script(call: Call) -> None:
        call.reset() if reset else call.close()

    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
        assert len(server.calls) == 1
        assert caught.value.attempts == 1
        assert "ServerDisconnected" in str(caught.value) or "reset" in str(caught.value)


@pytest.mark.parametrize("size", [1, 12, 17, 30])
async def test_no_second_try_after_a_part_of_a_head(size: int) -> None:
    """A response that had begun means that the server works on the request: it is not sent again."""

    async def cut(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"[:size])
        call.close()

    async with ScriptedServer(answers(response(whole())), cut) as server, client_of(server) as client:
        await client.create("Hi", model=MODEL)
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
        assert len(server.calls) == 2
        assert len(server.connections) == 1
        assert caught.value.attempts == 1


async def test_a_response_that_nobody_asked_for_answers_nobody() -> None:
    """Bytes that come on an idle connection are not the answer to the next request."""
    sent = asyncio.Event()

    async def twice(call: Call) -> None:
        await call.send(response(whole("first")))
        await got_first.wait()
        await call.send(response(whole("for somebody else")))
        sent.set()

    got_first = asyncio.Event()
    async with ScriptedServer(twice, answers(response(whole("second")))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "first"
        got_first.set()
        await sent.wait()
        await asyncio.sleep(0.02)  # the bytes have crossed the loopback
        assert (await client.create("Hi", model=MODEL)).text == "second"
        assert len(server.connections) == 2


async def test_two_responses_in_one_piece() -> None:
    """The second of two responses to the same request belongs to no request."""
    both = answers(response(whole("first")) + response(whole("for somebody else")))
    async with ScriptedServer(both, answers(response(whole("second")))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "first"
        assert (await client.create("Hi", model=MODEL)).text == "second"


async def test_two_hundred_streams_at_once() -> None:
    """No request queues behind a pool's limit: all 200 have come before the first response."""
    everybody = asyncio.Event()

    async def script(call: Call) -> None:
        if len(server.calls) == 200:
            everybody.set()
        await everybody.wait()
        await streams("a", "b")(call)

    limits = Limits(concurrency=200)  # a model that never answered is asked with gaps of time
    async with ScriptedServer(script) as server, client_of(server, limits=limits) as client, asyncio.timeout(10):
        assert await asyncio.gather(*(text_of(client) for _ in range(200))) == ["ab"] * 200
