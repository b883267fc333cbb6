"""`Hub`: starting, joining and opening completions, their ids, and the hub's own arguments."""

from __future__ import annotations

import asyncio
import math
import pickle
from typing import Any

import pytest

from support.hubs import ended_completion, last_event_id, send_response
from support.sources import Tap, doing, rest_of, settle, text
from together_async.relay import EventSourceResponse, Hub, status_of
from together_async.relay.browser_errors import IdError, NotKeptError

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_completion_begins_at_once_and_runs_without_a_reader() -> None:
    """A reader then gets what had come as one chunk, and the rest as it comes."""
    async with Hub() as hub:
        tap = Tap("x" * 100)
        key = hub.start(tap)
        await settle()
        assert tap.position == 100
        reader = hub.join(key)
        (chunk,) = await reader.read()
        assert text([chunk]) == "x" * 100
        tap.give("ab")
        assert [text([chunk]) for chunk in await reader.read()] == ["a", "b"]
        tap.end()
        assert await reader.read() == []
        assert (reader.id, reader.position) == (key, 102)
        assert repr(reader) == f"<HubReader of {key!r} at 102>"
        assert repr(hub).startswith("<Hub 0 running, 1 kept, ")


async def test_ids_that_are_made_can_not_be_guessed() -> None:
    """128 random bits each."""
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
    """With colons and in every script, also for coming back."""
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
    """It is refused, and nothing is started."""
    async with Hub() as hub:
        with pytest.raises(ValueError, match=r"id: got .*, expected a text without control characters"):
            hub.start(Tap(), id)
        assert len(hub) == 0


async def test_a_taken_id_is_refused() -> None:
    """Also one that is ended_completion, until it is forgotten; the stream was not opened."""
    async with Hub() as hub:
        await ended_completion(hub, "a")
        tap = Tap()
        with pytest.raises(ValueError, match="there is a completion with the id 'a'"):
            hub.start(tap, "a")
        assert tap.opened == 0


async def test_an_id_that_can_not_be_had_has_a_status() -> None:
    """409 for a taken id, 400 for an id that no header can hold, also through a door; and the error can be pickled."""
    async with Hub() as hub:
        hub.start(Tap(), "a")
        for taken, status in (("a", 409), ("b\n", 400)):
            with pytest.raises(IdError) as caught:
                hub.start(Tap(), taken)
            assert isinstance(caught.value, ValueError)
            again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made here
            for error in (caught.value, again):
                assert (type(error), error.status_code, status_of(error)) == (IdError, status, status)
                assert str(error) == str(caught.value)
        assert await send_response(EventSourceResponse(hub.open(Tap(), "b\n")), []) == 400
        assert list(hub) == ["a"]


async def test_start_in_a_thread_enters_nothing() -> None:
    """An endpoint without `async` gets the error at once; the id and the place stay free."""
    async with Hub(max_streams=1) as hub:
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(hub.start, Tap("abc"), "a")
        assert (len(hub), hub.size) == (0, 0)
        assert hub.start(Tap("abc"), "a") == "a"


async def test_what_is_no_stream_is_refused() -> None:
    """And no place is taken."""
    async with Hub() as hub:
        with pytest.raises(TypeError, match="stream: got a NoneType"):
            hub.start(None, "a")  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(TypeError, match="stream: got a NoneType"):
            hub.open(None, "a")  # type: ignore[arg-type]  # wrong on purpose
        assert len(hub) == 0


async def test_open_starts_once_and_joins_afterwards() -> None:
    """For a page that asks and reads in one request: two requests under one id share a completion."""
    async with Hub() as hub:
        tap, other = Tap("ab"), Tap("never")
        first, second = hub.open(tap, "a"), hub.open(other, "a")
        assert len(hub) == 0
        assert text(await first.read()) == "ab"
        assert text(await second.read()) == "ab"
        assert (tap.opened, other.opened) == (1, 0)


async def test_open_makes_an_id() -> None:
    """It is known once opened, and a request that comes back with it joins; nothing is requested again."""
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
    """By id; an error for an id that is not kept."""
    async with Hub() as hub:
        key = hub.start(Tap("ab"))
        await settle()
        assert hub.so_far(key).text == "ab"
        with pytest.raises(NotKeptError):
            hub.so_far("x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_streams": 0}, "max_streams: got 0, expected at least 1"),
        ({"max_size": 0}, "max_size: got 0, expected at least 1"),
        ({"keep": -1}, "keep: got -1, expected at least 0"),
        ({"abandon": -1}, "abandon: got -1, expected seconds from 0, or None"),
        *(({name: math.nan}, f"{name}: got nan") for name in ("max_streams", "max_size", "keep", "abandon")),
    ],
)
def test_a_value_out_of_range(arguments: dict[str, Any], message: str) -> None:
    """The error names the argument, the value and the range."""
    with pytest.raises(ValueError, match=message):
        Hub(**arguments)
