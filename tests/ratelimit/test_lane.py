"""One model's lane: turns, and the limits that responses report."""

from __future__ import annotations

import itertools

import pytest

from support.admission import MODEL, ROOM_S, ClockedAdmission, reported
from together_async import Limits
from together_async.ratelimit.estimator import Size


def test_many_that_come_at_once_are_spread() -> None:
    """No burst: a few go at once, the others one by one, each after its share of the minute."""
    driver = ClockedAdmission(Limits(requests_per_minute=600))
    for _ in range(100):
        driver.ask()
    driver.to(20)
    times = [reservation.granted_at or 0.0 for reservation in driver.granted]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert sum(gap == 0 for gap in gaps) <= 10 * ROOM_S
    assert gaps[6:] == pytest.approx([0.1] * 93, rel=0.05)


def test_cancelled_waiter_gives_its_place_and_what_it_booked_to_the_next() -> None:
    """A large one is first in line and leaves: the small one behind it goes at once."""
    driver = ClockedAdmission(Limits(tokens_per_minute=600))
    driver.asked(100)
    large, small = driver.asked(6_000), driver.asked(1)
    driver.to(5)
    driver.withdraw(large)
    driver.to(12)
    assert not large.granted
    assert small.granted_at == pytest.approx(10, abs=1.1 * ROOM_S)
    assert driver.state.queued == 0


def test_withdrawn_after_its_turn_counts_as_never_sent() -> None:
    """Request, tokens and place are given back, and it isn't counted among those that were sent."""
    driver = ClockedAdmission(Limits(requests_per_minute=60, tokens_per_minute=60_000, concurrency=1))
    reservation, other = driver.asked(40), driver.asked(40)
    driver.withdraw(reservation)
    assert other.granted_at == 0
    assert driver.state.sent == 1
    driver.withdraw(reservation)
    driver.end(reservation)
    assert driver.state.in_flight == 1


def test_end_counts_once() -> None:
    """A second settle or release, or one of a call that waits, changes nothing."""
    driver = ClockedAdmission(Limits(tokens_per_minute=6_000_000, concurrency=5))
    reservation = driver.asked(500)
    level = driver.admission.lane(MODEL, 0).tokens.level
    driver.admission.settle(reservation, 400, 0)
    for _ in range(2):
        driver.end(reservation, 0)
    assert driver.admission.lane(MODEL, 0).tokens.level == level + 100
    assert driver.state.in_flight == 0
    driver.asked(600_000)
    waiting = driver.asked(500)
    driver.end(waiting, 0)
    assert driver.state.queued == 1


# ------------------------------------------------------------------------------------------------------------ learning


def test_remaining_lowers_what_may_go_now() -> None:
    """Others use the account too: what the service reports as left counts, not what was sent from here."""
    driver = ClockedAdmission(Limits(requests_per_minute=600))
    driver.to(10)
    reservation = driver.asked()
    driver.now += 0.01
    driver.answered(reservation, reported(10, 0))
    next_one = driver.asked()
    assert next_one.granted_at is None
    driver.to(20)
    assert next_one.granted_at == pytest.approx(10.15, abs=0.1)


def test_remaining_never_raises_what_may_go_now() -> None:
    """A service's bucket may hold a minute's worth; this one spreads it."""
    driver = ClockedAdmission(Limits(requests_per_minute=600))
    for _ in range(50):
        driver.ask()
    driver.advance()
    for reservation in list(driver.granted):
        driver.answered(reservation, reported(10, 600))
    assert len(driver.granted) <= 1 + 10 * ROOM_S


def test_reported_limits_fall_and_rise_again() -> None:
    """A reported limit holds from then on, where it is lower than the configured one."""
    driver = ClockedAdmission(Limits(requests_per_minute=6_000))
    for limit, kept in ((10, 10), (2.5, 2.5), (50, 50), (500, 100)):
        reservation = driver.asked()
        driver.now += 1
        driver.answered(reservation, reported(limit))
        driver.end(reservation)
        assert driver.rate() == pytest.approx(kept, rel=0.05)
        assert driver.state.models[MODEL].server_requests_per_minute == limit * 60
        driver.now += 10
        driver.advance()


def test_headers_of_an_older_request_do_not_undo_those_of_a_newer_one() -> None:
    """Responses overtake each other; a limit that fell after the older one was counted stays low."""
    driver = ClockedAdmission(Limits(requests_per_minute=6_000))
    older = driver.asked()
    driver.to(1)
    newer = driver.asked()
    driver.to(1.1)
    driver.answered(newer, reported(5, 0))
    driver.to(1.2)
    driver.answered(older, reported(100, 99))
    assert driver.rate() == pytest.approx(5)


def test_limits_of_one_model_say_nothing_about_another() -> None:
    driver = ClockedAdmission(Limits(requests_per_minute=6_000))
    driver.answered(driver.asked(model="a"), reported(1, 0, 10, 0))
    assert driver.rate("a") == pytest.approx(1, rel=0.05)
    assert driver.rate("b") == pytest.approx(100)


def test_estimates_that_come_back_are_no_capacity_where_the_service_holds_a_request() -> None:
    """It never charged the excess of the estimate, and was full meanwhile: the next call waits its own time."""
    driver = ClockedAdmission(Limits(tokens_per_minute=6_000))
    _, first, second, third = (driver.ask(150) for _ in range(4))
    driver.to(3.2)
    assert second.granted_at is not None
    assert third.granted_at is None
    driver.end(first, 50)
    driver.to(10)
    assert third.granted_at is not None
    assert third.granted_at - second.granted_at > 1.5


def test_estimates_that_come_back_are_capacity_elsewhere() -> None:
    """A second's worth is many requests: unused tokens are there for waiting calls."""
    driver = ClockedAdmission(Limits(tokens_per_minute=600_000))
    calls = [driver.ask(2_000) for _ in range(4)]
    driver.to(0.01)
    assert [reservation.granted for reservation in calls[2:]] == [False] * 2
    for reservation in list(driver.granted):
        driver.end(reservation, 20)
    assert calls[-1].granted


def test_estimate_is_made_when_the_turn_comes() -> None:
    """A thousand calls ask before anything is learned; waiting ones profit from the cost of the first."""
    driver = ClockedAdmission(Limits(tokens_per_minute=600_000))
    calls = [driver.ask(Size(20, 1_000, 1)) for _ in range(100)]
    driver.advance()
    first = driver.granted[0]
    assert first.tokens == 1_020
    driver.to(0.5)
    assert len(driver.granted) < 10
    driver.admission.lane(MODEL, 0).estimator.learn(Size(20, 1_000, 1), 20, 80)
    driver.end(first, 100)
    driver.to(2)
    assert all(reservation.granted_at is not None for reservation in calls)
    assert calls[-1].tokens < 300
