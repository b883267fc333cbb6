"""A model whose limits are not known yet."""

from __future__ import annotations

from support.admission import ClockedAdmission, reported
from together_async import Limits
from together_async.ratelimit.lane import FIRST_AT_ONCE, FIRST_GAP_S


def test_unknown_account_is_not_stormed() -> None:
    """Without limits, a thousand calls don't go at once before the first response; after it all may."""
    driver = ClockedAdmission(Limits(), known=False)
    calls = [driver.asked() for _ in range(1_000)]
    assert calls[0].granted
    driver.to(FIRST_GAP_S * 0.9)
    assert not calls[1].granted
    driver.to(FIRST_GAP_S)
    assert calls[1].granted
    driver.to(2 * FIRST_GAP_S)
    assert 3 <= len(driver.granted) <= 60
    driver.answered(driver.granted[0], reported(1_000_000, None))
    driver.to(2 * FIRST_GAP_S + 1)
    assert all(reservation.granted for reservation in calls)


def test_unknown_account_without_headers_is_used_in_full_after_some_answers() -> None:
    """A server that reports nothing shows no limits: its responses let more and more calls go."""
    driver = ClockedAdmission(Limits(), known=False)
    calls = [driver.ask() for _ in range(1_000)]
    for _ in range(20):
        driver.to(driver.now + 0.1)
        for reservation in list(driver.granted):
            driver.answered(reservation)
            driver.end(reservation)
    assert all(reservation.granted_at is not None for reservation in calls)


def test_a_number_that_was_named_waits_for_the_first_answer_at_most() -> None:
    """Of a model that has reported nothing, a few are asked at once; a good answer lets the others go, whatever it
    reports. Where no number was named, doubling goes on."""
    for skips_slow_start, at_first, then in ((True, FIRST_AT_ONCE, 50), (False, 1, 3)):
        driver = ClockedAdmission(Limits(), known=False)
        reservations = [driver.asked(skips_slow_start=skips_slow_start) for _ in range(50)]
        assert sum(reservation.granted for reservation in reservations) == at_first
        driver.answered(reservations[0])
        assert sum(reservation.granted for reservation in reservations) == then


def test_a_number_that_was_named_does_not_wait_for_ever_for_the_first_answer() -> None:
    """A server that takes minutes is still asked, after the gaps of an unknown model."""
    driver = ClockedAdmission(Limits(), known=False)
    reservations = [driver.asked(skips_slow_start=True) for _ in range(50)]
    driver.to(10)
    assert all(reservation.granted for reservation in reservations)


def test_a_number_that_was_named_keeps_to_reported_limits() -> None:
    """The first answer reports two a second: the others don't rush."""
    driver = ClockedAdmission(Limits(), known=False)
    reservations = [driver.asked(skips_slow_start=True) for _ in range(50)]
    driver.to(0.1)
    driver.answered(reservations[0], reported(2, 0))
    before = sum(reservation.granted for reservation in reservations)
    driver.to(5.1)
    assert sum(reservation.granted for reservation in reservations) - before <= 11
