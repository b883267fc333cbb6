"""The functions that a caller gives to `map`: `on_error` and `on_chunk`."""
# ruff: noqa: PT012, PERF401 - blocks within blocks and loops within blocks, because they are what is tested

from __future__ import annotations

import asyncio
import itertools
import traceback
from collections import defaultdict
from typing import Any

import attrs
import pytest

from support.fanout import ORDERS, all_of, check_complete, check_idle, children, emulated, prompts, tidy
from support.servers import MODEL
from together_async import (
    APIConnectionError,
    BadRequestError,
    IncompleteStreamError,
    MapResult,
)
from together_async.testing import (
    InTurn,
    Stall,
    Status,
)


@ORDERS
@tidy
async def test_raise_raises_the_first_and_ends_the_others(ordered: bool) -> None:
    """The error names the request; the connections of the others are closed before it is raised."""
    faults = InTurn(None, Status(400), then=Stall())
    async with emulated(faults=faults) as (server, client):
        results = client.map(prompts(50), model=MODEL, concurrency=5, on_error="raise", ordered=ordered)
        got = []
        with pytest.raises(BadRequestError) as caught:
            async for result in results:
                got.append(result.index)
        assert got == [0]
        assert "request 1 of the map" in "".join(traceback.format_exception(caught.value))
        assert not children()
        check_idle(client)
        for entry in tuple(server.journal)[2:]:
            await entry.wait_left()
        assert await all_of(results) == []


@tidy
async def test_raise_with_an_element_that_is_no_request() -> None:
    """A ValueError is raised like any other error."""
    async with emulated() as (_, client):
        with pytest.raises(ValueError, match="got a int"):
            await all_of(client.map([5], model=MODEL, on_error="raise"))


@pytest.mark.parametrize("is_async", [False, True])
@tidy
async def test_a_function_decides(is_async: bool) -> None:
    """It gets only results with an error; what it returns replaces the result, None leaves it out."""
    seen = []

    def decide(result: MapResult[str]) -> MapResult[str] | None:
        seen.append(result.index)
        assert result.error is not None
        return None if result.index == 1 else attrs.evolve(result, error=None)

    async def decide_later(result: MapResult[str]) -> MapResult[str] | None:
        await asyncio.sleep(0.1)
        return decide(result)

    async with emulated(faults=InTurn(None, Status(400), Status(500), None)) as (_, client):
        results = await all_of(
            client.map(
                prompts(5), model=MODEL, concurrency=1, on_error=decide_later if is_async else decide, ordered=True
            )
        )
    assert seen == [1, 2]
    assert [(result.index, result.error) for result in results] == [(0, None), (2, None), (3, None), (4, None)]


@tidy
async def test_a_function_that_leaves_all_out() -> None:
    """The loop ends when the input does, and the function has seen every result."""
    seen: list[int] = []
    async with emulated(faults=Status(400)) as (_, client):
        results = await all_of(
            client.map(prompts(30), model=MODEL, concurrency=4, on_error=lambda result: seen.append(result.index))
        )
    assert results == []
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "comes_out"),
    [
        (KeyError("mine"), KeyError),
        (ValueError("mine"), ValueError),
        (APIConnectionError("mine"), APIConnectionError),
        (StopAsyncIteration(), RuntimeError),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ],
    ids=repr,
)
@tidy
async def test_a_function_that_raises(error: BaseException, comes_out: type[BaseException], is_async: bool) -> None:
    """Its error ends the map and leaves the loop; it never looks like the end of the results."""

    def decide(_: object) -> None:
        raise error

    async def decide_later(_: object) -> None:
        raise error

    async with emulated(faults=InTurn(Status(400), then=Stall())) as (_, client):
        with pytest.raises(comes_out):
            await all_of(
                client.map(prompts(9), model=MODEL, concurrency=3, on_error=decide_later if is_async else decide)
            )
        check_idle(client)


# ------------------------------------------------------------------------------------------------------------- on_chunk


@pytest.mark.parametrize("is_async", [False, True])
@tidy
async def test_each_chunk_is_shown_with_its_index(is_async: bool) -> None:
    """In the order of its stream; the completion is what the chunks add up to."""
    texts = defaultdict[int, str](str)

    def note(index: int, chunk: Any) -> None:
        texts[index] += "".join(choice.delta.content or "" for choice in chunk.choices)

    async def note_later(index: int, chunk: Any) -> None:
        await asyncio.sleep(0.01)
        note(index, chunk)

    async with emulated() as (_, client):
        results = await all_of(
            client.map(prompts(10), model=MODEL, concurrency=3, stream=True, on_chunk=note_later if is_async else note)
        )
        check_complete(results, prompts(10))
    assert {result.index: result.completion.text for result in results if result.completion} == texts


@tidy
async def test_a_slow_on_chunk_slows_its_own_stream() -> None:
    """The other streams go on meanwhile."""

    async def slow(index: int, _: object) -> None:
        if index == 0:
            await asyncio.sleep(10)

    async with emulated() as (_, client):
        results = await all_of(client.map(prompts(9), model=MODEL, concurrency=2, stream=True, on_chunk=slow))
        check_complete(results, prompts(9))
    assert results[-1].index == 0
    assert results[-1].timing.total_s > 10 > 1 > results[-2].timing.total_s


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "comes_out"),
    [
        (KeyError("mine"), KeyError),
        (ValueError("mine"), ValueError),
        (APIConnectionError("mine"), APIConnectionError),
        (IncompleteStreamError("mine", partial=None), IncompleteStreamError),  # type: ignore[arg-type]  # never read
        (StopIteration(), RuntimeError),
        (StopAsyncIteration(), RuntimeError),
        (asyncio.CancelledError(), RuntimeError),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, BaseException) else "",
)
@tidy
async def test_what_on_chunk_raises_ends_the_map(
    error: BaseException, comes_out: type[BaseException], is_async: bool
) -> None:
    """No such error becomes a result, or looks like the end of the loop or a cancellation of the reader."""

    def fail(index: int, _: object) -> None:
        if index == 2:
            raise error

    async def fail_later(index: int, chunk: object) -> None:
        await asyncio.sleep(0.1)
        fail(index, chunk)

    async with emulated() as (server, client):
        results = client.map(
            prompts(20), model=MODEL, concurrency=4, stream=True, on_chunk=fail_later if is_async else fail
        )
        with pytest.raises(comes_out) as caught:
            async for result in results:
                assert result.error is None
        assert caught.value is error or caught.value.__cause__ is error
        check_idle(client)
        assert len(server.journal) < 20


@pytest.mark.parametrize("ordered", [False, True])
@tidy
async def test_what_on_chunk_raises_is_not_put_off_by_a_slow_reader(ordered: bool) -> None:
    """The next result is always ready; even so nothing more is read or sent, and the error comes after the results that
    are ready."""

    def fail(index: int, _: object) -> None:
        if index == 3:
            raise KeyError("mine")

    async with emulated() as (server, client):
        got = 0
        with pytest.raises(KeyError):
            async for _ in client.map(
                (f"prompt {n}" for n in itertools.count()),
                model=MODEL,
                concurrency=4,
                stream=True,
                on_chunk=fail,
                ordered=ordered,
            ):
                got += 1
                await asyncio.sleep(1)
        assert got <= 8
        assert len(server.journal) <= 12
