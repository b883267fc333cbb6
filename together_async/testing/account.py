"""An organisation's account as the emulator plays it: rates per model, dynamic limits, overload. Pure.

No socket, no event loop and no clock of its own: time is the `clock` argument (any scale, any start), chance comes from
the seed. Each model has a bucket for requests and one for tokens, as far as they are limited. A bucket holds capacity
and refills at the live limit, up to its size: what `Rate.burst_s` seconds refill, for requests at least one.

What is decided here, where https://docs.together.ai/docs/serverless/rate-limits leaves it open:

* A request is admitted when both buckets hold enough for it. One that is larger than a whole bucket is admitted when
  the bucket is full, and leaves it in debt, so nothing is refused for ever and the long-run rate still holds.
* A 429 takes no capacity (where it lowers a dynamic limit, the bucket shrinks with what is in it); nor does a 503.
  The rates are asked first: a 503 means that the account was within them.
* The 429 of a fixed rate has the same error types as that of a dynamic one; the service of today knows no others.
* `x-ratelimit-reset` is, on every answer, the seconds after which the same request sent again would be admitted if
  nothing else came ("suggested retry interval"): 0 when that is now, and on a 429 the time to wait.
* `-limit` is the ceiling and `-limit-dynamic` the live limit, both per second; `-remaining-dynamic` is what the bucket
  holds, `-remaining` what a bucket of the ceiling's size would hold after the same use. Only limited ones are told.

Dynamic limits follow one rule, `Dynamic`; what it lets through at most is in `ideal_requests` and `ideal_seconds`.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import attrs

__all__ = [
    "Account",
    "BucketState",
    "Counts",
    "Dynamic",
    "ModelLimits",
    "Overloaded",
    "Rate",
    "Verdict",
    "ideal_requests",
    "ideal_seconds",
]

Overloaded: TypeAlias = Callable[[float], bool] | Sequence[tuple[float, float]] | float
"""When the platform is overloaded: a probability per request (0 to 1), spans (from, to) of account time, or a function
of account time. Account time is the clock's seconds since the account was made."""

_SLACK_S = 1e-6
"""A request that comes this little too early is in time: the header that told when has six decimals. The capacity it
lacks is owed, so the rate does not change."""

_LEAST_RATE, _LARGEST = 1e-9, 1e12
"""Within these, no sum overflows and no wait is infinite."""


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return "an int too large"  # Python refuses to write some of them out
    return repr(value)


def _check(name: str, value: Any, least: float, most: float, *, above: bool = False, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not least <= value <= most
        or (above and value == least)
    ):
        bounds = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name}: got {_shown(value)}, expected {kind} {bounds}")


def _within(least: float, most: float, *, above: bool = False, optional: bool = False) -> Any:
    """Returns an attrs validator: a number from `least` (or above it) to `most`, or None where `optional`."""

    def validate(instance: object, field: Any, value: Any) -> None:
        if value is not None or not optional:
            _check(f"{type(instance).__name__}.{field.name}", value, least, most, above=above)

    return validate


def _check_type(name: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: got {_shown(value)}, expected {expected}")


@attrs.frozen
class Dynamic:
    """How a live limit moves between floor and ceiling (the rate's own number); requests and tokens each by themselves.

    The rule: every admitted amount raises the limit in proportion, so that a limit used in full doubles in `doubling_s`
    (used by half it rises half as fast, unused not at all). A 429 is the sign of a burst, since the bucket takes up
    jitter: it multiplies the limit by `fall`, at most once in `fall_every_s`. The limit stays within floor and ceiling,
    and only requests move it, neither time alone nor a 503. What a refund gives back takes back the rise it had caused,
    unless the limit is at its ceiling.

    Args:
        start: The limit of a fresh account, as a fraction of the ceiling, from `floor` to 1.
        floor: The lowest it falls to, as a fraction of the ceiling, from 0.000001 to 1.
        doubling_s: Seconds of full use which double the limit, from 0.001 to 1e9.
        fall: What a 429 multiplies the limit by, from 0.001 to 1; 1 never falls.
        fall_every_s: Seconds in which further 429s do not lower it again, from 0 to 1e9.

    Raises:
        ValueError: A value out of its range.
    """

    start: float = 0.1
    floor: float = attrs.field(default=0.05, validator=_within(1e-6, 1))
    doubling_s: float = attrs.field(default=30.0, validator=_within(1e-3, 1e9))
    fall: float = attrs.field(default=0.5, validator=_within(1e-3, 1))
    fall_every_s: float = attrs.field(default=5.0, validator=_within(0, 1e9))

    def __attrs_post_init__(self) -> None:
        _check("Dynamic.start", self.start, self.floor, 1)

    @property
    def growth(self) -> float:
        """By how much of itself a limit in full use rises per second."""
        return math.log(2) / self.doubling_s


def _dynamic_or_none(_: object, field: Any, value: Any) -> None:
    if value is not None:
        _check_type(f"Rate.{field.name}", value, Dynamic, "a Dynamic, or None for a fixed rate")


@attrs.frozen
class Rate:
    """What an account may use of one model; None does not limit.

    Args:
        requests_per_second: From 1e-9 to 1e12.
        tokens_per_second: Tokens of prompt and completion together, from 1e-9 to 1e12.
        burst_s: How many seconds' worth may be used at once, above 0 and at most 1e6. One request always may.
        dynamic: How the live limits move below these numbers; None keeps them fixed.

    Raises:
        ValueError: A value out of its range.
    """

    requests_per_second: float | None = attrs.field(
        default=None, validator=_within(_LEAST_RATE, _LARGEST, optional=True)
    )
    tokens_per_second: float | None = attrs.field(default=None, validator=_within(_LEAST_RATE, _LARGEST, optional=True))
    burst_s: float = attrs.field(default=1.0, validator=_within(0, 1e6, above=True))
    dynamic: Dynamic | None = attrs.field(default=None, validator=_dynamic_or_none)

    @classmethod
    def per_minute(
        cls,
        requests: float | None = None,
        tokens: float | None = None,
        burst_s: float = 1.0,
        dynamic: Dynamic | None = None,
    ) -> Rate:
        """Returns the rate of so many requests and tokens per minute, each from 6e-8 to 6e13, None unlimited.

        Raises:
            ValueError: A value out of its range.
        """
        for name, value in (("requests", requests), ("tokens", tokens)):
            if value is not None:
                _check(f"Rate.per_minute({name})", value, 60 * _LEAST_RATE, 60 * _LARGEST)
        return cls(
            None if requests is None else requests / 60, None if tokens is None else tokens / 60, burst_s, dynamic
        )


def _short(value: float) -> str:
    return f"{value:.6g}"


@attrs.frozen
class BucketState:
    """One bucket at one moment.

    Attributes:
        limit: The live limit, per second; the ceiling where the rate is fixed.
        ceiling: The most it may become, per second.
        remaining: What the bucket holds; below 0 when a request larger than the bucket left it in debt.
        size: What it can hold.
    """

    limit: float = attrs.field(repr=_short)
    ceiling: float = attrs.field(repr=_short)
    remaining: float = attrs.field(repr=_short)
    size: float = attrs.field(repr=_short)


@attrs.frozen
class Counts:
    """What became of the requests.

    Attributes:
        admitted: Those within the rates while the platform was not overloaded.
        limited_requests: 429s for the number of requests.
        limited_tokens: 429s for their tokens. Where both were short, the one with the longer wait counts.
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
    """The limits of one model at one moment; None where there is no limit."""

    model: str
    requests: BucketState | None
    tokens: BucketState | None
    counts: Counts


@attrs.frozen
class Verdict:
    """The account's answer to one request.

    Attributes:
        status: 200 admitted, 429 above the account's rate, 503 the platform is overloaded.
        headers: The rate limit headers, names in lower case; none where nothing is limited.
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


class _RefillingBucket:
    """BucketState of one kind for one model. Nothing happens in it between two calls but the refill."""

    __slots__ = ("at", "burst_s", "ceiling", "dynamic", "fallen_at", "growth", "least", "level", "limit", "size")

    def __init__(self, ceiling: float, rate: Rate, least: float, now: float) -> None:
        self.ceiling = float(ceiling)
        self.burst_s = rate.burst_s
        self.dynamic = rate.dynamic
        self.growth = rate.dynamic.growth if rate.dynamic else 0.0
        self.least = least
        self.fallen_at = -math.inf
        self.at = now
        self.set_limit(self.ceiling * (rate.dynamic.start if rate.dynamic else 1.0))
        self.level = self.size

    def set_limit(self, limit: float) -> None:
        self.limit = limit
        self.size = max(self.least, limit * self.burst_s)

    def refill(self, now: float) -> None:
        self.level = min(self.size, self.level + self.limit * (now - self.at))
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Returns the seconds until so much would be admitted."""
        return max(0.0, (min(amount, self.size) - self.level) / self.limit)

    def take(self, amount: float) -> None:
        self.level -= amount
        if self.growth and self.limit < self.ceiling:
            self.set_limit(min(self.ceiling, self.limit + self.growth * amount))

    def give_back(self, amount: float) -> None:
        # At the ceiling there is nothing to take back: admissions there have raised nothing.
        if self.dynamic and self.limit < self.ceiling:
            self.set_limit(max(self.dynamic.floor * self.ceiling, self.limit - self.growth * amount))
        self.level = min(self.size, self.level + amount)

    def fall(self, now: float) -> None:
        if self.dynamic is None or now - self.fallen_at < self.dynamic.fall_every_s:
            return
        self.fallen_at = now
        size = self.size
        self.set_limit(max(self.dynamic.floor * self.ceiling, self.limit * self.dynamic.fall))
        # The bucket stays as full as it was; else a smaller one would be full at once, and admit what was just refused.
        if self.level > 0:
            self.level *= self.size / size

    def capacity(self) -> BucketState:
        return BucketState(self.limit, self.ceiling, self.level, self.size)

    def write_headers(self, headers: dict[str, str], name: str) -> None:
        """Adds the bucket's headers, their names beginning with `name`."""
        limit, level = self.ceiling, self.level
        if self.dynamic:
            headers[f"{name}-limit-dynamic"] = _per_second(self.limit)
            headers[f"{name}-remaining-dynamic"] = _whole(level)
            level += max(self.least, limit * self.burst_s) - self.size
        headers[f"{name}-limit"] = _per_second(limit)
        headers[f"{name}-remaining"] = _whole(level)


def _per_second(limit: float) -> str:
    """Returns the limit as the service writes it where it is whole; else exactly, so that obeying it is enough."""
    return str(int(limit)) if limit.is_integer() else repr(limit)


def _whole(level: float) -> str:
    return str(int(level + 1e-6)) if level > 0 else "0"


class _ModelUsage:
    """The buckets and counts of one model."""

    __slots__ = ("admitted", "limited_requests", "limited_tokens", "overloaded", "requests", "tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        requests, tokens = rate.requests_per_second, rate.tokens_per_second
        self.requests = None if requests is None else _RefillingBucket(requests, rate, 1.0, now)
        self.tokens = None if tokens is None else _RefillingBucket(tokens, rate, 0.0, now)
        self.admitted = self.limited_requests = self.limited_tokens = self.overloaded = 0

    def refill(self, now: float) -> None:
        if self.requests:
            self.requests.refill(now)
        if self.tokens:
            self.tokens.refill(now)

    def waits_s(self, tokens: int) -> tuple[float, float]:
        """Returns the seconds until a request of so many tokens would be admitted: by requests, by tokens."""
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
    """An organisation's account: what it may use of each model, and what it has used.

    Args:
        rate: For every model that `per_model` does not name, each with buckets of its own; None does not limit.
        per_model: Rates by the model's name.
        overloaded: When the platform answers 503 although the account is within its rates.
        clock: Returns seconds, of any scale, from any start. A step backwards counts as no time.
        seed: Of the probability in `overloaded`. One number is drawn per request, whatever becomes of it, so the
            n-th request meets the same fate under other rates.

    Raises:
        ValueError: An argument of the wrong type or out of its range.
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
        _check_type("rate", rate, Rate | None, "a Rate, or None for no limit")  # type: ignore[arg-type]
        _check_type("per_model", per_model, Mapping | None, "a mapping of model names to Rates, or None")  # type: ignore[arg-type]
        for model, one in (per_model or {}).items():
            _check_type("per_model", model, str, "names of models")
            _check_type(f"per_model[{model!r}]", one, Rate, "a Rate")
        _check_type("clock", clock, Callable, "a function that returns seconds")  # type: ignore[arg-type]
        _check_type("seed", seed, int, "an int")
        self._rate = rate or Rate()
        self._per_model = dict(per_model or {})
        self._is_overloaded = _overload(overloaded, random.Random(seed))  # noqa: S311  # repeatable, not secret
        self._clock = clock
        self._clock_was = clock()
        self._slack_s = _SLACK_S
        self._now = 0.0
        self._models: dict[str, _ModelUsage] = {}

    def admit(self, model: str, tokens: int) -> Verdict:
        """Decide on one request, now.

        Args:
            model: The model's name.
            tokens: Tokens it may use, prompt and completion, 0 to 1e12. What is not used goes to `refund`.

        Returns:
            The status, and the headers and error body that belong to it.

        Raises:
            ValueError: `model` is no str, or `tokens` is out of its range.
        """
        _check("tokens", tokens, 0, _LARGEST, whole=True)
        one = self._at_present(model)
        overloaded = self._is_overloaded(self._now)
        for_requests_s, for_tokens_s = one.waits_s(tokens)
        if for_requests_s > self._slack_s or for_tokens_s > self._slack_s:
            return self._limited(one, tokens, for_requests_s, for_tokens_s)
        if overloaded:
            one.overloaded += 1
            body = _error("The server is overloaded or not ready yet.", "service_unavailable")
            return Verdict(503, one.headers(tokens), body)
        one.admitted += 1
        if one.requests:
            one.requests.take(1.0)
        if one.tokens:
            one.tokens.take(tokens)
        return Verdict(200, one.headers(tokens))

    def _limited(self, one: _ModelUsage, tokens: int, for_requests_s: float, for_tokens_s: float) -> Verdict:
        if one.requests and for_requests_s > self._slack_s:
            one.requests.fall(self._now)
        if one.tokens and for_tokens_s > self._slack_s:
            one.tokens.fall(self._now)
        if for_requests_s >= for_tokens_s:
            one.limited_requests += 1
            body = _error("Request was rejected due to request rate limiting.", "dynamic_request_limited")
        else:
            one.limited_tokens += 1
            body = _error("Request was rejected due to token rate limiting.", "dynamic_token_limited")
        return Verdict(429, one.headers(tokens), body)

    def refund(self, model: str, tokens: int) -> None:
        """Give back the tokens an admitted request did not use, as when its stream was left early.

        The request itself stays counted. No bucket gets fuller than full.

        Args:
            model: The model's name.
            tokens: How many, 0 to 1e12.

        Raises:
            ValueError: `model` is no str, or `tokens` is out of its range.
        """
        _check("tokens", tokens, 0, _LARGEST, whole=True)
        one = self._at_present(model)
        if one.tokens:
            one.tokens.give_back(tokens)

    def state(self, model: str) -> ModelLimits:
        """Returns the model's live limits, what is left of them, and its counts. Looking changes nothing.

        Raises:
            ValueError: `model` is no str.
        """
        one = self._at_present(model)
        requests = one.requests.capacity() if one.requests else None
        tokens = one.tokens.capacity() if one.tokens else None
        return ModelLimits(model, requests, tokens, one.counts())

    def counts(self, model: str | None = None) -> Counts:
        """Returns the counts of one model, zeros when it was never asked for; of all together when None."""
        if model is not None:
            return self._models[model].counts() if model in self._models else Counts()
        every = [attrs.astuple(one.counts()) for one in self._models.values()]
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
        """Returns the model's buckets, refilled until now; new and full when it is asked for the first time."""
        self._advance()
        one = self._models.get(model) if isinstance(model, str) else None
        if one is None:
            _check_type("model", model, str, "a model's name")
            one = self._models[model] = _ModelUsage(self._per_model.get(model, self._rate), self._now)
        one.refill(self._now)
        return one

    def _advance(self) -> None:
        clock = self._clock()
        # Only steps are counted, so that a clock set back an hour does not stop the refill for an hour.
        self._now += max(0.0, clock - self._clock_was)
        self._clock_was = clock
        # Far from 0 a float's own steps are longer than a microsecond; "now + wait" can't be met more exactly.
        self._slack_s = _SLACK_S + 2 * math.ulp(clock)


def _overload(overloaded: Overloaded, chance: random.Random) -> Callable[[float], bool]:
    """Returns the function of account time which the argument stands for."""
    if callable(overloaded):
        return overloaded
    if isinstance(overloaded, (int, float)):
        _check("overloaded", overloaded, 0, 1)
        return lambda _: chance.random() < overloaded
    try:
        spans = [(start, end) for start, end in overloaded if 0 <= start <= end]
        if len(spans) == len(overloaded):
            return lambda now: any(start <= now < end for start, end in spans)
    except (TypeError, ValueError):
        pass
    expected = "a probability, a function of account time, or spans (from, to) of it with 0 <= from <= to"
    raise ValueError(f"overloaded: got {_shown(overloaded)}, expected {expected}")


class _Curve(NamedTuple):
    """What a fresh bucket gives to a client that uses all of it, as a function of time.

    The limit begins at `limit`, after `at_once` has been taken in no time; it rises by `growth` of itself per second,
    the capacity given being the integral, until `full_at`, when `full_amount` has been given; then it is the ceiling.
    """

    ceiling: float
    at_once: float
    limit: float
    growth: float
    full_at: float
    full_amount: float

    @classmethod
    def of(cls, ceiling: float, rate: Rate, least: float) -> _Curve:
        """Returns the curve of one kind of capacity, of which one request takes `least`."""
        if rate.dynamic is None:
            at_once = max(least, ceiling * rate.burst_s)
            return cls(ceiling, at_once, ceiling, 0.0, 0.0, at_once)
        growth, start = rate.dynamic.growth, ceiling * rate.dynamic.start
        at_once = max(least, start * rate.burst_s)
        limit = min(ceiling, start + growth * at_once)
        full_amount = at_once + (ceiling - limit) / growth
        return cls(ceiling, at_once, limit, growth, math.log(ceiling / limit) / growth, full_amount)

    def amount(self, seconds: float) -> float:
        """Returns how much is given within so many seconds."""
        if seconds >= self.full_at:
            return self.full_amount + self.ceiling * (seconds - self.full_at)
        return self.at_once + self.limit * math.expm1(self.growth * seconds) / self.growth

    def seconds(self, amount: float) -> float:
        """Returns when so much has been given; the inverse of `amount`."""
        if amount <= self.at_once:
            return 0.0
        if amount >= self.full_amount:
            return self.full_at + (amount - self.full_amount) / self.ceiling
        return math.log1p(self.growth * (amount - self.at_once) / self.limit) / self.growth


def _curves(rate: Rate, tokens: float) -> list[tuple[_Curve, float]]:
    """Returns the curve of each limited kind, with what a request of so many tokens takes of it."""
    _check_type("rate", rate, Rate, "a Rate")
    _check("tokens", tokens, 0, _LARGEST)
    taken = [(rate.requests_per_second, 1.0), (rate.tokens_per_second, tokens)]
    return [(_Curve.of(limit, rate, each), each) for limit, each in taken if limit is not None and each > 0]


def ideal_requests(rate: Rate, seconds: float, tokens: float = 0) -> float:
    """Returns how many requests a fresh account admits at most within so many seconds: the oracle of benchmarks.

    That is what a client gets which knows the rule, takes what the full bucket holds at once, and then uses all that
    refills without ever being refused. No client gets more; requests being whole, it may get one less.

    Args:
        rate: The account's rate, fixed or dynamic.
        seconds: Of account time, from 0 to 1e12.
        tokens: Of each request (where they differ, their mean: no more tokens than that together), 0 to 1e12. More than
            the bucket holds is allowed.

    Returns:
        A number of requests, with its fraction; infinite when nothing limits.

    Raises:
        ValueError: An argument out of its range.
    """
    _check("seconds", seconds, 0, _LARGEST)
    return min((curve.amount(seconds) / each for curve, each in _curves(rate, tokens)), default=math.inf)


def ideal_seconds(rate: Rate, requests: float, tokens: float = 0) -> float:
    """Returns how long a fresh account needs at least to admit so many requests; the inverse of `ideal_requests`.

    Args:
        rate: The account's rate, fixed or dynamic.
        requests: How many, from 0 to 1e12.
        tokens: Of each request, as in `ideal_requests`.

    Returns:
        Seconds of account time from the first admission to the last; 0 when nothing limits.

    Raises:
        ValueError: An argument out of its range.
    """
    _check("requests", requests, 0, _LARGEST)
    return max((curve.seconds(requests * each) for curve, each in _curves(rate, tokens)), default=0.0)
