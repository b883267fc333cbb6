"""How dynamic limits rise with use and fall with a 429."""

import attrs
import pytest

from support.accounts import DYNAMIC, Clock, M, gathering, live, retry_after_s, steady
from together_async.testing.account import Account
from together_async.testing.buckets import BucketState
from together_async.testing.ideal import ideal_requests, ideal_seconds
from together_async.testing.rates import Dynamic, Rate


@pytest.mark.parametrize(("rate", "seconds", "tokens"), DYNAMIC)
@pytest.mark.parametrize("obeys_reset", [True, False])
def test_a_bursting_client_gets_less(rate, seconds, tokens, obeys_reset):
    """All at once, and again at the reset or every second: mostly 429s, and less than two thirds of the oracle."""
    requests = min(300, int(ideal_requests(rate, seconds, tokens)))
    ideal = ideal_seconds(rate, requests, tokens)
    got = gathering(rate, ideal, tokens, requests=requests, obeys_reset=obeys_reset)
    assert got.admitted < 0.67 * requests
    assert got.limited > got.admitted


@pytest.mark.parametrize(("rate", "seconds", "tokens"), DYNAMIC[:5])
def test_jitter_is_no_burst(rate, seconds, tokens):
    """Spaces that vary by a third, at 97 % of the limit, bring no 429: the bucket takes them up."""
    rate = attrs.evolve(rate, burst_s=5)
    got = steady(rate, seconds, tokens, pace=0.97, jitter=1 / 3)
    assert got.limited == 0
    assert got.admitted / ideal_requests(rate, seconds, tokens) > 0.93


@pytest.mark.parametrize("rate", [Rate(10, dynamic=Dynamic()), Rate(1000, dynamic=Dynamic(doubling_s=7))])
def test_full_use_doubles_the_limit(rate):
    """A client that uses the limit in full sees it doubled after `doubling_s`, up to the ceiling and no further."""
    clock = Clock()
    account = Account(attrs.evolve(rate, burst_s=0.001), clock=clock)
    limits = {}
    while clock.now < 6 * rate.dynamic.doubling_s:
        limits[clock.now] = live(account.admit(M, 0), 0)
        clock.now += 1 / limits[clock.now]
    for doublings in (1, 2, 3):
        at = min(limits, key=lambda now: abs(now - doublings * rate.dynamic.doubling_s))
        assert limits[at] / rate.requests_per_second == pytest.approx(0.1 * 2**doublings, rel=0.05)
    assert max(limits.values()) == limits[max(limits)] == rate.requests_per_second


def test_use_by_half_raises_the_limit_slower():
    """Half the use, half the rise."""
    full, half = (
        Account(Rate(1000, burst_s=10, dynamic=Dynamic(doubling_s=1000)), clock=(clock := Clock())) for _ in range(2)
    )
    for index in range(200):
        clock.now = index * 0.01
        full.admit(M, 0)
        if index % 2:
            half.admit(M, 0)
    rises = [account.state(M).requests.limit - 100 for account in (full, half)]
    assert rises[1] == pytest.approx(rises[0] / 2)


def test_an_idle_account_stays():
    """A day without use moves no limit, up or down; the bucket is full then, and no fuller."""
    clock = Clock()
    account = Account(Rate(100, 1000, dynamic=Dynamic()), clock=clock)
    account.admit(M, 50)
    before = account.state(M)
    clock.now += 86_400
    after = account.state(M)
    assert after.requests.limit == before.requests.limit
    assert after.tokens.limit == before.tokens.limit
    assert after.requests.remaining == after.requests.size == after.requests.limit


def test_a_burst_lowers_the_limit_once():
    """A hundred 429s in `fall_every_s` are one burst; the next one counts again, down to the floor."""
    clock = Clock()
    account = Account(Rate(100, dynamic=Dynamic(start=0.4, floor=0.08, fall=0.5, fall_every_s=5)), clock=clock)

    def refuse(count: int) -> float:
        while account.admit(M, 0).admitted:
            pass
        for _ in range(count):
            assert not account.admit(M, 0).admitted
        return account.state(M).requests.limit

    first = refuse(100)
    assert 20 < first < 21
    clock.now = 4.9
    assert refuse(100) > first  # the admitted requests raised it
    clock.now = 5.0
    second = refuse(100)
    assert second == pytest.approx(0.5 * first, rel=0.1)
    for clock.now in range(10, 100, 5):
        lowest = refuse(1)
    assert lowest == 8


def test_only_what_was_short_falls():
    """A burst of tokens leaves the requests' limit alone."""
    account = Account(Rate(1000, 1000, dynamic=Dynamic(start=0.5)), clock=Clock())
    account.admit(M, 500)
    requests = account.state(M).requests.limit
    assert account.admit(M, 500).body["error"]["type"] == "dynamic_token_limited"
    state = account.state(M)
    assert state.requests.limit == requests > 500
    assert state.tokens.limit < 300
    account = Account(Rate(10, 1000, dynamic=Dynamic(start=0.1)), clock=Clock())
    account.admit(M, 10)
    tokens = account.state(M).tokens.limit
    assert account.admit(M, 10).body["error"]["type"] == "dynamic_request_limited"
    assert account.state(M).tokens.limit == tokens > 100


def test_a_fall_admits_nothing():
    """A bucket that shrinks gets no fuller: the refused request is refused until the reset."""
    clock = Clock()
    account = Account(Rate(None, 1000, dynamic=Dynamic(start=1)), clock=clock)
    account.admit(M, 400)
    wait = retry_after_s(account.admit(M, 800))  # 600 of 1000 are left; 300 of 500 after the fall
    assert account.state(M).tokens == BucketState(500, 1000, 300, 500)
    assert wait == pytest.approx(0.4)  # until it is full, since it no longer holds 800
    assert retry_after_s(account.admit(M, 800)) == wait
    clock.now = wait
    assert account.admit(M, 800).admitted


def test_growth_after_a_fall_is_by_use_again():
    """The way back is the same: used in full, a halved limit is back after `doubling_s`."""
    clock = Clock()
    account = Account(Rate(1000, dynamic=Dynamic(start=1, doubling_s=10)), clock=clock)
    while account.admit(M, 0).admitted:
        pass
    assert account.state(M).requests.limit == 500
    clock.now += 0.01
    while clock.now < 10:
        verdict = account.admit(M, 0)
        assert verdict.admitted
        clock.now += 1 / live(verdict, 0)
    assert live(verdict, 0) == pytest.approx(1000, rel=0.01)
