"""`Call`: the start of an unknown model learns of the connections that are opened for its requests."""

import asyncio

import pytest

from support.calls import do_create, good, leaves_nothing, retrying_client
from support.servers import KEY, MODEL, ScriptedServer, answers, response, whole
from support.survival import TEXT
from together_async import APIConnectionError, AsyncTogether, Retry
from together_async.ratelimit.start import Start


def start_of(client: AsyncTogether) -> Start:
    """The start of the model that the tests ask."""
    return client.limiter.driver.admission.lane(MODEL, 0.0).start


@leaves_nothing
async def test_each_connection_that_begins_to_be_opened_ends() -> None:
    """Those of many cold calls at once, and of more calls on the same connections."""
    async with ScriptedServer(good) as server, retrying_client(server) as client:
        for _ in range(2):
            assert await asyncio.gather(*(do_create(client) for _ in range(10))) == [TEXT] * 10
            start = start_of(client)
            assert (start._dialling, start._connected) == (0, True)


@leaves_nothing
async def test_a_connection_that_is_not_made_ends_too(unused_tcp_port: int) -> None:
    """Refused, or given up by its caller."""
    rules = Retry(attempts=2, base_delay=0.001)
    async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", retry=rules) as client:
        with pytest.raises(APIConnectionError):
            await do_create(client)
        task = asyncio.create_task(do_create(client))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        start = start_of(client)
        assert (start._dialling, start._connected) == (0, False)


@leaves_nothing
async def test_where_the_limits_are_known_nobody_needs_to_know() -> None:
    """The request of a model that has reported its limits is not observed."""
    told = answers(response(whole(TEXT), extra=b"x-ratelimit-limit: 1000\r\nx-ratelimit-remaining: 999\r\n"))
    async with ScriptedServer(told) as server, retrying_client(server) as client:
        await do_create(client)
        reservation = await client.limiter.acquire(MODEL)
        assert client.limiter.driver.dialling(reservation) is None
        client.limiter.release(reservation)
