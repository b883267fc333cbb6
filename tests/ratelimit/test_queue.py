"""Reservations and their order in the queue of a model."""

from __future__ import annotations

import pytest

from support.admission import MODEL, ROOM_S, ClockedAdmission
from together_async import Limits
from together_async.ratelimit.queue import BATCH_TURN_EVERY


def test_large_call_among_ten_thousand_small_ones_waits_for_those_before_it() -> None:
    """It takes 90 % of a minute's tokens. Its wait is the sum of those before it by the rate, to within a bucket."""
    driver = ClockedAdmission(Limits(tokens_per_minute=60_000))
    before = [driver.ask(10) for _ in range(5_000)]
    large = driver.ask(54_000)
    after = [driver.ask(10) for _ in range(5_000)]
    driver.to(1_000)
    assert large.granted_at == pytest.approx(50, abs=1.1 * ROOM_S)
    assert max(reservation.granted_at or 0 for reservation in before) <= (large.granted_at or 0)
    assert min(reservation.granted_at or 0 for reservation in after) == pytest.approx(50 + 54, abs=1.1 * ROOM_S)
    assert driver.granted == [*before, large, *after]


def test_large_call_is_not_starved_by_a_stream_of_small_ones() -> None:
    """Calls that come later at ten times the rate wait for it, and it doesn't wait for them."""
    driver = ClockedAdmission(Limits(tokens_per_minute=60_000))
    ahead = [driver.asked(100) for _ in range(100)]
    large = driver.asked(54_000)
    for step in range(2_000):
        driver.to(step / 100)
        driver.ask(100)
    assert all(reservation.granted for reservation in ahead)
    assert large.granted_at == pytest.approx(10, abs=1.1 * ROOM_S)
    assert driver.granted[-1] is large
    driver.to(63)
    assert driver.granted[-1] is large, "its tokens are paid for before another one goes"
    driver.to(64.6)
    assert driver.granted[-1] is not large


def test_thousand_cancelled_waiters_leave_nothing_behind() -> None:
    """Calls that gave up in the middle of the queue are neither served nor kept."""
    driver = ClockedAdmission(Limits(concurrency=1))
    first = driver.asked()
    waiting = [driver.asked(priority="batch" if place % 2 else "interactive") for place in range(1_000)]
    for reservation in waiting[:-1]:
        driver.withdraw(reservation)
    lane = driver.admission.lane(MODEL, 0)
    assert sum(map(len, lane.queue._calls.values())) < 200
    driver.end(first)
    assert driver.granted == [first, waiting[-1]]


def test_interactive_goes_first_and_batch_has_one_turn_in_five() -> None:
    driver = ClockedAdmission(Limits(concurrency=1))
    first = driver.asked(priority="batch")
    for _ in range(20):
        driver.asked(priority="batch")
        driver.asked(priority="interactive")
    driver.end(first)
    while driver.admission.queued:
        driver.end(driver.granted[-1])
    order = "".join(reservation.priority[0] for reservation in driver.granted[1:])
    assert order == "iiiib" * 5 + "b" * 15


def test_interactive_call_goes_before_the_batch_call_that_is_first_in_line() -> None:
    """Also when that one has been booked already; its capacity is booked for the other instead."""
    driver = ClockedAdmission(Limits(requests_per_minute=60))
    driver.asked()
    batch = [driver.asked(priority="batch") for _ in range(2)]
    driver.to(0.5)
    interactive = driver.asked()
    driver.to(5)
    assert driver.granted[1:] == [interactive, *batch]
    assert interactive.granted_at == pytest.approx(1, rel=0.1)
    assert batch[1].granted_at == pytest.approx(3, rel=0.1)


def test_call_that_asks_again_keeps_its_place() -> None:
    """After a failure a call goes before all that came after it, the first in line included."""
    driver = ClockedAdmission(Limits(concurrency=1))
    first = driver.asked()
    later = [driver.asked() for _ in range(3)]
    driver.admission.record_response(first, 0, None, good=False)
    driver.admission.release(first, 0)
    again = driver.ask(number=first.number)
    driver.advance()
    assert driver.granted == [first, again]
    driver.end(again)
    assert driver.granted[-1] is later[0]


@pytest.mark.parametrize("failed", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_calls_that_ask_again_are_in_the_order_of_their_numbers(failed: list[int]) -> None:
    """Whatever the order in which they failed."""
    driver = ClockedAdmission(Limits(concurrency=3, requests_per_minute=600))
    calls = [driver.asked() for _ in range(8)]
    driver.to(1)
    assert [reservation.granted for reservation in calls] == [True] * 3 + [False] * 5
    driver.admission.record_rate_limit(calls[0], driver.now, None, wait_s=1, kind=None, jitter=1)
    for place in failed:
        driver.end(calls[place], 0)
        driver.asked(number=calls[place].number)
    del driver.granted[:]
    while driver.admission.queued:
        driver.to(driver.now + 1)
        for reservation in list(driver.granted):
            driver.end(reservation)
    assert [reservation.number for reservation in driver.granted] == list(range(1, 9))


def test_shortest_pause_rises_again() -> None:
    """When the queue is empty, and when all calls have been looked at, of which those that go are removed."""
    driver = ClockedAdmission(Limits(concurrency=1))
    held = driver.asked()
    queue = driver.admission.lane(MODEL, 0).queue
    short, middle, long = (driver.asked(max_pause_s=seconds) for seconds in (5, 50, 500))
    assert queue.shortest_max_pause_s == 5
    driver.withdraw(short)
    assert queue.unwilling(5) == []
    assert queue.unwilling(20) == []
    assert queue.shortest_max_pause_s == 50
    assert queue.unwilling(100) == [middle]
    assert queue.shortest_max_pause_s == 500
    driver.withdraw(middle)
    driver.end(held)
    assert (long.granted, queue.shortest_max_pause_s) == (True, float("inf"))


def test_whose_turn_it_is() -> None:
    """A queue has turns of its own; another priority can be asked for."""
    driver = ClockedAdmission(Limits(concurrency=1))
    driver.asked()
    batch, interactive = driver.asked(priority="batch"), driver.asked()
    queue = driver.admission.lane(MODEL, 0).queue
    assert (queue.head("batch"), queue.head("interactive")) == (batch, interactive)
    assert queue.next_priority() == "interactive"
    queue.interactive_turns = BATCH_TURN_EVERY - 1
    assert queue.next_priority() == "batch"
    assert queue.pop("interactive") is interactive
    assert (queue.head("interactive"), queue.next_priority()) == (None, "batch")
    assert queue.pop() is batch
    assert queue.pop() is None


def test_repr_of_a_reservation_shows_its_state() -> None:
    driver = ClockedAdmission(Limits(concurrency=1))
    first, second, third = (driver.asked(5) for _ in range(3))
    assert repr(first) == "<Reservation 1 of m, 5 tokens, under way>"
    assert repr(second) == "<Reservation 2 of m, 5 tokens, first in line>" or "waiting" in repr(second)
    assert repr(third) == "<Reservation 3 of m, 5 tokens, waiting>"
    driver.end(first)
    assert "ended" in repr(first)
    assert (second.model, second.granted) == (MODEL, True)
