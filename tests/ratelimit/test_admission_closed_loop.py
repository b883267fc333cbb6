"""Admission against the emulator's account: all of it is used, few 429s come, and no call fails by waiting."""

from __future__ import annotations

from statistics import median
from typing import Any

import attrs
import pytest

from support.admission import ClockedAdmission
from support.closed_loop import ClosedLoop, World
from together_async import Limits
from together_async.ratelimit.headers import read_limits
from together_async.testing import Dynamic, Rate

FIXED = Rate.per_minute(600, 60_000)
DYNAMIC = Rate.per_minute(600, 60_000, dynamic=Dynamic(start=0.1))
UNLIMITED = Rate()
GIVEN = Limits(requests_per_minute=600, tokens_per_minute=60_000)
AUTO = Limits(concurrency="auto")
WHOLE = World(FIXED, answer_s=(0.5, 0.7), whole=True, max_tokens=120)
"""Whole answers of about 100 tokens, as in the benchmark."""
SEEDS = (1, 2, 3)


def runs(world: World, until: float = 10_000.0) -> list[ClosedLoop]:
    return [ClosedLoop(world, seed).run(until) for seed in SEEDS]


def end(world: World, until: float = 10_000.0) -> float:
    """When the last call is done, in the median."""
    return median(loop.done_at for loop in runs(world, until))


@pytest.mark.parametrize(
    "world",
    [
        World(FIXED, answer_s=(0.05, 0.05)),
        World(FIXED),
        World(FIXED, max_tokens=1_000),
        World(FIXED, answer_s=(5, 5)),
        World(FIXED, AUTO, answer_s=(5, 5)),
        World(FIXED, Limits(20)),
        World(FIXED, Limits(100)),
        World(FIXED, Limits(1_000)),
        World(FIXED, GIVEN, answer_s=(5, 5), whole=True),
        World(FIXED, GIVEN, max_tokens=1_000),
        World(FIXED, GIVEN, headers="hidden", max_tokens=1_000),
        World(FIXED, late_s=0.02),
        World(Rate.per_minute(600, 30_000), GIVEN, late_s=0.02),
        World(FIXED, careful=True),
    ],
    ids=World.describe,
)
def test_fixed_account_is_used_in_full(world: World) -> None:
    """600 requests and 60,000 tokens a minute: 97 %, and 2 % of 429s, all of them from the start."""
    loop = ClosedLoop(world).run()
    assert loop.reached >= 0.97
    assert loop.refused <= 0.02
    assert max(loop.refused_calls.values(), default=0) <= 1
    assert all(at < 1 for at in loop.refused_at)
    if world.careful or world.limits.requests_per_minute:
        assert loop.refused < 0.005


@pytest.mark.parametrize(
    "world",
    [
        World(DYNAMIC, answer_s=(0.05, 0.05)),
        World(DYNAMIC),
        WHOLE,
        World(DYNAMIC, AUTO, max_tokens=1_000),
        World(DYNAMIC, Limits(100)),
        World(DYNAMIC, answer_s=(5, 5)),
        World(DYNAMIC, GIVEN),
    ],
    ids=World.describe,
)
def test_dynamic_account_rises_as_fast_as_it_can_after_the_start(world: World) -> None:
    """It starts at a tenth of its ceiling, where its bucket holds one request. The second of the start is refused and
    halves the limit, so an oracle that starts like this reaches 91 %."""
    loops = runs(attrs.evolve(world, rate=DYNAMIC))
    assert median(loop.reached for loop in loops) >= 0.83
    assert max(loop.refused for loop in loops) <= 0.02


@pytest.mark.parametrize("world", [World(DYNAMIC), World(DYNAMIC, answer_s=(5, 5)), WHOLE], ids=World.describe)
def test_careful_start_spares_a_dynamic_account_its_first_429s(world: World) -> None:
    loops = runs(attrs.evolve(world, rate=DYNAMIC, careful=True))
    assert median(loop.reached for loop in loops) >= 0.93
    assert max(loop.refused for loop in loops) <= 0.005


def test_dynamic_account_with_long_whole_answers_is_used() -> None:
    """What it reports is five seconds old when it comes."""
    loops = runs(World(DYNAMIC, answer_s=(5, 5), whole=True, max_tokens=120))
    assert median(loop.reached for loop in loops) >= 0.7


@pytest.mark.parametrize("answer_s", [1.0, 5.0])
@pytest.mark.parametrize(("calls", "most"), [(2, 1.0), (5, 1.0), (20, 1.0), (64, 1.05), (200, 1.12), (1_000, 1.25)])
def test_first_calls_take_hardly_longer_than_without_a_limiter(calls: int, most: float, answer_s: float) -> None:
    """A cold `gather` to a server that reports nothing: the last answer comes a few milliseconds later."""
    world = World(UNLIMITED, answer_s=(answer_s, answer_s), whole=True, calls=calls, network_s=(0.001, 0.001))
    assert ClosedLoop(world).run().done_at <= most * (answer_s + 0.002) + 1e-9


@pytest.mark.parametrize(("trip_s", "refused", "most"), [(0.02, 0.03, 1.12), (0.05, 0.06, 1.2), (0.1, 0.1, 1.3)])
def test_start_from_far_away(trip_s: float, refused: float, most: float) -> None:
    """Each request of the start opens a TLS connection, and a refusal takes another round trip."""
    way = (trip_s / 2, trip_s / 2)
    dial = (2 * trip_s, 2 * trip_s)
    loop = ClosedLoop(attrs.evolve(WHOLE, network_s=way, dial_s=dial)).run()
    assert loop.reached >= 0.97
    assert loop.refused <= refused
    cold = World(UNLIMITED, answer_s=(1, 1), whole=True, calls=64, network_s=way, dial_s=dial)
    assert ClosedLoop(cold).run().done_at <= most * (1 + 3 * trip_s)


@pytest.mark.parametrize(
    ("rate", "calls", "share", "refused"),
    [
        (Rate.per_minute(3_600), 2_000, 0.95, 0.05),
        (Rate.per_minute(60), 200, 0.80, 0.25),
        (Rate.per_minute(600, dynamic=Dynamic(start=0.1)), 2_000, 0.50, 0.06),
        (Rate.per_minute(600, dynamic=Dynamic(start=1.0)), 2_000, 0.60, 0.06),
    ],
    ids=["60/s", "1/s", "dynamic from a tenth", "dynamic from its ceiling"],
)
def test_limit_of_a_silent_account_is_found(rate: Rate, calls: int, share: float, refused: float) -> None:
    """It reports nothing, not even with its 429s."""
    loops = runs(attrs.evolve(WHOLE, rate=rate, calls=calls, headers="hidden"))
    assert median(loop.reached for loop in loops) >= share
    assert median(loop.refused for loop in loops) <= refused


def test_stray_429_before_the_limits_are_known_costs_nothing() -> None:
    """The first request is refused by something that reports nothing; all answers after it report 600 a minute."""
    world = attrs.evolve(WHOLE, calls=150)
    assert end(attrs.evolve(world, refuses=lambda number, now, chance: number == 1)) <= 1.1 * end(world)


def test_service_that_is_not_ready_at_first_is_used_as_soon_as_it_is() -> None:
    """429s for five seconds, then none: 200 instant calls take two seconds more at most."""
    world = World(UNLIMITED, calls=200, headers="hidden", answer_s=(0.01, 0.02), whole=True)
    for ready_s in (2, 5):
        loops = runs(attrs.evolve(world, refuses=lambda number, now, chance, until=ready_s: now < until))
        assert max(loop.done_at for loop in loops) <= ready_s + 3
        assert max(max(loop.refused_calls.values()) for loop in loops) <= 20


def test_service_that_refuses_for_a_while_is_used_as_before_afterwards() -> None:
    """50 calls a second for a minute; from the 20th to the 25th second all are refused."""
    world = World(UNLIMITED, headers="hidden", steady=0.02, calls=3_000, answer_s=(0.5, 0.7), whole=True)
    assert end(attrs.evolve(world, refuses=lambda number, now, chance: 20 < now < 25)) <= 65


@pytest.mark.parametrize(
    ("world", "most"),
    [
        (WHOLE, 1.5),
        (attrs.evolve(WHOLE, rate=Rate.per_minute(3_000)), 1.5),
        (World(UNLIMITED, Limits(4), headers="hidden", answer_s=(0.5, 0.7), whole=True), 2.0),
        (World(UNLIMITED, Limits(1), headers="hidden", answer_s=(0.5, 0.7), whole=True), 2.5),
        (attrs.evolve(WHOLE, rate=Rate(requests_per_second=20), headers="hidden"), 4.0),
        (World(UNLIMITED, headers="hidden", steady=0.2, answer_s=(0.5, 0.7), whole=True), 2.0),
        (World(UNLIMITED, headers="hidden", steady=0.02, answer_s=(0.5, 0.7), whole=True), 2.0),
    ],
    ids=["known, 10/s", "known, 50/s", "four at once", "one at a time", "silent, 20/s", "5/s", "50/s"],
)
def test_service_that_refuses_by_chance_is_not_taken_for_a_slow_one(world: World, most: float) -> None:
    """A gateway refuses a request in ten, whatever is sent, and reports nothing."""
    world = attrs.evolve(world, calls=1_500 if world.steady == 0.02 else 400)
    assert end(attrs.evolve(world, refuses=lambda number, now, chance: chance < 0.1)) <= most * end(world)


@pytest.mark.parametrize(
    "world",
    [
        World(FIXED, Limits(requests_per_minute=36_000, tokens_per_minute=3.6e6), headers="hidden"),
        World(FIXED, unit=60),
        World(FIXED, headers="hidden"),
    ],
    ids=["configured", "reported", "unknown"],
)
def test_rate_that_is_sixty_times_too_high_is_found_out(world: World) -> None:
    """A unit is mistaken (per minute for per second): 429s come at first, then few, and the account is used."""
    loop = ClosedLoop(world)
    answers: list[int] = []
    admit = loop.account.admit

    def admitted(model: str, tokens: int) -> Any:
        verdict = admit(model, tokens)
        answers.append(verdict.status)
        return verdict

    loop.account.admit = admitted  # type: ignore[method-assign]  # to note each verdict
    loop.run()
    later = answers[len(answers) // 2 :]
    assert later.count(429) / len(later) < 0.05
    assert loop.reached > 0.6


def test_dynamic_account_whose_limits_are_told_sixty_times_too_high_is_not_given_up() -> None:
    """Its limits are not reached then, but no call waits for hours either."""
    loop = ClosedLoop(World(DYNAMIC, unit=60, calls=500)).run()
    assert loop.now < 1_500
    assert loop.refused < 0.1


def test_what_others_use_of_the_account_holds_nobody_up_for_longer_than_told() -> None:
    """Nothing is left of 10,000 tokens a second, for a second; a client that keeps to 100 waits 1 s, not 100 s."""
    driver = ClockedAdmission(Limits(tokens_per_minute=6_000))
    reservation = driver.asked(1)
    headers = {"x-tokenlimit-limit": "10000", "x-tokenlimit-remaining": "0", "x-ratelimit-reset": "1"}
    driver.to(0.1)
    driver.answered(reservation, read_limits(headers))
    two = driver.asked(1)
    driver.to(20)
    assert two.granted_at is not None
    assert 0.9 < two.granted_at < 1.5
