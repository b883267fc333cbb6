"""What `map` reads: inputs of every kind, that end, wait or fail; never more than there is room for."""
# ruff: noqa: SIM117, PT012, PERF401 - blocks within blocks and loops within blocks, because they are what is tested

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from support.fanout import (
    KINDS,
    ORDERS,
    SOURCES,
    all_of,
    check_complete,
    children,
    emulated,
    prompts,
    source_of,
    tidy,
)
from support.servers import KEY, MODEL
from support.virtual_time import now
from together_async import (
    AsyncTogether,
    ChatCompletionRequest,
    Limits,
    MapResult,
)
from together_async.testing import (
    InTurn,
    OneOf,
    Stall,
    Status,
)


@KINDS
@ORDERS
@SOURCES
@tidy
async def test_every_request_has_its_result(kind: str, ordered: bool, stream: bool) -> None:
    """For any kind of input, whole or streamed, in order or as they finish; with no more connections than requests at
    once."""
    given = prompts(40)
    async with emulated() as (server, client):
        results = await all_of(
            client.map(source_of(kind, given), model=MODEL, concurrency=7, ordered=ordered, stream=stream)
        )
        check_complete(results, given)
        if ordered:
            assert [result.index for result in results] == list(range(40))
        assert sorted(server.prompts) == sorted(given)
        assert server.peak <= 7
        assert server.connections <= 7


@pytest.mark.parametrize(
    "bad", ["a prompt", b"bytes", {"messages": "hi"}, 5, None, ChatCompletionRequest(messages="hi", model="m")]
)
@tidy
async def test_what_is_no_input(bad: Any) -> None:
    """A single prompt or request is refused: otherwise each of its characters would be a prompt."""
    async with AsyncTogether(KEY) as client:
        with pytest.raises(ValueError, match=r"requests: got a \w+, expected an iterable of requests, as \[prompt\]"):
            client.map(bad, model=MODEL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency: got 0, expected a whole number from 1"),
        ({"concurrency": -1}, "concurrency: got -1"),
        ({"concurrency": 2.5}, "concurrency: got 2.5"),
        ({"concurrency": True}, "concurrency: got True"),
        ({"concurrency": "8"}, "concurrency: got '8'"),
        ({"on_error": "ignore"}, "on_error: got 'ignore', expected 'return', 'raise' or a function"),
        ({"on_error": None}, "on_error: got None"),
        ({"on_chunk": print}, "on_chunk: there are chunks only with stream=True"),
        ({"on_chunk": 5, "stream": True}, "on_chunk: got a int, expected a function"),
        ({"priority": "urgent"}, "priority: got 'urgent'"),
        ({"retry": 3}, "retry: got a int, expected a Retry"),
        ({"timeouts": 5}, "timeouts: got a int, expected Timeouts"),
        ({"headers": {"a": 5}}, "headers.*: got a int, expected a str"),
        ({"model": 5}, "model: got a int, expected the name of a model"),
        ({"model": " "}, "model: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@tidy
async def test_an_argument_out_of_range_is_found_at_the_call(options: dict[str, Any], message: str) -> None:
    """Before anything is read from the input."""
    read: list[str] = []
    async with AsyncTogether(KEY) as client:
        with pytest.raises(ValueError, match=message):
            client.map(source_of("generator", ["a"], read), **{"model": MODEL, **options})
    assert not read


@tidy
async def test_an_unknown_option_is_a_type_error() -> None:
    """As for `create`."""
    async with AsyncTogether(KEY) as client:
        with pytest.raises(TypeError, match="unexpected option temprature"):
            client.map(["hi"], model=MODEL, temprature=1)  # type: ignore[call-arg]  # the mistake under test


@SOURCES
@tidy
async def test_an_empty_input(kind: str) -> None:
    """No results, no connection."""
    async with emulated() as (server, client):
        assert await all_of(client.map(source_of(kind, []), model=MODEL)) == []
        assert server.connections == 0


@tidy
async def test_a_sequence_by_its_index() -> None:
    """A data set with `__len__` and `__getitem__`, but without `__iter__`, is an input too."""

    class Dataset:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int) -> str:
            if place >= 3:
                raise IndexError
            return f"prompt {place}"

    async with emulated() as (_, client):
        results = await all_of(client.map(Dataset(), model=MODEL))  # type: ignore[arg-type]  # no Iterable by its type
        check_complete(results, prompts(3))


@ORDERS
@pytest.mark.parametrize("kind", ["generator", "async generator"])
@pytest.mark.parametrize("after", [0, 1, 3, 20])
@tidy
async def test_an_input_that_raises(kind: str, after: int, ordered: bool) -> None:
    """All results of requests under way come first, then the input's own error."""

    def items() -> Iterator[str]:
        yield from prompts(after)
        raise KeyError("mine")

    got: list[MapResult[Any]] = []
    async with emulated(first_token_s=0.5) as (_, client):
        results = client.map(source_of(kind, items()), model=MODEL, concurrency=4, ordered=ordered)
        with pytest.raises(KeyError, match="mine"):
            async for result in results:
                got.append(result)
        check_complete(got, prompts(after))
        assert await all_of(results) == []


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StopAsyncIteration(), StopIteration()], ids=repr)
@pytest.mark.parametrize("kind", ["generator", "async generator"])
@tidy
async def test_an_input_that_ends_by_what_looks_like_an_end(kind: str, error: BaseException) -> None:
    """An input that is cut off never looks like one that has ended, as when it awaits a cancelled task or asks an empty
    iterator."""

    class Source:
        def __init__(self) -> None:
            self._items = iter(prompts(3))

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> str:
            for item in self._items:
                return item
            raise error

    class AsyncSource(Source):
        __iter__ = None  # type: ignore[assignment]  # not an iterable

        def __aiter__(self) -> AsyncSource:
            return self

        async def __anext__(self) -> str:
            return self.__next__()

    ends = {"generator": StopIteration, "async generator": StopAsyncIteration}
    got = 0
    async with emulated() as (_, client):
        source = Source() if kind == "generator" else AsyncSource()
        if isinstance(error, ends[kind]):  # its own word for the end
            assert len(await all_of(client.map(source, model=MODEL))) == 3
            return
        with pytest.raises((RuntimeError, asyncio.CancelledError)) as caught:
            async for _ in client.map(source, model=MODEL, concurrency=1):
                got += 1
        if kind == "async generator" or not isinstance(error, asyncio.CancelledError):
            assert type(caught.value) is RuntimeError
        assert got >= 2


@tidy
async def test_an_input_whose_task_was_cancelled() -> None:
    """An async generator that awaits a task which is cancelled: an error, not the end."""

    async def source() -> AsyncIterator[str]:
        yield "a"
        other = asyncio.ensure_future(asyncio.sleep(100))
        other.cancel()
        await other
        yield "b"

    async with emulated() as (_, client):
        got = []
        with pytest.raises(RuntimeError, match="cancelled"):
            async for result in client.map(source(), model=MODEL):
                got.append(result.index)
        assert got in ([], [0])


@tidy
async def test_an_input_that_waits() -> None:
    """Results come while the input has nothing more, and the next request is sent as soon as it is there."""
    more = asyncio.Queue[str | None]()

    async def source() -> AsyncIterator[str]:
        while (item := await more.get()) is not None:
            yield item

    async with emulated(first_token_s=1.0) as (server, client):
        async with client.map(source(), model=MODEL, concurrency=5) as results:
            began = now()
            more.put_nowait("a")
            assert (await anext(results)).request == "a"
            more.put_nowait("b")
            more.put_nowait("c")
            assert {(await anext(results)).request for _ in range(2)} == {"b", "c"}
            assert 2.0 <= now() - began < 2.5
            waiting = asyncio.ensure_future(anext(results, None))
            await asyncio.sleep(100)
            assert not waiting.done()
            more.put_nowait(None)
            assert await waiting is None
        assert len(server.journal) == 3


@tidy
async def test_a_blocked_input_does_not_hold_up_the_end() -> None:
    """Leaving ends an input that waits for something that never comes; its `finally` has run by then."""
    ended = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.1)
            ended.append(now())

    async with emulated() as (_, client):
        async with client.map(source(), model=MODEL) as results:
            await anext(results)
        assert ended
        assert not children()


@tidy
async def test_an_input_that_does_not_care_for_cancellation() -> None:
    """It swallows its cancellation and yields once more: that request is not sent, and leaving does not wait for
    ever."""

    async def source() -> AsyncIterator[str]:
        yield "a"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1_000)
        yield "b"
        yield "c"

    async with emulated() as (server, client):
        async with client.map(source(), model=MODEL) as results:
            await anext(results)
            before = now()
        assert now() - before < 1
        assert server.prompts == ["a"]


@tidy
async def test_a_generator_that_was_left_goes_on_elsewhere() -> None:
    """A caller's own generator is not closed: it still has what the map has not read."""
    source = iter(prompts(10))
    async with emulated() as (_, client):
        async with client.map(source, model=MODEL, concurrency=2) as results:
            await anext(results)
        assert next(source) == "prompt 3"


@tidy
async def test_an_async_input_is_let_go_of() -> None:
    """After leaving nothing refers to it: it is closed without a garbage collection."""
    ended = []

    async def source() -> AsyncIterator[str]:
        try:
            for prompt in prompts(100):
                yield prompt
        finally:
            ended.append(1)

    gc.collect()
    gc.disable()
    try:
        async with emulated() as (_, client):
            for way in ("block", "loop"):
                if way == "block":
                    async with client.map(source(), model=MODEL, concurrency=2) as results:
                        await anext(results)
                else:
                    async for _ in client.map(source(), model=MODEL, concurrency=2):
                        break
                await asyncio.sleep(1)
                assert len(ended) == ("block", "loop").index(way) + 1
    finally:
        gc.enable()


# --------------------------------------------------------------------------------------------------------------- bounds


@KINDS
@ORDERS
@pytest.mark.parametrize("kind", ["generator", "async generator"])
@tidy
async def test_a_slow_reader_slows_an_endless_input(kind: str, ordered: bool, stream: bool) -> None:
    """The requests read and not taken are never more than `concurrency`, in order twice that; neither are the results
    kept."""
    read: list[Any] = []
    most = 0
    async with emulated() as (server, client):
        source = source_of(kind, (f"prompt {n}" for n in itertools.count()), read)
        async with client.map(source, model=MODEL, concurrency=5, ordered=ordered, stream=stream) as results:
            taken = 0
            async for _ in results:
                taken += 1
                ahead = len(read) - taken
                most = max(most, ahead)
                await asyncio.sleep(1)
                assert len(results._group._ready) + len(results._group._in_order or ()) <= (10 if ordered else 5)
                if taken == 40:
                    break
        assert most <= (10 if ordered else 5)
        assert server.peak <= 5
    assert len(read) <= 40 + (10 if ordered else 5)


@pytest.mark.parametrize("kind", ["generator", "async generator"])
@tidy
async def test_in_order_the_slowest_holds_up_a_bounded_number(kind: str) -> None:
    """While the first request takes a minute, `2 * concurrency` are sent, and no more are read."""
    read: list[Any] = []
    faults = InTurn(Stall(seconds=60))
    async with emulated(faults=faults) as (server, client):
        async with client.map(source_of(kind, prompts(100), read), model=MODEL, concurrency=4, ordered=True) as results:
            waiting = asyncio.ensure_future(anext(results))
            await asyncio.sleep(30)
            assert len(read) == 8
            assert len(server.journal) == 8
            assert (await waiting).index == 0
            assert [result.index async for result in results] == list(range(1, 100))


@KINDS
@pytest.mark.parametrize("concurrency", [1, 2, 16])
@tidy
async def test_the_server_never_has_more_at_once(concurrency: int, stream: bool) -> None:
    """And it always has as many as it may, while there are requests left."""
    async with emulated(first_token_s=1.0) as (server, client):
        began = now()
        results = await all_of(client.map(prompts(32), model=MODEL, concurrency=concurrency, stream=stream))
        check_complete(results, prompts(32))
        assert server.peak == concurrency
        assert 32 / concurrency <= now() - began < 32 / concurrency * 1.1 + 0.5


@tidy
async def test_concurrency_is_that_of_the_limits_if_none_is_given() -> None:
    """The limits hold also when the map may have more."""
    for concurrency, peak in ((None, 3), (10, 3), (2, 2)):
        async with emulated(limits=Limits(concurrency=3), first_token_s=1.0) as (server, client):
            read: list[Any] = []
            results = client.map(source_of("generator", prompts(12), read), model=MODEL, concurrency=concurrency)
            await anext(results)
            assert len(read) <= (concurrency or 3) + 1
            await all_of(results)
            assert server.peak == peak


@tidy
async def test_nothing_is_kept_of_what_was_taken() -> None:
    """Hundreds of results are dropped: none is left to the garbage collector, not even one with an error."""
    async with emulated(faults=OneOf(Status(400), None)) as (_, client):
        for count in (20, 400):
            gc.collect()
            gc.disable()
            try:
                async for _result in client.map(prompts(count), model=MODEL, concurrency=4):
                    pass
                del _result
                found = gc.collect()
            finally:
                gc.enable()
        assert found < 200
