"""`deadlines`: a late timer takes one second look, which is bounded, and a loop that is always late still times out."""

import asyncio
import contextlib
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clients import read_all, served
from support.late_loops import LateFakeTimeLoop, SlowVirtualTimeLoop
from support.scripts import repeats
from support.servers import Call, Script, delta, hangs, sse, starts_and_hangs
from support.virtual_time import run, run_in_fake_time, timers
from together_async import APITimeoutError, StreamTimeoutError, Timeouts
from together_async.http.deadlines import MAX_GRACE_S, Deadline, Deadlines, PatientTimer, grace_s

START_S = 1_000.0
TURNS = 6
"""At most so many turns of the loop belong to a timer: to fire it, and its second look."""
seconds = st.floats(0, 1e6)


@given(st.floats(-1, 1e9), st.floats(-1e9, 1e9))
def test_the_second_look_is_bounded(late_s: float, left_s: float) -> None:
    """As long as the timer was late, at most a second, and not beyond a limit that is exact."""
    assert grace_s(late_s, left_s) == max(0, min(late_s, left_s, MAX_GRACE_S))
    assert grace_s(late_s) == min(max(late_s, 0), MAX_GRACE_S)


def expired_at(at: float, *, turn_s: float = 0.0, latest: float = math.inf, suspended_s: float = 0.0) -> list[float]:
    """When a timer calls back, in a loop whose turns take so long, and that is suspended just before."""
    loop = LateFakeTimeLoop()
    loop.turn_s = turn_s
    found: list[float] = []

    async def main() -> None:
        PatientTimer(loop, at, lambda: found.append(loop.time()), latest=latest)
        if suspended_s:
            loop.call_at(at - 0.1, loop.suspend, suspended_s)
        await asyncio.sleep(at - START_S + suspended_s + 20)

    run_in_fake_time(main(), loop)
    return found


@given(st.floats(0, 20), st.floats(0, 0.4))
def test_a_loop_that_is_always_late_still_times_out(after_s: float, turn_s: float) -> None:
    """Never early, once, after one second look, and a few turns."""
    at = START_S + after_s
    (expired,) = expired_at(at, turn_s=turn_s)
    assert at - 1e-6 <= expired <= at + MAX_GRACE_S + TURNS * turn_s + 1e-6


@given(st.floats(0.2, 1e6))
def test_a_suspended_time_however_long_is_followed_by_one_look(suspended_s: float) -> None:
    """After hours the end comes within a second."""
    at = START_S + 5
    (expired,) = expired_at(at, suspended_s=suspended_s)
    resumed = at - 0.1 + suspended_s
    assert expired == pytest.approx(resumed + min(resumed - at, MAX_GRACE_S), abs=1e-6)


@pytest.mark.parametrize("after_s", [0.0, 0.5, 60.0])
def test_a_timer_that_is_on_time_is_exact(after_s: float) -> None:
    """Its second look is a few turns of the loop."""
    assert expired_at(START_S + after_s) == [pytest.approx(START_S + after_s, abs=1e-6)]


@given(st.floats(0.2, 10), st.floats(0, 10))
def test_an_exact_limit_bounds_the_second_look(suspended_s: float, more_s: float) -> None:
    """`Timeouts.total` is not waited beyond."""
    at = START_S + 5
    resumed = at - 0.1 + suspended_s
    (expired,) = expired_at(at, suspended_s=suspended_s, latest=at + more_s)
    assert expired == pytest.approx(max(resumed, min(resumed + grace_s(resumed - at), at + more_s)), abs=1e-6)


@pytest.mark.parametrize("turns", range(8))
def test_cancelled_at_any_time(turns: int) -> None:
    """Before it fires, in its grace, in each of the turns that follow, and afterwards; twice is fine."""
    loop = LateFakeTimeLoop()
    found: list[None] = []

    async def main() -> None:
        timer = PatientTimer(loop, START_S - 0.5, lambda: found.append(None))
        if turns == 1:
            await asyncio.sleep(0.1)  # in its grace
        elif turns > 1:
            await asyncio.sleep(0.5)
            for _ in range(turns - 2):
                await asyncio.sleep(0)
        before = len(found)
        for _ in range(2):
            timer.cancel()
        assert not timers()
        await asyncio.sleep(5)
        assert len(found) == before

    run_in_fake_time(main(), loop)
    assert len(found) == (turns > 4)


class NotedDeadline(Deadline):
    """A deadline that notes when it expired."""

    __slots__ = ("expired_at",)

    def __init__(self, at: float, latest: float = math.inf) -> None:
        super().__init__(at, latest)
        self.expired_at: list[float] = []

    def expire(self) -> None:
        self.expired_at.append(asyncio.get_running_loop().time())


@pytest.mark.parametrize("exact", [False, True])
def test_deadlines_of_a_loop_that_was_suspended(exact: bool) -> None:
    """In a group when the loop stops, in the past when it goes on: one look for each, none for an exact one."""
    loop = LateFakeTimeLoop()

    async def main() -> None:
        where = Deadlines(loop)
        made = [
            NotedDeadline(at, at if exact else math.inf) for at in (START_S + 5.25, START_S + 9.5, START_S + 5_000.5)
        ]
        for deadline in made:
            where.add(deadline)
        loop.call_at(START_S + 3, loop.suspend, 1_000)
        await asyncio.sleep(6_000)
        resumed = START_S + 1_003
        first, second, later = (deadline.expired_at for deadline in made)
        assert first == second == [pytest.approx(resumed + (0 if exact else MAX_GRACE_S), abs=1e-6)]
        assert later == [pytest.approx(START_S + 5_000.5, abs=1e-6)]

    run_in_fake_time(main(), loop)


# --------------------------------------------------------------------------------------------------------- real silence


async def floods(call: Call) -> None:
    """Sends pings as fast as they go."""
    await call.head()
    while not call.left.is_set():
        await call.chunk(sse({"type": "ping"}) * 1_000)


ping = sse(delta("", role="assistant"))


@contextlib.contextmanager
def ends_late(seconds: float) -> Iterator[None]:
    """A block that takes so many virtual seconds, and as many more as a second look and what was read before takes."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SlowVirtualTimeLoop)
    began, jumped = loop.time(), loop._jumping.jumped_s
    yield
    assert loop.time() - began >= seconds
    assert loop._jumping.jumped_s - jumped <= seconds + MAX_GRACE_S + 100 * loop.turn_s


@pytest.mark.parametrize(
    "script",
    [hangs, repeats(b": ping\n\n", every=0.1), repeats(ping, every=0.1), floods, repeats(ping, every=0.01)],
    ids=["nothing", "comments", "role only", "a flood", "dense"],
)
def test_a_silent_server_in_a_loop_that_is_always_late(script: Script) -> None:
    """Every turn takes 50 ms, so every timer is late, and every second look finds pings: it ends in time."""

    async def main() -> None:
        async with served(script, timeouts=Timeouts(first_token=10, idle=10)) as (_, client):
            with ends_late(10), pytest.raises(APITimeoutError) as caught:
                await read_all(client)
            assert caught.value.phase == "first_token"

    run(main(), SlowVirtualTimeLoop())


def test_a_silent_stream_in_a_loop_that_is_always_late() -> None:
    """The same after the first token."""

    async def main() -> None:
        async with served(starts_and_hangs, timeouts=Timeouts(first_token=100, idle=10)) as (_, client):
            with ends_late(10), pytest.raises(StreamTimeoutError) as caught:
                await read_all(client)
            assert caught.value.phase == "idle"

    run(main(), SlowVirtualTimeLoop())
