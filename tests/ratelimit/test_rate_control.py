"""How a bucket's rate falls with 429s, and comes back."""

from __future__ import annotations

import math

import pytest

from support.buckets import learn, wait
from together_async.ratelimit.bucket import Bucket
from together_async.ratelimit.rate_control import FALL


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_429_lowers_the_rate_which_comes_back_in_five_seconds(kind: str) -> None:
    bucket = Bucket(kind, 100.0, 0.0)
    bucket.refill(10.0)
    bucket.record_rate_limit(9.9, 10.0)
    assert 60 < bucket.rate <= 100 * FALL
    bucket.record_rate_limit(9.9, 10.2)
    assert bucket.rate > 60, "one that was sent before the fall is part of it"
    for step in range(60):
        bucket.refill(10 + step / 10)
    assert bucket.rate > 90
    for step in range(1_000):
        bucket.refill(16 + step)
    assert bucket.rate == pytest.approx(100)


def test_first_report_replaces_what_was_found() -> None:
    bucket = Bucket("requests", None, 0.0)
    bucket.find(5.0, math.inf, again=False)
    assert bucket.rate < 5
    learn(bucket, 20.0)
    assert bucket.rate == 20


def test_configured_rate_is_found_to_be_too_high() -> None:
    """The third fall in a row is not made good within seconds: the rate is what was accepted."""
    bucket = Bucket("requests", 100.0, 0.0)
    for step in range(200):
        wait(bucket, 1.0, step / 20)
    for fall in range(3):
        bucket.refill(10.0 + fall)
        bucket.record_rate_limit(9.99 + fall, 10.0 + fall)
    assert 8 < bucket.rate < 20


def test_learned_rate_is_approached_from_its_half_after_a_pause() -> None:
    """It may have changed; a configured one has not."""
    configured, reported = Bucket("requests", 10.0, 0.0), Bucket("requests", None, 0.0)
    learn(reported, 10.0)
    for bucket in (configured, reported):
        wait(bucket, 1.0, 0.0)
        wait(bucket, 1.0, 100.0)
    assert configured.rate == 10
    assert reported.rate == pytest.approx(5, rel=0.1)
    for step in range(120):
        reported.refill(100 + step / 10)
    assert reported.rate == 10
