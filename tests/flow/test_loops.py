"""`Loopable`: chunks, texts and completions of what is read in batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import attrs
import pytest

from support.any_chunks import chunk
from support.sources import BUFFERS, Tap, Upstream, doing, settle, settle_until, text
from together_async import (
    Broadcast,
    Buffer,
    buffered,
    relay,
)
from together_async.flow.loops import Loopable
from together_async.models import ChatCompletionChunk

pytestmark = pytest.mark.usefixtures("no_leaks")


LOOPED: dict[str, Callable[[Any], Any]] = {
    "buffered": buffered,
    "subscription": lambda stream: Broadcast(stream).subscribe(),
}


@pytest.mark.parametrize("kind", LOOPED)
async def test_it_is_read_as_a_stream_is(kind: str) -> None:
    """`anext`, a loop, one choice's texts and `completion()`, in turn: each continues where the last one stopped."""

    async def chunks() -> AsyncIterator[ChatCompletionChunk]:
        yield chunk("", role="assistant")
        for part in "abc":
            yield chunk(part)
            yield chunk(part.upper(), index=1)
        yield chunk(finish="stop")

    async with LOOPED[kind](chunks()) as source:
        assert text([await anext(source), await anext(source)]) == "a"
        async for part in source.text(1):
            assert part == "A"
            break
        async for part in source.text():
            assert part == "b"
            break
        assert source.position == 4
        completion = await source.completion()
        assert source.position == 8
        assert [choice.message.content for choice in completion.choices] == ["abc", "ABC"]
        assert source.so_far() == completion == await source.completion()
        with pytest.raises(StopAsyncIteration):
            await anext(source)
    assert [part async for part in LOOPED[kind](chunks()).text()] == ["a", "b", "c"]
    assert [part async for part in LOOPED[kind](chunks()).text(1)] == ["A", "B", "C"]


@pytest.mark.parametrize("kind", LOOPED)
async def test_texts_of_one_choice_in_one_chunk_are_one(kind: str) -> None:
    """If a choice is in a chunk twice, its text is both, as in the completion."""

    async def chunks() -> AsyncIterator[ChatCompletionChunk]:
        yield attrs.evolve(chunk("a"), choices=(*chunk("a").choices, *chunk("b").choices))

    async with LOOPED[kind](chunks()) as source:
        assert [part async for part in source.text()] == ["ab"]
        assert source.so_far().choices[0].message.content == "ab"


@pytest.mark.parametrize("kind", LOOPED)
async def test_so_far_reads_nothing(kind: str) -> None:
    """It includes the chunks that wait, and they still wait."""
    source: Loopable = LOOPED[kind](Upstream("ab").chunks())
    assert source.so_far().text == ""
    await anext(source)
    await settle()
    assert source.so_far().text == "ab"
    assert text(await source.read()) == "b"
    assert await source.read() == []


@pytest.mark.parametrize("kind", LOOPED)
async def test_what_a_loop_has_left_goes_out_through_a_door(kind: str) -> None:
    """An endpoint looks at the first chunk, for a status, and hands over the others: all of them, under their own
    ids."""
    async with LOOPED[kind](Upstream("abcdefgh").chunks()) as source:
        await settle_until(lambda: source.so_far().text == "abcdefgh")  # all come together
        async for item in source:
            assert text([item]) == "a"
            break
        body = b"".join([data async for data in relay.sse(source, format="text")])
    sent = [event.removeprefix(b"data: ") for event in body.split(b"\n") if event.startswith(b"data: ")]
    assert (b"".join(sent[:-1]), sent[-1]) == (b"bcdefgh", b"[DONE]")
    if kind == "buffered":
        assert body.startswith(b"id: 2\ndata: b\n\nid: 3\n")


async def test_a_loop_reads_no_further_than_the_buffer() -> None:
    """Chunks that the loop has not been given count as waiting: the generator is asked for one more than fits."""
    upstream, ahead = Upstream("x" * 30), set[int]()
    for_the_loop = buffered(upstream.chunks(), Buffer(4, low=1))
    had = 0
    async for _ in for_the_loop:
        had += 1
        await settle()
        ahead.add(upstream.given - had)
    assert had == 30
    assert max(ahead) == 5


@pytest.mark.parametrize("kind", LOOPED)
async def test_leaving_a_loop_over_texts_closes_a_generator(kind: str) -> None:
    """As a loop over chunks does."""
    upstream = Upstream("ab", hangs=True)
    source = LOOPED[kind](upstream.chunks())
    async for part in source.text():
        assert part == "a"
        break
    async with asyncio.timeout(1):
        await upstream.closed.wait()


@pytest.mark.parametrize("kind", BUFFERS)
async def test_a_loop_may_be_left_and_taken_up_again(kind: str) -> None:
    """Within `async with` the second loop continues where the first was left."""
    upstream = Upstream("abcdefgh", hangs=True)
    async with buffered(upstream.chunks(), BUFFERS[kind]()) as source:
        received = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while len(received) < 8:
                    async for item in source:
                        received += text([item])
                        break
        assert received == "abcdefgh"


# --------------------------------------------------------------------------------------------------------- two loops


async def texts_of(source: Loopable, choice: int) -> str:
    return "".join([part async for part in source.text(choice)])


@pytest.mark.parametrize("second", ["chunks", "text"])
@pytest.mark.parametrize("when", ["opening", "waiting", "in its body"])
@pytest.mark.parametrize("kind", LOOPED)
async def test_a_second_loop_is_refused_without_harm(kind: str, when: str, second: str) -> None:
    """At once; the first gets every chunk."""
    tap, in_body, go = Tap(), asyncio.Event(), asyncio.Event()
    if when == "opening":
        tap.held.clear()
    else:
        tap.give("a")
    source, got = LOOPED[kind](tap), ""

    async def read() -> None:
        nonlocal got
        async for item in source:
            got += text([item])
            if when == "in its body":
                in_body.set()
                await go.wait()

    async with doing(read()) as task:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"one loop reads a stream.*tee"):
                async for _ in source if second == "chunks" else source.text():
                    pass
        tap.give("bc")
        tap.end()
        for event in (tap.held, go):
            event.set()
        await task
    assert got == ("bc" if when == "opening" else "abc")


@pytest.mark.parametrize("kind", LOOPED)
async def test_a_loop_beside_a_single_read_is_refused_without_harm(kind: str) -> None:
    """`anext(source)` that waits in another task gets its chunk, and a loop may follow."""
    tap = Tap("a")
    source = LOOPED[kind](tap)
    assert text([await anext(source)]) == "a"
    async with doing(anext(source)) as single:
        with pytest.raises(RuntimeError, match="two tasks"):
            async for _ in source:
                pass
        tap.give("b")
        assert text([await single]) == "b"
    tap.give("c")
    tap.end()
    assert text([item async for item in source]) == "c"


@pytest.mark.parametrize("kind", LOOPED)
async def test_texts_of_two_choices_are_whole_or_refused(kind: str) -> None:
    """One after the other both are whole; at the same time the second loop is refused; in a block neither misses a
    piece."""

    def both(number: int) -> list[ChatCompletionChunk]:
        return [chunk(f"a{number}"), chunk(f"b{number}", index=1)]

    tap = Tap()
    for number in range(3):
        tap.give(both(number))
    tap.end()
    source = LOOPED[kind](tap)
    first = source.text(0)
    assert await anext(first) == "a0"
    with pytest.raises(RuntimeError, match="one loop reads a stream"):
        await texts_of(source, 1)
    assert [part async for part in first] == ["a1", "a2"]
    assert await texts_of(source, 1) == "b0b1b2"
    assert await texts_of(source, 1) == ""

    tap = Tap()
    async with LOOPED[kind](tap) as source:
        first, second = source.text(0), source.text(1)
        for number in range(3):
            tap.give(both(number))
            assert [await anext(second), await anext(first)] == [f"b{number}", f"a{number}"]
        tap.end()
        assert [part async for part in first] == []


# ------------------------------------------------------------------------------------------------------ cancellation


def loops_over(source: Loopable, what: str) -> Coroutine[Any, Any, None]:
    async def loop() -> None:
        async for _ in source if what == "chunks" else source.text():
            pass

    return loop()


@pytest.mark.parametrize("what", ["chunks", "text"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", LOOPED)
async def test_a_loop_that_is_cancelled_ends_what_it_owns_at_once(kind: str, first: bool, what: str) -> None:
    """Also while the error is kept, whose traceback holds the loop's iterator: in its first read or in a later one."""
    tap = Tap(*([] if first else ["a"]))
    source = LOOPED[kind](tap)
    kept: BaseException | None = None
    try:
        async with asyncio.timeout(0.01):
            await loops_over(source, what)
    except TimeoutError as error:
        kept = error
    assert kept is not None
    assert tap.left
    await settle()


@pytest.mark.parametrize("what", ["chunks", "text"])
@pytest.mark.parametrize("kind", LOOPED)
async def test_a_loop_whose_coroutine_is_destroyed_ends_what_it_owns_at_once(kind: str, what: str) -> None:
    """Without waiting for anything."""
    tap = Tap("a")
    source = LOOPED[kind](tap)
    coroutine = loops_over(source, what)
    await anext(source)
    coroutine.send(None)
    coroutine.close()
    assert tap.left
    await settle()


@pytest.mark.parametrize("kind", LOOPED)
async def test_a_cancelled_loop_in_a_block_ends_nothing(kind: str) -> None:
    """The block does; another loop in it goes on."""
    tap = Tap("a")
    async with LOOPED[kind](tap) as source:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loops_over(source, "chunks")
        assert not tap.left
        tap.give("b")
        tap.end()
        assert text([item async for item in source]) == "b"


@pytest.mark.parametrize("kind", LOOPED)
async def test_a_runtime_error_of_the_stream_is_no_refusal(kind: str) -> None:
    """The loop has read, and ends what it owns."""
    tap = Tap()
    tap.refusal = RuntimeError("no luck")
    source = LOOPED[kind](tap)
    with contextlib.suppress(RuntimeError):
        await loops_over(source, "chunks")
        pytest.fail("the error did not come out")
    tap.refusal = None  # its traceback holds the loop's iterator
    assert tap.left
