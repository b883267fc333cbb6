"""Places while the process has no file descriptors left."""

from __future__ import annotations

import math

import pytest

from support.admission import ClockedAdmission
from together_async import Limits
from together_async.ratelimit.descriptors import (
    FIRST_PAUSE_S,
    FORGOTTEN_S,
    GIVE_UP_S,
    LONGEST_PAUSE_S,
    RISE_S,
    DescriptorShortage,
)
from together_async.ratelimit.queue import Reservation


def exhaust(driver: ClockedAdmission, reservation: Reservation) -> tuple[bool, Reservation]:
    """Its connection finds no descriptor, and its call asks again."""
    may_wait = driver.admission.record_descriptors_exhausted(reservation, driver.now)
    return may_wait, driver.asked(number=reservation.number)


@pytest.mark.parametrize("concurrency", [None, 100])
def test_calls_without_a_descriptor_wait_for_the_place_of_another(concurrency: int | None) -> None:
    """50 were sent, and 30 found a descriptor: the other 20 wait, in their order, and each end lets one go."""
    driver = ClockedAdmission(Limits(concurrency))
    calls = [driver.asked() for _ in range(50)]
    again = [exhaust(driver, reservation) for reservation in calls[30:]]
    assert all(may_wait for may_wait, _ in again)
    assert (driver.state.in_flight, driver.state.queued, driver.state.descriptor_places) == (30, 20, 30)
    for reservation, (_, waiting) in zip(calls[:20], again, strict=True):
        assert not waiting.granted
        driver.answered(reservation)
        driver.end(reservation)
        assert waiting.granted
    assert driver.state.in_flight == 30


def test_a_new_call_waits_behind_them() -> None:
    """Asking at once does not get around the number."""
    driver = ClockedAdmission(Limits())
    calls = [driver.asked() for _ in range(3)]
    _, again = exhaust(driver, calls[2])
    late = driver.ask(at_once=True)
    driver.end(calls[0])
    assert (again.granted, late.granted) == (True, False)


def test_the_number_rises_with_time_and_is_forgotten() -> None:
    """Nothing has to end: one more goes each half second, and after a minute without a failure all may."""
    driver = ClockedAdmission(Limits())
    calls = [driver.asked() for _ in range(2)]
    exhaust(driver, calls[1])
    waiting = [driver.asked() for _ in range(200)]
    driver.to(RISE_S * 3.5)
    assert driver.state.in_flight == 1 + 3
    assert driver.state.descriptor_places == 1 + 3
    driver.to(FORGOTTEN_S + 1)
    assert all(reservation.granted for reservation in waiting)
    assert driver.state.descriptor_places is None


def test_alone_it_tries_again_after_short_pauses_and_gives_up_after_a_minute() -> None:
    """The pauses double up to two seconds; a response in between begins anew."""
    driver = ClockedAdmission(Limits())
    reservation = driver.asked()
    times = []
    may_wait = True
    while may_wait:
        may_wait, reservation = exhaust(driver, reservation)
        assert not reservation.granted
        before = driver.now
        driver.to(driver.now + LONGEST_PAUSE_S)
        assert reservation.granted_at is not None
        times.append(reservation.granted_at - before)
        driver.now = reservation.granted_at
    assert times[:6] == pytest.approx([FIRST_PAUSE_S * factor for factor in (1, 2, 4, 8, 16, 20)])
    assert GIVE_UP_S < driver.now < GIVE_UP_S + 2 * LONGEST_PAUSE_S
    driver.answered(reservation)
    may_wait, reservation = exhaust(driver, reservation)
    assert may_wait
    driver.to(driver.now + FIRST_PAUSE_S)
    assert reservation.granted


def test_no_timer_while_the_callers_own_number_is_what_is_missing() -> None:
    """Descriptors are back by then, but time alone lets nothing go."""
    driver = ClockedAdmission(Limits(2))
    calls = [driver.asked() for _ in range(2)]
    exhaust(driver, calls[1])
    driver.asked()
    driver.to(10 * RISE_S)
    assert (driver.state.in_flight, driver.state.queued) == (2, 1)
    assert driver.admission.next_at == math.inf


def test_two_shortages_that_lie_apart_are_two() -> None:
    """A failure after a quiet time does not count from the first one."""
    shortage = DescriptorShortage(0)
    assert shortage.record_exhausted(0, 0)
    assert shortage.record_exhausted(0, 2 * GIVE_UP_S)
    assert shortage.paused_until == 2 * GIVE_UP_S + FIRST_PAUSE_S


def test_a_reservation_that_has_ended_changes_nothing() -> None:
    driver = ClockedAdmission(Limits())
    reservation = driver.asked()
    driver.end(reservation)
    assert driver.admission.record_descriptors_exhausted(reservation, driver.now)
    assert driver.state.descriptor_places is None
