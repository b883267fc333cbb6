"""`Broadcast` and `tee`: one upstream, many consumers, each at its own speed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.any_chunks import assert_same, chunk
from support.any_chunks import streams as any_streams
from support.servers import KEY, MODEL, SOON, Call, ScriptedServer, delta, gone, sse, streams, ticks
from support.sources import BROKEN, Tap, doing, rest_of, settle, text, texts
from together_async import (
    AsyncTogether,
    Broadcast,
    IncompleteStreamError,
    InternalServerError,
    SlowConsumerError,
    StreamConnectionError,
    Subscription,
    TogetherError,
    relay,
    tee,
)
from together_async.models import ChatCompletionChunk, text_of

pytestmark = pytest.mark.usefixtures("no_leaks")


@contextlib.asynccontextmanager
async def closing(broadcast: Broadcast) -> AsyncIterator[Broadcast]:
    try:
        yield broadcast
    finally:
        await broadcast.aclose()


# --------------------------------------------------------------------------------------------------- everybody gets all


@pytest.mark.parametrize("on_slow", ["coalesce", "block", "drop"])
async def test_every_consumer_gets_everything(on_slow: Any) -> None:
    """Of a real stream, over one connection."""
    words = [f"w{i} " for i in range(50)]
    async with ScriptedServer(streams(*words)) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        consumers = tee(client.stream("Hi", model=MODEL), 5, on_slow=on_slow)
        said = await asyncio.gather(*map(rest_of, consumers))
        assert ["".join(one) for one in said] == ["".join(words)] * 5
        assert len(server.calls) == 1
        assert consumers[0].so_far().text == "".join(words)
        assert [one.position for one in consumers] == [52] * 5


@given(any_streams(), st.integers(1, 4), st.lists(st.integers(1, 4), max_size=4), st.integers(0, 2**20))
@settings(max_examples=100)
def test_whoever_comes_whenever_has_the_completion(
    chunks: list[ChatCompletionChunk], size: int, sizes: list[int], seed: int
) -> None:
    """Consumers who come at any moment and read in any order: what each has had adds up to the completion."""

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
    """The very objects, every consumer."""
    tap = Tap()
    async with closing(Broadcast(tap, size=4)) as broadcast:
        readers = [broadcast.subscribe() for _ in range(3)]
        for said in ("ab", "cde", "f"):
            chunks = [chunk(one) for one in said]
            tap.give(chunks)
            for got in await asyncio.gather(*(reader.read() for reader in readers)):
                assert all(a is b for a, b in zip(got, chunks, strict=True))


async def test_a_late_joiner_gets_what_was_said_as_one_chunk_and_then_the_rest_as_it_comes() -> None:
    """And so does one who comes at the end, and one after it."""
    tap = Tap("x" * 100)
    async with closing(Broadcast(tap, size=4)) as broadcast:
        first = broadcast.subscribe()
        await first.read()
        late = broadcast.subscribe()
        (one,) = await late.read()
        assert (text_of(one.choices[0]), late.position) == ("x" * 100, 100)
        for said in ("a", "bc"):
            tap.give(said)
            await settle()
            assert texts(await late.read()) == list(said)
        tap.end()
        assert await rest_of(late) == []
        after = broadcast.subscribe()
        assert "".join(await rest_of(after)) == "x" * 100 + "abc"
        assert broadcast.over
        assert tap.opened == 1


@pytest.mark.parametrize("on_slow", ["coalesce", "block", "drop"])
async def test_what_was_said_so_far_is_one_chunk_however_little_it_is(on_slow: Any) -> None:
    """Also where all of it is kept as it came: from the beginning, and after what somebody has had already."""
    tap = Tap("abcde")
    async with closing(Broadcast(tap, size=64, on_slow=on_slow)) as broadcast:
        first = broadcast.subscribe()
        assert texts(await first.read()) == ["a", "b", "c", "d", "e"]
        late, back = broadcast.subscribe(), broadcast.subscribe(2)
        assert [(texts(await one.read()), one.position) for one in (late, back)] == [(["abcde"], 5), (["cde"], 5)]
        tap.give("fg")
        for one in (first, late, back):
            assert texts(await one.read()) == ["f", "g"]


async def test_from_a_position_it_goes_on_from_there() -> None:
    """`after` the last it had; `position` is now."""
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
    """So that the position of each is known, from that of the last."""
    tap = Tap()
    tap.give([chunk("a"), chunk("b"), chunk("c", annotations=["x"]), chunk("d"), chunk("e"), chunk("f")])
    async with closing(Broadcast(tap, size=1)) as broadcast:
        broadcast.start()
        await settle()
        reader = broadcast.subscribe()
        assert [(texts(await reader.read()), reader.position) for _ in range(2)] == [(["ab", "c"], 3), (["def"], 6)]


async def test_a_loop_may_be_left_and_taken_up_again() -> None:
    """Inside of a block: the second loop goes on where the first was left, and `position` says where that is."""
    tap = Tap("abcdefgh")
    async with closing(Broadcast(tap)) as broadcast, broadcast.subscribe() as reader:
        said = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while len(said) < 8:
                    async for one in reader:
                        said += text([one])
                        break
        assert said == "abcdefgh"


async def test_text_yields_one_choice() -> None:
    """Its texts, without the empty ones."""
    tap = Tap()
    tap.give([chunk("", role="assistant"), chunk("a"), chunk("x", index=1), chunk("b"), chunk(finish="stop")])
    tap.end()
    async with closing(Broadcast(tap)) as broadcast:
        assert [one async for one in broadcast.subscribe().text()] == ["a", "b"]
        assert [one async for one in broadcast.subscribe().text(1)] == ["x"]


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
    """At `size` chunks nothing more is read, at half of them it goes on; all get the chunks as they came."""
    tap = Tap()
    async with closing(Broadcast(tap, size=4, on_slow="block")) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        async with doing(fast.read()), doing(slow.read()):
            pass
        for one in "abcdefgh":
            tap.give(one)
        async with doing(rest_of(fast)):
            assert broadcast.position == 4
            assert texts(await slow.read()) == ["a", "b", "c", "d"]
            await settle()
            assert broadcast.position == 8
            assert texts(await slow.read()) == ["e", "f", "g", "h"]


async def test_block_goes_on_at_half_of_the_size() -> None:
    """Above it nobody is woken, so that the stream is not read chunk by chunk."""
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
    """Leaving is as good as reading."""
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
    """A hundred chunks had come: it is neither dropped at once, nor does everybody wait for it at once."""
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
    """It gets the error, the others everything."""
    tap = Tap()
    async with closing(Broadcast(tap, size=3, on_slow="drop")) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        for said in ("ab", "c", "d"):
            tap.give(said)
            assert text(await fast.read()) == said
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
    """More than `size` chunks in one read of the network: who was waiting for them is not slow; who was not is."""
    tap = Tap()
    async with closing(Broadcast(tap, size=2, on_slow="drop")) as broadcast:
        fast, slow = broadcast.subscribe(), broadcast.subscribe()
        for said in ("abcdefgh", "ijklm"):
            async with doing(fast.read()) as task:
                tap.give(said)
                assert text(await task) == said
        with pytest.raises(SlowConsumerError):
            await rest_of(slow)


async def test_a_dropped_last_consumer_stops_the_stream() -> None:
    """Nobody is left who reads it."""
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


# -------------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("way", ["loop", "leave", "aclose", "block", "drop"])
async def test_the_stream_is_closed_when_the_last_leaves(way: str) -> None:
    """At once, as the server sees it, in every way to leave; not before."""
    async with ScriptedServer(ticks) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        first, last = tee(client.stream("Hi", model=MODEL))
        await asyncio.gather(first.read(), last.read())
        first.leave()
        await last.read()
        await last.read()
        assert not server.calls[0].left.is_set()
        if way == "loop":
            async for _ in last:
                break
        elif way == "leave":
            last.leave()
        elif way == "aclose":
            await last.aclose()
        elif way == "block":
            async with last:
                pass
        else:
            del last
            gc.collect()
        await gone(server.calls[0], within=max(1, SOON))
        await settle()


async def test_it_goes_on_without_anybody_if_asked() -> None:
    """on_empty="continue": read to its end, and there for whoever comes then."""
    tap = Tap("ab")
    async with closing(Broadcast(tap, on_empty="continue")) as broadcast:
        reader = broadcast.subscribe()
        await reader.read()
        reader.leave()
        tap.give("cd")
        tap.end()
        await broadcast.wait()
        assert (broadcast.over, broadcast.error, broadcast.position) == (True, None, 4)
        assert "".join(await rest_of(broadcast.subscribe())) == "abcd"


async def test_who_comes_after_the_last_has_left() -> None:
    """The stream was stopped: what had come, and an error that says it is not all."""
    tap = Tap("ab")
    async with closing(Broadcast(tap)) as broadcast:
        reader = broadcast.subscribe()
        await reader.read()
        reader.leave()
        await settle()
        assert broadcast.over
        said: list[str] = []
        with pytest.raises(IncompleteStreamError) as caught:
            await rest_of(broadcast.subscribe(), said)
        assert "".join(said) == "ab"
        assert caught.value.partial.text == "ab"


async def test_leaving_twice_and_reading_what_was_left() -> None:
    """The second time is nothing; what was left is never taken for a stream that has ended."""
    tap = Tap("ab")
    async with closing(Broadcast(tap)) as broadcast:
        one, other = broadcast.subscribe(), broadcast.subscribe()
        await one.read()
        one.leave()
        one.leave()
        assert broadcast.consumers == 1
        with pytest.raises(IncompleteStreamError) as caught:
            await one.read()
        assert caught.value.partial.text == "ab"
        assert text(await other.read()) == "ab"


async def test_a_reader_that_waits_ends_when_its_subscription_is_left() -> None:
    """By another task, as a server's shutdown does."""
    async with closing(Broadcast(Tap())) as broadcast:
        reader, other = broadcast.subscribe(), broadcast.subscribe()
        async with doing(reader.read()) as task:
            reader.leave()
            async with asyncio.timeout(1):
                with pytest.raises(IncompleteStreamError):
                    await task
        other.leave()


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "between reads"])
async def test_a_door_tells_a_subscription_that_is_left_by_others_from_an_end(waits: bool) -> None:
    """By a stop button, say: the client gets an error, and never `[DONE]`; the others go on."""
    tap = Tap("abc")
    async with closing(Broadcast(tap)) as broadcast:
        reader, other = broadcast.subscribe(), broadcast.subscribe()
        events = relay.sse(reader, format="text")
        body = [await anext(events)]

        async def rest() -> None:
            async for data in events:
                body.append(data)  # noqa: PERF401 - what had come before an error counts

        async with asyncio.timeout(2):
            if waits:
                async with doing(rest()) as task:
                    reader.leave()
                    await task
            else:
                reader.leave()
                await rest()
        assert b"event: error" in b"".join(body)
        assert b"[DONE]" not in b"".join(body)
        assert text(await other.read()) == "abc"
        assert not tap.left


async def test_closing_ends_everybody() -> None:
    """Readers who wait get an error, once its task has ended nothing is left; twice is fine."""
    tap = Tap("ab")
    broadcast = Broadcast(tap)
    readers = [broadcast.subscribe() for _ in range(3)]
    for reader in readers:
        await reader.read()
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    await settle()
    await broadcast.aclose()
    assert (tap.left, broadcast.over) == (True, True)
    for task in tasks:
        with pytest.raises(IncompleteStreamError, match="closed while others were reading it"):
            await task
    await broadcast.aclose()


@pytest.mark.parametrize("when", ["before", "same turn"])
async def test_closing_what_has_not_begun(when: str) -> None:
    """Before its task was made, or before its first turn: nobody waits for ever, and nothing was opened."""
    tap = Tap("ab")
    broadcast = Broadcast(tap)
    reader = broadcast.subscribe()
    if when == "same turn":
        broadcast.start()
    broadcast.leave(BROKEN)
    for _ in range(2):
        with pytest.raises(StreamConnectionError):
            await rest_of(reader)
    with pytest.raises(StreamConnectionError):
        await reader.open()
    assert tap.opened == 0
    assert tap.left
    await broadcast.aclose()
    await broadcast.wait()
    assert broadcast.over


async def test_it_is_closed_in_the_turn_of_the_first_read() -> None:
    """The reader had just begun the task, which never gets a turn."""
    broadcast = Broadcast(Tap("ab"))
    task = asyncio.create_task(broadcast.subscribe().read())
    asyncio.get_running_loop().call_soon(broadcast.leave)
    async with asyncio.timeout(1):
        with pytest.raises(IncompleteStreamError):
            await task
    await broadcast.aclose()


async def test_nobody_subscribed() -> None:
    """It is not opened, and a stream that nobody asked for needs no closing."""
    tap = Tap("ab")
    broadcast = Broadcast(tap)
    await settle()
    assert tap.opened == 0
    assert repr(broadcast) == "<Broadcast not opened, 0 chunks, 0 consumers>"
    await broadcast.aclose()


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("on_slow", ["coalesce", "block", "drop"])
async def test_an_error_reaches_everybody_after_what_had_come(on_slow: Any) -> None:
    """Those who wait, those who lag, and those who come afterwards; each time they ask."""
    tap = Tap("abc")
    async with closing(Broadcast(tap, size=8, on_slow=on_slow)) as broadcast:
        waiting, lagging = broadcast.subscribe(), broadcast.subscribe()
        assert text(await waiting.read()) == "abc"
        async with doing(waiting.read()) as task:
            tap.end(BROKEN)
            with pytest.raises(StreamConnectionError):
                await task
        for reader in (lagging, broadcast.subscribe()):
            said: list[str] = []
            for _ in range(2):
                with pytest.raises(StreamConnectionError):
                    await rest_of(reader, said)
            assert "".join(said) == "abc"
        assert broadcast.error is BROKEN
        assert tap.left


async def test_an_error_that_is_no_exception_reaches_everybody() -> None:
    """Of somebody's iterable, as `pytest.fail` raises: nobody waits for ever, and what had come is not lost."""

    class OddError(BaseException):
        pass

    async def odd() -> AsyncIterator[ChatCompletionChunk]:
        yield chunk("a")
        await settle()
        raise OddError

    async with closing(Broadcast(odd())) as broadcast:
        readers = [broadcast.subscribe() for _ in range(2)]
        had: list[list[str]] = [[] for _ in readers]
        outcomes = await asyncio.gather(*map(rest_of, readers, had), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OddError, OddError]
        assert had == [["a"], ["a"]]
        assert broadcast.over
        with pytest.raises(OddError):
            await broadcast.subscribe(1).read()


async def test_a_refusal_reaches_everybody() -> None:
    """Who opens and who reads, at the same time and later."""

    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")

    async with ScriptedServer(refuse) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        broadcast = Broadcast(client.stream("Hi", model=MODEL))
        readers = [broadcast.subscribe() for _ in range(4)]
        work = [readers[0].open(), readers[1].read(), readers[2].__aenter__(), readers[3].open()]
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            assert isinstance(outcome, InternalServerError)
        with pytest.raises(InternalServerError):
            await broadcast.subscribe().open()
        assert len(server.calls) == 1


async def test_the_first_who_opens_may_be_cancelled() -> None:
    """It was its read that opened the stream; the others get everything."""
    tap = Tap("ab")
    tap.held.clear()
    async with closing(Broadcast(tap)) as broadcast:
        first, second = broadcast.subscribe(), broadcast.subscribe()
        async with doing(first.open()), doing(second.read()) as other:
            pass
        assert other.cancelled()
        tap.held.set()
        assert text(await second.read()) == "ab"
        assert text(await first.read()) == "ab"
        assert tap.opened == 1


async def test_a_cancelled_read_loses_nothing() -> None:
    """While it waits, and in the very turn in which something comes."""
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
    """The second is sent away, the first unharmed."""
    tap = Tap()
    async with closing(Broadcast(tap)) as broadcast:
        reader = broadcast.subscribe()
        async with doing(reader.read()) as first:
            with pytest.raises(RuntimeError, match="two tasks read one subscription"):
                await reader.read()
            tap.give("a")
            assert text(await first) == "a"


async def test_memory_is_that_of_the_completion() -> None:
    """However many consumers lag: one log, and no queue of theirs."""
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
    ("make", "said"),
    [
        (lambda tap: Broadcast(tap, size=0), "size: got 0"),
        (lambda tap: Broadcast(tap, size=1.5), "size: got 1.5"),
        (lambda tap: Broadcast(tap, on_slow="wait"), "on_slow: got 'wait', expected 'coalesce', 'block' or 'drop'"),
        (lambda tap: Broadcast(tap, on_empty="go"), "on_empty: got 'go', expected 'stop' or 'continue'"),
        (lambda tap: tee(tap, 0), "n: got 0, expected a number of consumers from 1"),
    ],
)
async def test_a_value_out_of_range(make: Callable[[Tap], Any], said: str) -> None:
    """The error names the argument, what was got and what is expected."""
    with pytest.raises(ValueError, match=said):
        make(Tap())


async def test_repr_says_how_it_is() -> None:
    """Without a text."""
    tap = Tap("ab")
    async with closing(Broadcast(tap)) as broadcast:
        reader = broadcast.subscribe()
        await reader.read()
        assert repr(reader) == "<Subscription at 2 of <Broadcast running, 2 chunks, 1 consumers>>"
        tap.end()
        await rest_of(reader)
        assert repr(broadcast) == "<Broadcast ended, 2 chunks, 0 consumers>"


async def test_a_broken_stream_of_ours_says_what_had_come() -> None:
    """The error every consumer gets carries the answer so far."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(*(sse(delta(x)) for x in "abc"))
        call.close()

    async with ScriptedServer(script) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        for reader in tee(client.stream("Hi", model=MODEL), 3):
            said: list[str] = []
            with pytest.raises(StreamConnectionError) as caught:
                await rest_of(reader, said)
            assert "".join(said) == caught.value.partial.text == "abc"
