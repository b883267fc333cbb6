"""A clock, strategies for rates and requests, and clients of an account, each of which returns the counts it got."""

import math
import random

from hypothesis import strategies as st

from together_async.testing.account import Account, Counts, Verdict
from together_async.testing.rates import Dynamic, Rate

M = "model"


class Clock:
    """A clock that goes where the test sends it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def retry_after_s(verdict: Verdict) -> float:
    """The seconds to wait after a 429, by its reset header."""
    assert verdict.status == 429
    return float(verdict.headers["x-ratelimit-reset"])


def live(verdict: Verdict, tokens: int) -> float:
    """The requests per second that the headers of a verdict allow for requests of so many tokens."""
    by_requests = float(verdict.headers.get("x-ratelimit-limit-dynamic", math.inf))
    by_tokens = float(verdict.headers.get("x-tokenlimit-limit-dynamic", math.inf))
    return min(by_requests, by_tokens / tokens if tokens else math.inf)


def steady(rate: Rate, seconds: float, tokens: int, *, pace: float = 1.0, jitter: float = 0.0) -> Counts:
    """Sends one request after the other, spaced by the live limits in each verdict."""
    clock, rng = Clock(), random.Random(1)
    account = Account(rate, clock=clock)
    while clock.now <= seconds:
        space = 1 / live(account.admit(M, tokens), tokens)
        clock.now += space / pace * (1 + jitter * rng.uniform(-1, 1))
    return account.counts(M)


def greedy(rate: Rate, seconds: float, tokens: int) -> Counts:
    """Knows the buckets, and takes every request's capacity in the moment it is there."""
    clock = Clock()
    account = Account(rate, clock=clock)
    while True:
        state = account.state(M)
        kinds = [(bucket, need) for bucket, need in ((state.requests, 1), (state.tokens, tokens)) if bucket]
        clock.now += max(0.0, *((min(need, bucket.size) - bucket.remaining) / bucket.limit for bucket, need in kinds))
        if clock.now > seconds:
            return account.counts(M)
        account.admit(M, tokens)


def gathering(rate: Rate, seconds: float, tokens: int, *, requests: int, obeys_reset: bool) -> Counts:
    """Sends all requests at once, and each refused one again after the reset it got, or every second."""
    clock = Clock()
    account = Account(rate, clock=clock)
    due = dict.fromkeys(range(requests), 0.0)
    while due and (now := min(due.values())) <= seconds:
        clock.now = now
        for request in [request for request, at in due.items() if at == now]:
            verdict = account.admit(M, tokens)
            if verdict.admitted:
                del due[request]
            else:
                due[request] = now + (retry_after_s(verdict) if obeys_reset else 1.0)
    return account.counts(M)


RATES = st.builds(
    Rate,
    st.none() | st.floats(0.01, 1000),
    st.none() | st.floats(0.1, 1e6),
    st.floats(0.01, 100),
    st.none() | st.builds(Dynamic, st.floats(0.05, 1), doubling_s=st.floats(0.1, 1000), fall=st.floats(0.1, 1)),
)
STEPS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5000)), min_size=1, max_size=60)
DYNAMIC = [
    (Rate(10, dynamic=Dynamic()), 600, 0),
    (Rate.per_minute(600, 60_000, dynamic=Dynamic(start=0.1)), 300, 100),
    (Rate(None, 1000, dynamic=Dynamic(start=0.05)), 600, 37),
    (Rate(100, 1000, dynamic=Dynamic(start=0.2, doubling_s=60)), 300, 20),
    (Rate(50, burst_s=3, dynamic=Dynamic(start=0.5, doubling_s=5)), 300, 0),
    (Rate(1000, 1e6, burst_s=0.2, dynamic=Dynamic(start=0.01, floor=0.01, doubling_s=10)), 120, 500),
]
