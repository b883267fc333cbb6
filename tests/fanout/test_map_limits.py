"""`map` within the limits of an account, and `drain`."""
# ruff: noqa: SIM117 - blocks within blocks and loops within blocks, because they are what is tested

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Literal

import pytest

from support.fanout import (
    KINDS,
    ORDERS,
    SOURCES,
    all_of,
    check_complete,
    emulated,
    prompts,
    source_of,
    tidy,
)
from support.servers import MODEL
from support.virtual_time import now
from together_async import (
    AsyncTogether,
    Limits,
    MapResult,
    PaymentRequiredError,
    QueueFullError,
    RateLimitError,
    Retry,
)
from together_async.fanout.map import _LimitWaits
from together_async.testing import (
    Account,
    InTurn,
    Rate,
    Stall,
    Status,
)


@pytest.mark.default_retry
@pytest.mark.parametrize("concurrency", [None, 8, 50, 300])
@tidy
async def test_an_account_with_limits(concurrency: int | None) -> None:
    """At five requests a second every prompt gets its completion, whatever concurrency the caller asks for; only those
    of the start are refused, and the wait is reported."""
    account = Account(Rate(requests_per_second=5), clock=now)
    async with emulated(account=account, first_token_s=0.2) as (_, client):
        began = now()
        results = client.map(prompts(100), model=MODEL, concurrency=concurrency)
        check_complete(got := await all_of(results), prompts(100))
        assert not [result.error for result in got if result.error]
        assert account.counts().limited_requests <= 40
        assert 18 <= now() - began <= 40
        assert 15 <= results.limited_s <= now() - began
        assert max(result.timing.queued_s for result in got) > (10 if concurrency is None else 0.2)
        assert all(result.timing.queued_s <= result.timing.total_s for result in got)


@pytest.mark.parametrize(
    ("start", "concurrency", "least", "most"),
    [("open", None, 16, 200), ("open", 100, 16, 100), ("open", 2, 2, 2), ("careful", None, 1, 1), ("careful", 9, 1, 1)],
)
@tidy
async def test_a_service_that_has_reported_no_limits(
    start: Literal["open", "careful"], concurrency: int | None, least: int, most: int
) -> None:
    """It gets many requests at once, up to the caller's number; one if the start is to be careful, and then more."""
    async with emulated(first_token_s=0.9) as (server, client):
        results = client.map(prompts(200), model=MODEL, concurrency=concurrency, start=start)
        waiting = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0.1)
        assert least <= len(server.journal) <= most
        await waiting
        await asyncio.sleep(0.1)
        assert len(server.journal) > least
        check_complete([waiting.result(), *await all_of(results)], prompts(200))


async def test_another_start_is_refused() -> None:
    """Before anything is sent; the text names the value and what is expected."""
    client = AsyncTogether("key", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="start: got 'slow', expected 'open' or 'careful'"):
        client.map(prompts(1), model=MODEL, start="slow")  # type: ignore[call-overload,arg-type]  # as tested


@pytest.mark.default_retry
@KINDS
@tidy
async def test_a_pause_that_hits_all_at_once_loses_nobody(stream: bool) -> None:
    """Dozens of calls are refused together, with a retry-after of a quarter of an hour: all of them succeed."""
    refused = 0

    def refuse(_: Any) -> Any:
        nonlocal refused
        if now() - began > 1:
            return None
        refused += 1
        return Status(429, headers={"retry-after": "890"})

    async with emulated(faults=refuse, limits=Limits(concurrency=64)) as (_, client):
        began = now()
        results = await all_of(client.map(prompts(100), model=MODEL, stream=stream))
        check_complete(results, prompts(100))
        assert not [result for result in results if result.error]
        assert 20 <= refused <= 64
        assert 890 <= now() - began < 1_500


@pytest.mark.default_retry
@tidy
async def test_a_pause_that_is_too_long_is_an_error() -> None:
    """Above a quarter of an hour the refused call fails; later ones are sent."""
    async with emulated(faults=InTurn(Status(429, headers={"retry-after": "1000"}))) as (_, client):
        results = await all_of(client.map(prompts(3), model=MODEL, concurrency=1))
    assert isinstance(results[0].error, RateLimitError)
    assert results[0].error.retry_after == 1_000
    assert [result.attempts for result in results] == [1, 1, 1]
    assert all(result.completion for result in results[1:])


@pytest.mark.default_retry
@tidy
async def test_a_retry_of_ones_own_holds() -> None:
    """A retry-after above the caller's `max_retry_after` is not waited for."""
    for retry, retry_after, attempts in (
        (Retry(max_retry_after=5), 6, 1),
        (Retry(max_retry_after=0), 1, 1),
        (Retry(attempts=1), 1, 2),
    ):
        async with emulated(faults=InTurn(Status(429, headers={"retry-after": str(retry_after)}))) as (_, client):
            (result,) = await all_of(client.map(prompts(1), model=MODEL, retry=retry))
            assert isinstance(result.error, RateLimitError) is (attempts == 1)
            assert result.attempts == attempts


@pytest.mark.parametrize("most", [0, 1, 5])
@tidy
async def test_a_full_queue_is_no_error_of_a_map(most: int) -> None:
    """`Limits.max_queued` is for calls that nothing else bounds: it neither refuses the calls of a map nor counts
    them."""
    async with emulated(limits=Limits(concurrency=1, max_queued=most), first_token_s=1.0) as (_, client):
        async with client.map(prompts(30), model=MODEL, concurrency=20) as results:
            got = [await anext(results)]
            assert results.waiting >= 18
            waiting = [asyncio.ensure_future(client.create("live", model=MODEL)) for _ in range(most)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                await client.create("one too many", model=MODEL)
            for answer in waiting:
                assert (await answer).text == "You said: live"
            check_complete([*got, *await all_of(results)], prompts(30))


@tidy
async def test_who_waits_for_an_answer_goes_first() -> None:
    """An interactive call gets the next free place, in front of a map's long queue."""
    async with emulated(limits=Limits(concurrency=1), first_token_s=1.0) as (server, client):
        async with client.map(prompts(10), model=MODEL, concurrency=10) as results:
            await anext(results)
            began = now()
            assert (await client.create("live", model=MODEL)).text == "You said: live"
            assert now() - began < 2.5
            assert len(await all_of(results)) == 9
        assert server.prompts.index("live") == 2


@tidy
async def test_a_map_of_interactive_calls_waits_its_turn() -> None:
    """`priority="interactive"`: first come, first served."""
    async with emulated(limits=Limits(concurrency=1), first_token_s=1.0) as (server, client):
        async with client.map(prompts(5), model=MODEL, concurrency=5, priority="interactive") as results:
            await anext(results)
            await client.create("live", model=MODEL)
            assert server.prompts[-1] == "live"
            assert len(server.prompts) == 6
            await all_of(results)


@tidy
async def test_a_402_stops_what_waits_and_what_comes() -> None:
    """Each request gets the error; the server gets no more than were under way."""
    async with emulated(faults=Status(402), limits=Limits(concurrency=3)) as (server, client):
        results = await all_of(client.map(prompts(100), model=MODEL, concurrency=10))
        assert len(results) == 100
        assert all(isinstance(result.error, PaymentRequiredError) for result in results)
        assert len(server.journal) <= 3
        assert sum(result.attempts for result in results) == len(server.journal)


@tidy
async def test_a_402_can_end_the_map() -> None:
    """By a function of the caller's own, which an endless input needs."""

    def end(result: MapResult[Any]) -> MapResult[Any]:
        if isinstance(result.error, PaymentRequiredError):
            raise result.error
        return result

    async with emulated(faults=InTurn(None, Status(402))) as (_, client):
        with pytest.raises(PaymentRequiredError):
            await all_of(
                client.map((f"prompt {n}" for n in itertools.count()), model=MODEL, concurrency=1, on_error=end)
            )


@tidy
async def test_leaving_frees_those_who_wait_for_the_limits() -> None:
    """18 calls wait and leave nothing behind: the next call is sent at once."""
    async with emulated(limits=Limits(concurrency=2), faults=InTurn(None, then=Stall())) as (server, client):
        async for _ in client.map(prompts(50), model=MODEL, concurrency=20):
            break
        await asyncio.sleep(0)
        server.faults = None
        assert (await client.create("hi", model=MODEL)).text == "You said: hi"
        assert client.limits.queued == 0


# --------------------------------------------------------------------------------------------------------------- drain


@ORDERS
@SOURCES
@tidy
async def test_drained_what_is_under_way_still_comes(kind: str, ordered: bool) -> None:
    """Nothing more is read or sent; calls that wait for the limits are given up without a result; the loop ends."""
    async with emulated(limits=Limits(concurrency=3), first_token_s=1.0) as (server, client):
        async with client.map(source_of(kind, prompts(50)), model=MODEL, concurrency=10, ordered=ordered) as results:
            got = [await anext(results)]
            await asyncio.sleep(0.5)
            sent = len(server.journal)
            results.drain()
            results.drain()
            got += await all_of(results)
            assert sorted(result.request for result in got) == sorted(server.prompts)
            assert len(server.journal) == sent
            assert all(result.completion for result in got)
            if ordered:
                assert [result.index for result in got] == sorted(result.index for result in got)


@pytest.mark.parametrize("turns", range(6))
@SOURCES
@tidy
async def test_drained_at_any_moment(kind: str, turns: int) -> None:
    """Before it is read, in the turn in which it begins, or after its end."""
    async with emulated() as (server, client):
        results = client.map(source_of(kind, prompts(50)), model=MODEL, concurrency=10)
        if turns == 0:
            results.drain()
            assert await all_of(results) == []
            assert not server.journal
            return
        reading = asyncio.ensure_future(all_of(results))
        for _ in range(turns):
            await asyncio.sleep(0)
        results.drain()
        got = await reading
        assert len(got) == len(server.journal) <= 10
        results.drain()
        assert await all_of(results) == []


def test_a_wait_that_ends_after_its_event_loop() -> None:
    """A coroutine that is destroyed has no running loop to ask for the current task; its wait ends all the same."""
    loop, waits = asyncio.new_event_loop(), _LimitWaits()
    waits.loop = loop

    async def begin() -> None:
        waits.note_wait(1)
        waits.note_idle(1)

    loop.run_until_complete(begin())
    loop.close()
    waits.note_wait(-1)
    waits.note_idle(-1)
    assert waits.count == 0
