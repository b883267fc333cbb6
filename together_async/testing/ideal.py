"""The oracle of benchmarks: the most that an account with a given rate can admit, in closed form. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from together_async.testing.rates import LARGEST, Rate
from together_async.testing.validators import check_number, check_type


class _Curve(NamedTuple):
    """The capacity that a fresh bucket gives, as a function of time, to a client that uses all of it.

    `at_once` is taken at time 0. Then the limit is `limit` and rises by the share `growth` of itself per second, until
    it reaches the ceiling at `full_at`, when `full_amount` has been given. The capacity is the integral of the limit.
    """

    ceiling: float
    at_once: float
    limit: float
    growth: float
    full_at: float
    full_amount: float

    @classmethod
    def of(cls, ceiling: float, rate: Rate, least: float) -> _Curve:
        """Returns the curve of a bucket; a request takes `least` of it."""
        if rate.dynamic is None:
            at_once = max(least, ceiling * rate.burst_s)
            return cls(ceiling, at_once, ceiling, 0.0, 0.0, at_once)
        growth, start = rate.dynamic.growth, ceiling * rate.dynamic.start
        at_once = max(least, start * rate.burst_s)
        limit = min(ceiling, start + growth * at_once)
        full_amount = at_once + (ceiling - limit) / growth
        return cls(ceiling, at_once, limit, growth, math.log(ceiling / limit) / growth, full_amount)

    def amount(self, seconds: float) -> float:
        """Returns the capacity given within so many seconds."""
        if seconds >= self.full_at:
            return self.full_amount + self.ceiling * (seconds - self.full_at)
        return self.at_once + self.limit * math.expm1(self.growth * seconds) / self.growth

    def seconds(self, amount: float) -> float:
        """Returns the time at which so much has been given; the inverse of `amount`."""
        if amount <= self.at_once:
            return 0.0
        if amount >= self.full_amount:
            return self.full_at + (amount - self.full_amount) / self.ceiling
        return math.log1p(self.growth * (amount - self.at_once) / self.limit) / self.growth


def _curves(rate: Rate, tokens: float) -> list[tuple[_Curve, float]]:
    """Returns the curve of every limited bucket, with the amount that a request of so many tokens takes of it."""
    check_type("rate", rate, Rate, "a Rate")
    check_number("tokens", tokens, 0, LARGEST)
    taken = [(rate.requests_per_second, 1.0), (rate.tokens_per_second, tokens)]
    return [(_Curve.of(limit, rate, each), each) for limit, each in taken if limit is not None and each > 0]


def ideal_requests(rate: Rate, seconds: float, tokens: float = 0) -> float:
    """Returns the most requests that a fresh account admits within so many seconds: the oracle of the benchmarks.

    A client reaches it if it knows the rule, takes the full bucket at once, and then uses all that refills without ever
    being refused. No client gets more; since requests are whole, it may get one less.

    Args:
        rate: The account's rate, fixed or dynamic.
        seconds: Account time, from 0 to 1e12.
        tokens: Tokens of each request, 0 to 1e12, where they differ their mean. They may exceed the bucket's size.

    Returns:
        The number of requests, as a fraction; infinite when nothing is limited.

    Raises:
        ValueError: An argument is out of its range.
    """
    check_number("seconds", seconds, 0, LARGEST)
    return min((curve.amount(seconds) / each for curve, each in _curves(rate, tokens)), default=math.inf)


def ideal_seconds(rate: Rate, requests: float, tokens: float = 0) -> float:
    """Returns the least time in which a fresh account admits so many requests; the inverse of `ideal_requests`.

    Args:
        rate: The account's rate, fixed or dynamic.
        requests: The number of requests, from 0 to 1e12.
        tokens: Tokens of each request, as in `ideal_requests`.

    Returns:
        Seconds of account time from the first admission to the last; 0 when nothing is limited.

    Raises:
        ValueError: An argument is out of its range.
    """
    check_number("requests", requests, 0, LARGEST)
    return max((curve.seconds(requests * each) for curve, each in _curves(rate, tokens)), default=0.0)
