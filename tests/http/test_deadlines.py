"""`deadlines`: many of them wait on few timers, and each fires at its time, once, or not at all."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from support.virtual_time import run_in_fake_time, timers
from together_async.http.deadlines import Deadline, Deadlines

START = 1_000.0


def timer_count() -> int:
    """How many timers are set in the running loop."""
    return len(timers(asyncio.get_running_loop()))


class RecordedDeadline(Deadline):
    """A deadline that records when it fired."""

    __slots__ = ("fired_at", "then")

    def __init__(self, at: float) -> None:
        super().__init__(at, latest=at)
        self.fired_at: list[float] = []
        self.then: Any = None

    def expire(self) -> None:
        """Records the time, and calls `then`."""
        self.fired_at.append(asyncio.get_running_loop().time())
        if self.then is not None:
            self.then()


def deadlines() -> Deadlines:
    return Deadlines(asyncio.get_running_loop())


def added(where: Deadlines, *ats: float) -> list[RecordedDeadline]:
    made = [RecordedDeadline(at) for at in ats]
    for deadline in made:
        where.add(deadline)
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
        (deadline,) = added(deadlines(), at)
        await asyncio.sleep(after_s + 5)
        assert len(deadline.fired_at) == 1
        assert deadline.fired_at[0] == pytest.approx(at, abs=1e-6)

    run_in_fake_time(main())


@pytest.mark.parametrize("ago_s", [0.0, 1e-9, 0.5, 1.0, 5.0, START, 1e12])
def test_deadline_in_the_past_fires_in_the_next_turn(ago_s: float) -> None:
    """Not within `add`, whose caller has yet to begin the work."""

    async def main() -> None:
        (deadline,) = added(deadlines(), START - ago_s)
        assert deadline.fired_at == []
        for _ in range(2):
            await asyncio.sleep(0)
        assert deadline.fired_at == [START]

    run_in_fake_time(main())


def test_two_in_one_second_fire_each_at_its_own_time() -> None:
    """They share a timer until that second is near, and keep their order."""

    async def main() -> None:
        late, early = added(deadlines(), START + 10.75, START + 10.25)
        assert timer_count() == 1
        await asyncio.sleep(20)
        assert (early.fired_at, late.fired_at) == ([START + 10.25], [START + 10.75])

    run_in_fake_time(main())


def test_added_between_the_seconds_timer_and_its_deadlines() -> None:
    """A deadline that is added when those of its second already have timers of their own gets one too."""

    async def main() -> None:
        where = deadlines()
        (first,) = added(where, START + 10.9)
        await asyncio.sleep(9.5)
        (second,) = added(where, START + 10.8)
        assert timer_count() == 2
        await asyncio.sleep(5)
        assert (second.fired_at, first.fired_at) == ([START + 10.8], [START + 10.9])

    run_in_fake_time(main())


def test_infinity_is_never() -> None:
    """It has no timer, and may be discarded although it was never kept."""

    async def main() -> None:
        where = deadlines()
        (never,) = added(where, math.inf)
        assert timer_count() == 0
        where.discard(never)
        assert never.fired_at == []

    run_in_fake_time(main())


@pytest.mark.parametrize("at", [1e15, 1e300, 1.7e308])
def test_deadline_after_any_date(at: float) -> None:
    """A deadline in any finite number of seconds is like any other."""

    async def main() -> None:
        where = deadlines()
        (deadline,) = added(where, at)
        await asyncio.sleep(0)
        where.discard(deadline)
        where._drop_idle_timer()
        assert timer_count() == 0

    run_in_fake_time(main())


# ----------------------------------------------------------------------------------------------------------------- cost


def test_thousands_have_a_timer_for_each_second() -> None:
    """10,000 deadlines of the same five minutes, begun within two seconds, are three timers at most."""

    async def main() -> None:
        where = deadlines()
        made = added(where, *(START + 300 + n / 5_000 for n in range(10_000)))
        assert timer_count() <= 3
        for deadline in made:
            where.discard(deadline)
        assert timer_count() == 1
        assert not where._waiting
        where._drop_idle_timer()

    run_in_fake_time(main())


def test_a_thousand_fire_each_at_its_own_time() -> None:
    """In the order of their times, each once, and all of them."""

    async def main() -> None:
        rng = random.Random(5)
        made = added(deadlines(), *(START + rng.uniform(0, 30) for _ in range(1_000)))
        await asyncio.sleep(40)
        for deadline in made:
            assert len(deadline.fired_at) == 1
            assert deadline.fired_at[0] == pytest.approx(deadline.at, abs=1e-6)

    run_in_fake_time(main())


# -------------------------------------------------------------------------------------------------------------- discard


@pytest.mark.parametrize("when_s", [0.0, 5.0, 9.0, 9.5, 10.4], ids=lambda s: f"after {s}")
@pytest.mark.parametrize("times", [1, 2])
def test_discarded_before_its_time_never_fires(when_s: float, times: int) -> None:
    """In its second's group, at the very moment the group is dissolved, and with a timer of its own; twice is fine."""

    async def main() -> None:
        where = deadlines()
        first, second = added(where, START + 10.5, START + 10.5)
        await asyncio.sleep(when_s)
        for _ in range(times):
            where.discard(first)
        assert timer_count() >= 1
        await asyncio.sleep(20)
        assert (first.fired_at, second.fired_at) == ([], [START + 10.5])

    run_in_fake_time(main())


def test_discarded_after_it_fired() -> None:
    """Nothing happens: a call discards its deadline in any case, in its `finally`."""

    async def main() -> None:
        where = deadlines()
        near, far = added(where, START + 0.5, START + 10.5)
        await asyncio.sleep(20)
        for deadline in (near, far):
            where.discard(deadline)
            assert len(deadline.fired_at) == 1

    run_in_fake_time(main())


def test_discarding_one_that_was_never_added() -> None:
    """Nothing happens, not even to the others of its second."""

    async def main() -> None:
        where = deadlines()
        (deadline,) = added(where, START + 10.5)
        where.discard(RecordedDeadline(START + 10.6))
        where.discard(RecordedDeadline(START + 99))
        where.discard(RecordedDeadline(START - 1))
        await asyncio.sleep(20)
        assert deadline.fired_at == [START + 10.5]

    run_in_fake_time(main())


def test_the_timer_of_the_last_stays_for_the_next() -> None:
    """Deadlines of one second that follow one another share one timer, which is exact for each."""

    async def main() -> None:
        where = deadlines()
        first, second = added(where, START + 10.5, START + 10.5)
        where.discard(first)
        where.discard(second)
        (handle,) = timers(asyncio.get_running_loop())
        (third,) = added(where, START + 10.75)
        assert timers(asyncio.get_running_loop()) == [handle]
        await asyncio.sleep(20)
        assert (first.fired_at, second.fired_at, third.fired_at) == ([], [], [START + 10.75])

    run_in_fake_time(main())


def test_one_timer_at_most_is_set_for_nothing() -> None:
    """That of the second that was emptied last; another second's, the end of a client, or its time, ends it."""

    async def main() -> None:
        where = deadlines()
        for second in range(10, 20):
            (deadline,) = added(where, START + second)
            where.discard(deadline)
            assert timer_count() == 1
        await asyncio.sleep(30)
        assert timer_count() == 0
        (deadline,) = added(where, START + 60)
        where.discard(deadline)
        late, given_up = added(where, START + 70, START + 80)
        assert timer_count() == 3
        for _ in range(2):
            where.close()
            assert timer_count() == 2  # they wait, so their timers stay
        where.discard(given_up)
        assert timer_count() == 1
        await asyncio.sleep(50)
        assert late.fired_at == [START + 70]
        assert timer_count() == 0

    run_in_fake_time(main())


def test_one_that_fires_discards_the_others() -> None:
    """In the turn in which all of them are due: a deadline that is discarded before its callback ran does not fire."""

    async def main() -> None:
        where = deadlines()
        made = added(where, *[START + 10.5] * 10)

        def drop_the_others() -> None:
            for deadline in made:
                where.discard(deadline)

        for deadline in made:
            deadline.then = drop_the_others
        await asyncio.sleep(20)
        assert sum(len(deadline.fired_at) for deadline in made) == 1

    run_in_fake_time(main())


def test_one_that_fires_adds_others() -> None:
    """Of its own second, of the past, of later; each in its time."""

    async def main() -> None:
        where = deadlines()
        (first,) = added(where, START + 10.5)
        more: list[RecordedDeadline] = []
        first.then = lambda: more.extend(added(where, START + 10.7, START + 1, START + 10.5, START + 12.25))
        await asyncio.sleep(20)
        assert [added_later.fired_at for added_later in more] == [[START + at] for at in (10.7, 10.5, 10.5, 12.25)]

    run_in_fake_time(main())


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

    run_in_fake_time(main())
    assert [type(error) for error in raised] == [KeyError]


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence(seed: int) -> None:
    """Adding, discarding and waiting in any order: each fires in its time unless it was discarded before, and no timer
    is left at the end."""
    rng = random.Random(seed)

    async def main() -> None:
        where = deadlines()
        loop = asyncio.get_running_loop()
        made: list[RecordedDeadline] = []
        dropped: set[RecordedDeadline] = set()
        for _ in range(400):
            match rng.randrange(4):
                case 0 | 1:
                    made += added(where, loop.time() + rng.choice([-1.0, 0.0, 0.3, 1.0, 2.0, rng.uniform(0, 9)]))
                case 2 if made:
                    deadline = rng.choice(made)
                    where.discard(deadline)
                    if not deadline.fired_at:
                        dropped.add(deadline)
                case _:
                    await asyncio.sleep(rng.choice([0, 0.1, 0.7, 1.0]))
        await asyncio.sleep(20)
        assert timer_count() == 0
        assert not where._waiting
        for deadline in made:
            assert len(deadline.fired_at) == (deadline not in dropped)
            assert all(fired == pytest.approx(max(deadline.at, fired), abs=1e-6) for fired in deadline.fired_at)

    run_in_fake_time(main())
