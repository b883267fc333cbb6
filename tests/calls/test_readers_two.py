"""Two and more readers of one stream: texts of several choices go together, anything else is refused without harm."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from support.calls import QUICK, emulated
from support.clients import served, transport_of
from support.scripts import sends
from support.servers import (
    DONE,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    delta,
    gone,
    hangs,
    sse,
    starts_and_hangs,
    ticks,
)
from support.sources import settle
from together_async import (
    ChatCompletionStream,
    IncompleteStreamError,
    Retry,
    StreamAPIError,
    StreamConnectionError,
    StreamTimeoutError,
    Timeouts,
    tee,
)
from together_async.calls.reading import State
from together_async.errors import APIStatusError, TogetherError
from together_async.testing import InTurn, Status

pytestmark = pytest.mark.usefixtures("no_leaks")

WORDS = [[f"{letter}{i} " for i in range(150)] for letter in "ab"]
WHOLE = ["".join(words) for words in WORDS]
ERROR = sse({"error": {"message": "overloaded", "code": 503}})
ONE_LOOP = "one loop reads a stream"


@pytest.fixture(autouse=True, params=["", "debug"])
async def debug(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Everything here holds in asyncio's debug mode too."""
    loop, log = asyncio.get_running_loop(), logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.ERROR)
    loop.set_debug(bool(request.param))
    yield
    loop.set_debug(False)
    log.setLevel(level)


async def text_of(stream: ChatCompletionStream, choice: int, turns: int = 0) -> str:
    """The whole text of a choice; after each piece other tasks get so many turns."""
    text = ""
    async for piece in stream.text(choice):
        text += piece
        for _ in range(turns):
            await asyncio.sleep(0)
    return text


def loops_over(stream: ChatCompletionStream) -> dict[str, Callable[[], Any]]:
    return {
        "chunks": lambda: stream,
        "batches": stream.batches,
        "raw": stream.raw,
        "text": stream.text,
    }


async def loop_over(stream: ChatCompletionStream, way: str) -> list[Any]:
    return [item async for item in loops_over(stream)[way]()]


def steps_to(piece: Callable[[int], bytes], step: asyncio.Event, last: int) -> Script:
    """Sends a piece at each step, then the end."""

    async def script(call: Call) -> None:
        await call.head()
        for number in range(last):
            await call.chunk(piece(number))
            await step.wait()
            step.clear()
        await call.chunk(DONE)
        await call.send(LAST_CHUNK)

    return script


# ------------------------------------------------------------------------------------------------- a second plain loop


@pytest.mark.parametrize("second", ["chunks", "batches", "raw", "text"])
@pytest.mark.parametrize("first", ["chunks", "batches", "raw", "text"])
@pytest.mark.parametrize("when", ["opening", "waiting", "in its body", "with more at hand"])
async def test_a_second_loop_is_refused_without_harm(when: str, first: str, second: str) -> None:
    """At once, whatever the first does; the first gets all, over the connection it had."""
    opened, go = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        await opened.wait()
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")), *([sse(delta("b"))] if when == "with more at hand" else []))
        await go.wait()
        await call.chunk(sse(delta("c", finish="stop")), DONE)
        await call.send(LAST_CHUNK)

    async with served(script) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        in_body, leave_body, got = asyncio.Event(), asyncio.Event(), list[Any]()

        async def read() -> None:
            async for item in loops_over(stream)[first]():
                got.append(item)
                in_body.set()
                if when not in ("waiting", "opening"):
                    await leave_body.wait()

        task = asyncio.create_task(read())
        await server.call()
        if when != "opening":
            opened.set()
            await in_body.wait()
            await settle()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=ONE_LOOP):
                await loop_over(stream, second)
        gc.collect()
        for event in (opened, leave_body, go):
            event.set()
        await task
        assert stream.complete
        assert stream.so_far().text in ("abc" if when == "with more at hand" else "ac", "")
        if first == "text":
            assert "".join(got) == stream.so_far().text
        assert len(server.connections) == 1


async def test_a_loop_beside_a_single_read_is_refused_without_harm() -> None:
    """`anext(stream)` that waits in another task gets its chunk."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        singles = 0
        for letter in ("", "", "c", "d"):
            single = asyncio.ensure_future(anext(stream))
            if letter:
                await settle()
                for way in ("chunks", "text", "batches"):
                    with pytest.raises(RuntimeError, match="two tasks read one stream"):
                        await loop_over(stream, way)
                await server.calls[0].chunk(sse(delta(letter)))
            singles += len((await single).choices)
        assert (stream.so_far().text, singles) == ("abcd", 4)
        stream.leave()


async def test_a_loop_beside_an_opening_is_refused_without_harm() -> None:
    """`stream.open()` in another task goes on, and the loop may be tried again."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await go.wait()
        await sends(sse(delta("a", finish="stop")), DONE)(call)

    async with served(script) as (_, client):
        stream = client.stream("Hi", model=MODEL)
        opening = asyncio.create_task(stream.open())
        await settle()
        for way in ("chunks", "text"):
            with pytest.raises(RuntimeError, match="two tasks read one stream"):
                await loop_over(stream, way)
        with pytest.raises(RuntimeError, match="two tasks read one stream"):
            stream.raw()
        go.set()
        await opening
        assert await text_of(stream, 0) == "a"


async def test_a_refused_iterator_that_is_kept_does_no_harm() -> None:
    """Not when it is dropped later, and not when it is tried again: it reads once the other loop has gone."""
    async with served(ticks) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        first, second, never_begun = aiter(stream), stream.text(), stream.batches()
        await anext(first)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=ONE_LOOP):
                await anext(second)
        del second, never_begun
        await anext(first)
        assert not server.calls[0].left.is_set()
        third = stream.text()
        with pytest.raises(RuntimeError, match=ONE_LOOP):
            await anext(third)
        del first
        await gone(server.calls[0], within=1)
        with pytest.raises(IncompleteStreamError):
            await anext(third)


async def test_a_loop_over_the_iterator_of_a_loop_is_refused() -> None:
    """`texts` was handed over to the first; `anext(texts)` in its body takes the next text, as of any iterator."""
    async with served(sends(*[sse(delta(letter)) for letter in "abcd"], DONE)) as (_, client):
        texts, got = client.stream("Hi", model=MODEL).text(), ""
        async for text in texts:
            got += text + await anext(texts)
            with pytest.raises(RuntimeError, match=ONE_LOOP):
                async for _ in texts:
                    pass
        assert got == "abcd"


async def test_leaving_frees_the_claim() -> None:
    """A loop over a stream that has ended is no second loop, though an iterator of the first is kept."""
    async with served(sends(sse(delta("a", finish="stop")), DONE)) as (_, client):
        stream = client.stream("Hi", model=MODEL)
        kept = aiter(stream)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await anext(kept)
        assert [chunk async for chunk in stream] == []
        assert await text_of(stream, 0) == ""
        assert (await stream.completion()).text == "a"


async def test_the_rest_may_be_taken_in_the_body_of_a_loop() -> None:
    """`completion()` and `anext(stream)` are no loops."""
    async with served(sends(*[sse(delta(letter)) for letter in "abcd"], DONE)) as (_, client):
        stream = client.stream("Hi", model=MODEL)
        got = 0
        async for _ in stream:
            got += 1
            await anext(stream)
            assert (await stream.completion()).text == "abcd"
        assert got == 1


async def test_loops_in_a_block_share() -> None:
    """As many as there are, one after the other in one task; each may be left and taken up again."""
    script = sends(*[sse(delta(letter)) for letter in "abcdef"], DONE)
    async with served(script) as (_, client), client.stream("Hi", model=MODEL) as stream:
        first, second = aiter(stream), stream.text()
        got = [(await anext(first)).choices[0].delta.content, await anext(second)]
        async for chunk in stream:
            got.append(chunk.choices[0].delta.content)
            break
        got += [await anext(second), (await anext(first)).choices[0].delta.content, await anext(second)]
        assert got == list("abcdef")


async def test_the_remedy_works() -> None:
    """What the error advises."""
    async with emulated(["a b c", "d"]) as (_, client):
        for consumer in tee(client.stream("Hi", model=MODEL), 2):
            assert [chunk async for chunk in consumer]


# --------------------------------------------------------------------------------------------------- texts of choices


@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("turns", [(0, 0), (3, 0), (0, 3), (5, 2)])
@pytest.mark.parametrize("pace", [None, 3_000])
async def test_each_text_is_whole(pace: float | None, turns: tuple[int, int], in_block: bool) -> None:
    """Two tasks, fast or paced streams, fast or slow readers."""
    async with emulated(WHOLE, tokens_per_second=pace) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        async with stream if in_block else contextlib.nullcontext():
            texts = await asyncio.gather(*(text_of(stream, choice, turns[choice]) for choice in (0, 1)))
        assert texts == WHOLE
        assert [choice.message.content for choice in (await stream.completion()).choices] == WHOLE
        assert len(server.journal) == 1


@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
async def test_one_after_the_other(order: tuple[int, ...], in_block: bool) -> None:
    """Three choices; a second loop over the same text gives nothing twice."""
    async with emulated([*WHOLE, "c d e"]) as (_, client):
        stream = client.stream("Hi", model=MODEL, n=3)
        async with stream if in_block else contextlib.nullcontext():
            for choice in order:
                assert await text_of(stream, choice) == [*WHOLE, "c d e"][choice]
            for choice in order:
                assert await text_of(stream, choice) == ""


async def test_a_late_reader_begins_with_what_it_has_missed() -> None:
    """The loop over the other text has passed it by; then both go on."""
    step = asyncio.Event()
    script = steps_to(lambda i: sse(delta(f"a{i}")) + sse(delta(f"b{i}", index=1)), step, 3)
    async with served(script) as (_, client), client.stream("Hi", model=MODEL, n=2) as stream:
        first, second = stream.text(0), stream.text(1)
        assert await anext(first) == "a0"
        step.set()
        assert await anext(first) == "a1"
        step.set()
        assert await anext(first) == "a2"
        step.set()
        assert [text async for text in second] == ["b0b1", "b2"]
        assert [text async for text in first] == []


async def test_what_loops_over_chunks_had_does_not_come_again() -> None:
    script = sends(sse(delta("a")), sse(delta("x", index=1)), sse(delta("b")), DONE)
    async with served(script) as (_, client), client.stream("Hi", model=MODEL, n=2) as stream:
        await anext(stream)
        await anext(stream)
        assert [text async for text in stream.text(1)] == []
        assert [text async for text in stream.text(0)] == ["b"]


@pytest.mark.parametrize("in_block", [False, True])
async def test_two_readers_of_one_text(in_block: bool) -> None:
    """Outside of a block the second is refused; inside they share."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        async with stream if in_block else contextlib.nullcontext():
            first, second, other = stream.text(), stream.text(), stream.text(1)
            assert [await anext(first), await anext(first)] == ["a", "b"]
            readers = [first, other, second] if in_block else [first, other]
            waiting = [asyncio.ensure_future(anext(reader)) for reader in readers]
            await settle()
            if not in_block:
                with pytest.raises(RuntimeError, match=ONE_LOOP):
                    await anext(second)
            await server.calls[0].chunk(*(sse(delta(text, index=int(text == "x"))) for text in "xcd"))
            assert await asyncio.gather(*waiting) == ["c", "x", "d"][: len(readers)]
        if not in_block:
            del first, other, readers, waiting
        await gone(server.calls[0], within=1)


@pytest.mark.parametrize("left", [0, 1])
async def test_leaving_one_loop_keeps_the_stream_for_the_other(left: int) -> None:
    """The last one that is left closes it, while the stream's variable lives."""
    step, order = asyncio.Event(), list[str]()
    script = steps_to(lambda i: sse(delta(f"a{i}")) + sse(delta(f"b{i}", index=1)), step, 100)
    async with served(script) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)

        async def read(choice: int, enough: asyncio.Event, most: int = 100) -> None:
            async for text in stream.text(choice):
                order.append(text)
                step.set()
                most -= text.count("ab"[choice])
                if enough.is_set() or most <= 0:
                    break

        enough = asyncio.Event()
        task = asyncio.create_task(read(1 - left, enough))
        await read(left, enough, 2)
        seen = len(order)
        while len(order) < seen + 10:  # noqa: ASYNC110 - of another task
            await asyncio.sleep(0)
        assert not server.calls[0].left.is_set()
        enough.set()
        await task
        await gone(server.calls[0], within=1)
        text = "".join(text for text in order if text[0] == "ab"[1 - left])
        assert text == "".join(f"{'ab'[1 - left]}{i}" for i in range(text.count("ab"[1 - left])))


@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("reads", [True, False])
async def test_the_other_takes_over_from_a_cancelled_reader(reads: bool, in_block: bool) -> None:
    """Whether the one that was at the network is cancelled, or the one that waited for it; no text is lost."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        async with stream if in_block else contextlib.nullcontext():
            readers = [stream.text(0), stream.text(1)]
            assert [await anext(readers[0]) for _ in "ab"] == ["a", "b"]
            first, second = (asyncio.create_task(anext(reader)) for reader in readers)  # type: ignore[arg-type]  # a coroutine
            await settle()
            cancelled, goes_on = (first, second) if reads else (second, first)
            cancelled.cancel()
            await settle()
            assert cancelled.cancelled()
            await server.calls[0].chunk(sse(delta("x", index=1)) + sse(delta("c")))
            assert await goes_on == ("x" if reads else "c")
            assert await anext(readers[0 if reads else 1]) == ("c" if reads else "x")  # it may come back
        del readers, first, second, cancelled, goes_on  # a cancelled task holds the frames of its coroutine
        await gone(server.calls[0], within=1)


async def test_cancelling_both_closes_the_stream() -> None:
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        tasks = [asyncio.create_task(text_of(stream, choice)) for choice in (0, 1)]
        call = await server.call()
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await gone(call, within=1)
        with pytest.raises(IncompleteStreamError):
            await stream.completion()


@pytest.mark.parametrize("both", [False, True])
async def test_cancelled_while_it_opens(both: bool) -> None:
    """The one that waits sends the request again; if both are cancelled, nothing is left."""
    async with served(hangs, sends(sse(delta("b", index=1, finish="stop")), DONE)) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        first, second = (asyncio.create_task(text_of(stream, choice)) for choice in (0, 1))
        await server.call()
        first.cancel()
        if both:
            second.cancel()
            await asyncio.wait((first, second))
            assert first.cancelled() and second.cancelled()  # noqa: PT018 - the two of them
            assert stream._reading.state is State.ENDED
        else:
            assert await second == "b"
            assert len(server.calls) == 2
        await gone(server.calls[0], within=1)
        assert not transport_of(client).openings


# ---------------------------------------------------------------------------------------------------- errors and ends


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (sends(sse(delta("a")) + sse(delta("b", index=1)), ERROR, end="hang"), StreamAPIError),
        (sends(sse(delta("a")) + sse(delta("b", index=1)), b"data: {{{\n\n", end="hang"), TogetherError),
        (sends(sse(delta("a")) + sse(delta("b", index=1))), IncompleteStreamError),
        (sends(sse(delta("a")) + sse(delta("b", index=1)), end="close"), StreamConnectionError),
        (sends(sse(delta("a")) + sse(delta("b", index=1)), end="hang"), StreamTimeoutError),
    ],
)
async def test_an_error_reaches_both(end: Script, error: type[TogetherError]) -> None:
    """After all that had come."""
    async with served(end, timeouts=Timeouts(idle=0.1)) as (_, client):
        stream, got = client.stream("Hi", model=MODEL, n=2), ["", ""]

        async def read(choice: int) -> None:
            async for text in stream.text(choice):
                got[choice] += text

        errors = await asyncio.gather(read(0), read(1), return_exceptions=True)
        assert all(isinstance(caught, error) for caught in errors)
        assert got == ["a", "b"]


async def test_a_refusal_reaches_both() -> None:
    async with emulated(WHOLE, faults=Status(400)) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        errors = await asyncio.gather(text_of(stream, 0), text_of(stream, 1), return_exceptions=True)
        assert all(isinstance(error, APIStatusError) for error in errors)
        assert len(server.journal) == 1


async def test_both_wait_for_a_retry() -> None:
    """Of a refusal, and of a stream that breaks before its first token, though a text was kept by then."""
    async with emulated(WHOLE, faults=InTurn(Status(503), then=None), retry=QUICK) as (_, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        assert await asyncio.gather(text_of(stream, 0), text_of(stream, 1)) == WHOLE
    again = sends(sse(delta("x")) + sse(delta("y", index=1)) + DONE)
    retry = Retry(attempts=3, budget=1.0, base_delay=0.0)
    for first in (sends(ERROR), sends(b": ping\n\n", end="close"), sends(b": ping\n\n" + ERROR, end="hang")):
        async with served(first, again, retry=retry) as (server, client):
            stream = client.stream("Hi", model=MODEL, n=2)
            assert await asyncio.gather(text_of(stream, 0), text_of(stream, 1)) == ["x", "y"]
            assert len(server.calls) == 2
    async with served(sends(sse(delta("y", index=1)), ERROR), again, retry=retry) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        assert await text_of(stream, 0) == "x"  # nobody had the first "y"
        assert await text_of(stream, 1) == "y"
        assert len(server.calls) == 2


async def test_what_was_kept_and_delivered_is_not_asked_for_again() -> None:
    """The stream breaks for the one that has had nothing, after the other has had its text."""
    step = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("y", index=1)))
        await step.wait()
        await call.chunk(ERROR)
        await call.hang()

    retry = Retry(attempts=3, budget=1.0, base_delay=0.0)
    async with served(script, sends(sse(delta("x")), DONE), retry=retry) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        first, second = asyncio.create_task(text_of(stream, 0)), stream.text(1)
        assert await anext(second) == "y"
        step.set()
        with pytest.raises(StreamAPIError):
            await first
        with pytest.raises(StreamAPIError):
            await anext(second)
        assert len(server.calls) == 1


async def test_what_is_kept_at_the_end_is_for_the_loop_in_its_body() -> None:
    """Another loop over the same text is refused, though the stream has ended."""
    script = sends(*[sse(delta(text, index="ax".index(text[0]))) for text in ("a1", "x1", "a2", "x2")], DONE)
    async with served(script) as (_, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        first = stream.text(0)
        assert await anext(first) == "a1"
        assert await text_of(stream, 1) == "x1x2"
        assert stream.complete
        with pytest.raises(RuntimeError, match=ONE_LOOP):
            await text_of(stream, 0)
        assert [text async for text in first] == ["a2"]
        assert await text_of(stream, 0) == ""


async def test_closing_ends_both() -> None:
    """From a third task."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        tasks = [asyncio.create_task(text_of(stream, choice)) for choice in (0, 1)]
        call = await server.call()
        await asyncio.sleep(0.01)
        await stream.aclose()
        errors: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, TogetherError) for error in errors)
        await gone(call, within=1)


async def test_pieces_of_the_older_shape() -> None:
    """`text` in place of a delta, several choices in a chunk."""
    pieces = [{"choices": [{"index": i, "text": f"{'ab'[i]}{n}"} for i in (0, 1)]} for n in range(3)]
    async with served(sends(*map(sse, pieces), DONE)) as (_, client):
        stream = client.stream("Hi", model=MODEL, n=2)
        assert await asyncio.gather(text_of(stream, 0), text_of(stream, 1)) == ["a0a1a2", "b0b1b2"]
