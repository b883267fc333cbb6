"""`Hub`: a completion goes on while its readers come, go and come back; bounded in number, size and time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import KEY, MODEL, ScriptedServer, gone, ticks
from test_broadcast import BROKEN, Tap, doing, rest_of, settle, text
from test_coalesce import assert_same, chunk
from test_coalesce import streams as any_streams
from virtual_time import run as run_to_end

from together_async import AsyncTogether, QueueFullError, StreamConnectionError, TogetherError
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.relay import Hub
from together_async.relay.hub import HubReader, TooLargeError
from together_async.relay.problems import AllReadError, NotKeptError, StoppedError

pytestmark = pytest.mark.usefixtures("no_leaks")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs it on a clock that jumps; no task is left, and no timer."""

    async def watched() -> None:
        await main
        left = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        assert not left, left

    run_to_end(watched())


async def through(hub: Hub, id: str, said: str = "abc") -> Tap:
    """Starts a completion that is through, and that nobody reads."""
    tap = Tap(said)
    tap.end()
    hub.start(tap, id)
    await hub._runs[id].broadcast.wait()
    return tap


def last_event_id(reader: HubReader) -> str:
    """What the relay writes as the id of the last event of what was read."""
    return f"{reader.id_prefix}{reader.position}"


# ------------------------------------------------------------------------------------------------------- start and join


async def test_a_completion_begins_at_once_and_runs_without_a_reader() -> None:
    """Then a reader gets what was said as one chunk, and the rest as it comes."""
    async with Hub() as hub:
        tap = Tap("x" * 100)
        key = hub.start(tap)
        await settle()
        assert tap.position == 100
        reader = hub.join(key)
        (one,) = await reader.read()
        assert text([one]) == "x" * 100
        tap.give("ab")
        assert [text([one]) for one in await reader.read()] == ["a", "b"]
        tap.end()
        assert await reader.read() == []
        assert (reader.id, reader.position) == (key, 102)
        assert repr(reader) == f"<HubReader of {key!r} at 102>"
        assert repr(hub).startswith("<Hub 0 running, 1 kept, ")


async def test_ids_that_are_made_can_not_be_guessed() -> None:
    """128 bits each, and all different."""
    async with Hub() as hub:
        ids = [hub.start(Tap()) for _ in range(20)]
        assert len(set(ids)) == 20
        assert all(len(key) == 32 and int(key, 16) for key in ids)
        assert list(hub) == ids
        assert ids[3] in hub
        assert "x" not in hub
        assert len(hub) == 20


@pytest.mark.parametrize("id", ["a", "a:b:c", ":", "9:9", "Grüße", "文字:1", "😀", "with space", "x" * 300])
async def test_any_printable_id(id: str) -> None:
    """Colons and every script included, also for coming back."""
    async with Hub() as hub:
        tap = Tap("ab", "cd")
        assert hub.start(tap, id) == id
        await settle()
        reader = hub.join(id)
        await reader.read()
        assert last_event_id(reader) == f"{id}:4"
        tap.give("e")
        tap.end()
        assert "".join(await rest_of(hub.join(id, f"{id}:2"))) == "cde"
        assert "".join(await rest_of(hub.join(id, last_event_id(reader)))) == "e"


@pytest.mark.parametrize("id", ["", "a\n", "a\0b", "\r", "\x7f", "a\u2028b"])
async def test_an_id_that_no_header_can_hold(id: str) -> None:
    """It is refused, and nothing is begun."""
    async with Hub() as hub:
        with pytest.raises(ValueError, match=r"id: got .*, expected a text without control characters"):
            hub.start(Tap(), id)
        assert len(hub) == 0


async def test_a_taken_id_is_refused() -> None:
    """Also one that is through, until it is forgotten; the stream was not opened."""
    async with Hub() as hub:
        await through(hub, "a")
        tap = Tap()
        with pytest.raises(ValueError, match="there is a completion with the id 'a'"):
            hub.start(tap, "a")
        assert tap.opened == 0


async def test_what_is_no_stream_is_refused() -> None:
    """And takes no place."""
    async with Hub() as hub:
        with pytest.raises(TypeError, match="stream: got a NoneType"):
            hub.start(None, "a")  # type: ignore[arg-type]
        assert len(hub) == 0


async def test_open_starts_once_and_joins_afterwards() -> None:
    """A page that asks and reads in one request: two of them under one id are one completion."""
    async with Hub() as hub:
        tap, other = Tap("ab"), Tap("never")
        first, second = hub.open(tap, "a"), hub.open(other, "a")
        assert len(hub) == 0
        assert text(await first.read()) == "ab"
        assert text(await second.read()) == "ab"
        assert (tap.opened, other.opened) == (1, 0)


async def test_open_makes_an_id() -> None:
    """It is known when it is opened, and a request that comes back with it joins; nothing is asked again."""
    async with Hub() as hub:
        tap, other = Tap("ab"), Tap("never")
        first = hub.open(tap)
        await first.read()
        assert first.id in hub
        second = hub.open(other)
        second.resume(last_event_id(first))
        async with doing(second.read()) as task:
            tap.give("c")
            assert text(await task) == "c"
        assert other.opened == 0
        assert second.id == first.id


async def test_so_far_is_what_has_come() -> None:
    """By id; of one that is not kept it is an error."""
    async with Hub() as hub:
        key = hub.start(Tap("ab"))
        await settle()
        assert hub.so_far(key).text == "ab"
        with pytest.raises(NotKeptError):
            hub.so_far("x")


# ---------------------------------------------------------------------------------------------------------- coming back


@given(any_streams(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=10), st.booleans())
@settings(max_examples=100)
def test_a_client_that_loses_its_connection_has_the_text_once(
    chunks: list[ChatCompletionChunk], steps: list[tuple[int, int]], by_open: bool
) -> None:
    """At whatever moments it is cut off, and however much came meanwhile: what it puts together is the completion."""

    async def main() -> None:
        async with Hub() as hub:
            tap, had, last, came = Tap(), list[ChatCompletionChunk](), "", 0
            key = hub.start(tap)
            for batch, reads in [*steps, (len(chunks), 0)]:
                if chunks[came : came + batch]:
                    tap.give(chunks[came : came + batch])
                came += batch
                await settle()
                reader = hub.open(Tap()) if by_open and last else hub.join(key)
                if last:
                    reader.resume(last)
                for _ in range(reads):
                    if reader.position < hub._runs[key].broadcast.position:
                        had.extend(await reader.read())
                        last = last_event_id(reader)
                reader.leave()
            tap.end()
            reader = hub.join(key, last)
            while batch_read := await reader.read():
                had.extend(batch_read)
            assert_same(had, chunks)

    run(main())


FOREIGN = [
    "victim",
    "victim:0",
    "victim:1",
    "mine",
    "mine:",
    ":1",
    ":",
    "mine:x",
    "mine:-1",
    "mine:1:",
    "mine:1 ",
    "mine: 1",
    "mine:+1",
    "mine:1.0",
    "mine:٣",
    "mine:²",
    "mine:4",
    "mine:99999999999999999999",
    "mine:5:1",
    "Mine:1",
    "\ud800:1",
]


@pytest.mark.parametrize("event", FOREIGN)
@pytest.mark.parametrize("door", ["join", "open"])
async def test_an_event_that_is_none_of_the_completions(event: str, door: str) -> None:
    """Wrong, of another completion, or further than it is: never another one's answer, and nothing from the start."""
    async with Hub() as hub:
        for key in ("mine", "victim", "mine:5", "mine:"):
            hub.start(Tap("abc"), key)
        await settle()
        stream = Tap("never")
        reader = hub.join("mine") if door == "join" else hub.open(stream, "mine")
        reader.resume(event)
        for _ in range(2):
            with pytest.raises(NotKeptError):
                await reader.read()
        assert stream.opened == 0


@pytest.mark.parametrize("event", ["victim:0", "victim:1", "victim", "x:1", ":0"])
async def test_open_without_an_id_resumes_only_what_can_not_be_guessed(event: str) -> None:
    """An id of the app's own, which may be a number, is not for whoever names it."""
    async with Hub() as hub:
        hub.start(Tap("abc"), "victim")
        await settle()
        reader = hub.open(Tap("never"))
        reader.resume(event)
        with pytest.raises(NotKeptError):
            await reader.open()
        assert len(hub) == 1


async def test_who_has_had_everything_is_told_so() -> None:
    """The end has an id too, one further than the last chunk; while it runs nobody can have had it."""
    async with Hub() as hub:
        tap = Tap("abc")
        hub.start(tap, "a")
        await settle()
        with pytest.raises(NotKeptError):
            await hub.join("a", "a:4").open()
        tap.end()
        await settle()
        with pytest.raises(AllReadError):
            await hub.join("a", "a:4").open()
        with pytest.raises(NotKeptError):
            await hub.join("a", "a:5").open()
        assert await hub.join("a", "a:3").read() == []


async def test_an_unknown_id() -> None:
    """Never there, or forgotten: one error, which says no more."""
    async with Hub() as hub:
        for reader in (hub.join("x"), hub.join("x", "x:1")):
            with pytest.raises(NotKeptError, match="no completion is kept under this id"):
                await reader.read()


async def test_an_error_is_kept_with_what_came_before_it() -> None:
    """Who comes back gets the rest, and the error."""
    async with Hub() as hub:
        tap = Tap("abc")
        tap.end(BROKEN)
        hub.start(tap, "a")
        await settle()
        said: list[str] = []
        with pytest.raises(StreamConnectionError):
            await rest_of(hub.join("a", "a:1"), said)
        assert "".join(said) == "bc"


# ---------------------------------------------------------------------------------------------------- bounded in number


async def test_when_all_are_running_there_is_no_room() -> None:
    """The error says so, and nothing that runs is harmed; a place that is left is taken."""
    async with Hub(max_streams=2) as hub:
        taps = [Tap("a"), Tap("b")]
        for tap in taps:
            hub.start(tap)
        refused = Tap()
        with pytest.raises(QueueFullError, match=r"keeps 2 completions, .* expected at most 2"):
            hub.start(refused)
        reader = hub.open(refused)
        with pytest.raises(QueueFullError):
            await reader.open()
        assert refused.opened == 0
        assert not any(tap.left for tap in taps)
        taps[0].end()
        await settle()
        assert hub.start(Tap())


async def test_what_is_through_makes_room_the_oldest_first() -> None:
    """Those that run stay, and those that are being read."""
    async with Hub(max_streams=4) as hub:
        hub.start(Tap(), "running")
        for key in ("read", "old", "new"):
            await through(hub, key)
        reader = hub.join("read")
        await reader.read()
        hub.start(Tap(), "5")
        assert list(hub) == ["running", "read", "new", "5"]
        hub.start(Tap(), "6")
        assert list(hub) == ["running", "read", "5", "6"]
        with pytest.raises(QueueFullError):
            hub.start(Tap(), "7")
        reader.leave()
        hub.start(Tap(), "7")
        assert list(hub) == ["running", "5", "6", "7"]


# ------------------------------------------------------------------------------------------------------ bounded in size


async def test_one_that_is_too_large_is_stopped() -> None:
    """Its reader gets all that came, then the error; the upstream is left."""
    async with Hub(max_size=100_000) as hub:
        tap = Tap()
        hub.start(tap, "a")
        reader = hub.join("a")
        said: list[str] = []

        async def feed() -> None:
            for _ in range(1000):
                tap.give("x" * 50)
                await asyncio.sleep(0)

        async with doing(feed()):
            with pytest.raises(TooLargeError, match="expected at most 100000; this one was stopped"):
                await rest_of(reader, said)
        assert tap.left
        assert len("".join(said)) > 50


async def test_a_few_large_chunks_count_for_what_they_are() -> None:
    """Chunks that are kept as they came are counted with their texts: sixteen of a megabyte are no small thing."""
    async with Hub(max_size=1_000_000) as hub:
        tap = Tap()
        tap.give([chunk("x" * 500_000) for _ in range(4)])
        hub.start(tap, "a")
        with pytest.raises(TooLargeError):
            await rest_of(hub.join("a"))


async def test_for_size_too_what_is_through_makes_room() -> None:
    """Before one that runs is stopped; the oldest first, and none that is being read."""
    async with Hub(max_size=100_000) as hub:
        for key in ("read", "old", "new"):
            await through(hub, key, "word" * 50)
        reader = hub.join("read")
        await reader.read()
        size = hub.size
        tap = Tap()
        hub.start(tap, "running")
        while "old" in hub:
            tap.give("x" * 10)
            await settle()
        assert list(hub) == ["read", "new", "running"]
        assert size <= 100_000
        assert hub.size <= 100_000
        reader.leave()


async def test_one_that_is_too_large_and_unread_is_gone_at_once() -> None:
    """Nothing keeps it, no timer either: that is what it was stopped for."""
    async with Hub(max_size=10_000) as hub:
        tap = Tap("x" * 500)
        gone_yet = weakref.ref(tap)
        hub.start(tap, "a")
        del tap
        await settle()
        assert (len(hub), hub.size) == (0, 0)
        gc.collect()
        assert gone_yet() is None


class Clerk:
    """Does with a hub whatever may be done with one."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.taps: dict[str, Tap] = {}
        self.readers: dict[str, HubReader] = {}

    async def start(self, key: str) -> None:
        tap = Tap()
        with contextlib.suppress(QueueFullError, ValueError):
            self.hub.start(tap, key)
            self.taps[key] = tap

    async def give(self, key: str) -> None:
        if key in self.taps:
            self.taps[key].give("word" * 3)

    async def end(self, key: str) -> None:
        if key in self.taps:
            self.taps[key].end()

    async def fail(self, key: str) -> None:
        if key in self.taps:
            self.taps[key].end(StreamConnectionError("lost", partial=ChatCompletion()))

    async def join(self, key: str) -> None:
        with contextlib.suppress(TogetherError):
            self.readers[key] = self.hub.join(key)
            await self.readers[key].open()

    async def leave(self, key: str) -> None:
        if key in self.readers:
            self.readers.pop(key).leave()

    async def stop(self, key: str) -> None:
        await self.hub.stop(key)


DEEDS = ["start", "start", "give", "give", "give", "end", "fail", "join", "leave", "stop"]


@given(st.lists(st.tuples(st.sampled_from(DEEDS), st.sampled_from("abcd")), max_size=30))
@settings(max_examples=100)
def test_the_size_is_nothing_when_nothing_is_kept(steps: list[tuple[str, str]]) -> None:
    """Whatever was started, given, ended, joined, left, stopped or broken before: the sum is right, and ends at 0."""

    async def main() -> None:
        hub = Hub(max_streams=3, max_size=60_000)
        clerk = Clerk(hub)
        for deed, key in steps:
            await getattr(clerk, deed)(key)
            await settle()
            assert hub.size == sum(run.broadcast.kept for run in hub._runs.values())
            assert len(hub) <= 3
        await hub.aclose()
        assert (hub.size, len(hub)) == (0, 0)

    run(main())


# ------------------------------------------------------------------------------------------------------ bounded in time


def test_what_is_through_is_kept_for_so_long() -> None:
    """From its end, and again from when its last reader has left."""

    async def main() -> None:
        async with Hub(keep=100) as hub:
            await through(hub, "a")
            await asyncio.sleep(99)
            reader = hub.join("a")
            await rest_of(reader)
            await asyncio.sleep(99)
            assert "a" in hub
            await asyncio.sleep(2)
            assert "a" not in hub
            assert hub.size == 0

    run(main())


def test_what_is_being_read_is_not_forgotten() -> None:
    """However slowly."""

    async def main() -> None:
        async with Hub(keep=10) as hub:
            await through(hub, "a", "abc")
            reader = hub.join("a")
            await reader.open()
            await asyncio.sleep(1000)
            assert "a" in hub
            assert "".join(await rest_of(reader)) == "abc"
            await asyncio.sleep(11)
            assert "a" not in hub

    run(main())


def test_nothing_is_kept_where_nothing_is_to_be() -> None:
    """keep=0: a reader gets all of it, and then it is gone."""

    async def main() -> None:
        async with Hub(keep=0) as hub:
            tap = Tap("abc")
            hub.start(tap, "a")
            reader = hub.join("a")
            await reader.open()
            tap.end()
            assert "".join(await rest_of(reader)) == "abc"
            await asyncio.sleep(0.01)
            assert len(hub) == 0

    run(main())


def test_one_that_nobody_reads_is_stopped_after_a_while() -> None:
    """Counted from its start and from its last reader's leaving; who comes late gets what came, and is told."""

    async def main() -> None:
        async with Hub(abandon=60, keep=100) as hub:
            tap = Tap("abc")
            hub.start(tap, "a")
            await asyncio.sleep(59)
            reader = hub.join("a")
            await reader.read()
            await asyncio.sleep(1000)
            assert not tap.left
            reader.leave()
            await asyncio.sleep(59)
            assert not tap.left
            await asyncio.sleep(2)
            assert tap.left
            said: list[str] = []
            with pytest.raises(StoppedError, match="nobody read it for 60 s"):
                await rest_of(hub.join("a"), said)
            assert "".join(said) == "abc"
            await asyncio.sleep(101)
            assert "a" not in hub

    run(main())


def test_a_token_does_not_put_off_that_it_is_stopped() -> None:
    """Nobody reads: that it is being generated is no reader."""

    async def main() -> None:
        async with Hub(abandon=60) as hub:
            tap = Tap()
            hub.start(tap, "a")
            for _ in range(59):
                tap.give("x")
                await asyncio.sleep(1)
            assert not tap.left
            await asyncio.sleep(2)
            assert tap.left

    run(main())


def test_one_may_run_to_its_end_unread() -> None:
    """abandon=None."""

    async def main() -> None:
        async with Hub(abandon=None) as hub:
            tap = Tap("a")
            hub.start(tap, "a")
            await asyncio.sleep(10_000)
            assert not tap.left
            tap.give("b")
            tap.end()
            await settle()
            assert "".join(await rest_of(hub.join("a"))) == "ab"

    run(main())


def test_abandon_of_nothing_stops_with_the_last_reader() -> None:
    """The completion does not outlive the request."""

    async def main() -> None:
        async with Hub(abandon=0) as hub:
            tap = Tap("a")
            reader = hub.open(tap, "a")
            await reader.read()
            await asyncio.sleep(5)
            assert not tap.left
            reader.leave()
            await asyncio.sleep(0.01)
            assert tap.left

    run(main())


# -------------------------------------------------------------------------------------------------------------- the end


async def test_stop_stops_one_and_keeps_what_had_come() -> None:
    """Its reader, and who comes back, get that, and then are told; its id stays taken."""
    async with Hub() as hub:
        tap, other = Tap("abc"), Tap("x")
        hub.start(tap, "a")
        hub.start(other, "b")
        reader = hub.join("a")
        assert text(await reader.read()) == "abc"
        async with doing(reader.read()) as task:
            assert await hub.stop("a") is True
            with pytest.raises(StoppedError, match="the completion was stopped"):
                await task
        assert (tap.left, other.left) == (True, False)
        assert await hub.stop("a") is False
        assert await hub.stop("x") is False
        said: list[str] = []
        with pytest.raises(StoppedError):
            await rest_of(hub.join("a", "a:1"), said)
        assert "".join(said) == "bc"


async def test_stop_in_the_turn_of_the_start() -> None:
    """Its task never had a turn: nothing is opened, and nobody waits for ever."""
    async with Hub() as hub:
        tap = Tap("abc")
        hub.start(tap, "a")
        assert await hub.stop("a") is True
        assert tap.opened == 0
        async with asyncio.timeout(1):
            with pytest.raises(StoppedError):
                await hub.join("a").read()
        assert repr(hub).startswith("<Hub 0 running, 1 kept, ")


async def test_leaving_the_block_ends_everything() -> None:
    """Readers are told, upstreams left, nothing is kept; twice is fine."""
    async with Hub() as hub:
        tap = Tap("abc")
        hub.start(tap, "a")
        hub.start(Tap(), "b")
        await through(hub, "c")
        reader = hub.join("a")
        await reader.read()
        task = asyncio.create_task(reader.read())
        await settle()
    with pytest.raises(TogetherError, match=r"closed|stopped"):
        await task
    assert tap.left
    assert (len(hub), hub.size) == (0, 0)
    with pytest.raises(NotKeptError):
        await hub.join("a").read()
    await hub.aclose()


async def test_a_real_upstream_is_left() -> None:
    """By stop, and by the hub's end; not when a reader leaves."""
    async with ScriptedServer(ticks) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        async with Hub() as hub:
            ids = [hub.start(client.stream("Hi", model=MODEL)) for _ in range(2)]
            readers = [hub.join(key) for key in ids]
            for reader in readers:
                await reader.read()
                reader.leave()
            later = hub.join(ids[0])
            position = readers[0].position
            while later.position <= position:
                await later.read()
            assert not any(call.left.is_set() for call in server.calls)
            await hub.stop(ids[0])
            async with asyncio.timeout(1):
                while not any(call.left.is_set() for call in server.calls):  # noqa: ASYNC110 - either of them
                    await asyncio.sleep(0.001)
            assert [call.left.is_set() for call in server.calls].count(True) == 1
        for call in server.calls:
            await gone(call, within=1)


async def test_a_loop_over_a_reader_leaves_it() -> None:
    """The completion goes on; the hub knows that nobody reads it."""
    async with Hub() as hub:
        tap = Tap("abc")
        hub.start(tap, "a")
        async for _ in hub.join("a"):
            break
        await settle()
        assert hub._runs["a"].broadcast.consumers == 0
        assert not tap.left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_streams": 0}, "max_streams: got 0, expected at least 1"),
        ({"max_size": 0}, "max_size: got 0, expected at least 1"),
        ({"keep": -1}, "keep: got -1, expected at least 0"),
        ({"abandon": -1}, "abandon: got -1, expected seconds from 0, or None"),
    ],
)
def test_a_value_out_of_range(arguments: dict[str, Any], said: str) -> None:
    """The error names the argument, what was got and what is expected."""
    with pytest.raises(ValueError, match=said):
        Hub(**arguments)
