"""Tasks that wait for their reader are told to end when it is collected, and are not destroyed with it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from support.calls import counted, emulated, leaves_nothing
from support.garbage import in_a_cycle, no_collection
from support.survival import MODEL, PROMPT
from together_async import AsyncTogether, Broadcast, Buffer, buffered, merge
from together_async.relay import sse

LONG = "word " * 400
MAKE: dict[str, Callable[[AsyncTogether], Any]] = {
    "merge": lambda client: merge({number: client.stream(PROMPT, model=MODEL) for number in range(3)}),
    "map": lambda client: client.map([PROMPT] * 9, model=MODEL, concurrency=2, stream=True),
    "buffered": lambda client: buffered(client.stream(PROMPT, model=MODEL), Buffer(4, on_full="block")),
    "broadcast": lambda client: Broadcast(client.stream(PROMPT, model=MODEL), size=4, on_slow="block").subscribe(),
}
pytestmark = leaves_nothing


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was raised where nobody could catch it."""
    found: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: found.append((args.exc_value, args.object)))
    return found


def watch(complaints: list[Any]) -> None:
    """Collects what the event loop complains of, but for the lost tasks of the test itself."""

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "lost" not in repr(context.get("task")):
            complaints.append(context)

    asyncio.get_running_loop().set_exception_handler(note)


@pytest.mark.parametrize("name", MAKE)
async def test_tasks_that_wait_for_room(name: str, complaints: list[Any]) -> None:
    """Nothing but the reader refers to what they wait for."""
    watch(complaints)
    async with emulated(LONG) as (_, client):
        with no_collection():
            reader = aiter(MAKE[name](client))
            await anext(reader)
            await asyncio.sleep(0.05)  # until there is no room; sooner, the sockets hold the tasks
            in_a_cycle(reader)
            del reader
            gc.collect()
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while counted(client) != (0, 0):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
    assert not complaints


@pytest.mark.parametrize("thread", [False, True], ids=["this thread", "another thread"])
@pytest.mark.parametrize("name", [*MAKE, "client"])
async def test_a_lost_task_in_a_block(name: str, thread: bool, complaints: list[Any]) -> None:
    """The end of the block can't wait, so it only tells everything to end."""
    watch(complaints)
    async with emulated(LONG, tokens_per_second=500) as (server, client):

        async def lost() -> None:
            if name == "client":
                async with AsyncTogether("key", base_url=server.base_url) as own:
                    await anext(own.stream(PROMPT, model=MODEL))
                    await asyncio.get_running_loop().create_future()
            async with MAKE[name](client) as chunks:
                await anext(aiter(chunks))
                await asyncio.get_running_loop().create_future()

        with no_collection():
            begun = len(server.journal)
            asyncio.ensure_future(lost())  # noqa: RUF006 - that is the point
            while len(server.journal) == begun:  # noqa: ASYNC110 - it has no event for the first
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            if thread:
                collecting = threading.Thread(target=gc.collect)
                collecting.start()
                collecting.join()
            else:
                gc.collect()
        async with asyncio.timeout(10):
            while counted(client) != (0, 0):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
    assert not complaints


async def test_a_relay_whose_end_is_cut_off(complaints: list[Any]) -> None:
    """Its coroutine is destroyed while it waits for `on_end`, which runs on in a task of its own."""
    ended = asyncio.Event()

    async def on_end(_: object) -> None:
        await asyncio.sleep(0.01)
        ended.set()

    async with emulated(LONG, tokens_per_second=500) as (_, client):
        events: Any = sse(client.stream(PROMPT, model=MODEL), on_end=on_end)
        await anext(events)
        closing: Coroutine[Any, Any, None] = events.aclose()
        closing.send(None)
        closing.close()
        async with asyncio.timeout(10):
            await ended.wait()
    assert not complaints
