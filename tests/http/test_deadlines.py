"""`deadlines`: many of them wait on few timers, and each fires at its time, once, or not at all."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from support.virtual_time import VirtualTimeLoop
from together_async.http.deadlines import Deadline, Deadlines

START = 1_000.0


class FakeTimeLoop(VirtualTimeLoop):
    """A loop in which no time passes but in the waits for timers."""

    def time(self) -> float:
        """Seconds since the loop was made, and a number that is not 0."""
        return START + self._jumping.jumped_s


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine in a loop of its own; no callback may fail, no timer may be left."""
    loop = FakeTimeLoop()
    failed: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failed.append(context))
    try:
        loop.run_until_complete(main)
        assert timers(loop) == 0
        assert not failed
    finally:
        loop.close()


def timers(loop: asyncio.AbstractEventLoop | None = None) -> int:
    """How many timers are set."""
    loop = loop or asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]


class Noted(Deadline):
    """One that notes when it fired."""

    __slots__ = ("fired_at", "then")

    def __init__(self, at: float) -> None:
        super().__init__(at)
        self.fired_at: list[float] = []
        self.then: Any = None

    def expire(self) -> None:
        """It is late."""
        self.fired_at.append(asyncio.get_running_loop().time())
        if self.then is not None:
            self.then()


def deadlines() -> Deadlines:
    return Deadlines(asyncio.get_running_loop())


def added(where: Deadlines, *ats: float) -> list[Noted]:
    made = [Noted(at) for at in ats]
    for one in made:
        where.add(one)
    return made


# ------------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize(
    "after_s", [0.0, 1e-6, 0.25, 0.999, 1.0, 1.000_001, 1.5, 2.0, 2.000_001, 3.75, 60.0, 86_400.5, 1e6 + 0.125]
)
@pytest.mark.parametrize("start_s", [0.0, 0.25, 0.999_5])
def test_deadline_fires_once_and_exactly(start_s: float, after_s: float) -> None:
    """Near or far, whole or fractional, added at the beginning of a second or at its end."""

    async def main() -> None:
        await asyncio.sleep(start_s)
        loop = asyncio.get_running_loop()
        at = loop.time() + after_s
        (one,) = added(deadlines(), at)
        await asyncio.sleep(after_s + 5)
        assert len(one.fired_at) == 1
        assert one.fired_at[0] == pytest.approx(at, abs=1e-6)

    run(main())


@pytest.mark.parametrize("ago_s", [0.0, 1e-9, 0.5, 1.0, 5.0, START, 1e12])
def test_deadline_in_the_past_fires_in_the_next_turn(ago_s: float) -> None:
    """Not within `add`, whose caller has yet to begin what is late."""

    async def main() -> None:
        (one,) = added(deadlines(), START - ago_s)
        assert one.fired_at == []
        for _ in range(2):
            await asyncio.sleep(0)
        assert one.fired_at == [START]

    run(main())


def test_two_in_one_second_fire_each_at_its_own_time() -> None:
    """They share a timer until that second is near, and keep their order."""

    async def main() -> None:
        late, early = added(deadlines(), START + 10.75, START + 10.25)
        assert timers() == 1
        await asyncio.sleep(20)
        assert (early.fired_at, late.fired_at) == ([START + 10.25], [START + 10.75])

    run(main())


def test_added_between_the_seconds_timer_and_its_deadlines() -> None:
    """Who comes when those of the same second have timers of their own gets one too."""

    async def main() -> None:
        where = deadlines()
        (first,) = added(where, START + 10.9)
        await asyncio.sleep(9.5)
        (second,) = added(where, START + 10.8)
        assert timers() == 2
        await asyncio.sleep(5)
        assert (second.fired_at, first.fired_at) == ([START + 10.8], [START + 10.9])

    run(main())


def test_infinity_is_never() -> None:
    """It has no timer, and is forgotten without ever having been known."""

    async def main() -> None:
        where = deadlines()
        (never,) = added(where, math.inf)
        assert timers() == 0
        where.discard(never)
        assert never.fired_at == []

    run(main())


@pytest.mark.parametrize("at", [1e15, 1e300, 1.7e308])
def test_deadline_after_the_end_of_all_things(at: float) -> None:
    """A timeout of any finite number of seconds is a timer as any other."""

    async def main() -> None:
        where = deadlines()
        (one,) = added(where, at)
        await asyncio.sleep(0)
        where.discard(one)
        assert timers() == 0

    run(main())


# ----------------------------------------------------------------------------------------------------------------- cost


def test_thousands_have_a_timer_for_each_second() -> None:
    """10,000 deadlines of the same five minutes, begun within two seconds, are three timers at most."""

    async def main() -> None:
        where = deadlines()
        made = added(where, *(START + 300 + n / 5_000 for n in range(10_000)))
        assert timers() <= 3
        for one in made:
            where.discard(one)
        assert timers() == 0
        assert not where._waiting

    run(main())


def test_a_thousand_fire_each_at_its_own_time() -> None:
    """In the order of their times, none twice, none left."""

    async def main() -> None:
        rng = random.Random(5)
        made = added(deadlines(), *(START + rng.uniform(0, 30) for _ in range(1_000)))
        await asyncio.sleep(40)
        for one in made:
            assert len(one.fired_at) == 1
            assert one.fired_at[0] == pytest.approx(one.at, abs=1e-6)

    run(main())


# -------------------------------------------------------------------------------------------------------------- discard


@pytest.mark.parametrize("when_s", [0.0, 5.0, 9.0, 9.5, 10.4], ids=lambda s: f"after {s}")
@pytest.mark.parametrize("times", [1, 2])
def test_discarded_before_its_time_never_fires(when_s: float, times: int) -> None:
    """In its second's group, at the very moment the group is dissolved, and with a timer of its own; twice is fine."""

    async def main() -> None:
        where = deadlines()
        one, other = added(where, START + 10.5, START + 10.5)
        await asyncio.sleep(when_s)
        for _ in range(times):
            where.discard(one)
        assert timers() >= 1
        await asyncio.sleep(20)
        assert (one.fired_at, other.fired_at) == ([], [START + 10.5])

    run(main())


def test_discarded_after_it_fired() -> None:
    """It is what a call does in its `finally`."""

    async def main() -> None:
        where = deadlines()
        near, far = added(where, START + 0.5, START + 10.5)
        await asyncio.sleep(20)
        for one in (near, far):
            where.discard(one)
            assert len(one.fired_at) == 1

    run(main())


def test_discarding_one_that_was_never_added() -> None:
    """Nothing happens, to the others of its second neither."""

    async def main() -> None:
        where = deadlines()
        (one,) = added(where, START + 10.5)
        where.discard(Noted(START + 10.6))
        where.discard(Noted(START + 99))
        where.discard(Noted(START - 1))
        await asyncio.sleep(20)
        assert one.fired_at == [START + 10.5]

    run(main())


def test_the_last_of_a_second_takes_its_timer_along() -> None:
    """Idle means no timer at all; and the next one of that second gets a new one."""

    async def main() -> None:
        where = deadlines()
        one, other = added(where, START + 10.5, START + 10.5)
        where.discard(one)
        assert timers() == 1
        where.discard(other)
        assert timers() == 0
        (third,) = added(where, START + 10.5)
        await asyncio.sleep(20)
        assert third.fired_at == [START + 10.5]

    run(main())


def test_one_that_fires_discards_the_others() -> None:
    """In the turn in which all of them are due: whoever is discarded before its callback ran does not fire."""

    async def main() -> None:
        where = deadlines()
        made = added(where, *[START + 10.5] * 10)

        def drop_the_others() -> None:
            for one in made:
                where.discard(one)

        for one in made:
            one.then = drop_the_others
        await asyncio.sleep(20)
        assert sum(len(one.fired_at) for one in made) == 1

    run(main())


def test_one_that_fires_adds_others() -> None:
    """Of its own second, of the past, of later; each in its time."""

    async def main() -> None:
        where = deadlines()
        (first,) = added(where, START + 10.5)
        more: list[Noted] = []
        first.then = lambda: more.extend(added(where, START + 10.7, START + 1, START + 10.5, START + 12.25))
        await asyncio.sleep(20)
        assert [one.fired_at for one in more] == [[START + 10.7], [START + 10.5], [START + 10.5], [START + 12.25]]

    run(main())


def test_one_that_raises_does_not_stop_the_others() -> None:
    """What it raised goes to the event loop, as from any callback."""
    raised: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
        first, second = added(deadlines(), START + 10.25, START + 10.5)

        def fail() -> None:
            raise KeyError("mine")

        first.then = fail
        await asyncio.sleep(20)
        assert second.fired_at == [START + 10.5]

    run(main())
    assert [type(error) for error in raised] == [KeyError]


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence(seed: int) -> None:
    """Adding, discarding and waiting in any order: each fires in its time unless it was discarded before, and no timer
    is left when none waits."""
    rng = random.Random(seed)

    async def main() -> None:
        where = deadlines()
        loop = asyncio.get_running_loop()
        made: list[Noted] = []
        dropped: set[Noted] = set()
        for _ in range(400):
            match rng.randrange(4):
                case 0 | 1:
                    made += added(where, loop.time() + rng.choice([-1.0, 0.0, 0.3, 1.0, 2.0, rng.uniform(0, 9)]))
                case 2 if made:
                    one = rng.choice(made)
                    where.discard(one)
                    if not one.fired_at:
                        dropped.add(one)
                case _:
                    await asyncio.sleep(rng.choice([0, 0.1, 0.7, 1.0]))
        await asyncio.sleep(20)
        assert timers() == 0
        assert not where._waiting
        for one in made:
            assert len(one.fired_at) == (one not in dropped)
            assert all(fired == pytest.approx(max(one.at, fired), abs=1e-6) for fired in one.fired_at)

    run(main())
