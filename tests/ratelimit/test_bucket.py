"""One bucket: what may be sent when, and what it learns from responses."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.admission import ROOM_S
from support.buckets import learn, wait
from together_async.ratelimit.bucket import GUARD_S, Bucket


def test_bucket_without_a_limit_lets_everything_go() -> None:
    bucket = Bucket("requests", None, 0.0)
    for _ in range(100):
        assert wait(bucket, 1.0, 0.0) == 0.0
    assert bucket.per_minute is None
    assert "inf" in repr(bucket)


def test_requests_are_spread() -> None:
    """One request and a few more go at once; then each goes after its share of the time."""
    bucket = Bucket("requests", 10.0, 0.0)
    times, now = [], 0.0
    for _ in range(50):
        now = wait(bucket, 1.0, now)
        times.append(now)
    assert times[0] == 0
    assert sum(time == 0 for time in times) <= 1 + 10 * ROOM_S
    assert times[-1] == pytest.approx(4.9, abs=ROOM_S)


def test_slow_rate_leaves_room_for_a_networks_jitter() -> None:
    """At a request per second the service holds one, so the next must not arrive a millisecond early."""
    bucket = Bucket("requests", 1.0, 0.0)
    times, now = [], 0.0
    for _ in range(20):
        now = wait(bucket, 1.0, now)
        times.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 1 + GUARD_S / 2
    assert max(gaps) <= 1.1


@pytest.mark.parametrize("rate", [0.2, 1.0, 10.0, 1_000.0])
@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_bucket_is_full_again_after_a_while_and_not_fuller(kind: str, rate: float) -> None:
    bucket = Bucket(kind, rate, 0.0)
    assert bucket.level == pytest.approx(bucket.size)
    now = wait(bucket, 1.0, 0.0)
    assert bucket.level < bucket.size
    bucket.refill(now + 3 / rate)
    assert bucket.level == pytest.approx(bucket.size)
    bucket.refill(now + 1_000)
    assert bucket.level == pytest.approx(bucket.size)


def test_bucket_does_not_fill_up_behind_one_that_is_booked() -> None:
    """It waits for a pause or a place; the capacity booked for it isn't there for another."""
    bucket = Bucket("requests", 1.0, 0.0)
    bucket.book(1.0, 0.0)
    bucket.refill(100.0)
    bucket.record_sent()
    assert wait(bucket, 1.0, 100.0) >= 101


def test_large_amount_goes_when_the_bucket_is_full_and_leaves_a_debt() -> None:
    bucket = Bucket("tokens", 100.0, 0.0)
    assert wait(bucket, 5_000, 0.0) == 0.0
    assert wait(bucket, 1, 0.0) == pytest.approx(50, abs=1.1 * ROOM_S)
    assert wait(bucket, 5_000, 60.0) == 60
    assert wait(bucket, 5_000, 60.0) == pytest.approx(110, abs=1.1 * ROOM_S)


def test_unbooked_is_as_if_never_booked() -> None:
    bucket = Bucket("tokens", 100.0, 0.0)
    wait(bucket, 5_000.0, 0.0)
    level, booked = bucket.level, bucket.booked
    bucket.book(5_000.0, 0.0)
    bucket.unbook(5_000.0)
    assert (bucket.level, bucket.booked) == (level, booked)


def test_time_that_goes_back_adds_nothing() -> None:
    bucket = Bucket("tokens", 100.0, 10.0)
    wait(bucket, 5_000.0, 10.0)
    level = bucket.level
    bucket.refill(9.0)
    assert bucket.level == level
    bucket.refill(11.0)
    assert bucket.level == pytest.approx(level + 100)


def test_lowest_of_configured_and_reported_is_kept() -> None:
    bucket = Bucket("tokens", 100.0, 0.0)
    for limit, kept in ((50.0, 50.0), (500.0, 100.0), (None, 100.0), (20.0, 20.0), (99.0, 99.0)):
        learn(bucket, limit)
        assert bucket.rate == pytest.approx(kept)
    assert bucket.per_minute == pytest.approx(99 * 60)


def test_first_limit_that_is_reported_counts_what_was_sent_since() -> None:
    """Nothing was counted before; requests sent after the one whose response reports it used the same account."""
    bucket = Bucket("tokens", None, 0.0)
    for _ in range(10):
        wait(bucket, 100.0, 0.0)
    learn(bucket, 100.0, since=900.0)
    assert wait(bucket, 1.0, 0.0) == pytest.approx(9, abs=1.1 * ROOM_S)


def test_remaining_capacity_lowers_the_level_and_never_raises_it() -> None:
    bucket = Bucket("tokens", 1_000.0, 0.0)
    learn(bucket, None, 1e9)
    assert bucket.level == bucket.size
    learn(bucket, None, 20.0)
    assert bucket.level == pytest.approx(20, abs=GUARD_S * 1_000)
    learn(bucket, None, 1e9)
    assert bucket.level <= 20


amounts = st.floats(0, 1e6, allow_nan=False)


@given(
    st.sampled_from(["requests", "tokens"]),
    st.one_of(st.none(), st.floats(0.01, 1e6)),
    st.lists(
        st.tuples(st.sampled_from(["book", "learn", "429", "wait", "settle"]), amounts, st.one_of(st.none(), amounts)),
        max_size=30,
    ),
)
def test_bucket_stays_sane_whatever_happens(
    kind: str, configured: float | None, events: list[tuple[str, float, float | None]]
) -> None:
    """The level is a number and no more than the size, the rate above 0 and no more than the configured one."""
    bucket, now = Bucket(kind, configured, 0.0), 0.0
    for name, amount, other in events:
        now += 0.001 + amount % 7
        bucket.refill(now)
        assert bucket.level <= bucket.size * (1 + 1e-9) + 1e-9
        if name == "book":
            bucket.book(amount, now)
            bucket.record_sent()
        elif name == "learn":
            learn(bucket, amount or None, other, since=amount / 3, elapsed_s=amount % 3)
        elif name == "429":
            bucket.record_rate_limit(now - 0.1, now)
        elif name == "settle":
            bucket.settle(amount, other or 0.0, last=amount > 5)
        assert bucket.rate > 0
        assert configured is None or bucket.rate <= configured * (1 + 1e-9)
        assert not math.isnan(bucket.level)
        assert 0 <= bucket.wait_s(1.0) < math.inf
