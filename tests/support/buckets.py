"""Short ways to book from a bucket and to report a response to it."""

from __future__ import annotations

import pytest

from together_async.ratelimit.bucket import Bucket
from together_async.ratelimit.headers import ReportedLimit


def wait(bucket: Bucket, amount: float, now: float) -> float:
    """Books an amount, and lets it go as soon as it may; returns when that is."""
    cost = bucket.cost(amount)
    bucket.refill(now)
    bucket.book(cost, now)
    now += bucket.wait_s(cost)
    bucket.refill(now)
    assert bucket.wait_s(cost) == pytest.approx(0, abs=1e-9)
    bucket.record_sent()
    return now


def learn(
    bucket: Bucket, limit: float | None, left: float | None = None, *, since: float = 0, elapsed_s: float = 0
) -> None:
    bucket.learn(ReportedLimit(limit, left), amount=1.0, since=since, elapsed_s=elapsed_s)
