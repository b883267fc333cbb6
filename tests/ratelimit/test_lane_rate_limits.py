"""429s and 503s: what they do to the lane of their model, and to no other."""

from __future__ import annotations

from datetime import timedelta

import attrs
import pytest

from support.admission import EPOCH, MODEL, ROOM_S, ClockedAdmission, reported
from together_async import Limits, RateLimitError
from together_async.ratelimit.rate_control import FALL


def test_429_pauses_its_model_for_the_retry_after_and_no_other() -> None:
    driver = ClockedAdmission(Limits(requests_per_minute=6_000))
    reservation = driver.asked(model="a")
    waiting = [driver.ask(model="a") for _ in range(5)]
    driver.now = 0.001
    driver.limited(reservation, 3.0)
    for model in "aabb":
        driver.ask(model=model)
    driver.to(3.0)
    assert {reservation.model for reservation in driver.granted[1:]} == {"b"}
    assert len(driver.granted) == 3
    shown = driver.state.models["a"]
    assert shown.paused_for_s == pytest.approx(0.001)
    assert shown.paused_until == EPOCH + timedelta(seconds=shown.paused_for_s)
    assert driver.state.models["b"].paused_until is None
    driver.to(3.001)
    assert driver.granted[3] is waiting[0]
    driver.to(4)
    assert driver.state.models["a"].queued == 0
    assert driver.state.models["a"].paused_until is None


def test_shorter_pause_does_not_end_a_longer_one() -> None:
    """Two 429s come back; the second asks for less."""
    driver = ClockedAdmission(Limits(requests_per_minute=6_000))
    first, second, waiting = driver.ask(), driver.ask(), driver.ask()
    driver.to(0.1)
    driver.limited(first, 5)
    driver.limited(second, 1)
    third = driver.ask()
    driver.to(5)
    assert third.granted_at is None
    assert driver.state.models[MODEL].paused_for_s == pytest.approx(0.1)
    driver.to(5.2)
    assert third.granted_at == pytest.approx(5.1)
    assert waiting.granted_at is not None


def test_grants_after_a_pause_are_spread() -> None:
    """Calls that came together in the pause don't go together: never more than the rate and a bucket."""
    driver = ClockedAdmission(Limits(requests_per_minute=600))
    reservation = driver.asked()
    for _ in range(200):
        driver.ask()
    driver.limited(reservation, 5)
    driver.to(60)
    times = [reservation.granted_at or 0.0 for reservation in driver.granted[1:]]
    assert times[0] == pytest.approx(5)
    for place, start in enumerate(times):
        assert sum(start <= time <= start + 1 for time in times[place:]) <= 10 + 1 + 10 * ROOM_S
    assert len(times) == 200


def test_rate_falls_once_for_all_that_were_in_flight_and_comes_back_in_five_seconds() -> None:
    """Twenty requests come back with 429s: one event. A request sent after the fall that is refused is another."""
    driver = ClockedAdmission(Limits())
    driver.answered(driver.asked(), reported(100, 100))
    flying = [driver.ask() for _ in range(20)]
    driver.to(1)
    assert all(reservation.granted for reservation in flying)
    assert driver.rate() == pytest.approx(100)
    for reservation in flying:
        driver.now += 0.01
        driver.limited(reservation, 0.1, limits=reported(100, 0))
    # It has begun to rise while the last ones came.
    assert 100 * FALL * 0.95 < driver.rate() < 100 * FALL + 3
    assert driver.state.rate_limited == 20
    driver.to(driver.now + 5.5)
    assert driver.rate() > 90
    driver.to(driver.now + 900)
    assert driver.rate() == pytest.approx(100, rel=0.01)


def test_third_fall_in_a_row_finds_the_rate_that_went_well() -> None:
    """The reported rate is not believed any more: the rate is lower than the one that was refused."""
    driver = ClockedAdmission(Limits())
    driver.answered(driver.asked(), reported(1_000))
    for second in range(20):
        for part in range(20):
            driver.to(second + part / 20)
            driver.asked()
    for fall in range(3):
        assert driver.rate() > 300, fall
        driver.limited(driver.granted[-1], 0.1, limits=reported(1_000))
        driver.to(driver.now + 1)
        driver.asked()
    assert 8 < driver.rate() < 20
    for step in range(1, 2_000):
        driver.to(23 + step / 20)
        driver.end(driver.asked())
    assert driver.rate() > 20, "it rises again while it is used"


def test_429_of_tokens_lowers_the_tokens_alone() -> None:
    driver = ClockedAdmission(Limits())
    driver.answered(driver.asked(10), reported(100, None, 1_000))
    driver.limited(driver.asked(10), 1, limits=reported(100, None, 1_000), kind="tokens")
    shown = driver.state.models[MODEL]
    assert shown.requests_per_minute == pytest.approx(6_000)
    assert shown.tokens_per_minute == pytest.approx(60_000 * FALL, rel=0.05)


def test_503_lowers_nothing() -> None:
    """The platform is overloaded; rates, window and queue stay as they are."""
    driver = ClockedAdmission(Limits(concurrency="auto", requests_per_minute=600))
    reservation = driver.asked()
    before = driver.state.models[MODEL]
    driver.admission.record_overload(reservation)
    driver.answered(reservation, good=False)
    driver.end(reservation, 0)
    after = driver.state.models[MODEL]
    assert after.overloaded == driver.state.overloaded == 1
    assert attrs.evolve(after, overloaded=0) == attrs.evolve(before, in_flight=0)


def test_pause_that_is_too_long_for_a_call_ends_it_at_once() -> None:
    """Waiting and new calls get `RateLimitError` with the seconds, and nothing is sent. Others wait on."""
    driver = ClockedAdmission(Limits(requests_per_minute=60))
    reservation = driver.asked()
    hurried, others = driver.asked(max_pause_s=60), driver.asked(max_pause_s=600)
    driver.limited(reservation, 120)
    ((turned_away, error),) = driver.turned_away
    assert turned_away is hurried
    assert isinstance(error, RateLimitError)
    assert (error.retry_after, error.attempts, error.status_code) == (120, 0, 429)
    assert MODEL in str(error)
    assert "max_retry_after" in str(error)
    with pytest.raises(RateLimitError, match=r"pause of 120\.0 s"):
        driver.ask(max_pause_s=60)
    driver.asked(model="other", max_pause_s=60)
    assert driver.state.queued == 1
    driver.to(121)
    assert others.granted


def test_pause_of_just_what_a_call_waits_for_is_waited_for() -> None:
    """Whatever the clock shows: an error of the arithmetic does not make it too long."""
    for start in (0.1, 900.4, 997.9, 1_288.3, 1_482.8, 123_456.7):
        driver = ClockedAdmission(Limits(requests_per_minute=60))
        driver.now = start
        reservation = driver.asked()
        waiting = [driver.asked(max_pause_s=900), driver.ask(max_pause_s=900)]
        driver.limited(reservation, 1_000)
        assert driver.turned_away == []
        waiting.append(driver.ask(max_pause_s=900))
        assert driver.state.queued == len(waiting)


def test_service_that_names_times_may_refuse_for_longer_than_the_longest_pause() -> None:
    """Each pause is short, so the calls that wait for it wait on; after 15 minutes of nothing else they don't."""
    driver = ClockedAdmission(Limits(), known=False)
    for _ in range(90):
        driver.limited(driver.asked(max_pause_s=60), 10.0)
        assert driver.turned_away == []
        driver.to(driver.now + 10.0)
    first = driver.asked(max_pause_s=60)
    driver.to(driver.now + 0.1)
    assert first.granted
    late = driver.ask(max_pause_s=60)
    driver.limited(first, None)
    assert [reservation for reservation, _ in driver.turned_away] == [late]


def test_stray_undoes_nothing_that_earlier_refusals_showed() -> None:
    """A rate was found, and has doubled until it was no limit; a stray later does not bring it back."""
    driver = ClockedAdmission(Limits(), known=False)
    for reservation in [driver.asked() for _ in range(4)][1:]:
        driver.limited(reservation, 0.1)
    assert driver.rate() < 10
    bucket = driver.admission.lane(MODEL, driver.now).requests
    bucket.control.found.record_used(60)
    driver.to(100)
    driver.to(101)
    assert driver.rate() == float("inf")
    many = [driver.asked() for _ in range(20)]
    for reservation in many[5:7]:
        driver.limited(reservation, None)
    assert driver.rate() == float("inf")


def test_withdrawn_request_lends_its_number_to_no_other() -> None:
    """Else a refusal would be taken for one of an earlier event."""
    driver = ClockedAdmission(Limits(), known=False)
    numbers = []
    for withdrawn in (False, True, False):
        reservation = driver.asked()
        numbers.append(reservation.sent_number)
        if withdrawn:
            driver.withdraw(reservation)
    assert numbers == [1, 2, 3]
    assert driver.state.sent == 2


def test_service_that_was_not_asked_has_not_refused_meanwhile() -> None:
    """A 429 whose caller gives up, minutes of silence, and another 429: that call waits."""
    driver = ClockedAdmission(Limits(), known=False)
    for _ in range(3):
        assert driver.limited(driver.asked(max_pause_s=60), None).refusing_s == 0
        driver.to(driver.now + 300.0)


def test_request_under_way_is_no_refusal() -> None:
    """Whole answers take a minute and a half; others are refused all the while."""
    driver = ClockedAdmission(Limits(), known=False)
    accepted, refused = driver.asked(max_pause_s=60), driver.asked(max_pause_s=60)
    for _ in range(45):
        driver.to(driver.now + 0.02)
        driver.limited(refused, None)
        driver.to(driver.now + 2.0)
        refused = driver.asked(max_pause_s=60)
        driver.to(driver.now + 2.0)
        assert refused.granted
    assert driver.now > 60
    assert driver.turned_away == []
    driver.answered(accepted)


def test_failure_of_another_kind_is_no_refusal() -> None:
    """A 429, two minutes of 503s, and a 429: only the last has refused anything lately."""
    driver = ClockedAdmission(Limits(), known=False)
    driver.limited(driver.asked(), None)
    for _ in range(60):
        driver.to(driver.now + 2.0)
        failing = driver.asked()
        driver.to(driver.now + 0.5)
        driver.answered(failing, good=False)
        driver.end(failing, 0)
    last = driver.asked()
    assert driver.limited(last, None).refusing_s == 0


def test_heads_that_lie_release_nobody() -> None:
    """Responses look good and hold a 429: one request tries at a time, and the pause doubles."""
    driver = ClockedAdmission(Limits(), known=False)
    for _ in range(100):
        driver.ask()
    sent = 0
    while driver.now < 20:
        driver.to(driver.now + 0.05)
        under_way, sent = driver.granted[sent:], len(driver.granted)
        for reservation in under_way:
            driver.answered(reservation)
            driver.limited(reservation, None)
            driver.ask()
    assert 24 <= sent < 80
    while len(driver.granted) == sent:
        driver.to(driver.now + 0.01)
    probe = driver.granted[-1]
    driver.answered(probe)
    assert driver.granted[-1] is probe, "its head shows nothing any more"
    driver.end(probe, 10)
    assert len(driver.granted) > sent + 1
