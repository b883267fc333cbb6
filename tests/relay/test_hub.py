"""`Hub`: a completion goes on while its readers come, go and come back; bounded in number, size and time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import pickle
import sys
import weakref
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.any_chunks import assert_same, chunk
from support.any_chunks import streams as any_streams
from support.servers import KEY, MODEL, ScriptedServer, gone, ticks
from support.sources import BROKEN, Tap, doing, rest_of, settle, text, texts
from support.virtual_time import run as run_to_end
from together_async import AsyncTogether, ChatCompletionStream, QueueFullError, StreamConnectionError, TogetherError
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.relay import EventSourceResponse, Hub, shut_down, sse, status_of
from together_async.relay.browser_errors import AllReadError, IdError, NotKeptError, StoppedError, TooLargeError
from together_async.relay.hub import HubReader
from together_async.wire.sse import EventStreamParser

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
    await hub._kept[id].broadcast.wait()
    return tap


def last_event_id(reader: HubReader) -> str:
    """What the relay writes as the id of the last event of what was read."""
    return f"{reader.id_prefix}{reader.position}"


async def collect(events: AsyncIterator[bytes], body: list[bytes]) -> None:
    """Reads a response to its end, also one that a function of the test's breaks."""
    with contextlib.suppress(KeyError):
        async for data in events:
            body.append(data)  # noqa: PERF401 - those before an error count


async def body_of(events: AsyncIterator[bytes]) -> bytes:
    body: list[bytes] = []
    async with asyncio.timeout(2):
        await collect(events, body)
    return b"".join(body)


async def asked(response: EventSourceResponse, body: list[bytes], last: str = "") -> int:
    """Runs a response as a server does, for a client that stays; returns its status."""
    status = 0

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        body.append(message.get("body", b""))

    headers = [(b"last-event-id", last.encode())] if last else []
    await response({"type": "http", "method": "GET", "headers": headers}, receive, send)
    return status


class Browser:
    """An EventSource: puts together the texts it is sent, and knows the id with which it would come back."""

    def __init__(self) -> None:
        self.last = ""
        self.text = ""

    def hear(self, body: bytes) -> str:
        """Takes what one response brought; returns the type of its last event, or `[DONE]`."""
        kind = ""
        for event in EventStreamParser().feed(body):
            self.last = event.id or self.last
            kind = "[DONE]" if event.data == b"[DONE]" else event.event
            if kind == "message":
                self.text += event.data.decode()
        return kind


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


@pytest.mark.parametrize("id", ["", "a\n", "a\0b", "\r", "\x7f", "a\u2028b", 5, b"a"])
async def test_an_id_that_no_header_can_hold(id: Any) -> None:
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


async def test_an_id_that_can_not_be_had_has_a_status() -> None:
    """409 for one that is taken, 400 for one that no header can hold, also by a door; and the error can be pickled."""
    async with Hub() as hub:
        hub.start(Tap(), "a")
        for taken, status in (("a", 409), ("b\n", 400)):
            with pytest.raises(IdError) as caught:
                hub.start(Tap(), taken)
            assert isinstance(caught.value, ValueError)
            again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - ours
            for error in (caught.value, again):
                assert (type(error), error.status_code, status_of(error)) == (IdError, status, status)
                assert str(error) == str(caught.value)
        assert await asked(EventSourceResponse(hub.open(Tap(), "b\n")), []) == 400
        assert list(hub) == ["a"]


async def test_start_in_a_thread_enters_nothing() -> None:
    """An endpoint without `async` is told at once; the id is free, and so is the place."""
    async with Hub(max_streams=1) as hub:
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(hub.start, Tap("abc"), "a")
        assert (len(hub), hub.size) == (0, 0)
        assert hub.start(Tap("abc"), "a") == "a"


async def test_what_is_no_stream_is_refused() -> None:
    """And takes no place."""
    async with Hub() as hub:
        with pytest.raises(TypeError, match="stream: got a NoneType"):
            hub.start(None, "a")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="stream: got a NoneType"):
            hub.open(None, "a")  # type: ignore[arg-type]
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
                    if reader.position < hub._kept[key].broadcast.position:
                        had.extend(await reader.read())
                        last = last_event_id(reader)
                reader.leave()
            tap.end()
            reader = hub.join(key, last)
            while batch_read := await reader.read():
                had.extend(batch_read)
            assert_same(had, chunks)

    run(main())


async def test_who_comes_back_gets_what_he_missed_as_one_chunk() -> None:
    """Also when it is less than what is kept as it came; and so does who comes late. Then the rest as it comes."""
    async with Hub() as hub:
        tap = Tap("abcde")
        hub.start(tap, "a")
        await settle()
        late, back = hub.join("a"), hub.join("a", "a:2")
        assert [(texts(await one.read()), one.position) for one in (late, back)] == [(["abcde"], 5), (["cde"], 5)]
        tap.give("fg")
        await settle()
        for one in (late, back):
            assert texts(await one.read()) == ["f", "g"]


@pytest.mark.parametrize("since", ["", "gh"], ids=["nothing since", "more since"])
@pytest.mark.parametrize("cut", ["cancelled", "shut down", "format"])
async def test_a_browser_that_comes_back_after_an_error_has_the_text_once(cut: str, since: str) -> None:
    """The response ended with an error, the completion did not: no chunk is passed over, and none is refused."""

    def brittle(one: ChatCompletionChunk) -> str:
        if text([one]) == "d":
            raise KeyError("d")
        return text([one])

    async with Hub() as hub:
        tap, browser, body = Tap(), Browser(), list[bytes]()
        hub.start(tap, "a")
        reader = hub.join("a")
        if cut == "cancelled":
            work: Any = asked(EventSourceResponse(reader, format="text"), body)
        else:
            work = collect(sse(reader, format=brittle if cut == "format" else "text", grace=0), body)
        async with doing(work) as task:
            tap.give("abcdef")
            await settle()
            if cut == "cancelled":  # as by a middleware's time limit
                task.cancel()
            elif cut == "shut down":  # and the process goes on
                shut_down()
            await asyncio.wait((task,), timeout=2)
        assert browser.hear(b"".join(body)) == "error"
        assert browser.text == ("abc" if cut == "format" else "abcdef")
        if since:
            tap.give(since)
        await settle()
        body.clear()
        async with doing(collect(sse(hub.join("a"), last_event_id=browser.last, format="text"), body)) as task:
            tap.give("xyz")
            tap.end()
            await asyncio.wait((task,), timeout=2)
        assert browser.hear(b"".join(body)) == "[DONE]"
        assert browser.text == f"abcdef{since}xyz"


async def test_a_format_that_fails_at_the_last_chunk_has_not_sent_it() -> None:
    """Nothing more will come, and the browser has not had all: it comes back for the rest."""

    def brittle(one: ChatCompletionChunk) -> str:
        if text([one]) == "c":
            raise KeyError("c")
        return text([one])

    async with Hub() as hub:
        tap, browser, body = Tap(), Browser(), list[bytes]()
        hub.start(tap, "a")
        async with doing(collect(sse(hub.join("a"), format=brittle), body)):
            tap.give("abc")
            tap.end()
            await settle()
        assert browser.hear(b"".join(body)) == "error"
        body = [await body_of(sse(hub.join("a"), last_event_id=browser.last, format="text"))]
        assert browser.hear(b"".join(body)) == "[DONE]"
        assert browser.text == "abc"


@pytest.mark.parametrize("error", [None, BROKEN], ids=["end", "error"])
async def test_a_browser_that_has_had_all_does_not_come_back_twice(error: Exception | None) -> None:
    """The last event, `[DONE]` or an error, has an id by which it is known: a 204, or nothing at all."""
    async with Hub() as hub:
        tap, browser = Tap("abc"), Browser()
        tap.end(error)
        hub.start(tap, "a")
        assert browser.hear(await body_of(sse(hub.join("a"), format="text"))) == ("error" if error else "[DONE]")
        assert (browser.text, browser.last) == ("abc", "a:4")
        assert await body_of(sse(hub.join("a"), last_event_id=browser.last)) == b""
        assert await asked(EventSourceResponse(hub.join("a")), [], browser.last) == 204


async def test_a_door_tells_a_reader_that_is_left_by_others_from_an_end() -> None:
    """Its client gets an error, and never `[DONE]`; the completion goes on."""
    async with Hub() as hub:
        tap, browser, body = Tap("abc"), Browser(), list[bytes]()
        hub.start(tap, "a")
        reader = hub.join("a")
        async with doing(collect(sse(reader, format="text"), body)) as task:
            reader.leave()
            await asyncio.wait((task,), timeout=2)
        assert browser.hear(b"".join(body)) == "error"
        assert (browser.text, tap.left) == ("abc", False)


@pytest.mark.parametrize("door", ["join", "open"])
@pytest.mark.parametrize(
    "event", ["zebra", "zebra:1", "a:1\nevent: zebra", "a:1\r\ndata: zebra", "zebra\n\n:1", "\ud800zebra:1", ":zebra"]
)
async def test_what_a_client_says_is_not_repeated(event: str, door: str) -> None:
    """It has had an event of something else: it is told so, whatever it says, by an event without an id."""
    async with Hub() as hub:
        hub.start(Tap("abc"), "a")
        await settle()
        stream = Tap("never")
        reader = hub.join("a") if door == "join" else hub.open(stream)
        body = await body_of(sse(reader, last_event_id=event))
        (one,) = EventStreamParser().feed(body)
        assert (one.event, one.id, json.loads(one.data)["error"]["type"]) == ("error", "", "NotKeptError")
        assert b"zebra" not in body
        assert stream.opened == 0


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
            assert hub.size == sum(run.broadcast.kept for run in hub._kept.values())
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


async def test_all_are_left_at_once() -> None:
    """What one has to close is waited for when the others have been told."""
    begun, free = list[int](), asyncio.Event()

    async def slow(number: int) -> AsyncIterator[ChatCompletionChunk]:
        try:
            yield chunk("a")
            await asyncio.Event().wait()
        finally:
            begun.append(number)
            await free.wait()

    hub = Hub()
    for number in range(3):
        hub.start(slow(number))
    tap = Tap("a")
    hub.start(tap)
    await settle()
    async with doing(hub.aclose()) as task:
        told = (begun.copy(), tap.left, task.done())
        free.set()
        await task
    assert told == ([0, 1, 2], True, False)


def test_a_reader_may_be_dropped_when_its_loop_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said, and nothing raised: there is nobody to tell."""
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    async def main() -> tuple[Hub, HubReader]:
        hub = Hub()
        hub.start(Tap("abc"), "a")
        reader = hub.join("a")
        await reader.read()
        return hub, reader

    hub, reader = asyncio.run(main())
    del reader
    gc.collect()
    assert hub._kept["a"].broadcast.consumers == 0
    assert said == []


async def test_a_reader_may_be_dropped_by_another_thread() -> None:
    """The garbage collector runs where it likes: nobody reads any more, and the completion is stopped for that."""
    async with Hub(abandon=0) as hub:
        tap = Tap("abc")
        readers = [hub.open(tap, "a")]
        await readers[0].read()
        await asyncio.to_thread(readers.clear)
        async with asyncio.timeout(1):
            while not tap.left:  # noqa: ASYNC110 - a timer's doing
                await asyncio.sleep(0.001)


async def test_what_wraps_a_stream_is_asked_once_and_left() -> None:
    """Its iterator has the stream: it is neither made twice, nor kept as long as what has come is."""

    class Wrapping:
        asked = 0

        def __init__(self, stream: ChatCompletionStream) -> None:
            self.stream = stream

        def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
            self.asked += 1
            return aiter(self.stream)

    async with ScriptedServer(ticks) as server, AsyncTogether(KEY, base_url=server.base_url) as client, Hub() as hub:
        wrapping = Wrapping(client.stream("Hi", model=MODEL))
        hub.start(wrapping, "a")
        reader = hub.join("a")
        while reader.position < 3:
            await reader.read()
        await hub.stop("a")
        await gone(server.calls[0], within=1)
        assert wrapping.asked == 1


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
        assert hub._kept["a"].broadcast.consumers == 0
        assert not tap.left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_streams": 0}, "max_streams: got 0, expected at least 1"),
        ({"max_size": 0}, "max_size: got 0, expected at least 1"),
        ({"keep": -1}, "keep: got -1, expected at least 0"),
        ({"abandon": -1}, "abandon: got -1, expected seconds from 0, or None"),
        *(({name: math.nan}, f"{name}: got nan") for name in ("max_streams", "max_size", "keep", "abandon")),
    ],
)
def test_a_value_out_of_range(arguments: dict[str, Any], said: str) -> None:
    """The error names the argument, what was got and what is expected."""
    with pytest.raises(ValueError, match=said):
        Hub(**arguments)
