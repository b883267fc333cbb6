"""A model of which nothing is known yet."""

from __future__ import annotations

import math

import pytest

from support.admission import ClockedAdmission, reported
from together_async import Limits
from together_async.ratelimit.start import (
    AT_ONCE,
    BURST_S,
    CAREFUL_GAP_S,
    DIAL_S,
    GROWTH_S,
    IDLE_S,
    LATE_S,
    MOST_GROWTH_S,
    Start,
)


def unknown(limits: Limits | None = None) -> ClockedAdmission:
    return ClockedAdmission(limits or Limits(), known=False)


def granted_at(driver: ClockedAdmission, time: float) -> int:
    driver.to(time)
    return len(driver.granted)


def test_some_go_at_once_and_then_more_and_more() -> None:
    """The number grows e-fold in each `GROWTH_S`: a thousand are on their way after less than 0.2 s."""
    driver = unknown()
    for _ in range(1_000):
        driver.ask()
    assert granted_at(driver, 0.0) == AT_ONCE
    assert granted_at(driver, GROWTH_S) == pytest.approx(AT_ONCE * math.e, abs=2)
    assert granted_at(driver, 2 * GROWTH_S) == pytest.approx(AT_ONCE * math.e**2, rel=0.03)
    assert granted_at(driver, 0.2) == 1_000


def test_only_the_timer_lets_more_go() -> None:
    """Asking takes long when thousands ask, and nothing that came meanwhile has been read."""
    driver = unknown()
    for _ in range(AT_ONCE):
        driver.ask(at_once=True)
    for step in range(100):
        driver.now += 0.01
        assert not driver.ask(at_once=True).granted, step
        assert driver.admission.advance(driver.now, timer=False) == []
    assert driver.admission.next_at <= driver.now
    assert 1 <= len(driver.admission.advance(driver.now)) <= AT_ONCE * math.expm1(LATE_S / GROWTH_S) + 2


def test_late_timer_makes_up_for_little_of_it() -> None:
    """A loop that was busy for a second has read nothing in that second."""
    driver = unknown()
    for _ in range(1_000):
        driver.ask()
    driver.to(0.0)
    driver.now = 1.0
    assert len(driver.advance()) <= 1 + AT_ONCE * math.expm1(LATE_S / GROWTH_S) + 1


@pytest.mark.parametrize("limits", [Limits(), Limits(concurrency=200), Limits(concurrency="auto")])
def test_each_answer_lets_another_go(limits: Limits) -> None:
    """A number of calls at once bounds what is under way, and switches nothing else off."""
    driver = unknown(limits)
    for _ in range(100):
        driver.ask()
    driver.to(0.0)
    driver.answered(driver.granted[0])
    assert len(driver.granted) == AT_ONCE + 2
    driver.answered(driver.granted[1])
    assert len(driver.granted) == AT_ONCE + 4


def test_concurrency_bounds_the_start_too() -> None:
    driver = unknown(Limits(concurrency=3))
    for _ in range(100):
        driver.ask()
    assert granted_at(driver, 5.0) == 3


def test_limits_end_the_start() -> None:
    """The first answer reports two a second: the others don't rush."""
    driver = unknown()
    for _ in range(50):
        driver.ask()
    driver.to(0.001)
    driver.answered(driver.granted[0], reported(2, 0))
    before = len(driver.granted)
    driver.to(5.001)
    assert len(driver.granted) - before <= 11


def test_burst_ends_when_nothing_was_sent_for_a_while() -> None:
    """Answers that never come don't make the next call wait for longer than `GROWTH_S`, nor let hundreds go."""
    driver = unknown()
    for _ in range(200):
        driver.ask()
    driver.to(1.0)
    assert len(driver.granted) == 200
    driver.to(1.0 + 2 * BURST_S)
    for _ in range(200):
        driver.ask()
    assert granted_at(driver, driver.now + GROWTH_S) - 200 <= 3


def test_answers_count_until_the_model_is_idle() -> None:
    """After a minute without a request nothing is known of a model again."""
    driver = unknown()
    for _ in range(100):
        driver.ask()
    driver.to(0.0)
    for reservation in list(driver.granted):
        driver.answered(reservation)
    assert len(driver.granted) == 3 * AT_ONCE
    driver.to(1.0)
    for reservation in driver.granted:
        driver.end(reservation)
    for idle_s, at_once in ((IDLE_S / 2, 2 * AT_ONCE), (2 * IDLE_S, AT_ONCE)):
        before = len(driver.granted)
        driver.to(driver.now + idle_s)
        waiting = [driver.ask() for _ in range(100)]
        driver.advance()
        assert len(driver.granted) - before == at_once
        for reservation in waiting:
            driver.withdraw(reservation)


@pytest.mark.parametrize("limits", [Limits(requests_per_minute=600_000), Limits(tokens_per_minute=1e9)])
def test_generous_rates_switch_nothing_off(limits: Limits) -> None:
    """A caller's number bounds what is sent; it says nothing about the account."""
    driver = unknown(limits)
    for _ in range(500):
        driver.ask(1)
    assert granted_at(driver, 0.0) == AT_ONCE
    assert granted_at(driver, 0.2) == 500


def test_careful_call_waits_for_the_first_answer() -> None:
    """The requests without an answer are at most one more than the answers; an answer may take minutes, so some go
    without."""
    driver = unknown()
    for _ in range(1_000):
        driver.ask(careful_start=True)
    assert granted_at(driver, CAREFUL_GAP_S * 0.9) == 1
    driver.answered(driver.granted[0])
    assert len(driver.granted) == 3
    driver.to(0.9 + 2 * CAREFUL_GAP_S)
    assert 4 <= len(driver.granted) <= 100
    assert granted_at(driver, 60.0) == 1_000


def dialled(start: Start, now: float, seconds: float, *, connected: bool = True) -> None:
    start.record_dialling(now)
    start.record_dialled(now + seconds, seconds, connected=connected)


def full() -> Start:
    """A start whose requests at once have been sent, at 0."""
    start = Start()
    for number in range(AT_ONCE):
        start.record_sent(number, 0.0)
    return start


def test_growth_begins_when_the_first_request_is_on_its_way() -> None:
    """While a connection is opened, no refusal can come."""
    start = full()
    for _ in range(AT_ONCE):
        start.record_dialling(0.0)
    assert start.wait_s(AT_ONCE, 0.1, careful=False) == pytest.approx(DIAL_S - 0.1)
    start.record_dialled(0.2, 0.2, connected=True)
    first = start.wait_s(AT_ONCE, 0.2, careful=False)
    assert 0 < first < 0.2 / 2 / AT_ONCE + 1e-3
    start.tick(0.2 + first)
    assert start.wait_s(AT_ONCE, 0.2 + first, careful=False) == 0


def test_growth_is_slower_from_far_away() -> None:
    """A refusal takes a round trip, of which the opening of a connection with TLS takes two."""
    for seconds, growth_s in ((0.001, GROWTH_S), (0.2, 0.1), (3.0, MOST_GROWTH_S)):
        start = full()
        dialled(start, 0.0, seconds)
        expected = growth_s * math.log1p(1 / AT_ONCE)
        assert start.wait_s(AT_ONCE, seconds, careful=False) == pytest.approx(expected, rel=0.01)


def test_connection_that_does_not_open_holds_nobody_up_for_long() -> None:
    start = full()
    start.record_dialling(0.0)
    start.tick(DIAL_S / 2)
    assert start.wait_s(AT_ONCE, DIAL_S / 2, careful=False) > 0
    start.tick(DIAL_S)
    assert start.wait_s(AT_ONCE, DIAL_S, careful=False) == 0


def test_connection_that_failed_shows_nothing() -> None:
    start = full()
    dialled(start, 0.0, 3.0, connected=False)
    assert start.wait_s(AT_ONCE, 0.0, careful=False) == pytest.approx(GROWTH_S * math.log1p(1 / AT_ONCE), rel=0.01)
