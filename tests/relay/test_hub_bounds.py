"""`Hub`: completions are bounded in number and size."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.any_chunks import chunk
from support.hubs import ended_completion
from support.sources import Tap, doing, rest_of, settle
from support.virtual_time import run_in_fake_time
from together_async import QueueFullError, StreamConnectionError, TogetherError
from together_async.models import ChatCompletion
from together_async.relay import Hub
from together_async.relay.browser_errors import TooLargeError
from together_async.relay.hub import HubReader

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_when_all_are_running_there_is_no_room() -> None:
    """The error says so, running completions go on, and a place that becomes free can be taken."""
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
    """Running completions stay, and those with a reader."""
    async with Hub(max_streams=4) as hub:
        hub.start(Tap(), "running")
        for key in ("read", "old", "new"):
            await ended_completion(hub, key)
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


async def test_one_that_is_too_large_is_stopped() -> None:
    """Its reader gets all that came, then the error; the upstream is closed."""
    async with Hub(max_size=100_000) as hub:
        tap = Tap()
        hub.start(tap, "a")
        reader = hub.join("a")
        read: list[str] = []

        async def feed() -> None:
            for _ in range(1000):
                tap.give("x" * 50)
                await asyncio.sleep(0)

        async with doing(feed()):
            with pytest.raises(TooLargeError, match="expected at most 100000; this one was stopped"):
                await rest_of(reader, read)
        assert tap.left
        assert len("".join(read)) > 50


async def test_a_few_large_chunks_count_for_what_they_are() -> None:
    """Chunks that are kept as they came are counted with their texts: sixteen of them may hold megabytes."""
    async with Hub(max_size=1_000_000) as hub:
        tap = Tap()
        tap.give([chunk("x" * 500_000) for _ in range(4)])
        hub.start(tap, "a")
        with pytest.raises(TooLargeError):
            await rest_of(hub.join("a"))


async def test_for_size_too_what_is_through_makes_room() -> None:
    """Before a running one is stopped: the oldest first, and none that has a reader."""
    async with Hub(max_size=100_000) as hub:
        for key in ("read", "old", "new"):
            await ended_completion(hub, key, "word" * 50)
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
    """Nothing keeps it, not even a timer: it was stopped to free its memory."""
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
    """Does with a hub all that can be done with one."""

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
    """After any mix of starts, chunks, ends, joins, leaves, stops and errors the sum is right, and ends at 0."""

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

    run_in_fake_time(main())
