"""Calls that would wait for ever for a place are refused, and no others are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from support.calls import counted, emulated, leaves_nothing
from support.clients import served
from support.servers import Call, delta, sse
from support.survival import MODEL, PROMPT, TEXT
from together_async import AsyncTogether, ChatCompletionStream, Limits, MapResult, QueueFullError, RateLimiter
from together_async.ratelimit.deadlock import HeldPlaces, deadlock_error
from together_async.ratelimit.queue import Reservation

WORDS = " ".join(["word"] * 40)
pytestmark = leaves_nothing


class Stream:
    def __init__(self, reader: int | None, *, busy: bool = False) -> None:
        self.reader = reader
        self.busy = busy


@pytest.mark.parametrize(
    ("streams", "waiting", "places", "deadlock"),
    [
        ([(1, False)], [], 1, True),  # the task has stopped reading the stream that holds the only place
        ([(1, True)], [], 1, False),  # somebody waits for its bytes
        ([(2, False)], [], 1, False),  # another task has read it, and may go on
        ([(0, False)], [], 1, False),  # nobody has read it yet
        ([(1, False)], [], 2, False),  # a whole response holds the other place
        ([(1, False), (1, False)], [], 2, True),
        ([(1, False), (2, False)], [], 2, False),
        ([(1, False), (2, False)], [2], 2, True),  # each waits for the other
        ([(1, False), (2, True)], [2], 2, False),
        ([(2, False), (3, False)], [2, 3], 2, False),  # they do, and were refused or will be; this task is not of them
        ([], [2, 3], 1, False),
    ],
)
def test_who_would_wait_for_ever(
    streams: list[tuple[int, bool]], waiting: list[int], places: int, deadlock: bool
) -> None:
    """Task 1 begins to wait."""
    held = HeldPlaces()
    names: list[Any] = [object() for _ in (*streams, *waiting)]
    reservations: list[Reservation] = names
    for (reader, busy), reservation in zip(streams, reservations, strict=False):
        held.streams[reservation] = Stream(reader, busy=busy)
    for task, reservation in zip(waiting, reservations[len(streams) :], strict=True):
        held.waiting[reservation] = task
    assert held.is_deadlock(1, places, held.streams) is deadlock
    held.clear()
    assert repr(held) == "<HeldPlaces 0 streams, 0 waiting>"


@pytest.mark.parametrize(
    ("limits", "is_recorded"),
    [
        (Limits(), False),
        (Limits(requests_per_minute=60), False),
        (Limits(concurrency=2), True),
        (Limits(concurrency="auto"), True),
        (Limits.per_model({MODEL: Limits(concurrency=2)}), True),
        (Limits.per_model({"another": Limits(concurrency=2)}), False),
    ],
)
async def test_streams_are_asked_for_their_readers_where_places_are_counted(limits: Limits, is_recorded: bool) -> None:
    """Without a number of places no call waits for one, and no stream keeps track of its reader."""
    driver = RateLimiter(limits).driver
    reservation = await driver.acquire(MODEL, 100)
    stream = Stream(None)
    driver.held.record_stream(reservation, stream, driver.admission)
    assert stream.reader == (0 if is_recorded else None)
    assert list(driver.held.streams.values()) == ([stream] if is_recorded else [])
    driver.release(reservation, 100)
    assert not driver.held.streams


@pytest.mark.parametrize("limits", [Limits(), Limits(concurrency=2)])
async def test_a_stream_knows_the_task_that_read_it_last_where_places_are_counted(limits: Limits) -> None:
    """Each read notes its task, so that a stream that is handed to another task is that one's."""
    goes_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a")))
        await goes_on.wait()
        await call.chunk(sse(delta("b")))
        await call.hang()

    async def read(stream: ChatCompletionStream) -> None:
        await anext(stream)

    async with served(script, limits=limits) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
        response = stream._reading.response
        assert response is not None
        assert response.reader == (0 if limits.concurrency else None)
        await read(stream)
        assert response.reader == (id(asyncio.current_task()) if limits.concurrency else None)
        goes_on.set()
        other = asyncio.create_task(read(stream))
        await other
        assert response.reader == (id(other) if limits.concurrency else None)


def test_the_error_says_what_to_do() -> None:
    assert "the only place is held" in str(deadlock_error(1))
    assert "all 3 places are held" in str(deadlock_error(3))
    assert "raise Limits.concurrency" in str(deadlock_error(3))


async def ask(client: AsyncTogether) -> str:
    return (await client.create(PROMPT, model=MODEL)).text


async def ask_in_tasks(client: AsyncTogether) -> list[str]:
    return list(await asyncio.gather(ask(client), ask(client)))


@pytest.mark.parametrize("limits", [Limits(concurrency=1), Limits.per_model({MODEL: Limits(concurrency=1)})])
@pytest.mark.parametrize("nested", [ask, ask_in_tasks])
async def test_a_call_in_on_chunk_that_holds_the_only_place(
    nested: Callable[[AsyncTogether], Coroutine[Any, Any, Any]], limits: Limits
) -> None:
    """It is refused at once, in a task of the callback's own as well, and the map goes on."""
    refused: list[QueueFullError] = []
    async with emulated(WORDS, limits=limits) as (server, client):

        async def on_chunk(_: int, __: object) -> None:
            if not refused:
                with pytest.raises(QueueFullError, match="wait for ever") as caught:
                    await nested(client)
                refused.append(caught.value)

        async with asyncio.timeout(10):
            results = [result async for result in client.map([PROMPT] * 3, model=MODEL, stream=True, on_chunk=on_chunk)]
        assert [result.completion.text for result in results if result.completion] == [WORDS] * 3
        assert [error.attempts for error in refused] == [0]
        assert counted(client) == (0, 0)
        assert len(server.journal) == 3


@pytest.mark.parametrize("entered", [False, True], ids=["plain", "in async with"])
@pytest.mark.parametrize("places", [1, 2])
async def test_loops_that_wait_for_each_other(places: int, entered: bool) -> None:
    """The last of them is refused; the others get their places when its loop goes on."""
    async with emulated(WORDS, tokens_per_second=2000, limits=Limits(concurrency=places)) as (_, client):
        begun = asyncio.Barrier(places)
        outcomes: list[str] = []

        async def body(stream: Any) -> None:
            first = True
            async for _ in stream:
                if first:
                    first = False
                    await begun.wait()
                    try:
                        outcomes.append(await ask(client))
                    except QueueFullError:
                        outcomes.append("refused")

        async def loop() -> None:
            stream = client.stream(PROMPT, model=MODEL)
            if entered:
                async with stream:
                    await body(stream)
            else:
                await body(stream)

        async with asyncio.timeout(10):
            await asyncio.gather(*(loop() for _ in range(places)))
        assert outcomes == ["refused", *[WORDS] * (places - 1)]
        assert counted(client) == (0, 0)


async def test_calls_that_can_get_a_place_wait_for_it() -> None:
    """The other place is a whole answer's, another task's stream, or that of a stream handed to another task."""
    async with emulated(WORDS, tokens_per_second=1000, limits=Limits(concurrency=2)) as (_, client):

        async def read(stream: Any) -> str:
            return "".join([text async for text in stream.text()])

        async with asyncio.timeout(20):
            for make_other in (ask, lambda client: read(client.stream(PROMPT, model=MODEL))):
                other = asyncio.ensure_future(make_other(client))
                await asyncio.sleep(0)
                async with client.stream(PROMPT, model=MODEL) as stream:
                    await anext(stream)
                    assert await ask(client) == WORDS
                assert await other == WORDS
            handed = [client.stream(PROMPT, model=MODEL) for _ in range(2)]
            for stream in handed:
                await anext(stream)
            readers = [asyncio.ensure_future(read(stream)) for stream in handed]
            assert await ask(client) == WORDS
            await asyncio.gather(*readers)


async def test_a_task_that_a_callback_starts_and_does_not_await() -> None:
    """It is no part of the callback any more when it asks, so it waits for its place."""
    started: list[asyncio.Task[str]] = []
    async with emulated(TEXT, tokens_per_second=1000, limits=Limits(concurrency=1)) as (_, client):

        def on_chunk(_: int, __: object) -> None:
            if not started:
                started.append(asyncio.ensure_future(ask(client)))

        results: list[MapResult[Any]] = []
        async with asyncio.timeout(10):
            async for result in client.map([PROMPT], model=MODEL, stream=True, on_chunk=on_chunk):
                results.append(result)  # noqa: PERF401 - as in the other tests
            assert await started[0] == TEXT
        assert results[0].completion is not None
