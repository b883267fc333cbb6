"""Services that count requests in windows, and report what remains of one and when it ends."""

from __future__ import annotations

import pytest

from support.admission import EPOCH, MODEL, ClockedAdmission
from together_async import Limits, RateLimitError
from together_async.ratelimit.headers import AccountLimits, ReportedLimit
from together_async.ratelimit.lane import MOST_PAUSE_S


def window(remaining: float, reset_s: float, limit: float | None = None, window_s: float = 60.0) -> AccountLimits:
    return AccountLimits(ReportedLimit(limit, remaining, reset_s, window_s if limit else 1.0))


@pytest.mark.parametrize("limit", [None, 1.0])
def test_no_more_goes_than_remains_until_the_window_ends(limit: float | None) -> None:
    """Five remain for 30 s: five go at once and the sixth when it ends, whether the window's length is known or not."""
    driver = ClockedAdmission(Limits(), known=False)
    driver.to(100)
    driver.answered(driver.asked(), window(5, 30, limit))
    for _ in range(20):
        driver.ask()
    driver.to(101)
    assert len(driver.granted) == 6
    driver.to(129)
    assert len(driver.granted) == 6
    driver.to(130)
    assert len(driver.granted) > 6


def test_window_that_is_used_up_pauses_its_model_and_shows_it() -> None:
    driver = ClockedAdmission(Limits(), known=False)
    waiting = driver.asked()
    driver.answered(waiting, window(0, 30))
    later = driver.asked(max_pause_s=60)
    assert driver.state.models[MODEL].paused_for_s == pytest.approx(30)
    assert driver.state.paused_until is not None
    driver.to(29)
    assert not later.granted
    driver.to(30)
    assert later.granted


@pytest.mark.parametrize("limits", [window(0, 40_000), window(0, 40_000, 10, 1.0), window(0, 40_000, 1.0)])
def test_reset_far_away_is_a_pause_of_bounded_length_that_impatient_calls_do_not_wait_for(
    limits: AccountLimits,
) -> None:
    """Also where the limit is one per second, which does not explain such a reset."""
    driver = ClockedAdmission(Limits(), known=False)
    first, patient, impatient = (driver.asked(max_pause_s=each) for each in (60, 900, 60))
    driver.end(patient)
    held = [driver.ask(max_pause_s=900)]
    driver.answered(first, limits)
    assert driver.state.models[MODEL].paused_for_s == pytest.approx(MOST_PAUSE_S)
    with pytest.raises(RateLimitError, match="40000"):
        driver.ask(max_pause_s=60)
    del impatient
    driver.to(MOST_PAUSE_S + 1)
    assert all(reservation.granted for reservation in held)
    assert driver.admission.state(driver.now, EPOCH).paused_until is None


def test_reset_that_the_limit_explains_is_no_pause() -> None:
    """Two a second, of which none remains: the next goes after half a second, and nothing else is waited for."""
    driver = ClockedAdmission(Limits(), known=False)
    driver.answered(driver.asked(), AccountLimits(ReportedLimit(2.0, 0.0, 0.5)))
    after = driver.asked()
    assert driver.state.paused_until is None
    driver.to(0.7)
    assert after.granted


def test_limit_of_a_minute_is_used_in_a_burst() -> None:
    """A service that counts by the minute holds the requests of a minute: a `gather` of 50 is not spread over one."""
    driver = ClockedAdmission(Limits(), known=False)
    driver.answered(driver.asked(), window(59, 0.0, 1.0))
    for _ in range(50):
        driver.ask()
    driver.to(0.1)
    assert len(driver.granted) == 51


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_rest_of_a_window_alone_does_not_end_the_start(kind: str) -> None:
    """It shows no rate: what goes beyond it is still sent carefully."""
    driver = ClockedAdmission(Limits(), known=False)
    driver.answered(driver.asked(), AccountLimits(**{kind: ReportedLimit(None, 1_000_000.0, 30.0)}))
    assert not driver.admission.lane(MODEL, driver.now).start.limits_known


def test_later_answer_takes_a_pause_back() -> None:
    """One of three answers says that nothing remains; the answers to requests sent after it say that much does."""
    driver = ClockedAdmission(Limits(), known=False)
    reservations = []
    for _ in range(3):
        reservations.append(driver.asked())
        driver.to(driver.now + 0.1)
    driver.answered(reservations[0], window(0, 59))
    assert driver.state.paused_until is not None
    driver.answered(reservations[2], window(99, 59))
    assert driver.state.paused_until is None
    assert driver.asked().granted


def test_window_leaves_no_debt_behind() -> None:
    """A rate that was found falls; what a window's end was far away for does not hold anybody up afterwards."""
    driver = ClockedAdmission(Limits(), known=False)
    first = [driver.asked() for _ in range(20)]
    for reservation in first[2:]:
        driver.limited(reservation, 0.1)
    driver.to(5.0)
    for step in range(5):
        asked = driver.asked()
        driver.to(driver.now + 0.1)
        if asked.granted:
            driver.answered(asked, window(0, 30))
            driver.limited(driver.asked(), 30.0) if step % 2 else driver.end(asked)
        driver.to(driver.now + 31.0)
    assert driver.admission.lane(MODEL, driver.now).requests.level > -2
