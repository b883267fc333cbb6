"""An organisation's account as the emulator plays it: rates per model, dynamic limits, overload. Pure.

No socket, no event loop and no clock of its own: time is the `clock` argument (any scale, any start), and randomness
comes from the seed. Each model has a bucket for requests and a bucket for tokens, as far as they are limited. A bucket
holds capacity and refills at the live limit, up to its size: the capacity of `Rate.burst_s` seconds, for requests at
least one.

Decided here, where https://docs.together.ai/docs/serverless/rate-limits leaves it open:

* A request is admitted when both buckets hold enough for it. A request larger than a whole bucket is admitted when the
  bucket is full, and leaves it in debt; so nothing is refused for ever, and the long-run rate still holds.
* A 429 takes no capacity (where it lowers a dynamic limit, the bucket shrinks with its content); neither does a 503.
  The rates are checked first: a 503 means that the account was within them.
* The 429 of a fixed rate has the same error types as that of a dynamic one; the service of today knows no others.
* `x-ratelimit-reset` is, on every response, the seconds after which the same request sent again would be admitted if
  no other came ("suggested retry interval"): 0 when that is now, and on a 429 the time to wait.
* `-limit` is the ceiling and `-limit-dynamic` the live limit, both per second; `-remaining-dynamic` is the bucket's
  capacity, `-remaining` that of a bucket of the ceiling's size after the same use. Only limited buckets have headers.

Dynamic limits follow one rule, `Dynamic`; the most that it admits is in `ideal`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from together_async.testing.buckets import BucketState, RefillingBucket
from together_async.testing.rates import LARGEST, Rate
from together_async.testing.validators import check_number, check_type, shown

Overloaded: TypeAlias = Callable[[float], bool] | Sequence[tuple[float, float]] | float
"""When the platform is overloaded: a probability per request (0 to 1), spans (from, to) of account time, or a function
of account time. Account time is the clock's seconds since the account was made."""

_SLACK_S = 1e-6
"""A request that is early by no more than this is in time: the header with its time has six decimals. The capacity it
lacks is owed, so the rate does not change."""


@attrs.frozen
class Counts:
    """Requests by their outcome.

    Attributes:
        admitted: Within the rates, while the platform was not overloaded.
        limited_requests: 429s because of the number of requests.
        limited_tokens: 429s because of their tokens. Where both were short, the one with the longer wait counts.
        overloaded: 503s.
    """

    admitted: int = 0
    limited_requests: int = 0
    limited_tokens: int = 0
    overloaded: int = 0

    @property
    def limited(self) -> int:
        """All 429s."""
        return self.limited_requests + self.limited_tokens

    @property
    def asked(self) -> int:
        """All requests."""
        return self.admitted + self.limited + self.overloaded


@attrs.frozen
class ModelLimits:
    """The limits of one model at one moment.

    Attributes:
        model: The model's name.
        requests: The bucket for requests; None where they are not limited.
        tokens: The bucket for tokens; None where they are not limited.
        counts: The model's requests so far, by outcome.
    """

    model: str
    requests: BucketState | None
    tokens: BucketState | None
    counts: Counts


@attrs.frozen
class Verdict:
    """The account's decision on one request.

    Attributes:
        status: 200 for admitted, 429 for above the account's rate, 503 for an overloaded platform.
        headers: The rate limit headers, names in lower case; empty where nothing is limited.
        body: The error's JSON object; None when admitted.
    """

    status: Literal[200, 429, 503]
    headers: dict[str, str]
    body: dict[str, Any] | None = None

    @property
    def admitted(self) -> bool:
        """Whether the request may be answered."""
        return self.status == 200


def _error(message: str, type: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": None, "code": None}}


class _ModelUsage:
    """The buckets and counts of one model."""

    __slots__ = ("admitted", "limited_requests", "limited_tokens", "overloaded", "requests", "tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        requests, tokens = rate.requests_per_second, rate.tokens_per_second
        self.requests = None if requests is None else RefillingBucket(requests, rate, 1.0, now)
        self.tokens = None if tokens is None else RefillingBucket(tokens, rate, 0.0, now)
        self.admitted = self.limited_requests = self.limited_tokens = self.overloaded = 0

    def refill(self, now: float) -> None:
        if self.requests:
            self.requests.refill(now)
        if self.tokens:
            self.tokens.refill(now)

    def waits_s(self, tokens: int) -> tuple[float, float]:
        """Returns the seconds until a request of so many tokens would be admitted, by requests and by tokens."""
        return (
            self.requests.wait_s(1.0) if self.requests else 0.0,
            self.tokens.wait_s(tokens) if self.tokens else 0.0,
        )

    def headers(self, tokens: int) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self.requests:
            self.requests.write_headers(headers, "x-ratelimit")
        if self.tokens:
            self.tokens.write_headers(headers, "x-tokenlimit")
        if headers:
            wait_s = max(self.waits_s(tokens))
            headers["x-ratelimit-reset"] = f"{wait_s:.6f}" if wait_s else "0"
        return headers

    def counts(self) -> Counts:
        return Counts(self.admitted, self.limited_requests, self.limited_tokens, self.overloaded)


class Account:
    """An organisation's account: its limits for each model, and its use so far.

    Args:
        rate: The rate of every model that `per_model` does not name, each with buckets of its own; None does not limit.
        per_model: Rates by the model's name; None is the same as an empty mapping.
        overloaded: When the platform answers 503 although the account is within its rates (see `Overloaded`).
        clock: Returns seconds, at any scale, from any start. A step backwards counts as no time.
        seed: The seed for the probability in `overloaded`. Every request draws one number, whatever its outcome, so the
            n-th request has the same fate under other rates.

    Raises:
        ValueError: An argument is of the wrong type or out of its range.
    """

    def __init__(
        self,
        rate: Rate | None = None,
        *,
        per_model: Mapping[str, Rate] | None = None,
        overloaded: Overloaded = 0.0,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        check_type("rate", rate, Rate | None, "a Rate, or None for no limit")
        check_type("per_model", per_model, Mapping | None, "a mapping of model names to Rates, or None")
        for model, each in (per_model or {}).items():
            check_type("per_model", model, str, "names of models")
            check_type(f"per_model[{model!r}]", each, Rate, "a Rate")
        check_type("clock", clock, Callable, "a function that returns seconds")
        check_type("seed", seed, int, "an int")
        self._rate = rate or Rate()
        self._per_model = dict(per_model or {})
        self._is_overloaded = _overload(overloaded, random.Random(seed))  # noqa: S311 - repeatable rather than secret
        self._clock = clock
        self._clock_was = clock()
        self._slack_s = _SLACK_S
        self._now = 0.0
        self._models: dict[str, _ModelUsage] = {}

    def admit(self, model: str, tokens: int) -> Verdict:
        """Decides on one request, now.

        Args:
            model: The model's name.
            tokens: The tokens it may use, prompt and completion, 0 to 1e12. Pass unused ones to `refund`.

        Returns:
            The status, with its headers and error body.

        Raises:
            ValueError: `model` is not a str, or `tokens` is out of its range.
        """
        check_number("tokens", tokens, 0, LARGEST, whole=True)
        usage = self._at_present(model)
        overloaded = self._is_overloaded(self._now)
        for_requests_s, for_tokens_s = usage.waits_s(tokens)
        if for_requests_s > self._slack_s or for_tokens_s > self._slack_s:
            return self._limited(usage, tokens, for_requests_s, for_tokens_s)
        if overloaded:
            usage.overloaded += 1
            body = _error("The server is overloaded or not ready yet.", "service_unavailable")
            return Verdict(503, usage.headers(tokens), body)
        usage.admitted += 1
        if usage.requests:
            usage.requests.deduct(1.0)
        if usage.tokens:
            usage.tokens.deduct(tokens)
        return Verdict(200, usage.headers(tokens))

    def _limited(self, usage: _ModelUsage, tokens: int, for_requests_s: float, for_tokens_s: float) -> Verdict:
        if usage.requests and for_requests_s > self._slack_s:
            usage.requests.lower_limit(self._now)
        if usage.tokens and for_tokens_s > self._slack_s:
            usage.tokens.lower_limit(self._now)
        if for_requests_s >= for_tokens_s:
            usage.limited_requests += 1
            body = _error("Request was rejected due to request rate limiting.", "dynamic_request_limited")
        else:
            usage.limited_tokens += 1
            body = _error("Request was rejected due to token rate limiting.", "dynamic_token_limited")
        return Verdict(429, usage.headers(tokens), body)

    def refund(self, model: str, tokens: int) -> None:
        """Returns the tokens that an admitted request did not use, for instance because its client left early.

        The request itself stays counted. No bucket gets fuller than full.

        Args:
            model: The model's name.
            tokens: The unused tokens, 0 to 1e12.

        Raises:
            ValueError: `model` is not a str, or `tokens` is out of its range.
        """
        check_number("tokens", tokens, 0, LARGEST, whole=True)
        usage = self._at_present(model)
        if usage.tokens:
            usage.tokens.refund(tokens)

    def state(self, model: str) -> ModelLimits:
        """Returns a model's live limits, the capacity left, and its counts. Changes nothing but the refill.

        Raises:
            ValueError: `model` is not a str.
        """
        usage = self._at_present(model)
        requests = usage.requests.state() if usage.requests else None
        tokens = usage.tokens.state() if usage.tokens else None
        return ModelLimits(model, requests, tokens, usage.counts())

    def counts(self, model: str | None = None) -> Counts:
        """Returns the counts of one model, zeros for an unknown one; with None, of all models together."""
        if model is not None:
            return self._models[model].counts() if model in self._models else Counts()
        every = [attrs.astuple(usage.counts()) for usage in self._models.values()]
        return Counts(*map(sum, zip(*every, strict=True)))

    @property
    def now(self) -> float:
        """Account time: the clock's seconds since the account was made."""
        self._advance()
        return self._now

    def __repr__(self) -> str:
        models = ", ".join(self._models)
        return f"<Account at {self._now:.6g} s: {self.counts()!r}, models: {models or 'none yet'}>"

    def _at_present(self, model: str) -> _ModelUsage:
        """Returns the model's buckets, refilled until now; new and full ones for a new model."""
        self._advance()
        usage = self._models.get(model) if isinstance(model, str) else None
        if usage is None:
            check_type("model", model, str, "a model's name")
            usage = self._models[model] = _ModelUsage(self._per_model.get(model, self._rate), self._now)
        usage.refill(self._now)
        return usage

    def _advance(self) -> None:
        clock = self._clock()
        # Only forward steps count: a clock set back an hour must not stop the refill for an hour.
        self._now += max(0.0, clock - self._clock_was)
        self._clock_was = clock
        # Far from 0, floats are more than a microsecond apart: no clock meets "now + wait" more exactly.
        self._slack_s = _SLACK_S + 2 * math.ulp(clock)


def _overload(overloaded: Overloaded, rng: random.Random) -> Callable[[float], bool]:
    """Returns the function of account time that the argument stands for."""
    if callable(overloaded):
        return overloaded
    if isinstance(overloaded, (int, float)):
        check_number("overloaded", overloaded, 0, 1)
        return lambda _: rng.random() < overloaded
    try:
        spans = [(start, end) for start, end in overloaded if 0 <= start <= end]
        if len(spans) == len(overloaded):
            return lambda now: any(start <= now < end for start, end in spans)
    except (TypeError, ValueError):
        pass
    expected = "a probability, a function of account time, or spans (from, to) of it with 0 <= from <= to"
    raise ValueError(f"overloaded: got {shown(overloaded)}, expected {expected}")
