"""`Broadcast` and `tee`: one upstream, many consumers, each at its own speed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.any_chunks import assert_same, chunk
from support.any_chunks import streams as any_streams
from support.servers import KEY, MODEL, ScriptedServer, streams
from support.sources import Tap, closing, doing, rest_of, settle, text, texts
from together_async import (
    AsyncTogether,
    Broadcast,
    SlowConsumerError,
    Subscription,
    TogetherError,
    tee,
)
from together_async.models import ChatCompletionChunk, text_of

pytestmark = pytest.mark.usefixtures("no_leaks")


# --------------------------------------------------------------------------------------------------- everybody gets all


@pytest.mark.parametrize("on_slow", ["coalesce", "block", "drop"])
async def test_every_consumer_gets_everything(on_slow: Any) -> None:
    """Of a real stream, over one connection."""
    words = [f"w{i} " for i in range(50)]
    async with ScriptedServer(streams(*words)) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        consumers = tee(client.stream("Hi", model=MODEL), 5, on_slow=on_slow)
        texts_of_each = await asyncio.gather(*map(rest_of, consumers))
        assert ["".join(consumer) for consumer in texts_of_each] == ["".join(words)] * 5
        assert len(server.calls) == 1
        assert consumers[0].so_far().text == "".join(words)
        assert [consumer.position for consumer in consumers] == [52] * 5


@given(any_streams(), st.integers(1, 4), st.lists(st.integers(1, 4), max_size=4), st.integers(0, 2**20))
@settings(max_examples=100)
def test_whoever_comes_whenever_has_the_completion(
    chunks: list[ChatCompletionChunk], size: int, sizes: list[int], seed: int
) -> None:
    """Consumers that join at any moment and read in any order: the chunks of each add up to the completion."""

    async def main() -> None:
        tap, draw, came = Tap(), random.Random(seed), 0
        async with closing(Broadcast(tap, size=size, on_empty="continue")) as broadcast:
            readers: list[tuple[Subscription, list[ChatCompletionChunk]]] = []
            broadcast.start()
            for batch in [*sizes, len(chunks)]:
                readers.append((broadcast.subscribe(), []))
                if chunks[came : came + batch]:
                    tap.give(chunks[came : came + batch])
                came += batch
                await settle()
                for reader, had in readers:
                    if draw.random() < 0.5 and reader.position < broadcast.position:
                        had.extend(await reader.read())
            tap.end()
            for reader, had in readers:
                while batch_read := await reader.read():
                    had.extend(batch_read)
                assert_same(had, chunks)
                assert reader.position == len(chunks)

    asyncio.run(main())


async def test_who_keeps_up_gets_the_chunks_as_they_came() -> None:
    """Every consumer gets the very objects."""
    tap = Tap()
    async with closing(Broadcast(tap, size=4)) as broadcast:
        readers = [broadcast.subscribe() for _ in range(3)]
        for letters in ("ab", "cde", "f"):
            chunks = [chunk(letter) for letter in letters]
            tap.give(chunks)
            for got in await asyncio.gather(*(reader.read() for reader in readers)):
                assert all(a is b for a, b in zip(got, chunks, strict=True))


async def test_a_late_joiner_gets_what_was_said_as_one_chunk_and_then_the_rest_as_it_comes() -> None:
    """So does one that joins at the end, and one after it."""
    tap = Tap("x" * 100)
    async with closing(Broadcast(tap, size=4)) as broadcast:
        first = broadcast.subscribe()
        await first.read()
        late = broadcast.subscribe()
        (merged,) = await late.read()
        assert (text_of(merged.choices[0]), late.position) == ("x" * 100, 100)
        for letters in ("a", "bc"):
            tap.give(letters)
            await settle()
            assert texts(await late.read()) == list(letters)
        tap.end()
        assert await rest_of(late) == []
        after = broadcast.subscribe()
        assert "".join(await rest_of(after)) == "x" * 100 + "abc"
        assert broadcast.over
        assert tap.opened == 1


@pytest.mark.parametrize("on_slow", ["coalesce", "block", "drop"])
async def test_what_was_said_so_far_is_one_chunk_however_little_it_is(on_slow: Any) -> None:
    """Also while the log still has the chunks as they came; from the beginning, and after a position."""
    tap = Tap("abcde")
    async with closing(Broadcast(tap, size=64, on_slow=on_slow)) as broadcast:
        first = broadcast.subscribe()
        assert texts(await first.read()) == ["a", "b", "c", "d", "e"]
        late, back = broadcast.subscribe(), broadcast.subscribe(2)
        assert [(texts(await reader.read()), reader.position) for reader in (late, back)] == [
            (["abcde"], 5),
            (["cde"], 5),
        ]
        tap.give("fg")
        for reader in (first, late, back):
            assert texts(await reader.read()) == ["f", "g"]


async def test_from_a_position_it_goes_on_from_there() -> None:
    """`after` is the last position the consumer has had; `position` is now."""
    tap = Tap("abcdef")
    async with closing(Broadcast(tap, size=2)) as broadcast:
        broadcast.start()
        await settle()
        for after in range(7):
            reader = broadcast.subscribe(after)
            assert reader.position == after
            if after < 6:
                assert text(await reader.read()) == "abcdef"[after:]
        for wrong in (-1, 7):
            with pytest.raises(ValueError, match=f"after: got {wrong}, expected a position from 0 to 6"):
                broadcast.subscribe(wrong)


async def test_of_a_batch_only_the_first_may_stand_for_many() -> None:
    """So the position of each chunk follows from that of the last."""
    tap = Tap()
    tap.give([chunk("a"), chunk("b"), chunk("c", annotations=["x"]), chunk("d"), chunk("e"), chunk("f")])
    async with closing(Broadcast(tap, size=1)) as broadcast:
        broadcast.start()
        await settle()
        reader = broadcast.subscribe()
        assert [(texts(await reader.read()), reader.position) for _ in range(2)] == [(["ab", "c"], 3), (["def"], 6)]


async def test_a_loop_may_be_left_and_taken_up_again() -> None:
    """Within `async with` the second loop continues where the first was left, and `position` says where that is."""
    tap = Tap("abcdefgh")
    async with closing(Broadcast(tap)) as broadcast, broadcast.subscribe() as reader:
        letters = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while len(letters) < 8:
                    async for received in reader:
                        letters += text([received])
                        break
        assert letters == "abcdefgh"


async def test_text_yields_one_choice() -> None:
    """Its texts, without the empty ones."""
    tap = Tap()
    tap.give([chunk("", role="assistant"), chunk("a"), chunk("x", index=1), chunk("b"), chunk(finish="stop")])
    tap.end()
    async with closing(Broadcast(tap)) as broadcast:
        assert [part async for part in broadcast.subscribe().text()] == ["a", "b"]
        assert [part async for part in broadcast.subscribe().text(1)] == ["x"]


# -------------------------------------------------------------------------------------------------------- the slow ones


async def test_coalesce_holds_nobody_up() -> None:
    """A consumer that does not read costs the others nothing, and gets all it missed as one chunk."""
    tap = Tap()
    async with closing(Broadcast(tap, size=4)) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        for _ in range(50):
            tap.give("abc")
            assert text(await fast.read()) == "abc"
        assert texts(await slow.read()) == ["abc" * 50]
        assert slow.position == 150


async def test_block_waits_for_the_slowest() -> None:
    """Reading stops at `size` waiting chunks and continues at half of them; every consumer gets the chunks as they
    came."""
    tap = Tap()
    async with closing(Broadcast(tap, size=4, on_slow="block")) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        async with doing(fast.read()), doing(slow.read()):
            pass
        for letter in "abcdefgh":
            tap.give(letter)
        async with doing(rest_of(fast)):
            assert broadcast.position == 4
            assert texts(await slow.read()) == ["a", "b", "c", "d"]
            await settle()
            assert broadcast.position == 8
            assert texts(await slow.read()) == ["e", "f", "g", "h"]


async def test_block_goes_on_at_half_of_the_size() -> None:
    """Above half, the task is not woken, so the stream is not read chunk by chunk."""
    tap = Tap(*["x"] * 400)
    async with closing(Broadcast(tap, size=200, on_slow="block")) as broadcast:
        reader = broadcast.subscribe()
        broadcast.start()
        positions = []
        for _ in range(3):
            for _ in range(50):  # a turn or two for each chunk
                await settle()
            positions.append((reader.position, broadcast.position))
            await reader.read()
        assert positions == [(0, 200), (64, 200), (128, 328)]


async def test_block_goes_on_when_the_slowest_leaves() -> None:
    """A consumer that leaves makes room, as one that reads does."""
    tap = Tap(*"abcdefgh")
    async with closing(Broadcast(tap, size=2, on_slow="block")) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        async with doing(rest_of(fast)):
            assert broadcast.position == 2
            slow.leave()
            await settle()
            assert broadcast.position == 8


@pytest.mark.parametrize("on_slow", ["block", "drop"])
async def test_a_late_joiner_is_not_slow_for_what_was_there_before(on_slow: Any) -> None:
    """The chunks before it joined neither drop it nor block the others."""
    tap = Tap("x" * 50)
    async with closing(Broadcast(tap, size=2, on_slow=on_slow)) as broadcast:
        first = broadcast.subscribe()
        assert len(await first.read()) == 50
        late = broadcast.subscribe()
        tap.give("y")
        await settle()
        assert broadcast.position == 51
        assert texts(await first.read()) == ["y"]
        assert text(await late.read()) == "x" * 50 + "y"


async def test_drop_drops_the_slow_one_alone() -> None:
    """It gets the error, the others get everything."""
    tap = Tap()
    async with closing(Broadcast(tap, size=3, on_slow="drop")) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        for letters in ("ab", "c", "d"):
            tap.give(letters)
            assert text(await fast.read()) == letters
        with pytest.raises(SlowConsumerError, match="4 chunks waited for this consumer, expected at most 3"):
            await slow.read()
        with pytest.raises(SlowConsumerError):
            await slow.read()
        assert broadcast.consumers == 1
        tap.give("e")
        assert text(await fast.read()) == "e"
        again = pickle.loads(pickle.dumps(SlowConsumerError(4, 3)))  # noqa: S301 - ours
        assert (again.waiting, again.size, str(again)) == (4, 3, str(SlowConsumerError(4, 3)))
        assert isinstance(again, TogetherError)


async def test_a_burst_drops_nobody_who_waits() -> None:
    """More than `size` chunks come at once: a consumer whose read waited for them is not slow, one that was not reading
    is."""
    tap = Tap()
    async with closing(Broadcast(tap, size=2, on_slow="drop")) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        for letters in ("abcdefgh", "ijklm"):
            async with doing(fast.read()) as task:
                tap.give(letters)
                assert text(await task) == letters
        with pytest.raises(SlowConsumerError):
            await rest_of(slow)


async def test_a_dropped_last_consumer_stops_the_stream() -> None:
    """No consumer is left."""
    tap = Tap()
    async with closing(Broadcast(tap, size=1, on_slow="drop")) as broadcast:
        slow = broadcast.subscribe()
        async with doing(slow.read()):
            pass
        tap.give("a")
        tap.give("b")
        await settle()
        with pytest.raises(SlowConsumerError):
            await rest_of(slow)
        assert tap.left
        assert broadcast.over


async def test_a_cancelled_read_loses_nothing() -> None:
    """While it waits, and in the very turn in which chunks come."""
    tap = Tap()
    async with closing(Broadcast(tap)) as broadcast:
        reader = broadcast.subscribe()
        async with doing(reader.read()):
            pass
        async with doing(reader.read()) as task:
            tap.give("ab")
            while broadcast.position < 2:  # noqa: ASYNC110 - to the turn
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
        had = text(await task) if not task.cancelled() else ""
        tap.give("c")
        await settle()
        assert had + text(await reader.read()) == "abc"


async def test_two_tasks_read_one_subscription() -> None:
    """The second gets an error, the first is not affected."""
    tap = Tap()
    async with closing(Broadcast(tap)) as broadcast:
        reader = broadcast.subscribe()
        async with doing(reader.read()) as first:
            with pytest.raises(RuntimeError, match="two tasks read one subscription"):
                await reader.read()
            tap.give("a")
            assert text(await first) == "a"


async def test_memory_is_that_of_the_completion() -> None:
    """However many consumers lag, there is one log, and no queue for each."""
    tap = Tap()
    async with closing(Broadcast(tap, size=4)) as broadcast:
        readers = [broadcast.subscribe() for _ in range(100)]
        broadcast.start()
        sizes = []
        for _ in range(2):
            for _ in range(50):
                tap.give("x" * 40)
                await settle()
            gc.collect()
            sizes.append(len(gc.get_objects()))
        assert sizes[1] - sizes[0] < 500
        assert {len(await reader.read()) for reader in readers} == {1}
        assert broadcast.kept < 100 * 4000


# ----------------------------------------------------------------------------------------------------------------- rest


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tap: Broadcast(tap, size=0), "size: got 0"),
        (lambda tap: Broadcast(tap, size=1.5), "size: got 1.5"),
        (lambda tap: Broadcast(tap, on_slow="wait"), "on_slow: got 'wait', expected 'coalesce', 'block' or 'drop'"),
        (lambda tap: Broadcast(tap, on_empty="go"), "on_empty: got 'go', expected 'stop' or 'continue'"),
        (lambda tap: tee(tap, 0), "n: got 0, expected a number of consumers from 1"),
    ],
)
async def test_a_value_out_of_range(make: Callable[[Tap], Any], message: str) -> None:
    """The error names the argument, what was got and what is expected."""
    with pytest.raises(ValueError, match=message):
        make(Tap())


async def test_repr_says_how_it_is() -> None:
    """It shows no text."""
    tap = Tap("ab")
    async with closing(Broadcast(tap)) as broadcast:
        reader = broadcast.subscribe()
        await reader.read()
        assert repr(reader) == "<Subscription at 2 of <Broadcast running, 2 chunks, 1 consumers>>"
        tap.end()
        await rest_of(reader)
        assert repr(broadcast) == "<Broadcast ended, 2 chunks, 0 consumers>"
