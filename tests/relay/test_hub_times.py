"""`Hub`: how long completions are kept, and run without a reader. In virtual time."""

from __future__ import annotations

import asyncio

import pytest

from support.hubs import ended_completion
from support.sources import Tap, rest_of, settle
from support.virtual_time import run_in_fake_time
from together_async.relay import Hub
from together_async.relay.browser_errors import StoppedError

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_what_is_through_is_kept_for_so_long() -> None:
    """From its end, and again from the leaving of its last reader."""

    async def main() -> None:
        async with Hub(keep=100) as hub:
            await ended_completion(hub, "a")
            await asyncio.sleep(99)
            reader = hub.join("a")
            await rest_of(reader)
            await asyncio.sleep(99)
            assert "a" in hub
            await asyncio.sleep(2)
            assert "a" not in hub
            assert hub.size == 0

    run_in_fake_time(main())


def test_what_is_being_read_is_not_forgotten() -> None:
    """However slowly."""

    async def main() -> None:
        async with Hub(keep=10) as hub:
            await ended_completion(hub, "a", "abc")
            reader = hub.join("a")
            await reader.open()
            await asyncio.sleep(1000)
            assert "a" in hub
            assert "".join(await rest_of(reader)) == "abc"
            await asyncio.sleep(11)
            assert "a" not in hub

    run_in_fake_time(main())


def test_nothing_is_kept_where_nothing_is_to_be() -> None:
    """keep=0: a reader gets everything, and then it is gone."""

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

    run_in_fake_time(main())


def test_one_that_nobody_reads_is_stopped_after_a_while() -> None:
    """Counted from its start and from its last reader's leaving; a late reader gets what came, then the error."""

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
            read: list[str] = []
            with pytest.raises(StoppedError, match="nobody read it for 60 s"):
                await rest_of(hub.join("a"), read)
            assert "".join(read) == "abc"
            await asyncio.sleep(101)
            assert "a" not in hub

    run_in_fake_time(main())


def test_a_token_does_not_put_off_that_it_is_stopped() -> None:
    """Generated tokens do not count as readers."""

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

    run_in_fake_time(main())


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

    run_in_fake_time(main())


def test_abandon_of_nothing_stops_with_the_last_reader() -> None:
    """The completion does not outlive its request."""

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

    run_in_fake_time(main())
