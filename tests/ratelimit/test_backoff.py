"""A service that accepts nothing, and does not say for how long."""

from __future__ import annotations

import itertools

import pytest

from support.admission import ClockedAdmission, reported
from together_async import Limits
from together_async.ratelimit.backoff import FIRST_S, LEAST_S, MOST_LATENCY_S, MOST_S, Backoff


def test_pauses_double_until_something_is_accepted() -> None:
    backoff = Backoff()
    backoff.record_refusal(0.0, 0.01)
    pauses = [backoff.next_pause_s(1.0, nothing_accepted=True, again=False) for _ in range(6)]
    assert pauses == [FIRST_S, 0.5, 1.0, MOST_S, MOST_S, MOST_S]
    backoff.end()
    assert backoff.next_pause_s(1.0, nothing_accepted=True, again=False) == FIRST_S
    assert backoff.next_pause_s(1.0, nothing_accepted=True, again=True) == FIRST_S, (
        "those that came together count once"
    )
    assert "1 in a row" in repr(backoff)


def test_jitter_takes_half_of_a_pause_at_most() -> None:
    assert Backoff().next_pause_s(0.0, nothing_accepted=True, again=False) == FIRST_S / 2


def test_refusal_that_takes_long_is_waited_for() -> None:
    """Others that were sent with it take as long; but not longer than any refusal does."""
    backoff = Backoff()
    backoff.record_refusal(0.0, 1.0)
    assert backoff.next_pause_s(0.0, nothing_accepted=True, again=False) == 1.5
    assert backoff.stray_s() == 3
    backoff.record_refusal(0.0, 500.0)
    assert backoff.latency_s == MOST_LATENCY_S
    backoff.record_refusal(0.0, 0.0)
    assert backoff.stray_s() == LEAST_S


def test_one_request_tries_and_the_others_wait_for_it() -> None:
    """All of three are refused. One goes after the pause; when it is answered, the others do."""
    driver = ClockedAdmission(Limits(), known=False)
    for reservation in [driver.asked() for _ in range(3)]:
        driver.limited(reservation, None)
    for _ in range(3):
        driver.ask()
    driver.to(FIRST_S)
    assert len(driver.granted) == 4
    driver.answered(driver.granted[-1])
    assert len(driver.granted) == 6


def test_request_that_is_not_refused_in_time_was_accepted() -> None:
    """An answer may take minutes, a refusal does not."""
    driver = ClockedAdmission(Limits(), known=False)
    driver.limited(driver.asked(), None)
    for _ in range(3):
        driver.ask()
    driver.to(FIRST_S)
    assert len(driver.granted) == 2
    driver.to(FIRST_S + LEAST_S + 0.001)
    assert len(driver.granted) == 4


def test_each_refused_try_is_followed_by_a_longer_pause() -> None:
    """The calls that wait are never sent all at once, and none fails."""
    driver = ClockedAdmission(Limits(), known=False)
    for reservation in [driver.asked() for _ in range(10)]:
        driver.limited(reservation, None)
    for _ in range(10):
        driver.ask()
    tries = []
    while driver.now < 10:
        before = len(driver.granted)
        while len(driver.granted) == before:
            driver.to(driver.now + 0.01)
        assert len(driver.granted) == before + 1
        tries.append(driver.now)
        driver.limited(driver.granted[-1], None)
        driver.ask()
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps[:5] == pytest.approx([0.5, 1, 2, 2, 2], abs=0.02)
    refused = driver.admission.lane("m", driver.now).refusing_since
    assert refused == 0


def test_report_ends_it() -> None:
    driver = ClockedAdmission(Limits(), known=False)
    first, second = driver.asked(), driver.asked()
    driver.limited(first, None)
    driver.limited(second, 0.1, limits=reported(10, 0))
    for _ in range(3):
        driver.ask()
    driver.to(FIRST_S + 0.5)
    assert len(driver.granted) == 5
