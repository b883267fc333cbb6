"""`Call`: the queue: priorities, shedding load, places, and its timeout."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import attrs
import pytest

from support import virtual_time
from support.calls import (
    CALLS,
    QUICK,
    UNTIMED,
    counted,
    emulated,
    good,
    leaves_nothing,
    reasons,
    refusal,
    retrying_client,
)
from support.servers import ScriptedServer, answers
from support.survival import KEY, KINDS, MODEL, PROMPT, TEXT, ask
from together_async import (
    APITimeoutError,
    AsyncTogether,
    InternalServerError,
    Limits,
    QueueFullError,
    RateLimitError,
    Retry,
    Timeouts,
)
from together_async.testing import InTurn, Stall, Status


@leaves_nothing
async def test_interactive_calls_go_first_and_batch_is_not_starved() -> None:
    """While both wait, one turn in five is the batch's, in whatever way the calls are made."""
    async with ScriptedServer(good) as server, retrying_client(server, limits=Limits(concurrency=1)) as client:
        held = await client._limiter.acquire(MODEL)

        def call(number: int, priority: Any) -> Coroutine[Any, Any, Any]:
            text, options = f"{priority} {number:02}", {"model": MODEL, "priority": priority}
            return client.stream(text, **options).completion() if number % 2 else client.create(text, **options)

        tasks = [asyncio.create_task(call(n, priority)) for priority in ("batch", "interactive") for n in range(12)]
        await asyncio.sleep(0)
        assert counted(client) == (1, 24)
        client._limiter.driver.release(held)
        await asyncio.gather(*tasks)
        order = [call.json["messages"][0]["content"] for call in server.calls]
        kinds = "".join(text[0] for text in order)
        assert kinds.startswith("iiiibiiiib")
        assert kinds == "iiiibiiiibiiii" + "b" * 10
        for priority in ("batch", "interactive"):
            assert [text for text in order if text.startswith(priority)] == [f"{priority} {n:02}" for n in range(12)]


async def test_an_invalid_priority_is_refused_before_anything_is_sent() -> None:
    """The error names the value and what is expected."""
    client = AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"priority: got 'urgent', expected one of '.*interactive'"):
        client.stream(PROMPT, model=MODEL, priority="urgent")  # type: ignore[arg-type]  # refused, as tested
    with pytest.raises(ValueError, match="priority"):
        await client.create(PROMPT, model=MODEL, priority=None)  # type: ignore[arg-type]  # as above


@leaves_nothing
async def test_load_is_shed_at_once() -> None:
    """A call beyond `max_queued` is refused in the same turn; a retry keeps its place."""
    limits = Limits(concurrency=1, max_queued=2)
    async with emulated(faults=Stall(in_head=0, seconds=0.005), limits=limits) as (server, client):
        tasks = [asyncio.create_task(make_call(client)) for make_call in CALLS[:3]]
        await asyncio.sleep(0)
        assert counted(client) == (1, 2)
        for kind in KINDS:
            outcome = await ask(client, kind, alone=False)
            assert isinstance(outcome.error, QueueFullError)
            assert (outcome.error.attempts, outcome.error.retries) == (0, ())
            assert "2 calls wait and Limits.max_queued is 2" in str(outcome.error)
            assert counted(client) == (1, 2)
        assert await asyncio.gather(*tasks) == [TEXT] * 3
        assert len(server.journal) == 3
        server.faults = InTurn(Status(503))
        first, *others = [asyncio.create_task(make_call(client)) for make_call in CALLS[:3]]
        assert await asyncio.gather(first, *others) == [TEXT] * 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_call_that_asks_again_keeps_its_place(status: int) -> None:
    """It goes before later calls: right after a pause of the model, else as soon as its backoff is over."""

    async def main() -> None:
        first = answers(refusal(status, "retry-after: 20", "x-ratelimit-limit: 1000"))

        async def slow(call: Any) -> None:
            await asyncio.sleep(15)
            await good(call)

        async with (
            ScriptedServer(first, slow) as server,
            retrying_client(server, limits=Limits(concurrency=1), timeouts=UNTIMED) as client,
        ):
            texts = [f"call {number}" for number in range(5)]
            await asyncio.gather(*(client.create(text, model=MODEL) for text in texts))
            order = [int(call.json["messages"][0]["content"][-1]) for call in server.calls]
            assert order == ([0, 0, 1, 2, 3, 4] if status == 429 else [0, 1, 2, 0, 3, 4])

    virtual_time.run(main())


def test_a_pause_is_not_waited_for_by_calls_that_allow_less() -> None:
    """Each call by its own `max_retry_after`, whether it waits already or comes later."""

    async def main() -> None:
        limit = ("retry-after: 100", "x-ratelimit-limit: 1000")
        async with (
            ScriptedServer(answers(refusal(429, *limit)), good) as server,
            retrying_client(server, limits=Limits(concurrency=1), timeouts=UNTIMED) as client,
        ):
            loop = asyncio.get_running_loop()
            began = loop.time()
            patient = attrs.evolve(QUICK, max_retry_after=200)
            calls = [
                asyncio.create_task(ask(client, kind, alone=False, within=500, retry=rules))
                for rules in (QUICK, patient)
                for kind in KINDS
            ]
            refused = [await call for call in calls[:5]]
            assert loop.time() - began < 5
            refused += [await ask(client, kind, alone=False) for kind in KINDS]
            assert [outcome.error.attempts for outcome in refused] == [1] + [0] * 9
            for outcome in refused:
                assert isinstance(outcome.error, RateLimitError)
                assert 95 < outcome.error.retry_after <= 100
            assert [(await call).text for call in calls[5:]] == [TEXT] * 5
            assert loop.time() - began >= 100
            assert len(server.calls) == 6

    virtual_time.run(main())


def test_what_ends_in_the_queue_knows_what_was_sent_before() -> None:
    """A call whose time is up while it waits for its second attempt."""

    async def main() -> None:
        for timeouts in (Timeouts(queue=7), Timeouts(total=7)):
            async with (
                ScriptedServer(answers(refusal(503))) as server,
                retrying_client(server, limits=Limits(concurrency=1), timeouts=timeouts) as client,
            ):
                for kind in KINDS:
                    server.calls.clear()
                    rules = Retry(attempts=3, base_delay=1.0)
                    asking = asyncio.create_task(ask(client, kind, alone=False, within=100, retry=rules))
                    await server.call(0)
                    held = await client._limiter.acquire(MODEL)
                    error = (await asking).error
                    client._limiter.driver.release(held)
                    assert isinstance(error, APITimeoutError)
                    assert error.phase == ("queue" if timeouts.queue else "total")
                    assert (error.attempts, reasons(error), len(server.calls)) == (1, ("503",), 1)
                    assert isinstance(error.__cause__, InternalServerError)

    virtual_time.run(main())


def test_the_queue_has_a_timeout_of_its_own() -> None:
    """APITimeoutError with phase queue, and nothing was sent; there is no retry."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            ScriptedServer(good) as server,
            retrying_client(server, limits=Limits(concurrency=1), timeouts=Timeouts(queue=7, total=50)) as client,
        ):
            held = await client._limiter.acquire(MODEL)
            began = loop.time()
            for outcome in await asyncio.gather(*(ask(client, kind, within=100, alone=False) for kind in KINDS)):
                assert isinstance(outcome.error, APITimeoutError)
                assert (outcome.error.phase, outcome.error.seconds) == ("queue", 7)
                assert (outcome.error.attempts, outcome.error.retries) == (0, ())
            assert loop.time() - began == pytest.approx(7, abs=0.5)
            client._limiter.driver.release(held)
            assert not server.calls
            assert (await ask(client, "text", alone=False)).text == TEXT

    virtual_time.run(main())
