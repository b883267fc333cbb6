"""The account: its headers and errors, overload, clocks, state."""

import math
import re
import timeit

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.accounts import RATES, STEPS, Clock, M, retry_after_s
from together_async.testing.account import Account, Counts, Verdict
from together_async.testing.buckets import BucketState
from together_async.testing.ideal import ideal_requests, ideal_seconds
from together_async.testing.rates import Dynamic, Rate


def test_without_limits():
    """Everything is admitted, and no header speaks of limits."""
    account = Account()
    verdicts = [account.admit(M, 10**6) for _ in range(1000)]
    assert verdicts == [Verdict(200, {}, None)] * 1000
    assert account.state(M).requests is account.state(M).tokens is None


@pytest.mark.parametrize(
    ("rate", "names"),
    [
        (Rate(10), {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}),
        (Rate(None, 10), {"x-tokenlimit-limit", "x-tokenlimit-remaining", "x-ratelimit-reset"}),
        (
            Rate(10, dynamic=Dynamic()),
            {
                "x-ratelimit-limit",
                "x-ratelimit-remaining",
                "x-ratelimit-reset",
                "x-ratelimit-limit-dynamic",
                "x-ratelimit-remaining-dynamic",
            },
        ),
        (
            Rate(10, 100, dynamic=Dynamic()),
            {
                "x-ratelimit-limit",
                "x-ratelimit-remaining",
                "x-ratelimit-reset",
                "x-ratelimit-limit-dynamic",
                "x-ratelimit-remaining-dynamic",
                "x-tokenlimit-limit",
                "x-tokenlimit-remaining",
                "x-tokenlimit-limit-dynamic",
                "x-tokenlimit-remaining-dynamic",
            },
        ),
    ],
)
def test_headers_are_those_of_the_limited_buckets(rate, names):
    """Every verdict, 200, 429 or 503, has the headers of the limited buckets and no others."""
    account = Account(rate, clock=Clock(), overloaded=[(0, 1)])
    assert account.admit(M, 1).status == 503
    clock = Clock()
    limited = Account(rate, clock=clock)
    verdicts = [account.admit(M, 1), *(limited.admit(M, 1) for _ in range(50))]
    assert {verdict.status for verdict in verdicts} == {200, 429, 503}
    assert all(set(verdict.headers) == names for verdict in verdicts)
    assert all(float(value) >= 0 for verdict in verdicts for value in verdict.headers.values())


def test_headers_of_a_fixed_rate():
    """The limits are per second; `remaining` counts this request; reset is 0 if the next would be admitted."""
    account = Account(Rate.per_minute(120, 6000, burst_s=2), clock=Clock())
    assert account.admit(M, 30) == Verdict(
        200,
        {
            "x-ratelimit-limit": "2",
            "x-ratelimit-remaining": "3",
            "x-tokenlimit-limit": "100",
            "x-tokenlimit-remaining": "170",
            "x-ratelimit-reset": "0",
        },
    )


def test_headers_of_a_dynamic_rate():
    """The bare names hold the ceiling, `-dynamic` the live limit, which this request has already raised."""
    rate = Rate(100, dynamic=Dynamic(start=0.1, doubling_s=math.log(2)))
    assert Account(rate, clock=Clock()).admit(M, 0).headers == {
        "x-ratelimit-limit": "100",
        "x-ratelimit-remaining": "98",  # 100, less the 2 that a bucket for 11 lacks
        "x-ratelimit-limit-dynamic": "11",
        "x-ratelimit-remaining-dynamic": "9",
        "x-ratelimit-reset": "0",
    }


@pytest.mark.parametrize("dynamic", [None, Dynamic(start=1.0)])
@pytest.mark.parametrize(
    ("rate", "tokens", "type"),
    [
        (Rate(1), 5, "dynamic_request_limited"),
        (Rate(None, 5), 5, "dynamic_token_limited"),
        (Rate(1, 100), 5, "dynamic_request_limited"),
        (Rate(100, 5), 5, "dynamic_token_limited"),
        (Rate(0.1, 5), 5, "dynamic_request_limited"),  # both are short: the longer wait
        (Rate(1, 0.1), 5, "dynamic_token_limited"),
    ],
)
def test_the_body_of_a_429(rate, tokens, type, dynamic):
    """The types of the API's page, for fixed and dynamic rates alike, and the same in the counts."""
    account = Account(attrs.evolve(rate, dynamic=dynamic), clock=Clock())
    assert account.admit(M, tokens).admitted
    refused = account.admit(M, tokens)
    assert (refused.status, refused.admitted) == (429, False)
    assert set(refused.body) == {"error"}
    assert set(refused.body["error"]) == {"message", "type", "param", "code"}
    assert refused.body["error"]["type"] == type
    assert "rate limiting" in refused.body["error"]["message"]
    by_requests = type == "dynamic_request_limited"
    assert account.counts(M) == Counts(admitted=1, limited_requests=by_requests, limited_tokens=not by_requests)


def test_bodies_are_not_shared():
    """Changing the body of one verdict does not change the next."""
    account = Account(Rate(1e-6), clock=Clock())
    account.admit(M, 0)
    account.admit(M, 0).body["error"]["message"] = "changed"
    assert account.admit(M, 0).body["error"]["message"] != "changed"


def test_models_are_apart():
    """Each model has buckets of its own, at the rate named for it or at the common one."""
    account = Account(Rate(2), per_model={"big": Rate(1), "free": Rate()}, clock=Clock())
    admitted = {model: sum(account.admit(model, 1).admitted for _ in range(5)) for model in ("a", "b", "big", "free")}
    assert admitted == {"a": 2, "b": 2, "big": 1, "free": 5}
    assert account.counts("big") == Counts(admitted=1, limited_requests=4)
    assert account.counts() == Counts(admitted=10, limited_requests=10)
    assert account.counts().asked == 20
    assert account.counts("never asked for") == Counts()
    assert Account().counts() == Counts()


def test_overloaded_by_probability():
    """The share is the probability's, the same seed repeats it, and another seed doesn't."""

    def run(seed: int, rate: Rate | None = None) -> list[int]:
        account = Account(rate, overloaded=0.3, seed=seed, clock=Clock())
        return [account.admit(M, 1).status for _ in range(2000)]

    assert run(1).count(503) == pytest.approx(600, rel=0.1)
    assert run(1) == run(1) != run(2)
    assert run(1, Rate(10))[:10] == run(1)[:10]


@pytest.mark.parametrize("overloaded", [[(2, 4), (6, 7)], lambda now: 2 <= now < 4 or 6 <= now < 7], ids=type)
def test_overloaded_by_time(overloaded):
    """In spans of account time, whatever the clock began with."""
    clock = Clock(1e6)
    account = Account(overloaded=overloaded, clock=clock)
    statuses = []
    for clock.now in range(10**6, 10**6 + 8):
        statuses.append(account.admit(M, 1).status)
    assert statuses == [200, 200, 503, 503, 200, 200, 503, 200]
    assert account.now == 7
    assert account.counts(M) == Counts(admitted=5, overloaded=3)


def test_a_503_is_not_about_the_account():
    """A 503 takes no capacity and moves no limit; a request above the rate is a 429 even then."""
    clock = Clock()
    account = Account(Rate(2, dynamic=Dynamic(start=1)), overloaded=[(0, 10)], clock=clock)
    before = account.state(M)
    for _ in range(10):
        verdict = account.admit(M, 1)
        assert (verdict.status, verdict.admitted) == (503, False)
        assert "overloaded" in verdict.body["error"]["message"]
        assert "limited" not in verdict.body["error"]["type"]
        assert verdict.headers["x-ratelimit-remaining"] == "2"
    assert account.state(M).requests == before.requests
    clock.now = 10
    assert [account.admit(M, 1).status for _ in range(3)] == [200, 200, 429]
    exhausted = Account(Rate(1), overloaded=lambda now: exhausted.counts().admitted > 0, clock=clock)
    assert [exhausted.admit(M, 1).status for _ in range(2)] == [200, 429]


@given(RATES, STEPS, st.sampled_from([0.0, -1e5, 2.0**30]))
def test_any_start_is_the_same(rate, steps, start):
    """An account that began at another time decides the same."""
    clocks = Clock(), Clock(start)
    accounts = [Account(rate, clock=clock) for clock in clocks]
    for pause, tokens in steps:
        for clock in clocks:
            clock.now += round(pause * 1024) / 1024  # exact from every start
        first, second = (account.admit(M, tokens) for account in accounts)
        assert first == second


def test_a_faster_clock():
    """At 60 seconds per second an hour's traffic takes a minute; waits are in the account's seconds."""
    real = Clock()
    account = Account(Rate(10), clock=lambda: 1e5 + 60 * real.now)
    admitted = 0
    while real.now < 60:
        verdict = account.admit(M, 0)
        admitted += verdict.admitted
        real.now += 0 if verdict.admitted else retry_after_s(verdict) / 60
    assert admitted == pytest.approx(36_010, abs=2)


@given(RATES, st.lists(st.tuples(st.floats(-1000, 1000), st.integers(0, 5000)), max_size=50))
def test_a_clock_that_goes_backwards(rate, steps):
    """A step back counts as no time: no negative wait, nothing lost, and the reset still holds."""
    clock = Clock()
    account = Account(rate, clock=clock)
    was = account.now
    for step, tokens in steps:
        clock.now += step
        verdict = account.admit(M, tokens)
        assert float(verdict.headers.get("x-ratelimit-reset", 0)) >= 0
        assert account.now >= was
        was = account.now
        if not verdict.admitted:
            clock.now += retry_after_s(verdict)
            assert account.admit(M, tokens).admitted


def test_a_clock_set_back_an_hour():
    """The refill goes on from there."""
    clock = Clock(7200)
    account = Account(Rate(1), clock=clock)
    account.admit(M, 0)
    clock.now = 3600
    assert retry_after_s(account.admit(M, 0)) == 1
    clock.now = 3601
    assert account.admit(M, 0).admitted


def test_state_and_repr():
    """The live limits are a value, and read well."""
    clock = Clock()
    account = Account(Rate(10, 1000, dynamic=Dynamic()), clock=clock)
    account.admit(M, 40)
    state = account.state(M)
    assert state == account.state(M)
    assert state.tokens == BucketState(
        limit=100 + 40 * math.log(2) / 30, ceiling=1000, remaining=60, size=state.tokens.size
    )
    assert repr(state) == (
        "ModelLimits(model='model', requests=BucketState(limit=1.0231, ceiling=10, remaining=0, size=1.0231), "
        "tokens=BucketState(limit=100.924, ceiling=1000, remaining=60, size=100.924), "
        "counts=Counts(admitted=1, limited_requests=0, limited_tokens=0, overloaded=0))"
    )
    assert repr(account) == (
        "<Account at 0 s: Counts(admitted=1, limited_requests=0, limited_tokens=0, overloaded=0), models: model>"
    )
    assert repr(Account(clock=clock)).endswith("models: none yet>")


def test_a_limit_that_is_not_whole_is_written_exactly():
    """100 a minute is not a whole number per second; a client that paces by the header is never refused."""
    clock = Clock()
    account = Account(Rate.per_minute(100, burst_s=0.001), clock=clock)
    for _ in range(5000):
        verdict = account.admit(M, 0)
        assert verdict.admitted
        clock.now += 1 / float(verdict.headers["x-ratelimit-limit"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dynamic(start=0.01), "Dynamic.start: got 0.01, expected a number from 0.05 to 1"),
        (lambda: Dynamic(fall_every_s=-1), "Dynamic.fall_every_s: got -1, expected a number from 0 to 1e+09"),
        (lambda: Dynamic(fall=1.5), "Dynamic.fall: got 1.5, expected a number from 0.001 to 1"),
        (lambda: Rate(1, dynamic=True), "Rate.dynamic: got True, expected a Dynamic, or None for a fixed rate"),
        (lambda: Rate(1, burst_s=0), "Rate.burst_s: got 0, expected a number above 0 and at most 1e+06"),
        (lambda: Account(5), "rate: got 5, expected a Rate, or None for no limit"),
        (lambda: Account(per_model=[1]), "per_model: got [1], expected a mapping of model names to Rates, or None"),
        (lambda: Account(per_model={1: Rate()}), "per_model: got 1, expected names of models"),
        (lambda: Account(per_model={"m": 5}), "per_model['m']: got 5, expected a Rate"),
        (lambda: Account(clock=5), "clock: got 5, expected a function that returns seconds"),
        (lambda: Account(seed="x"), "seed: got 'x', expected an int"),
        (lambda: Account(overloaded=1.1), "overloaded: got 1.1, expected a number from 0 to 1"),
        (lambda: Account(overloaded=math.nan), "overloaded: got nan, expected a number from 0 to 1"),
        (lambda: Account(overloaded=True), "overloaded: got True, expected a number from 0 to 1"),
        (lambda: Account(overloaded=None), "overloaded: got None, expected a probability, a function of account"),
        (lambda: Account(overloaded="ab"), "overloaded: got 'ab', expected a probability, a function of account"),
        (lambda: Account(overloaded=[(5, 4)]), "overloaded: got [(5, 4)], expected a probability, a function of"),
        (lambda: Account(overloaded=[(1, 2, 3)]), "overloaded: got [(1, 2, 3)], expected a probability, a function"),
        (lambda: Account().admit(5, 5), "model: got 5, expected a model's name"),
        (lambda: Account().admit([], 5), "model: got [], expected a model's name"),
        (lambda: Account().state(None), "model: got None, expected a model's name"),
        (lambda: Account().refund(None, 1), "model: got None, expected a model's name"),
        (lambda: Account().admit(M, -1), "tokens: got -1, expected a whole number from 0 to 1e+12"),
        (lambda: Account().admit(M, 1.5), "tokens: got 1.5, expected a whole number from 0 to 1e+12"),
        (lambda: Account().admit(M, 10**5000), "tokens: got an int too large, expected a whole number from 0"),
        (lambda: Account().refund(M, True), "tokens: got True, expected a whole number from 0 to 1e+12"),
        (lambda: ideal_requests(5, 1), "rate: got 5, expected a Rate"),
        (lambda: ideal_requests(Rate(), -1), "seconds: got -1, expected a number from 0 to 1e+12"),
        (lambda: ideal_seconds(Rate(), -1), "requests: got -1, expected a number from 0 to 1e+12"),
        (lambda: ideal_seconds(Rate(), 1, tokens=-1), "tokens: got -1, expected a number from 0 to 1e+12"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(make, message):
    """The message has the argument, the value and the expectation."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()


@pytest.mark.parametrize("limit", [1e-9, 1e12])
@pytest.mark.parametrize("tokens", [0, 1, 10**12])
def test_extremes(limit, tokens):
    """At the ends of the ranges the numbers stay finite, and the reset still holds."""
    clock = Clock()
    account = Account(Rate(limit, limit, burst_s=1e6, dynamic=Dynamic(doubling_s=1e-3)), clock=clock)
    for _ in range(5):
        verdict = account.admit(M, tokens)
        assert all(math.isfinite(float(value)) for value in verdict.headers.values())
        if not verdict.admitted:
            clock.now += retry_after_s(verdict)
            assert account.admit(M, tokens).admitted


def test_the_cost_of_admit():
    """Measured at 7 us with everything limited and dynamic; a hundred is for slow machines."""
    account = Account(Rate(1e9, 1e9, dynamic=Dynamic()))
    assert min(timeit.repeat(lambda: account.admit(M, 100), number=1000, repeat=5)) / 1000 < 100e-6
