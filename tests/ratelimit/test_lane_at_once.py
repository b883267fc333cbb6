"""The quick path of a call that finds no other waiting."""

from __future__ import annotations

import random
from typing import Any

import pytest

from support.admission import EPOCH, MODEL, ClockedAdmission, reported
from together_async import Limits
from together_async.ratelimit.admission import Admission
from together_async.ratelimit.backoff import Backoff
from together_async.ratelimit.bucket import Bucket
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.found_rate import FoundRate
from together_async.ratelimit.lane import Lane
from together_async.ratelimit.queue import Queue, Reservation
from together_async.ratelimit.rate_control import RateControl
from together_async.ratelimit.silent_refusals import SilentRefusals
from together_async.ratelimit.start import Start

KEPT = (Lane, Queue, Backoff, Bucket, RateControl, FoundRate, SilentRefusals, Start)


def shown(admission: Admission, now: float) -> Any:
    """All that can be seen of an admission."""
    return admission.state(now, EPOCH), admission.queued, admission.in_flight, admission.uncounted, set(admission._busy)


@pytest.mark.parametrize("seed", range(20))
def test_asking_at_once_is_asking_and_advancing(seed: int) -> None:
    """In whatever order calls ask, are answered, end and give up, the same ones go at the same times, and the state is
    the same."""
    rng = random.Random(seed)
    limits = rng.choice(
        [
            Limits(),
            Limits("auto"),
            Limits(2),
            Limits(3, requests_per_minute=120, tokens_per_minute=6_000),
            Limits.per_model({MODEL: Limits(2)}, concurrency=3),
        ]
    )
    plain, quick = Admission(limits), Admission(limits)
    pairs: list[tuple[Reservation, Reservation]] = []
    now = 0.0
    for _ in range(300):
        now += rng.choice([0, 0, 0.01, 0.3, 2.0])
        match rng.randrange(5):
            case 0 | 1:
                options: dict[str, Any] = {
                    "priority": rng.choice(["interactive", "batch"]),
                    "counts_as_queued": rng.random() < 0.5,
                    "careful_start": rng.random() < 0.3,
                }
                model, tokens = rng.choice([MODEL, "other"]), rng.choice([0, 10, 300])
                reservation = plain.ask(model, tokens, now, **options)
                plain.advance(now)
                pairs.append((reservation, quick.ask(model, tokens, now, at_once=True, **options)))
            case 2 if pairs and pairs[0][0].priority == "interactive":
                reservation, other = pairs.pop(0)
                plain.withdraw(reservation, now)
                quick.withdraw(other, now)
            case 3 if pairs:
                for admission, reservation in zip((plain, quick), rng.choice(pairs), strict=True):
                    admission.record_response(reservation, now, None, good=True)
            case 4 if pairs and pairs[0][0].granted:
                for admission, reservation in zip((plain, quick), pairs.pop(0), strict=True):
                    admission.settle(reservation, 5, now)
                    admission.release(reservation, now)
        plain.advance(now)
        quick.advance(now)
        assert shown(plain, now) == shown(quick, now)
        assert [reservation.granted_at for reservation, _ in pairs] == [other.granted_at for _, other in pairs]


def inside(admission: Admission) -> dict[str, Any]:
    """Every number that the lanes of an admission keep, by the path to it."""
    found: dict[str, Any] = {}

    def collect(path: str, value: Any) -> None:
        if isinstance(value, KEPT):
            for name in type(value).__slots__:
                collect(f"{path}.{name}", getattr(value, name))
        elif isinstance(value, int | float | tuple) or value is None:
            found[path] = value

    for model, lane in admission._lanes.items():
        collect(model, lane)
    return found


def act(kind: str, admission: Admission, reservation: Reservation, now: float, *, used: int, limited: bool) -> None:
    """One event in the life of a call."""
    if kind == "response":
        admission.record_response(reservation, now, None, good=True)
    elif kind == "429":
        limits = reported(5, 2, 500, 60) if limited else None
        admission.record_rate_limit(reservation, now, limits, wait_s=3, kind=None, jitter=1)
    elif kind == "end" and reservation.granted:
        reservation.estimator.learn(Size(20, 100, 1), 25, used)
        admission.settle(reservation, used, now)
        admission.release(reservation, now)
    else:
        admission.withdraw(reservation, now)


@pytest.mark.parametrize("seed", range(20))
def test_asking_at_once_keeps_the_same_numbers(seed: int) -> None:
    """Sizes are learned, 429s come, limits are reported, time passes: both admissions keep the same numbers."""
    rng = random.Random(seed)
    both = Admission(Limits()), Admission(Limits())
    pairs: list[tuple[Reservation, ...]] = []
    now = 0.0
    kinds = ["ask"] * 6 + ["response"] * 4 + ["end"] * 5 + ["withdraw"]
    for step in range(200):
        now += rng.choice([0, 0.01, 0.3, 2.0, 7.0, 70.0])
        kind = rng.choice(kinds if step < 150 else [*kinds, "429"])
        used, limited = rng.choice([0, 5, 500]), rng.random() < 0.5
        if kind == "ask":
            tokens = rng.choice([0, 10, 300, Size(20, 100, 1)])
            pairs.append(tuple(each.ask(MODEL, tokens, now, at_once=each is both[1]) for each in both))
        elif pairs:
            pair = pairs.pop(0) if kind in ("end", "withdraw") else rng.choice(pairs)
            for admission, reservation in zip(both, pair, strict=True):
                act(kind, admission, reservation, now, used=used, limited=limited)
        for admission in both:
            admission.advance(now)
        assert inside(both[0]) == inside(both[1])
        for name in ("costs", "booked_totals", "granted_at", "tokens"):
            assert [getattr(plain, name) for plain, _ in pairs] == [getattr(quick, name) for _, quick in pairs]


def test_asked_at_once_it_goes_and_advance_does_not_say_it_again() -> None:
    """It is under way when `ask` returns; one that may not go is booked, and the next waits behind it."""
    driver = ClockedAdmission(Limits(1))
    first, second, third = (driver.ask(at_once=True) for _ in range(3))
    assert first.granted
    assert driver.advance() == []
    assert (driver.admission.in_flight, driver.admission.queued) == (1, 2)
    driver.end(first)
    assert (second.granted, third.granted) == (True, False)
    driver.admission.withdraw(second, driver.now)
    assert driver.advance() == [third]


@pytest.mark.parametrize("model", [MODEL, "other"])
def test_nobody_is_overtaken_at_once(model: str) -> None:
    """While a call waits, of the same model or of another, asking at once is asking."""
    driver = ClockedAdmission(Limits.per_model({MODEL: Limits(requests_per_minute=60)}, concurrency=5))
    held = [driver.asked() for _ in range(5)]
    waits = driver.ask(at_once=True)
    driver.admission.release(held[0], driver.now)  # no call has been granted yet
    late = driver.ask(model=model, at_once=True)
    assert not late.granted
    assert waits.number < late.number
