"""`Hub`: a client that comes back gets the rest, once, and never another completion."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.any_chunks import assert_same
from support.any_chunks import streams as any_streams
from support.hubs import EventSourceClient, body_of, collect, last_event_id, send_response
from support.sources import BROKEN, Tap, doing, rest_of, settle, text, texts
from support.virtual_time import run_in_fake_time
from together_async import StreamConnectionError
from together_async.models import ChatCompletionChunk
from together_async.relay import EventSourceResponse, Hub, shut_down, sse
from together_async.relay.browser_errors import AllReadError, NotKeptError
from together_async.wire.sse import EventStreamParser

pytestmark = pytest.mark.usefixtures("no_leaks")


@given(any_streams(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=10), st.booleans())
@settings(max_examples=100)
def test_a_client_that_loses_its_connection_has_the_text_once(
    chunks: list[ChatCompletionChunk], steps: list[tuple[int, int]], by_open: bool
) -> None:
    """Whenever it is cut off, and however much comes meanwhile: the chunks it got add up to the completion."""

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

    run_in_fake_time(main())


async def test_who_comes_back_gets_what_he_missed_as_one_chunk() -> None:
    """Even if all of it is still kept as it came; a late reader too. Then the rest comes chunk by chunk."""
    async with Hub() as hub:
        tap = Tap("abcde")
        hub.start(tap, "a")
        await settle()
        late, back = hub.join("a"), hub.join("a", "a:2")
        got = [(texts(await reader.read()), reader.position) for reader in (late, back)]
        assert got == [(["abcde"], 5), (["cde"], 5)]
        tap.give("fg")
        await settle()
        for reader in (late, back):
            assert texts(await reader.read()) == ["f", "g"]


@pytest.mark.parametrize("since", ["", "gh"], ids=["nothing since", "more since"])
@pytest.mark.parametrize("cut", ["cancelled", "shut down", "format"])
async def test_a_browser_that_comes_back_after_an_error_has_the_text_once(cut: str, since: str) -> None:
    """The response ended with an error, the completion did not: no chunk is skipped, and no request refused."""

    def brittle(chunk: ChatCompletionChunk) -> str:
        if text([chunk]) == "d":
            raise KeyError("d")
        return text([chunk])

    async with Hub() as hub:
        tap, browser, body = Tap(), EventSourceClient(), list[bytes]()
        hub.start(tap, "a")
        reader = hub.join("a")
        if cut == "cancelled":
            work: Any = send_response(EventSourceResponse(reader, format="text"), body)
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
        assert browser.read_body(b"".join(body)) == "error"
        assert browser.text == ("abc" if cut == "format" else "abcdef")
        if since:
            tap.give(since)
        await settle()
        body.clear()
        async with doing(collect(sse(hub.join("a"), last_event_id=browser.last, format="text"), body)) as task:
            tap.give("xyz")
            tap.end()
            await asyncio.wait((task,), timeout=2)
        assert browser.read_body(b"".join(body)) == "[DONE]"
        assert browser.text == f"abcdef{since}xyz"


async def test_a_format_that_fails_at_the_last_chunk_has_not_sent_it() -> None:
    """No more will come, and the browser has not got everything: it comes back for the rest."""

    def brittle(chunk: ChatCompletionChunk) -> str:
        if text([chunk]) == "c":
            raise KeyError("c")
        return text([chunk])

    async with Hub() as hub:
        tap, browser, body = Tap(), EventSourceClient(), list[bytes]()
        hub.start(tap, "a")
        async with doing(collect(sse(hub.join("a"), format=brittle), body)):
            tap.give("abc")
            tap.end()
            await settle()
        assert browser.read_body(b"".join(body)) == "error"
        body = [await body_of(sse(hub.join("a"), last_event_id=browser.last, format="text"))]
        assert browser.read_body(b"".join(body)) == "[DONE]"
        assert browser.text == "abc"


@pytest.mark.parametrize("error", [None, BROKEN], ids=["end", "error"])
async def test_a_browser_that_has_had_all_does_not_come_back_twice(error: Exception | None) -> None:
    """The last event, `[DONE]` or an error, has an id; a client that comes back with it gets 204, or no event."""
    async with Hub() as hub:
        tap, browser = Tap("abc"), EventSourceClient()
        tap.end(error)
        hub.start(tap, "a")
        assert browser.read_body(await body_of(sse(hub.join("a"), format="text"))) == ("error" if error else "[DONE]")
        assert (browser.text, browser.last) == ("abc", "a:4")
        assert await body_of(sse(hub.join("a"), last_event_id=browser.last)) == b""
        assert await send_response(EventSourceResponse(hub.join("a")), [], browser.last) == 204


async def test_a_door_tells_a_reader_that_is_left_by_others_from_an_end() -> None:
    """The client gets an error, and never `[DONE]`; the completion goes on."""
    async with Hub() as hub:
        tap, browser, body = Tap("abc"), EventSourceClient(), list[bytes]()
        hub.start(tap, "a")
        reader = hub.join("a")
        async with doing(collect(sse(reader, format="text"), body)) as task:
            reader.leave()
            await asyncio.wait((task,), timeout=2)
        assert browser.read_body(b"".join(body)) == "error"
        assert (browser.text, tap.left) == ("abc", False)


@pytest.mark.parametrize("door", ["join", "open"])
@pytest.mark.parametrize(
    "event", ["zebra", "zebra:1", "a:1\nevent: zebra", "a:1\r\ndata: zebra", "zebra\n\n:1", "\ud800zebra:1", ":zebra"]
)
async def test_what_a_client_says_is_not_repeated(event: str, door: str) -> None:
    """The client names an event of something else: it gets an error that repeats nothing of it and has no id."""
    async with Hub() as hub:
        hub.start(Tap("abc"), "a")
        await settle()
        stream = Tap("never")
        reader = hub.join("a") if door == "join" else hub.open(stream)
        body = await body_of(sse(reader, last_event_id=event))
        (event,) = EventStreamParser().feed(body)
        assert (event.event, event.id, json.loads(event.data)["error"]["type"]) == ("error", "", "NotKeptError")
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
    """Malformed, of another completion, or too far: the client gets no other answer, and nothing from the start."""
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
    """An id that the app chose may be a number that can be guessed: naming it is not enough."""
    async with Hub() as hub:
        hub.start(Tap("abc"), "victim")
        await settle()
        reader = hub.open(Tap("never"))
        reader.resume(event)
        with pytest.raises(NotKeptError):
            await reader.open()
        assert len(hub) == 1


async def test_who_has_had_everything_is_told_so() -> None:
    """The end has an id too, one past the last chunk; while the completion runs, no client can have it."""
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
    """Never there or forgotten: the same error, without details."""
    async with Hub() as hub:
        for reader in (hub.join("x"), hub.join("x", "x:1")):
            with pytest.raises(NotKeptError, match="no completion is kept under this id"):
                await reader.read()


async def test_an_error_is_kept_with_what_came_before_it() -> None:
    """A client that comes back gets the rest, and the error."""
    async with Hub() as hub:
        tap = Tap("abc")
        tap.end(BROKEN)
        hub.start(tap, "a")
        await settle()
        read: list[str] = []
        with pytest.raises(StreamConnectionError):
            await rest_of(hub.join("a", "a:1"), read)
        assert "".join(read) == "bc"
