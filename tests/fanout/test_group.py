"""`Group` and `Results`: leaving in every way, cancellation at every await, event loops that end or change."""
# ruff: noqa: SIM117 - blocks within blocks and loops within blocks, because they are what is tested

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.fanout import (
    IMMEDIATE,
    KINDS,
    ORDERS,
    SOURCES,
    TEXT,
    WAYS,
    Mine,
    all_of,
    check_complete,
    check_idle,
    counted,
    emulated,
    leave,
    prompts,
    source_of,
    tidy,
)
from support.leaks import open_sockets
from support.servers import KEY, MODEL
from together_async import (
    APIConnectionError,
    AsyncTogether,
    merge,
)
from together_async.calls import whole as whole_responses
from together_async.testing import (
    EmulatorServer,
    InTurn,
    Stall,
)


@KINDS
@pytest.mark.parametrize("way", WAYS)
@SOURCES
@tidy
async def test_leaving_ends_everything(kind: str, way: str, stream: bool) -> None:
    """No task, reservation or connection is left, and the server sees the client leave, though only the loop's iterator
    was dropped."""
    async with emulated(faults=InTurn(None, then=Stall())) as (server, client):
        kept = [client.map(source_of(kind, prompts(50)), model=MODEL, concurrency=6, stream=stream)]
        await leave(way, kept[0] if way != "dropped" else kept.pop())
        if way in IMMEDIATE:
            check_idle(client)
        await asyncio.sleep(0.1)
        check_idle(client)
        assert len(server.journal) >= 2
        for entry in tuple(server.journal)[1:]:
            await entry.wait_left()
        if kept:
            assert kept[0].under_way == 0
            assert await all_of(kept[0]) == []
        before = len(server.journal)
        await asyncio.sleep(100)
        assert len(server.journal) == before


@tidy
async def test_a_map_that_is_never_read() -> None:
    """Nothing is read from the input and nothing is sent; dropping, closing or leaving it gives no warning."""
    read: list[Any] = []
    async with emulated() as (server, client):
        for kind in ("generator", "async generator"):
            client.map(source_of(kind, prompts(3), read), model=MODEL)
            results = client.map(source_of(kind, prompts(3), read), model=MODEL)
            await results.aclose()
            assert await all_of(results) == []
            async with client.map(source_of(kind, prompts(3), read), model=MODEL):
                pass
            aiter(client.map(source_of(kind, prompts(3), read), model=MODEL))
        assert not read
        assert not server.journal


@tidy
async def test_the_first_result_of_a_map_that_nobody_keeps() -> None:
    """`await anext(client.map(...))` returns the first result, and then the other requests are ended."""
    async with emulated(first_token_s=1.0) as (server, client):
        for way in (lambda coroutine: coroutine, asyncio.ensure_future):
            result: Any = await way(anext(client.map(prompts(9), model=MODEL, concurrency=2)))
            assert result.completion is not None
        key, _ = await anext(merge({"a": client.stream("hi", model=MODEL)}))
        assert key == "a"
        await asyncio.sleep(0.1)
        assert len(server.journal) <= 7


@tidy
async def test_a_wait_that_is_given_up_loses_nothing() -> None:
    """A `wait_for(anext(results))` that times out ends only that wait; the results come later."""
    async with emulated(first_token_s=1.0) as (_, client):
        results = client.map(prompts(3), model=MODEL)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(results), 0.1)
        check_complete(await all_of(results), prompts(3))


@tidy
async def test_a_wait_in_a_block_that_is_given_up_loses_nothing() -> None:
    """The same within `async with`, also for a loop's own iterator."""
    async with emulated(first_token_s=1.0) as (_, client):
        async with client.map(prompts(3), model=MODEL) as results:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await all_of(results)
            check_complete(await all_of(results), prompts(3))


@tidy
async def test_a_result_and_a_cancellation_in_the_same_turn() -> None:
    """The result is kept for the next read."""
    for turns in range(12):
        async with emulated() as (_, client), client.map(prompts(2), model=MODEL) as results:
            waiting = asyncio.ensure_future(anext(results))
            while results._group.read == 0 or results._group.under_way == 2:  # noqa: ASYNC110 - by turns of the loop
                await asyncio.sleep(0)
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            got = [] if waiting.cancel() else [waiting.result()]
            with contextlib.suppress(asyncio.CancelledError):
                got = [await waiting]
            check_complete([*got, *await all_of(results)], prompts(2))


@tidy
async def test_two_readers_share() -> None:
    """Each result comes to one of them. If both wait at the same time, the second gets a clear error, and neither the
    first nor the map is affected."""
    async with emulated(first_token_s=1.0) as (_, client):
        async with client.map(prompts(9), model=MODEL, concurrency=3) as results:
            first = asyncio.ensure_future(anext(results))
            await asyncio.sleep(0.5)
            with pytest.raises(RuntimeError, match="two tasks read the same results; let one of them read"):
                await anext(results)
            got = [await first]
            first_loop, second_loop = aiter(results), aiter(results)
            got += [await anext(first_loop), await anext(second_loop), await anext(results), *await all_of(first_loop)]
            assert await all_of(second_loop) == []
            check_complete(got, prompts(9))


@tidy
@pytest.mark.parametrize("first", ["loop", "step"])
async def test_a_second_plain_loop_does_no_harm(first: str) -> None:
    """It is refused while another task waits; the results still stop their tasks when they are dropped."""
    async with emulated(first_token_s=1.0) as (_, client):
        results = client.map(prompts(5), model=MODEL)
        reading = asyncio.ensure_future(all_of(results) if first == "loop" else anext(results))
        await asyncio.sleep(0.5)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="two tasks read the same results"):
                await all_of(results)
        if first == "loop":
            check_complete(await reading, prompts(5))
        else:
            check_complete([await reading, *await all_of(results)], prompts(5))


@tidy
async def test_a_crash_in_a_child_comes_out_when_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception within a request is not a result, and is never swallowed."""

    def crash(*_: Any, **__: Any) -> Any:
        raise Mine("a bug")

    async with emulated(faults=Stall()) as (server, client):
        results = client.map(prompts(9), model=MODEL, concurrency=3)
        waiting = asyncio.ensure_future(anext(results))
        await server.journal.wait(3)
        monkeypatch.setattr(whole_responses, "plain_completion", crash)
        server.faults = None
        server.release()
        with pytest.raises(Mine, match="a bug"):
            await waiting
        check_idle(client)
        assert await all_of(results) == []


@pytest.mark.parametrize("turns", [0, 1, 2, 30])
@tidy
async def test_a_child_that_somebody_cancels(turns: int) -> None:
    """As a test's tear-down may do: the reader gets an error and never waits for ever, whenever it happens."""
    async with emulated(faults=Stall()) as (_, client):
        results = client.map(prompts(9), model=MODEL, concurrency=3)
        waiting = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__qualname__", "") == "MapGroup._run":
                task.cancel()
        with pytest.raises(RuntimeError, match="a task of these results was cancelled, and not by their reader"):
            await waiting
        check_idle(client)


@tidy
async def test_closing_from_within_on_chunk() -> None:
    """A request's own callback may end its map."""
    box: list[Any] = []

    async def end(index: int, _: object) -> None:
        if index == 1:
            await box[0].aclose()

    async with emulated() as (_, client):
        box.append(client.map(prompts(30), model=MODEL, concurrency=3, stream=True, on_chunk=end))
        assert len(await all_of(box[0])) < 30
        check_idle(client)


@tidy
async def test_closing_while_another_task_waits() -> None:
    """The loop of that task ends at once."""
    async with emulated(faults=Stall()) as (_, client):
        results = client.map(prompts(9), model=MODEL)
        waiting = asyncio.ensure_future(all_of(results))
        await asyncio.sleep(1)
        await asyncio.gather(results.aclose(), results.aclose())
        assert await waiting == []
        check_idle(client)


@tidy
async def test_closing_the_client_in_the_middle() -> None:
    """Every request that is under way or would follow gets an error; the loop ends."""
    async with emulated(faults=InTurn(None, then=Stall())) as (_, client):
        results = client.map(prompts(9), model=MODEL, concurrency=3)
        await anext(results)
        await asyncio.sleep(1)
        await client.aclose()
        following = await all_of(results)
        assert len(following) == 8
        assert all(isinstance(result.error, APIConnectionError) for result in following)
        assert "closed" in str(following[-1].error)


@KINDS
@pytest.mark.parametrize("blocked", [False, True], ids=["loop", "block"])
@tidy
async def test_cancelled_at_every_await(blocked: bool, stream: bool) -> None:
    """After any number of turns of the event loop, nothing is under way after the cancellation, and the next map on the
    same client is complete."""

    async def read() -> int:
        results = client.map(source_of("async generator", prompts(5)), model=MODEL, concurrency=2, stream=stream)
        if not blocked:
            return len(await all_of(results))
        async with results:
            return len(await all_of(results))

    async with emulated(TEXT) as (_, client):
        for turns in itertools.count():
            task = asyncio.ensure_future(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.cancel():
                assert await task == 5
                break
            with pytest.raises(asyncio.CancelledError):
                await task
            check_idle(client)
        assert turns > 10
        assert await read() == 5


@tidy
async def test_cancelled_twice() -> None:
    """The second cancellation cuts short the wait for the tasks, which have been cancelled all the same."""
    async with emulated(faults=Stall()) as (_, client):
        results = client.map(prompts(5), model=MODEL)
        task = asyncio.ensure_future(all_of(results))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)
        check_idle(client)


# ---------------------------------------------------------------------------------------------------------- event loops


def test_a_loop_that_ends_with_a_map_half_read(recwarn: pytest.WarningsRecorder) -> None:
    """`asyncio.run` returns with requests under way: no warning, nothing on stderr, no open socket."""
    before = open_sockets()
    kept = []
    with EmulatorServer(faults=InTurn(None, then=Stall())) as server:

        async def main() -> None:
            async with AsyncTogether(KEY, base_url=server.base_url, proxy="") as client:
                results = client.map(prompts(20), model=MODEL, concurrency=4)
                kept.append(results)
                async for _ in results:
                    kept.append(aiter(results))
                    return

        asyncio.run(main(), debug=False)
    gc.collect()
    assert not recwarn.list
    assert not open_sockets() - before


@pytest.mark.filterwarnings("error")
def test_a_loop_that_is_closed_with_tasks_under_way() -> None:
    """The loop is closed by hand: asyncio's own message about each destroyed task is the only one, and nothing fails in
    the tasks."""
    messages: list[str] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: messages.append(context["message"]))

    async def begin() -> Any:
        merged = merge({"a": counted(None), "b": counted(3, turns=1_000)})
        await anext(merged)
        return merged

    left = loop.run_until_complete(begin())
    loop.close()
    del left
    gc.collect()
    assert set(messages) <= {"Task was destroyed but it is pending!"}


def test_a_map_in_a_second_event_loop() -> None:
    """One clear error, which does not mention a closed loop; closing the map there raises nothing."""
    with EmulatorServer(faults=InTurn(None, then=Stall())) as server:
        client = AsyncTogether(KEY, base_url=server.base_url, proxy="")

        async def first() -> Any:
            results = client.map(prompts(20), model=MODEL, concurrency=4)
            await anext(results)
            return results

        async def second(results: Any) -> None:
            with pytest.raises(RuntimeError, match="these results belong to another event loop"):
                await anext(results)
            await results.aclose()
            server.faults = None
            assert len(await all_of(client.map(prompts(3), model=MODEL, concurrency=3))) == 3
            assert (client.limits.in_flight, client.limits.queued) == (0, 0)
            await client.aclose()

        results = asyncio.run(first())
        asyncio.run(second(results))


def test_a_map_read_while_its_own_loop_runs() -> None:
    """A reader in another thread gets the same clear error, and the map goes on in its own loop."""
    with EmulatorServer(faults=InTurn(None, then=Stall())) as server:

        async def elsewhere(results: Any) -> None:
            with pytest.raises(RuntimeError, match="these results belong to another event loop"):
                await anext(results)

        async def main() -> None:
            async with AsyncTogether(KEY, base_url=server.base_url, proxy="") as client:
                async with client.map(prompts(4), model=MODEL, concurrency=4) as results:
                    await anext(results)
                    await asyncio.to_thread(asyncio.run, elsewhere(results))
                    server.faults = None
                    server.release()
                    assert len(await all_of(results)) == 3

        asyncio.run(main())


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="from Python 3.12 on")
@ORDERS
@tidy
async def test_tasks_that_begin_at_once(ordered: bool) -> None:
    """With `asyncio.eager_task_factory` a task may have ended before the group knows it: nothing is lost, and more
    tasks do not recurse deeper."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # from 3.12 on

    async def short() -> AsyncIterator[int]:
        yield 1

    async with emulated() as (_, client):
        for kind in ("list", "async generator"):
            given = [*[5] * 2_000, "prompt", *[5] * 2_000]
            source = source_of(kind, given)
            results = await all_of(client.map(source, model=MODEL, concurrency=200, ordered=ordered))
            check_complete(results, given)
            check_idle(client)
        assert [pair async for pair in merge({"a": short(), "b": short()})] == [("a", 1), ("b", 1)]


@tidy
async def test_a_loop_whose_coroutine_is_destroyed_waits_for_nothing() -> None:
    """It tells the tasks to end, and they do."""
    async with emulated(faults=Stall()) as (_, client):

        async def loop() -> None:
            async for _ in client.map(prompts(2), model=MODEL):
                pass

        coroutine = loop()
        coroutine.send(None)
        coroutine.close()  # raises RuntimeError if the coroutine awaits
        await asyncio.sleep(0.1)
        check_idle(client)
