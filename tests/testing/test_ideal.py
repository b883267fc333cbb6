"""The oracle: no client gets more, and some get as much."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.accounts import DYNAMIC, RATES, STEPS, Clock, M, greedy, steady
from together_async.testing.account import Account
from together_async.testing.ideal import ideal_requests, ideal_seconds
from together_async.testing.rates import Dynamic, Rate


@pytest.mark.parametrize(("rate", "seconds", "tokens"), DYNAMIC)
def test_a_steady_client_gets_what_the_oracle_says(rate, seconds, tokens):
    """Spaced by the live limits, it gets 98 % of the oracle at least, never more than all, and no 429."""
    got = steady(rate, seconds, tokens)
    assert got.limited == 0
    assert 0.98 <= got.admitted / ideal_requests(rate, seconds, tokens) <= 1


@pytest.mark.parametrize(("rate", "seconds", "tokens"), DYNAMIC)
def test_the_oracle_can_be_reached(rate, seconds, tokens):
    """A client that takes all capacity at once gets at least the oracle's number less one, all along the curve."""
    for until in (0, seconds / 20, seconds / 4, seconds):
        ideal = ideal_requests(rate, until, tokens)
        got = greedy(rate, until, tokens)
        assert got.limited == 0
        assert ideal * 0.98 - 1 <= got.admitted <= ideal + 1e-6
        assert ideal_seconds(rate, got.admitted, tokens) <= until + 1e-6


@given(RATES, STEPS)
def test_nothing_gets_more_than_the_oracle(rate, steps):
    """Whatever a client does, refusals and falls included, the oracle is above it."""
    clock = Clock()
    account = Account(rate, clock=clock)
    tokens = max(tokens for _, tokens in steps)
    for pause, _ in steps:
        clock.now += pause
        for _ in range(20):
            account.admit(M, tokens)
    ideal = ideal_requests(rate, clock.now + 1e-4, tokens)
    assert account.counts(M).admitted <= ideal * (1 + 1e-9) + 1e-6


def test_the_oracle_of_a_fixed_rate():
    """The bucket at once, then the rate; the tighter of requests and tokens decides."""
    rate = Rate.per_minute(600, 60_000)
    assert ideal_seconds(rate, 10) == 0
    assert ideal_seconds(rate, 2000) == pytest.approx(199)
    assert ideal_seconds(rate, 2000, tokens=200) == pytest.approx(399)
    assert ideal_requests(rate, 60) == pytest.approx(610)
    assert ideal_requests(rate, 60, tokens=200) == pytest.approx(305)
    assert ideal_seconds(rate, 2, tokens=5000) == pytest.approx(5)  # larger than the bucket: one at once
    assert ideal_seconds(Rate(), 10**6, 10**6) == 0
    assert ideal_requests(Rate(), 0) == math.inf
    assert ideal_requests(Rate(None, 5), 60, tokens=0) == math.inf


def test_the_oracle_of_a_dynamic_rate():
    """By hand: 1/s, growing by e per second to 100/s, with a bucket of one request that is used at once."""
    rate = Rate(100, burst_s=0.001, dynamic=Dynamic(start=0.01, floor=0.01, doubling_s=math.log(2)))
    assert ideal_requests(rate, 0) == 1
    assert ideal_requests(rate, 3) == pytest.approx(1 + 2 * (math.exp(3) - 1))
    full_at = math.log(50)
    assert ideal_requests(rate, full_at) == pytest.approx(1 + 2 * 49)
    assert ideal_requests(rate, full_at + 10) == pytest.approx(1099)


@given(RATES.filter(lambda rate: rate != Rate()), st.floats(0, 1e6), st.integers(0, 10**5))
def test_the_oracles_are_inverse(rate, requests, tokens):
    """The requests of some seconds need that many seconds."""
    seconds = ideal_seconds(rate, requests, tokens)
    back = ideal_requests(rate, seconds, tokens)
    assert back >= requests * (1 - 1e-9)
    if seconds > 0:
        assert back == pytest.approx(requests)
