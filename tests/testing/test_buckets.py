"""Buckets: when they admit a request, and how much a refund returns."""

import math

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.accounts import RATES, STEPS, Clock, M, retry_after_s
from together_async.testing.account import Account
from together_async.testing.ideal import ideal_seconds
from together_async.testing.rates import Dynamic, Rate


@given(RATES, STEPS, st.sampled_from([0.0, 1.0, -1e6, 1e9, 1e12, 3600 * 24 * 365.25 * 56]))
def test_reset_is_the_earliest_time(rate, steps, start):
    """At the reset the same request is admitted, a little before it is not, wherever the clock began."""
    clock = Clock(start)
    account = Account(rate, clock=clock)
    little = 2e-5 + 8 * math.ulp(start)
    for pause, tokens in steps:
        clock.now += pause
        verdict = account.admit(M, tokens)
        if verdict.admitted:
            continue
        wait, refused_at = retry_after_s(verdict), clock.now
        assert wait > 0
        if wait > little and rate.dynamic is None:  # a second refusal may lower a dynamic limit, and the wait be longer
            clock.now = refused_at + wait - little
            assert not account.admit(M, tokens).admitted
        clock.now = refused_at + wait
        assert account.admit(M, tokens).admitted


@given(RATES, STEPS)
@example(Rate(None, 1.0, 0.01), [(0.0, 5000)] * 3)
def test_a_fixed_rate_holds_in_every_window(rate, steps):
    """From any admission to any other: the rate times the time, and the bucket (or the last request, if larger)."""
    rate = attrs.evolve(rate, dynamic=None)
    clock, admitted = Clock(), []
    account = Account(rate, clock=clock)
    for pause, tokens in steps:
        clock.now += pause
        while len(admitted) < 400 and account.admit(M, tokens).admitted:
            admitted.append((clock.now, 1, tokens))
    for which, limit in ((1, rate.requests_per_second), (2, rate.tokens_per_second)):
        if limit is None:
            continue
        total, least = 0, math.inf  # least: the lowest of "sum before it, less the rate's share until it" so far
        for at, *taken in admitted:
            least = min(least, total - limit * at)
            total += taken[which - 1]
            in_worst_window = total - limit * at - least
            assert in_worst_window <= max(limit * rate.burst_s, taken[which - 1]) + limit * 2e-6 + 1e-9 * total


def test_a_fixed_rate_is_given_in_full():
    """A client that sends at the rate gets all of it and is never refused: 600 a minute, for ten minutes."""
    clock = Clock(1e9)
    account = Account(Rate.per_minute(600, 60_000, burst_s=0.1), clock=clock)
    for index in range(6000):
        clock.now = 1e9 + index * 0.1
        assert account.admit(M, 100).admitted
    assert clock.now - 1e9 == pytest.approx(ideal_seconds(Rate.per_minute(600, 60_000, burst_s=0.1), 6000, 100))


def test_a_bucket_holds_one_request_at_least():
    """A rate of one in ten seconds admits one at once, then one in ten seconds, although its second holds a tenth."""
    clock = Clock()
    account = Account(Rate(0.1), clock=clock)
    assert account.admit(M, 0).admitted
    assert retry_after_s(account.admit(M, 0)) == 10
    clock.now = 9.9
    assert not account.admit(M, 0).admitted
    clock.now = 10
    assert account.admit(M, 0).admitted


def test_larger_than_the_bucket():
    """It is admitted when the bucket is full, and pays afterwards: no request waits for ever, the rate still holds."""
    clock = Clock()
    account = Account(Rate(None, 100), clock=clock)
    assert account.admit(M, 1).admitted
    assert retry_after_s(account.admit(M, 1000)) == pytest.approx(0.01)
    clock.now = 0.01
    assert account.admit(M, 1000).admitted
    assert account.state(M).tokens.remaining == pytest.approx(-900)
    assert account.admit(M, 1).headers["x-tokenlimit-remaining"] == "0"
    assert retry_after_s(account.admit(M, 1)) == pytest.approx(9.01)
    assert retry_after_s(account.admit(M, 1000)) == pytest.approx(10)


def test_a_refused_request_takes_nothing():
    """A thousand refusals delay nobody."""
    clock = Clock()
    account = Account(Rate(10, 1000), clock=clock)
    while account.admit(M, 100).admitted:
        pass
    before = account.state(M)
    for _ in range(1000):
        account.admit(M, 100)
    assert account.state(M).tokens == before.tokens
    assert account.state(M).requests == before.requests
    clock.now = 0.1
    assert account.admit(M, 100).admitted


def test_refund():
    """Unused tokens are returned, requests are not, and the bucket never gets fuller than full."""
    clock = Clock()
    account = Account(Rate(10, 1000), clock=clock)
    account.admit(M, 1000)
    assert not account.admit(M, 400).admitted
    account.refund(M, 400)
    assert account.admit(M, 400).admitted
    assert account.state(M).requests.remaining == 8
    account.refund(M, 10**6)
    assert account.state(M).tokens.remaining == 1000
    Account().refund("never asked for", 5)


def test_refund_takes_the_rise_back():
    """Only use raises the limit: a refunded reservation has not raised it."""
    account = Account(Rate(None, 1000, dynamic=Dynamic()), clock=Clock())
    account.admit(M, 100)
    raised = account.state(M).tokens.limit
    account.refund(M, 50)
    assert account.state(M).tokens.limit == pytest.approx((100 + raised) / 2)
    account.refund(M, 10**6)
    assert account.state(M).tokens.limit == 50  # the floor


def test_refund_at_the_ceiling():
    """There the limit stays: a client that reserves much and uses little is not slowed down."""
    account = Account(Rate(None, 1000, dynamic=Dynamic(start=1)), clock=Clock())
    account.admit(M, 1000)
    account.refund(M, 900)
    assert account.state(M).tokens.limit == 1000
