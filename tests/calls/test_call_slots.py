"""`Call`: a slot of the limiter is held until the call has ended, in whatever way."""

import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.calls import CALLS, clocked, counted, emulated, leaves_nothing, retrying_client
from support.leaving import ENDLESS, WAYS
from support.survival import KEY, MODEL, PROMPT, TEXT, ask
from together_async import APIConnectionError, AsyncTogether, Limits, Retry, StreamConnectionError, TogetherError
from together_async.testing import Cut, EmulatorServer, Fault, Garbage, Stall, Status


def most_at_once(server: EmulatorServer) -> int:
    """How many requests were under way at the server at the same time."""
    steps = [(entry.received_at, 1) for entry in server.journal]
    steps += [(entry.ended_at, -1) for entry in server.journal if entry.ended_at is not None]
    return max(itertools.accumulate(step for _, step in sorted(steps)))


@leaves_nothing
@pytest.mark.parametrize("way", WAYS)
async def test_a_slot_is_held_until_its_stream_is_left(way: Callable[[AsyncTogether], Awaitable[None]]) -> None:
    """However streams are left, the server never sees more than three, and afterwards the limiter counts 0."""
    async with emulated(ENDLESS.strip(), tokens_per_second=1000, limits=Limits(concurrency=3)) as (server, client):
        await asyncio.gather(*(way(client) for _ in range(7)))
        gc.collect()
        assert counted(client) == (0, 0)
        assert most_at_once(server) == 3
        assert all(entry.client_left for entry in server.journal if entry.ended_at is not None)


@leaves_nothing
@pytest.mark.parametrize(
    ("fault", "successes"),
    [(None, 20), (Cut(after_token=2), 0), (Garbage(after_token=1), 0), (Status(500), 0), (Cut(in_head=9), 0)],
    ids=repr,
)
async def test_a_slot_is_held_until_its_answer_ends(fault: Fault | None, successes: int) -> None:
    """With success or failure, whole or streamed: three at once, and 0 in the end."""
    faults = [Stall(in_head=0, seconds=0.002), *([] if fault is None else [fault])]
    async with emulated(faults=faults, limits=Limits(concurrency=3), retry=Retry(attempts=1)) as (server, client):
        results = await asyncio.gather(*(make_call(client) for make_call in CALLS * 4), return_exceptions=True)
        assert results.count(TEXT) == successes
        assert all(result == TEXT or isinstance(result, TogetherError) for result in results)
        assert counted(client) == (0, 0)
        assert most_at_once(server) == 3
        assert len(server.journal) == 20


@leaves_nothing
async def test_streams_nobody_reads_hold_their_slots_until_their_client_is_closed() -> None:
    """Another client shares the limiter: it gets the slots back although the streams still exist."""
    limiter = clocked(Limits(concurrency=3))
    async with (
        EmulatorServer(ENDLESS, tokens_per_second=1000) as server,
        retrying_client(server, limits=limiter) as other,
    ):
        client = AsyncTogether(KEY, base_url=server.base_url, limits=limiter)
        opened = [await client.stream(PROMPT, model=MODEL).__aenter__() for _ in range(3)]
        unread = client.stream(PROMPT, model=MODEL)
        waiting = [asyncio.create_task(anext(other.stream(PROMPT, model=MODEL))) for _ in range(2)]
        queued = asyncio.create_task(ask(client, "text", alone=False))
        await asyncio.sleep(0.02)
        assert counted(client) == counted(other) == (3, 3)
        assert len(server.journal) == 3
        await client.aclose()
        outcome = await queued
        assert isinstance(outcome.error, APIConnectionError)
        assert "closed" in str(outcome.error)
        assert outcome.error.attempts == 0
        await asyncio.gather(*waiting)
        del waiting
        gc.collect()
        assert counted(other) == (0, 0)
        for stream in opened:
            with pytest.raises(StreamConnectionError, match="closed"):
                await anext(stream)
        with pytest.raises(APIConnectionError, match="closed"):
            await anext(unread)
        assert len(server.journal) == 5
        assert counted(other) == (0, 0)


@leaves_nothing
async def test_an_unread_stream_that_is_forgotten_gives_its_slot_back() -> None:
    """Entered and never read; the collector finds it, and the waiting call is sent."""
    async with emulated(ENDLESS, tokens_per_second=1000, limits=Limits(concurrency=1)) as (server, client):
        holder: list[Any] = [await client.stream(PROMPT, model=MODEL).__aenter__()]
        holder.append(holder)
        waiting = asyncio.create_task(anext(client.stream(PROMPT, model=MODEL)))
        await asyncio.sleep(0.01)
        assert counted(client) == (1, 1)
        del holder
        gc.collect()
        await waiting
        del waiting
        assert most_at_once(server) == 1
