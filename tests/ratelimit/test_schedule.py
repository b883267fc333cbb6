"""Which lanes are looked at, and what that costs."""

from __future__ import annotations

import math
import random

import pytest

from support.admission import ClockedAdmission, reported
from together_async import Limits
from together_async.ratelimit.admission import MOST_LOOKS
from together_async.ratelimit.lane import Lane
from together_async.ratelimit.limits import Priority
from together_async.ratelimit.queue import ENDED, Reservation
from together_async.ratelimit.schedule import Schedule


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of the lanes that are looked at."""
    seen: list[str] = []
    wait_s = Lane.wait_s

    def noted(lane: Lane, reservation: Reservation, now: float) -> float:
        seen.append(lane.model)
        return wait_s(lane, reservation, now)

    monkeypatch.setattr(Lane, "wait_s", noted)
    return seen


def looks_per_event(models: int, limits: Limits, looks: list[str]) -> float:
    """Each model has three calls; the looks for each ask, answer and end until all are done."""
    driver = ClockedAdmission(limits)
    calls = [driver.asked(10, model=f"m{place % models}") for place in range(3 * models)]
    events = len(calls)
    while driver.admission.queued or driver.admission.in_flight:
        granted, driver.granted = driver.granted, []
        for reservation in granted:
            driver.answered(reservation)
            driver.end(reservation)
            events += 2
        if not driver.granted and driver.admission.next_at < math.inf:
            driver.to(driver.admission.next_at)
    assert all(reservation.state == ENDED for reservation in calls)
    return len(looks) / events


@pytest.mark.parametrize(
    "limits",
    [Limits(), Limits(2), Limits(20, requests_per_minute=60), Limits(requests_per_minute=60, tokens_per_minute=600)],
    ids=["learned", "places", "both", "rates"],
)
def test_an_event_costs_no_more_among_a_thousand_models(limits: Limits, looks: list[str]) -> None:
    """Looks per event: about as many as among ten, and about one."""
    few = looks_per_event(10, limits, looks)
    looks.clear()
    many = looks_per_event(1_000, limits, looks)
    assert many <= 2 * few
    assert many < 1.5


def test_no_lane_is_looked_at_while_no_place_is_free(looks: list[str]) -> None:
    """The calls that ask meanwhile wait for the end of another; it looks at one lane."""
    driver = ClockedAdmission(Limits(1))
    held = driver.asked(model="held")
    waiting = [driver.asked(model=f"m{place}") for place in range(500)]
    looks.clear()
    driver.advance()
    assert looks == []
    driver.end(held)
    assert waiting[0].granted
    assert looks == ["m0"]


def test_an_event_in_one_lane_leaves_the_others_alone(looks: list[str]) -> None:
    driver = ClockedAdmission(Limits(requests_per_minute=60))
    for place in range(100):
        driver.asked(model=f"m{place % 50}")
    looks.clear()
    first = driver.granted[7]
    driver.admission.record_response(first, driver.now, reported(10, 3), good=True)
    driver.admission.advance(driver.now, timer=False)
    assert set(looks) == {first.model}
    looks.clear()
    driver.admission.advance(driver.now + 10, timer=False)
    assert looks == [], "their time has come, but that is the timer's business"
    driver.admission.advance(driver.now + 10, timer=True)
    assert len(set(looks)) == 50


def test_a_call_behind_another_costs_no_look(looks: list[str]) -> None:
    """A thousand calls ask in a row: the first of them waits for the rate, and so do all others."""
    driver = ClockedAdmission(Limits(requests_per_minute=60))
    driver.asked()
    driver.asked()
    looks.clear()
    for _ in range(1_000):
        driver.admission.ask("m", 10, driver.now)
        driver.admission.advance(driver.now, timer=False)
    assert looks == []


def test_thousand_models_whose_pause_ends_at_once_go_in_several_turns_of_the_loop(looks: list[str]) -> None:
    """Each `advance` lets some go, and asks to be called again at that very moment until all have gone."""
    driver = ClockedAdmission(Limits())
    calls = [driver.asked(model=f"m{place}") for place in range(1_000)]
    for reservation in calls:
        driver.limited(reservation, 5)
    again = [driver.again(reservation) for reservation in calls]
    driver.now = 5.0
    looks.clear()
    counts = []
    while driver.admission.next_at <= driver.now:
        counts.append(len(driver.advance()))
    assert all(count <= MOST_LOOKS for count in counts)
    assert all(reservation.granted for reservation in again)
    assert len(looks) == 1_000


def test_the_oldest_goes_first_also_beyond_what_one_turn_lets_go() -> None:
    """None overtakes another, though the places come back while some still wait for the next turn."""
    driver = ClockedAdmission(Limits(300))
    held = [driver.asked(model="held") for _ in range(300)]
    waiting = [driver.asked(model=f"m{place}") for place in range(600)]
    for reservation in held:
        driver.admission.release(reservation, driver.now)
    driver.granted.clear()
    assert len(driver.advance()) == MOST_LOOKS
    driver.end(driver.granted[0])
    while driver.admission.next_at <= driver.now:
        driver.advance()
    assert driver.granted == waiting[:301]


# ------------------------------------------------------------------------------------------------------ the heaps alone


def waiting_lane(model: str, *numbers: tuple[Priority, int]) -> Lane:
    lane = Lane(model, Limits(), 0.0, shares_places=True)
    for priority, number in numbers:
        lane.enqueue(reservation_of(lane, priority, number))
    return lane


def reservation_of(lane: Lane, priority: Priority, number: int) -> Reservation:
    driver = ClockedAdmission(Limits())
    reservation = driver.ask(priority=priority, number=number)
    reservation.lane = lane
    return reservation


def test_candidates_come_by_the_number_of_their_oldest_call_of_each_priority() -> None:
    one = waiting_lane("a", ("interactive", 5), ("batch", 1))
    two = waiting_lane("b", ("interactive", 3), ("batch", 2))
    schedule = Schedule()
    schedule.touch(one)
    schedule.touch(two)
    assert (schedule.first("interactive"), schedule.first("batch")) == (two, one)
    schedule.park(two, 7.0)
    assert schedule.first("interactive") is one
    assert schedule.next_due == 7.0
    assert schedule.pop_due(6.9) is None
    assert schedule.pop_due(7.0) is two
    assert (schedule.pop_due(7.0), schedule.next_due) == (None, math.inf)
    assert schedule.first("interactive") is two
    schedule.remove(two)
    schedule.park(one, math.inf)
    assert schedule.first("interactive") is schedule.first("batch") is None
    assert repr(schedule) == "<Schedule of 0 candidates, 0 parked until a time>"


def test_the_heaps_do_not_grow_with_the_number_of_events() -> None:
    """Lanes are touched and parked again and again: what is no longer right is thrown away gradually."""
    rng = random.Random(1)
    lanes = [waiting_lane(str(place), ("interactive", 100 + place), ("batch", place)) for place in range(20)]
    schedule = Schedule()
    for _ in range(10_000):
        lane = rng.choice(lanes)
        if rng.random() < 0.5:
            schedule.touch(lane)
        else:
            schedule.park(lane, rng.random())
    assert all(len(heap) <= 2 * 20 + 65 for heap in (*schedule._heaps.values(), schedule._due))
    schedule.clear()
    assert schedule.next_due == math.inf
