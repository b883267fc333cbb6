"""`Opening`: what ends a request before its head, in any order and all at once."""

import asyncio
import time

import pytest

from support import virtual_time
from support.clients import client_of, transport_of
from support.servers import MODEL, ScriptedServer, answers, hangs, response, whole
from together_async import APIConnectionError, APITimeoutError, Timeouts
from together_async.http.deadlines import Deadlines
from together_async.http.errors import ClientClosedError
from together_async.http.transport import Opening

pytestmark = pytest.mark.usefixtures("no_leaks")


async def opened(opening: list[Opening], after_s: float = 100.0) -> tuple[bool, BaseException, int]:
    """Waits as a request does. Returns whether what ended the wait came from the opening, what it was, and how many
    cancellations of its task are left."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    opening.append(Opening(Deadlines(loop), loop.time() + after_s, connect_s=after_s))
    opening[0].begun()
    try:
        await asyncio.sleep(1_000)
    except BaseException as error:  # noqa: BLE001 - looked at by the test
        opening[0].ended(connected=False)
        return opening[0].end(error), error, task.cancelling()
    raise AssertionError


CLOSED = ClientClosedError("closed")
ENDS: dict[str, tuple[str, ...]] = {
    "late": ("late",),
    "closed": ("abort",),
    "late twice": ("late", "late"),
    "closed twice": ("abort", "abort"),
    "late, then closed": ("late", "abort"),
    "closed, then late": ("abort", "late"),
    "connecting too long": ("connect",),
    "late, then connecting too long": ("late", "connect"),
    "connecting too long, then closed": ("connect", "abort"),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("cancelled", ["not", "before", "after"])
async def test_what_ends_an_opening_in_one_turn_of_the_loop(name: str, cancelled: str) -> None:
    """The deadlines, the client's end and somebody's cancellation, in any order and all at once: only the
    last is seen as a cancellation by the task's owner, and always is."""
    opening: list[Opening] = []
    task = asyncio.ensure_future(opened(opening))
    await asyncio.sleep(0)
    if cancelled == "before":
        task.cancel()
    for end in ENDS[name]:
        connecting = opening[0]._connecting
        assert connecting is not None
        {"late": opening[0].expire, "connect": connecting.expire, "abort": lambda: opening[0].abort(CLOSED)}[end]()
    if cancelled == "after":
        task.cancel()
    was_ours, error, left = await task
    assert isinstance(error, asyncio.CancelledError)
    assert was_ours is (cancelled == "not")
    assert left == (0 if cancelled == "not" else 1)
    assert (opening[0].failure is CLOSED) is (ENDS[name][0] == "abort")
    assert isinstance(opening[0].failure, APITimeoutError) is (ENDS[name][0] == "connect")


async def test_an_opening_that_has_ended_ignores_what_comes_later() -> None:
    """A timer or a close that comes later does not cancel the task, whatever it does now."""
    opening = Opening(Deadlines(asyncio.get_running_loop()), 0.0)
    assert not opening.end(None)
    opening.expire()
    opening.abort(CLOSED)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert opening.failure is None


async def test_an_opening_in_a_task_that_was_cancelled_before() -> None:
    """A `finally` that sends a request, within a cancellation: its own deadline is not taken for it."""

    async def main() -> tuple[bool, BaseException, int]:
        try:
            await asyncio.sleep(1_000)
        finally:
            opening: list[Opening] = []
            asyncio.get_running_loop().call_later(0.01, lambda: opening[0].expire())  # noqa: PLW0108 - the list is still empty
            return await opened(opening)  # noqa: B012 - the cancellation is over

    task = asyncio.ensure_future(main())
    await asyncio.sleep(0)
    task.cancel()
    was_ours, error, left = await task
    assert was_ours
    assert isinstance(error, asyncio.CancelledError)
    assert left == 1


@pytest.mark.parametrize("order", ["close first", "deadline first"])
def test_closed_in_the_turn_in_which_it_is_late(order: str) -> None:
    """A client that is closed at the very moment the first token is due: a typed error, and no cancellation."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ScriptedServer(hangs) as server:
            client = client_of(server, proxy="", timeouts=Timeouts(first_token=5.0))
            call = asyncio.ensure_future(client.create("Hi", model=MODEL))
            await server.call()
            transport = transport_of(client)
            (opening,) = (found for found in transport.openings if isinstance(found, Opening))
            await asyncio.sleep(opening.at - loop.time() - 0.02)  # the deadline has a timer of its own now
            loop.call_at(opening.at + (0.0001 if order == "deadline first" else -0.0001), transport.abort_all)
            time.sleep(0.03)  # noqa: ASYNC251 - both are due when the loop goes on
            with pytest.raises(APIConnectionError):
                await call
            await client.aclose()

    virtual_time.run(main())


async def test_no_timer_is_left_by_a_client_that_is_closed_during_a_call() -> None:
    """The call that is ended gives its deadline back after the client was closed."""
    async with ScriptedServer(hangs) as server:
        client = client_of(server)
        call = asyncio.ensure_future(client.create("Hi", model=MODEL))
        await server.call()
        await client.aclose()
        with pytest.raises(APIConnectionError):
            await call
        deadlines = [timer for timer in virtual_time.timers() if "Deadlines" in repr(timer)]
        assert deadlines == []


async def test_no_timer_is_left_by_requests() -> None:
    """However many were made: the last request to end takes the timer along."""
    async with ScriptedServer(answers(response(whole()))) as server, client_of(server) as client:
        await asyncio.gather(*(client.create("Hi", model=MODEL) for _ in range(20)))
        transport = transport_of(client)
        assert not transport._deadlines._waiting
        assert not transport.openings
