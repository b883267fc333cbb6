"""Admission of calls to several models: places, 402s, full queues, calls that are forgotten."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import Any

import pytest

from support.admission import EPOCH, MODEL, ClockedAdmission, paid, reported
from together_async import Limits, PaymentRequiredError, QueueFullError, RateLimitError
from together_async.ratelimit.admission import FORGOTTEN_AT_ONCE, MAX_LANES, PAUSED_AT_ONCE, STOP_S
from together_async.ratelimit.lane import Lane, RateLimited
from together_async.ratelimit.queue import Reservation
from together_async.ratelimit.start import AT_ONCE, DIAL_S


def test_call_in_between_is_served_in_the_order_of_arrival_across_models() -> None:
    """When places are short, calls of one model don't overtake those of another."""
    driver = ClockedAdmission(Limits(concurrency=1))
    driver.asked(model="a")
    asked = [driver.asked(model=model) for model in "abcabccba"]
    while driver.admission.queued:
        driver.end(driver.granted[-1])
    assert driver.granted[1:] == asked


def test_one_models_rate_does_not_hold_up_the_others() -> None:
    """A model whose calls have to wait takes no place from the others."""
    driver = ClockedAdmission(
        Limits.per_model({"slow": Limits(requests_per_minute=1)}, concurrency=2, requests_per_minute=60_000)
    )
    slow = [driver.asked(model="slow") for _ in range(3)]
    driver.end(slow[0])
    fast = [driver.asked(model="fast") for _ in range(3)]
    driver.to(0.01)
    assert [reservation.granted for reservation in fast] == [True, True, False]
    assert not slow[1].granted


def test_places_of_all_and_of_one_model_are_both_kept() -> None:
    driver = ClockedAdmission(Limits.per_model({"a": Limits(concurrency=2)}, concurrency=3))
    for _ in range(4):
        driver.asked(model="a")
        driver.asked(model="b")
    state = driver.state
    assert (state.models["a"].in_flight, state.models["b"].in_flight, state.in_flight) == (2, 1, 3)
    driver.end(next(reservation for reservation in driver.granted if reservation.model == "b"))
    assert driver.state.models["a"].in_flight == 2
    assert driver.state.in_flight == 3


def test_402_refuses_all_that_wait_and_all_that_come() -> None:
    """Each call of every model gets a clear error; a request that is under way is left alone."""
    driver = ClockedAdmission(Limits(concurrency=2))
    sent, flying = driver.asked(), driver.asked(model="b")
    waiting = [driver.asked(model=model) for model in "abab"]
    driver.admission.record_payment_required(paid(), driver.now)
    driver.advance()
    driver.end(sent, 0)
    assert {id(reservation) for reservation, _ in driver.turned_away} == {id(reservation) for reservation in waiting}
    errors = [error for _, error in driver.turned_away]
    with pytest.raises(PaymentRequiredError) as caught:
        driver.ask(model="c")
    for error in (*errors, caught.value):
        assert isinstance(error, PaymentRequiredError)
        assert (error.attempts, error.status_code, error.request_id, error.body) == (0, 402, "r", {"a": 1})
        assert "this one was not sent" in str(error)
    assert len({id(error) for error in errors}) == 4, "one error of its own for each: a traceback is added to it"
    assert (driver.state.queued, driver.state.in_flight) == (0, 1)
    assert "402" in (driver.state.stopped or "")
    driver.end(flying)


def test_one_request_a_minute_looks_whether_somebody_has_paid() -> None:
    driver = ClockedAdmission(Limits())
    reservation = driver.asked()
    driver.admission.record_payment_required(paid(), driver.now)
    driver.end(reservation, 0)
    driver.to(STOP_S - 0.1)
    with pytest.raises(PaymentRequiredError):
        driver.ask()
    driver.to(STOP_S)
    probe = driver.asked()
    assert probe.granted
    with pytest.raises(PaymentRequiredError):
        driver.ask()
    driver.admission.record_payment_required(paid(), driver.now)
    driver.end(probe, 0)
    driver.to(2 * STOP_S)
    probe = driver.asked()
    driver.answered(probe)
    assert driver.state.stopped is None
    assert driver.asked()


def test_answer_to_a_request_from_before_the_402_does_not_end_the_stop() -> None:
    """It was on its way already; the account is still without money."""
    driver = ClockedAdmission(Limits(concurrency=10))
    early, refused = driver.asked(), driver.asked()
    driver.to(1)
    driver.admission.record_payment_required(paid(), driver.now)
    driver.end(refused, 0)
    driver.answered(early)
    driver.end(early)
    with pytest.raises(PaymentRequiredError):
        driver.ask()


def test_what_was_learned_stays_when_the_calls_are_forgotten() -> None:
    """Their event loop is gone: counts are 0, places are free, and the old reservations change nothing any more."""
    driver = ClockedAdmission(Limits(concurrency=2))
    flying = [driver.asked() for _ in range(2)]
    waiting = [driver.asked() for _ in range(3)]
    driver.answered(flying[0], reported(10, 0))
    driver.now = 100
    driver.admission.forget_calls()
    state = driver.state
    assert (state.in_flight, state.queued) == (0, 0)
    assert state.models[MODEL].server_requests_per_minute == 600
    again = [driver.asked() for _ in range(2)]
    driver.to(101)
    assert all(reservation.granted for reservation in again)
    for reservation in (*flying, *waiting):
        driver.end(reservation, 0)
        driver.withdraw(reservation)
        driver.admission.record_rate_limit(reservation, driver.now, None, wait_s=50, kind=None, jitter=1)
        driver.answered(reservation, reported(1, 0))
    state = driver.state
    assert (state.in_flight, state.queued, state.models[MODEL].paused_until) == (2, 0, None)
    assert state.models[MODEL].server_requests_per_minute == 600


def test_full_queue() -> None:
    """`check_room` comes after `ask` has queued a call, so the call itself is counted."""
    driver = ClockedAdmission(Limits.per_model({"b": Limits(max_queued=0, concurrency=1)}, concurrency=2, max_queued=1))
    driver.asked(model="a")
    driver.asked(model="b")
    driver.asked(model="a")
    driver.admission.check_room("a", 0)
    driver.asked(model="a")
    with pytest.raises(QueueFullError, match=r"1 calls wait and Limits\.max_queued is 1") as caught:
        driver.admission.check_room("a", 0)
    assert caught.value.attempts == 0


def test_thousand_models_are_not_kept_for_ever() -> None:
    """Ever new model names cost no memory; the models in use are kept."""
    driver = ClockedAdmission(Limits())
    kept = driver.asked(model="kept")
    for name in range(2_500):
        driver.now += 1
        driver.end(driver.asked(model=str(name)))
    assert len(driver.state.models) <= 1_000
    assert driver.state.models["kept"].in_flight == 1
    assert driver.state.models["2499"].sent == 1
    driver.end(kept)
    assert driver.state.in_flight == 0


def test_other_names_do_not_make_it_forget_a_pause_or_a_limit() -> None:
    """Three times as many names as are kept, each used once; what knows nothing goes first, then what isn't paused."""
    driver = ClockedAdmission(Limits())
    driver.limited(driver.asked(model="paused"), 600)
    told = driver.asked(model="told")
    driver.answered(told, reported(10, 5))
    driver.end(told)
    for name in range(3 * MAX_LANES):
        driver.now += 0.01
        reservation = driver.asked(model=str(name))
        driver.answered(reservation)
        driver.end(reservation)
    models = driver.state.models
    assert len(models) <= MAX_LANES
    assert models["paused"].paused_until is not None
    assert models["told"].server_requests_per_minute == 600
    assert str(3 * MAX_LANES - 1) in models


def test_memory_is_bounded_though_every_model_is_paused_or_has_reported_limits() -> None:
    """Then those that aren't paused go first, and of equal ones those used longest ago."""
    driver = ClockedAdmission(Limits())
    for name in range(MAX_LANES):
        driver.now += 0.01
        reservation = driver.asked(model=str(name))
        if name % 2:
            driver.limited(reservation, 600)
        else:
            driver.answered(reservation, reported(10, 5))
            driver.end(reservation)
    driver.asked(model="another")
    models = driver.state.models
    assert len(models) == MAX_LANES - FORGOTTEN_AT_ONCE + 1
    gone = [name for name in range(MAX_LANES) if str(name) not in models]
    assert gone == list(range(0, 2 * FORGOTTEN_AT_ONCE, 2))
    for name in range(3 * MAX_LANES):
        driver.now += 0.001
        driver.limited(driver.asked(model=f"more {name}"), 600)
    assert MAX_LANES - PAUSED_AT_ONCE <= len(driver.state.models) <= MAX_LANES, "of paused ones only a few at once"


def test_models_in_use_are_kept_without_a_search_for_each() -> None:
    """More names than are kept, all with calls: none is forgotten. Once they are idle, the surplus goes."""
    driver = ClockedAdmission(Limits())
    sorts = 0
    forget = driver.admission._forget_idle

    def counted(now: float) -> None:
        nonlocal sorts
        sorts += 1
        forget(now)

    driver.admission._forget_idle = counted  # type: ignore[method-assign]  # it only counts
    calls = [driver.asked(model=str(name)) for name in range(3 * MAX_LANES)]
    assert len(driver.state.models) == 3 * MAX_LANES
    assert sorts <= 2 * MAX_LANES // FORGOTTEN_AT_ONCE + 1
    for reservation in calls:
        driver.end(reservation)
    for name in range(FORGOTTEN_AT_ONCE + 1):
        driver.end(driver.asked(model=f"more {name}"))
    assert len(driver.state.models) <= MAX_LANES


# ------------------------------------------------------------------------------------------ turned away while they wait


def test_waiting_calls_that_do_not_wait_so_long_are_turned_away() -> None:
    """A pause is too long for some; the others stay. The error says until when."""
    driver = ClockedAdmission(Limits(concurrency=1))
    held = driver.asked()
    short, long = driver.asked(max_pause_s=60), driver.asked(max_pause_s=900)
    driver.limited(held, 100)
    ((turned_away, error),) = driver.turned_away
    assert turned_away is short
    assert "until 2026-01-01 00:01:40 UTC, and Retry.max_retry_after is 60 s" in str(error)
    with pytest.raises(RateLimitError, match="until 2026-01-01 00:01:40 UTC"):
        driver.ask(max_pause_s=99)
    driver.to(100)
    assert long.granted


def test_calls_are_refused_when_the_service_has_refused_everything_for_longer_than_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each pause is short, but there have been many."""
    driver = ClockedAdmission(Limits(concurrency=1))
    held = driver.asked()
    short, long = driver.asked(max_pause_s=60), driver.asked(max_pause_s=900)
    lane_rate_limit = Lane.record_rate_limit

    def refusing(lane: Lane, *arguments: Any, **options: Any) -> RateLimited:
        return lane_rate_limit(lane, *arguments, **options)._replace(refusing_s=75)

    monkeypatch.setattr(Lane, "record_rate_limit", refusing)
    limited = driver.admission.record_rate_limit(held, driver.now, None, wait_s=2, kind=None, jitter=1)
    assert limited == RateLimited(2, 75)
    assert [reservation for reservation, _ in driver.admission.turned_away] == [short]
    assert "refused every request to m for 75.0 s" in str(driver.admission.turned_away[0][1])
    assert long.lane.queue.length == 1


def test_a_pause_that_comes_with_a_good_answer_is_shown_and_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever would not wait so long for a 429 does not wait so long for an empty bucket either."""
    driver = ClockedAdmission(Limits(concurrency=1))
    held = driver.asked()
    short, _ = driver.asked(max_pause_s=60), driver.asked(max_pause_s=900)

    def learn(lane: Lane, reservation: Reservation, now: float, limits: object) -> None:
        lane.paused_until = now + 500

    monkeypatch.setattr(Lane, "learn", learn)
    driver.answered(held, reported(1, 0))
    assert [reservation for reservation, _ in driver.turned_away] == [short]
    assert driver.state.paused_until == EPOCH + timedelta(seconds=500)


def test_reading_the_state_changes_nothing() -> None:
    """Two admissions do the same; the state of one is read all the time."""

    def times(*, look: bool) -> list[float | None]:
        driver = ClockedAdmission(Limits(requests_per_minute=120, tokens_per_minute=60_000))
        calls = [driver.asked(700) for _ in range(20)]
        for step in range(1, 300):
            driver.to(step / 10)
            if look:
                assert repr(driver.state)
        return [reservation.granted_at for reservation in calls]

    assert times(look=True) == pytest.approx(times(look=False), abs=1e-6)


# ----------------------------------------------------------------------------------------------- not counted as queued


@pytest.mark.parametrize("per_model", [False, True])
def test_uncounted_calls_are_neither_refused_nor_counted(per_model: bool) -> None:
    """`max_queued` is for the others: as many of them may wait as if the uncounted calls were not there."""
    limits = Limits.per_model({MODEL: Limits(1, max_queued=2)}) if per_model else Limits(1, max_queued=2)
    driver = ClockedAdmission(limits)
    held = driver.asked()
    uncounted = [driver.asked(counts_as_queued=False) for _ in range(10)]
    for _ in range(2):
        driver.asked()
        driver.admission.check_room(MODEL, driver.now)
    driver.asked()
    with pytest.raises(QueueFullError, match=r"2 calls wait and Limits\.max_queued is 2"):
        driver.admission.check_room(MODEL, driver.now)
    driver.admission.withdraw(uncounted[-1], driver.now)
    driver.end(held)
    with pytest.raises(QueueFullError):
        driver.admission.check_room(MODEL, driver.now)


@pytest.mark.parametrize("seed", range(10))
def test_uncounted_calls_are_known_whatever_happens(seed: int) -> None:
    """Granted, withdrawn, refused for a pause or a 402, forgotten with their loop: what is counted is what waits."""
    rng = random.Random(seed)
    driver = ClockedAdmission(Limits.per_model({"other": Limits(2)}, concurrency=4))
    reservations: list[Reservation] = []
    for _ in range(200):
        admission = driver.admission
        match rng.randrange(7):
            case 0 | 1 | 2:
                admission.resume()
                admission.lane(MODEL, driver.now).paused_until = -math.inf
                reservations.append(
                    driver.asked(
                        model=rng.choice([MODEL, "other"]),
                        counts_as_queued=rng.random() < 0.5,
                        at_once=True,
                        max_pause_s=5,
                    )
                )
            case 3 if reservations:
                admission.withdraw(reservations.pop(rng.randrange(len(reservations))), driver.now)
            case 4:
                for reservation in [reservation for reservation in reservations if reservation.granted][:2]:
                    driver.end(reservation, 0)
            case 5 if rng.random() < 0.2:
                admission.record_payment_required(PaymentRequiredError("402", status_code=402), driver.now)
            case 6 if rng.random() < 0.2:
                admission.forget_calls()
                reservations = []
        driver.advance()
        waiting = [reservation for lane in admission._lanes.values() for reservation in lane.queue.waiting()]
        assert admission.queued == len(waiting)
        assert admission.uncounted == sum(not reservation.counts_as_queued for reservation in waiting)
        for lane in admission._lanes.values():
            assert lane.queue.uncounted == sum(not reservation.counts_as_queued for reservation in lane.queue.waiting())


# -------------------------------------------------------------------------------------------------------- connections


def test_a_connection_that_opens_lets_calls_of_its_model_go() -> None:
    """They were held up by it alone, and nobody would look at the lane before its time."""
    driver = ClockedAdmission(Limits(), known=False)
    for _ in range(2 * AT_ONCE):
        driver.ask()
    begun = driver.advance()
    for reservation in begun:
        driver.admission.record_dialling(reservation, driver.now)
    assert driver.to(0.01) == []
    assert driver.admission.next_at == pytest.approx(DIAL_S)
    driver.admission.record_dialled(begun[0], driver.now, 0.01, connected=True)
    driver.admission.advance(driver.now, timer=False)
    assert driver.admission.next_at < DIAL_S / 2
    assert driver.to(0.1) != []
