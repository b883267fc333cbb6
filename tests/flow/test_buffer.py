"""`Buffer`: high and low water, merging what waits, and an end that comes after everything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.any_chunks import assert_same, chunk, streams, with_unknown_content
from support.sources import BROKEN, doing, settle, text, texts
from together_async import Buffer, StreamConnectionError
from together_async.flow.buffer import MAX_BATCH
from together_async.models import ChatCompletionChunk

pytestmark = pytest.mark.usefixtures("no_leaks")

BLOCK, COALESCE = "block", "coalesce"


async def put(buffer: Buffer, letters: str) -> None:
    for letter in letters:
        await buffer.put(chunk(letter))


async def batches_of(buffer: Buffer) -> list[list[ChatCompletionChunk]]:
    """All batches until the end."""
    batches = []
    while batch := await buffer.read():
        batches.append(batch)
    return batches


# ---------------------------------------------------------------------------------------------------------------- marks


@pytest.mark.parametrize(
    ("size", "low"), [(1, None), (1, 0), (4, None), (4, 0), (4, 3), (70, 65), (70, 6), (70, 5), (130, 10)]
)
async def test_the_producer_waits_at_the_size_and_goes_on_at_the_low_mark(size: int, low: int | None) -> None:
    """`size` chunks go in without waiting, and the next one waits until reads have left exactly `low` of them."""
    buffer = Buffer(size, low=low)
    mark = size // 2 if low is None else low
    assert buffer.low == mark
    for i in range(size):
        async with asyncio.timeout(1):
            await buffer.put(chunk(str(i)))
    async with doing(buffer.put(chunk("last"))) as producer:
        assert (buffer.waiting, producer.done()) == (size, False)
        had = 0
        while not producer.done():
            assert size - had > mark or not had
            had += len(await buffer.read())
            await settle()
        assert had == min(-(-(size - mark) // MAX_BATCH) * MAX_BATCH, size)
        assert buffer.waiting == size - had + 1


async def test_the_producer_sleeps_between_the_marks() -> None:
    """Above the low mark nothing wakes it, so a full buffer is not refilled one by one."""
    size = 3 * MAX_BATCH
    buffer = Buffer(size, low=10)
    await put(buffer, "x" * size)
    async with doing(buffer.put(chunk("y"))) as producer:
        for _ in range(2):
            await buffer.read()
            await settle()
            assert not producer.done()
        await buffer.read()
        await settle()
        assert producer.done()


@pytest.mark.parametrize(("size", "low"), [(1, 0), (4, 1), (4, 0), (6, 5), (200, 70)])
async def test_the_marks_hold_for_a_loop(size: int, low: int) -> None:
    """Chunks the loop has not been given still count as waiting: never more than `size`, and no room is made above
    `low`."""
    buffer, given, had, went_on_at = Buffer(size, low=low), 0, 0, set[int]()

    async def produce() -> None:
        nonlocal given
        while given < 3 * size:
            await buffer.put(chunk("x"))
            given += 1
        buffer.close()

    async with doing(produce()):
        async for _ in buffer:
            had += 1
            left = buffer.waiting
            await settle()
            assert given - had == buffer.waiting <= size
            if buffer.waiting > left:
                went_on_at.add(left)
    assert had == 3 * size
    assert went_on_at == {low}


@given(st.integers(1, 20), st.data())
@settings(max_examples=50)
def test_a_batch_never_fills_it_over_its_size(size: int, data: st.DataObject) -> None:
    """Chunks that come together wait one by one, as single ones do; all come out, in order."""
    low = data.draw(st.integers(0, size - 1))
    batches = data.draw(st.lists(st.integers(0, 40), max_size=5))

    async def main() -> None:
        buffer, most, had = Buffer(size, low=low), 0, ""

        async def produce() -> None:
            number = 0
            for batch in batches:
                await buffer.put_all([chunk(f"{number + i},") for i in range(batch)])
                number += batch
            buffer.close()

        async with doing(produce()):
            most = buffer.waiting
            while batch := await buffer.read():
                had += text(batch)
                await settle()
                most = max(most, buffer.waiting)
        assert most <= size
        assert had == "".join(f"{i}," for i in range(sum(batches)))

    asyncio.run(main())


async def test_coalesce_never_waits() -> None:
    """Ten thousand chunks without a turn of the event loop: they wait as one chunk with everything."""
    buffer = Buffer(8, COALESCE)
    for _ in range(100):
        with contextlib.suppress(StopIteration):
            buffer.put_all([chunk("x") for _ in range(100)]).send(None)  # ends without ever having waited
    assert buffer.waiting == 10_000
    (item,) = await buffer.read()
    assert len(text([item])) == 10_000
    assert buffer.position == 10_000


async def test_coalesce_merges_only_what_is_too_much() -> None:
    """A consumer that keeps up gets the very chunks; with one more than `size` waiting it gets one chunk."""
    buffer = Buffer(3, COALESCE)
    chunks = [chunk(x) for x in "abc"]
    await buffer.put_all(chunks)
    got = await buffer.read()
    assert all(a is b for a, b in zip(got, chunks, strict=True))
    await put(buffer, "defg")
    assert texts(await buffer.read()) == ["defg"]
    await put(buffer, "hi")
    assert texts(await buffer.read()) == ["h", "i"]
    assert buffer.position == 9


async def test_coalesce_keeps_memory_bounded() -> None:
    """After fifty thousand chunks the interpreter has no more objects than after five thousand, but for the texts."""
    buffer = Buffer(4, COALESCE)
    sizes = []
    for _ in range(2):
        for _ in range(5_000):
            await buffer.put(chunk("a"))
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert sizes[1] - sizes[0] < 200
    assert len(text(await buffer.read())) == 10_000


@given(streams(), st.integers(1, 5), st.sampled_from([BLOCK, COALESCE]), st.lists(st.booleans(), max_size=12))
@settings(max_examples=100)
def test_what_comes_out_adds_up_to_what_went_in(
    chunks: list[ChatCompletionChunk], size: int, on_full: Any, reads: list[bool]
) -> None:
    """Whenever the consumer reads: one completion, unknown keys exact, and every chunk counted once."""

    async def main() -> None:
        buffer, got = Buffer(size, on_full), list[ChatCompletionChunk]()

        async def produce() -> None:
            for item in chunks:
                await buffer.put(item)
            buffer.close()

        async with doing(produce()) as producer:
            for read in reads:
                if read and buffer.waiting:
                    got.extend(await buffer.read())
                await settle()
            for batch in await batches_of(buffer):
                got.extend(batch)
            await producer
        assert_same(got, chunks)
        assert [id(item) for item in with_unknown_content(got)] == [id(item) for item in with_unknown_content(chunks)]
        assert buffer.position == len(chunks)
        assert buffer.waiting == 0

    asyncio.run(main())


async def test_positions_count_the_producers_chunks() -> None:
    """A merged chunk counts for all chunks in it, and comes alone, so that each chunk's position is known."""
    buffer = Buffer(2, COALESCE)
    await put(buffer, "abcd")
    await buffer.put(chunk("e", annotations=["x"]))
    await put(buffer, "fg")
    positions = []
    while buffer.waiting:
        positions.append((texts(await buffer.read()), buffer.position, buffer.waiting))
    assert positions == [(["abcd"], 4, 3), (["e"], 5, 2), (["fg"], 7, 0)]


async def test_what_comes_while_merged_pieces_wait_comes_after_them() -> None:
    """Pieces that could not be merged, then chunks as they came, then merged ones: in order, each once."""
    buffer = Buffer(2, COALESCE)
    await put(buffer, "abc")
    await buffer.put(chunk("d", annotations=["x"]))
    assert texts(await buffer.read()) == ["abc"]
    await put(buffer, "ef")
    assert texts(await buffer.read()) == ["d"]
    await put(buffer, "g")
    assert texts(await buffer.read()) == ["efg"]
    assert buffer.position == 7


# -------------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("on_full", [BLOCK, COALESCE])
@pytest.mark.parametrize("error", [None, BROKEN], ids=["end", "error"])
async def test_the_end_comes_after_everything_that_waits(on_full: Any, error: Exception | None) -> None:
    """And again at every later read."""
    buffer = Buffer(4, on_full)
    await put(buffer, "abc")
    buffer.close(error)
    buffer.close(ValueError("the first counts"))
    assert texts(await buffer.read()) == ["a", "b", "c"]
    for _ in range(2):
        if error is None:
            assert await buffer.read() == []
        else:
            with pytest.raises(StreamConnectionError):
                await buffer.read()


async def test_the_error_comes_after_a_merged_chunk_and_its_pieces() -> None:
    """Merged chunks are not lost to an error."""
    buffer = Buffer(1, COALESCE)
    await put(buffer, "ab")
    await buffer.put(chunk("c", annotations=["x"]))
    buffer.close(BROKEN)
    assert texts(await buffer.read()) == ["ab"]
    assert texts(await buffer.read()) == ["c"]
    with pytest.raises(StreamConnectionError):
        await buffer.read()


@pytest.mark.parametrize("error", [None, BROKEN], ids=["end", "error"])
async def test_closing_wakes_who_reads(error: Exception | None) -> None:
    """A waiting reader gets the end."""
    buffer = Buffer(1)
    async with doing(buffer.read()) as reader:
        buffer.close(error)
        await settle()
        assert reader.done()
        assert (reader.exception() or reader.result()) == (error or [])


async def test_a_chunk_that_waits_while_it_is_closed_is_not_put() -> None:
    """Its producer gets an error; the consumer, who has had the end, gets nothing after it."""
    buffer = Buffer(1)
    await put(buffer, "a")
    async with doing(buffer.put(chunk("late"))) as producer:
        buffer.close()
        assert texts(await buffer.read()) == ["a"]
        assert await buffer.read() == []
        with pytest.raises(RuntimeError, match="closed while a chunk waited"):
            await producer
    assert await buffer.read() == []


async def test_nothing_can_be_put_after_the_end() -> None:
    """One chunk or several."""
    buffer = Buffer(1)
    buffer.close()
    with pytest.raises(RuntimeError, match="closed"):
        await buffer.put(chunk("a"))
    with pytest.raises(RuntimeError, match="closed"):
        await buffer.put_all([chunk("a")])
    assert buffer.waiting == 0


# ----------------------------------------------------------------------------------------------------- who is cancelled


async def test_a_cancelled_put_puts_nothing() -> None:
    """The chunk is not in the buffer, so its producer may put it again; and another `put` may wait."""
    buffer = Buffer(2, low=0)
    await put(buffer, "ab")
    async with doing(buffer.put(chunk("c"))):
        pass
    assert buffer.waiting == 2
    async with doing(buffer.put(chunk("d"))) as producer:
        assert texts(await buffer.read()) == ["a", "b"]
        await producer
    assert texts(await buffer.read()) == ["d"]


async def test_a_put_cancelled_as_it_is_woken_leaves_no_trace() -> None:
    """The reader made room in the same turn."""
    buffer = Buffer(1)
    await put(buffer, "a")
    async with doing(buffer.put(chunk("b"))) as producer:
        assert texts(await buffer.read()) == ["a"]
        producer.cancel()
        await asyncio.wait((producer,))
        assert producer.cancelled()
    await put(buffer, "c")
    assert texts(await buffer.read()) == ["c"]


async def test_a_cancelled_read_loses_nothing() -> None:
    """Before a chunk comes, and in the turn in which it comes."""
    buffer = Buffer(2)
    async with doing(buffer.read()):
        pass
    async with doing(buffer.read()) as reader:
        await put(buffer, "a")
        reader.cancel()
        await asyncio.wait((reader,))
        assert reader.cancelled()
    assert buffer.position == 0
    assert texts(await buffer.read()) == ["a"]


async def test_two_readers_are_refused_and_the_first_is_unharmed() -> None:
    """The error says what to do."""
    buffer = Buffer(2)
    async with doing(buffer.read()) as reader:
        with pytest.raises(RuntimeError, match="two tasks read one buffer"):
            await buffer.read()
        await put(buffer, "a")
        assert texts(await reader) == ["a"]


async def test_two_producers_are_refused_and_the_first_is_unharmed() -> None:
    """While the first one waits."""
    buffer = Buffer(1)
    await put(buffer, "a")
    async with doing(buffer.put(chunk("b"))) as producer:
        for second in (buffer.put(chunk("c")), buffer.put_all([chunk("c")])):
            with pytest.raises(RuntimeError, match="two tasks put into one buffer"):
                await second
        assert texts(await buffer.read()) == ["a"]
        await producer
    assert texts(await buffer.read()) == ["b"]


# ----------------------------------------------------------------------------------------------------------------- rest


async def test_at_most_sixty_four_at_once() -> None:
    """A consumer's turn stays short."""
    buffer = Buffer(200)
    await put(buffer, "x" * 150)
    buffer.close()
    assert [len(batch) for batch in await batches_of(buffer)] == [64, 64, 22]


async def test_a_loop_over_it_ends() -> None:
    """Chunk by chunk."""
    buffer = Buffer(5)
    await put(buffer, "abc")
    buffer.close()
    assert [text([item]) async for item in buffer] == ["a", "b", "c"]


async def test_repr_shows_the_state() -> None:
    """It shows no text."""
    buffer = Buffer(3, COALESCE)
    await put(buffer, "secret"[:2])
    assert repr(buffer) == "<Buffer open, 2 of 3 chunks wait, on_full='coalesce'>"
    await put(buffer, "xyz")
    buffer.close()
    assert repr(buffer) == "<Buffer closed, 5 of 3 chunks wait, on_full='coalesce'>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: got 0"),
        ({"size": -1}, "size: got -1"),
        ({"size": 1.5}, "size: got 1.5"),
        ({"size": None}, "size: got None"),
        ({"on_full": "drop"}, "on_full: got 'drop', expected 'block' or 'coalesce'"),
        ({"size": 4, "low": 4}, "low: got 4, expected a number of chunks from 0 to 3"),
        ({"size": 4, "low": -1}, "low: got -1"),
    ],
)
def test_a_value_out_of_range(arguments: dict[str, Any], message: str) -> None:
    """The error names the argument, what was got and what is expected."""
    with pytest.raises(ValueError, match=message):
        Buffer(**arguments)


def test_putting_a_chunk_costs_the_same_however_many_wait() -> None:
    """Counted in calls: merging the five-thousandth chunk costs what merging the hundredth did."""

    def work(waiting: int) -> int:
        buffer, count = Buffer(2, COALESCE), 0
        for _ in range(waiting):
            run(buffer.put(chunk("a")))
        item = chunk("b")

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            run(buffer.put(item))
        finally:
            sys.setprofile(before)
        return count

    assert work(100) == work(5000)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that must not wait."""
    with contextlib.suppress(StopIteration):
        work.send(None)
        raise AssertionError("it waited")
