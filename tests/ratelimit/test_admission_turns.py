"""Whose turn it is: priorities among all models of an account, and within each."""

from __future__ import annotations

import random

import pytest

from support.admission import ClockedAdmission
from together_async import Limits
from together_async.ratelimit.queue import BATCH_TURN_EVERY


def served(driver: ClockedAdmission) -> str:
    """Ends the oldest call under way again and again; the priorities in the order in which they got their turns."""
    skipped = len(driver.granted)
    ended = 0
    while driver.admission.queued:
        driver.end(driver.granted[ended])
        ended += 1
    return "".join(reservation.priority[0] for reservation in driver.granted[skipped:])


def test_a_persons_call_gets_the_next_free_place_whatever_its_model() -> None:
    """60 batch calls to another model wait for the two places."""
    driver = ClockedAdmission(Limits(concurrency=2))
    batch = [driver.asked(model="a", priority="batch") for _ in range(60)]
    person = driver.asked(model="b")
    driver.end(batch[0])
    assert person.granted
    assert not batch[2].granted


@pytest.mark.parametrize(("interactive", "batch"), [("a", "a"), ("a", "b"), ("ab", "ab"), ("abc", "d"), ("a", "bcd")])
def test_batch_calls_of_whatever_model_have_one_place_in_five(interactive: str, batch: str) -> None:
    """As long as calls of both priorities wait; within a priority the oldest goes first, of all models."""
    driver = ClockedAdmission(Limits(concurrency=1))
    driver.asked(priority="batch", model="first")
    for place in range(20):
        driver.asked(model=batch[place % len(batch)], priority="batch")
        driver.asked(model=interactive[place % len(interactive)])
    assert served(driver) == "iiiib" * 5 + "b" * 15
    for priority in ("interactive", "batch"):
        numbers = [reservation.number for reservation in driver.granted if reservation.priority == priority]
        assert numbers == sorted(numbers)


def test_a_model_that_waits_for_its_rate_gives_its_batch_one_turn_in_five() -> None:
    """Though other models' batches take all the batch's places meanwhile."""
    driver = ClockedAdmission(Limits.per_model({"slow": Limits(requests_per_minute=60)}, concurrency=2))
    for _ in range(500):
        driver.ask(model="fast", priority="batch")
    for _ in range(10):
        driver.ask(model="slow", priority="batch")
        driver.ask(model="slow")
    driver.advance()
    for step in range(1, 200):
        for reservation in [reservation for reservation in driver.granted if reservation.granted]:
            driver.end(reservation)
        driver.to(step / 10)
    slow = "".join(reservation.priority[0] for reservation in driver.granted if reservation.model == "slow")
    assert slow[:12] == "iiiibiiiibii"


def test_a_booked_batch_call_goes_in_the_name_of_the_interactive_ones_behind_it() -> None:
    """Its model's turn is the batch's, and older batches of other models wait: a person's call behind it does not
    have to wait for those."""
    limits = Limits.per_model({"slow": Limits(requests_per_minute=60)}, concurrency=1)
    driver = ClockedAdmission(limits)
    held = driver.asked(model="slow")
    others = [driver.asked(model="fast", priority="batch") for _ in range(60)]
    batch = driver.asked(model="slow", priority="batch")
    lane = driver.admission.lane("slow", driver.now)
    lane.queue.interactive_turns = BATCH_TURN_EVERY - 1
    person = driver.asked(model="slow")
    driver.end(held)  # the slow model is looked at first, since a person's call waits there
    assert others[0].granted
    assert lane.queue.first is batch
    driver.to(2.5)
    driver.end(others[0])
    assert batch.granted
    driver.to(4)
    driver.end(batch)
    assert person.granted


def test_a_booked_call_stays_booked_while_it_cannot_go() -> None:
    """Though it is the other priority's turn for a place: else each look would book anew, and buckets count that."""
    driver = ClockedAdmission(Limits(requests_per_minute=60, concurrency=5))
    driver.asked()
    interactive, _ = driver.asked(40), driver.asked(40, priority="batch")
    lane = driver.admission.lane("m", driver.now)
    assert lane.queue.first is interactive
    driver.admission._interactive_turns = BATCH_TURN_EVERY - 1
    booked = lane.requests.booked
    typical = lane.tokens.typical
    for _ in range(10):
        driver.admission._schedule.touch(lane)
        driver.advance()
    assert lane.queue.first is interactive
    assert (lane.requests.booked, lane.tokens.typical) == (booked, typical)


def test_models_of_equal_priority_go_by_age() -> None:
    driver = ClockedAdmission(Limits(concurrency=1))
    driver.asked(model="a")
    asked = [driver.asked(model=model) for model in "bacbcaab"]
    assert served(driver) == "i" * 8
    assert driver.granted[1:] == asked


@pytest.mark.parametrize("seed", range(20))
def test_random_calls_without_rates_keep_the_rule_exactly(seed: int) -> None:
    """An oracle that knows nothing of lanes: interactive first, the fifth place the batch's, the oldest of each."""
    rng = random.Random(seed)
    places = rng.choice([1, 2, 5])
    driver = ClockedAdmission(Limits(concurrency=places))
    expected: list[int] = []
    waiting: dict[str, list[int]] = {"interactive": [], "batch": []}
    reservations = {}
    turns = under_way = 0

    def oracle() -> None:
        nonlocal turns, under_way
        while under_way < places and any(waiting.values()):
            batch_goes = waiting["batch"] and (not waiting["interactive"] or turns >= BATCH_TURN_EVERY - 1)
            priority = "batch" if batch_goes else "interactive"
            expected.append(waiting[priority].pop(0))
            under_way += 1
            turns = 0 if batch_goes else turns + bool(waiting["batch"])

    for _ in range(400):
        kind = rng.choice("aaaaecx")
        running = [reservation for reservation in driver.granted if reservation.granted]
        if kind == "a":
            priority = rng.choice(["interactive", "batch"])
            reservation = driver.ask(rng.choice([0, 50]), rng.choice("abcd"), priority=priority)
            waiting[priority].append(reservation.number)
            reservations[reservation.number] = reservation
        elif kind == "e" and running:
            under_way -= 1
            reservation = rng.choice(running)
            driver.admission.record_response(reservation, driver.now, None, good=True)
            driver.admission.release(reservation, driver.now)
        elif kind == "x" and running:  # it asks again, before those that came later
            under_way -= 1
            reservation = rng.choice(running)
            driver.admission.release(reservation, driver.now)
            again = driver.ask(0, reservation.model, priority=reservation.priority, number=reservation.number)
            reservations[again.number] = again
            waiting[again.priority] = sorted([*waiting[again.priority], again.number])
        elif kind == "c" and any(waiting.values()):
            numbers = rng.choice([numbers for numbers in waiting.values() if numbers])
            driver.admission.withdraw(reservations[numbers.pop(rng.randrange(len(numbers)))], driver.now)
        oracle()
        driver.advance()
        assert [reservation.number for reservation in driver.granted] == expected
        assert driver.admission.in_flight == under_way <= places
