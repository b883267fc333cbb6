"""What a batch is told, and what it tells: options, progress, summary. Values, nothing else."""

from __future__ import annotations

import datetime as dt
import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import attrs

from together_async.batch.record import Record
from together_async.ratelimit import LimitsState
from together_async.retry import Retry
from together_async.timeouts import Timeouts

_MOST_MODELS: Final = 5
RATE_S: Final = 60
"""Seconds over which rates are counted."""


def _positive(expected: str, kind: type | tuple[type, ...]) -> Any:
    def validate(_: object, field: Any, value: Any) -> None:
        if value is None:
            return
        fits = isinstance(value, kind) and not isinstance(value, bool) and 0 < cast("float", value) < math.inf
        if not fits:
            raise ValueError(f"{field.name}: got {value!r}, expected {expected} above 0, or None for no limit")

    return validate


def _deadline(_: object, field: Any, value: Any) -> None:
    if isinstance(value, dt.datetime):
        try:
            value.timestamp()
        except (OverflowError, ValueError, OSError):
            raise ValueError(f"{field.name}: got the year {value.year}, expected a time that is to come") from None
    elif value is not None and not isinstance(value, dt.timedelta):
        _positive("seconds, a timedelta, a datetime", (int, float))(_, field, value)


def _of(kind: type, expected: str) -> Any:
    def validate(_: object, field: Any, value: Any) -> None:
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{field.name}: got a {type(value).__name__}, expected {expected}, or None")

    return validate


def _function(_: object, field: Any, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{field.name}: got a {type(value).__name__}, expected a function of the record, or None")


@attrs.frozen(kw_only=True)
class BatchOptions:
    """How a batch is run; the keywords of `run_batch`, which says what they mean.

    Raises:
        ValueError: One of them is out of its range.
    """

    format: str | None = None
    template: str | None = attrs.field(default=None, validator=_of(str, "a text"))
    system: str | None = attrs.field(default=None, validator=_of(str, "a text"))
    concurrency: int | None = attrs.field(default=None, validator=_positive("a whole number", int))
    stream: bool = True
    retry_errors: bool = False
    keep_going: bool = False
    prices: bool = False
    max_cost: float | None = attrs.field(default=None, validator=_positive("US dollars", (int, float)))
    max_tokens_total: int | None = attrs.field(default=None, validator=_positive("a whole number of tokens", int))
    deadline: float | dt.timedelta | dt.datetime | None = attrs.field(default=None, validator=_deadline)
    report: Path | None = attrs.field(default=None, validator=_of(Path, "a path"))
    on_result: Callable[[Record], None] | None = attrs.field(default=None, validator=_function)
    timeouts: Timeouts | None = attrs.field(default=None, validator=_of(Timeouts, "Timeouts, as Timeouts(total=120)"))
    retry: Retry | None = attrs.field(default=None, validator=_of(Retry, "a Retry, as Retry(attempts=2)"))
    headers: Mapping[str, str] | None = attrs.field(default=None, validator=_of(Mapping, "a dict"))

    def ends_at(self, now: float) -> float | None:
        """Returns when nothing more begins, in seconds since 1970; None for no such time."""
        deadline = self.deadline
        if deadline is None:
            return None
        if isinstance(deadline, dt.datetime):
            return deadline.timestamp()
        return now + (deadline.total_seconds() if isinstance(deadline, dt.timedelta) else deadline)


@attrs.frozen
class BatchSummary:
    """How a batch stands when it ends.

    Attributes:
        input: The file of requests.
        output: The file of results.
        total: Requests in the input; those that were read, if it was stopped while the input was read.
        done: How many of them have an answer, from this run or an earlier one.
        failed: How many have an error.
        resumed: How many of both were there before.
        edited: How many answers were to another body, and were asked anew.
        prompt_tokens: Used by all answers in the output, by the server's count.
        completion_tokens: The same.
        cost: What they cost in US dollars; None when the price of a model is not known.
        elapsed_s: Seconds of this run.
        retried: How many results took more than one attempt.
        limited_s: Seconds in which something waited for the limits.
        stopped: Why it ended before everything was asked; None when it did not.
        strangers: Results in the output that no line of the input asks for.
        models: What was asked, in the order of first answers.
    """

    input: str
    output: str
    total: int
    done: int
    failed: int
    resumed: int
    edited: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    elapsed_s: float
    retried: int
    limited_s: float
    stopped: str | None
    strangers: int
    models: tuple[str, ...]

    @property
    def remaining(self) -> int:
        """How many have no result yet; the same call goes on with them."""
        return self.total - self.done - self.failed

    @property
    def ok(self) -> bool:
        """Whether every request has an answer."""
        return self.done == self.total and self.stopped is None

    def facts(self) -> dict[str, str]:
        """Returns the same for people: names and values."""
        facts = {
            "input": self.input,
            "output": self.output,
            "models": ", ".join(self.models[:_MOST_MODELS]) + (", ..." if len(self.models) > _MOST_MODELS else ""),
            "requests": f"{self.total:,}",
            "from earlier runs": f"{self.resumed:,}",
            "asked anew, because edited": f"{self.edited:,}",
            "without a result yet": f"{self.remaining:,}",
            "cost": "" if self.cost is None else f"${self.cost:,.4f}",
            "this run": f"{dt.timedelta(seconds=round(self.elapsed_s))}",
            "waited for limits": f"{dt.timedelta(seconds=round(self.limited_s))}",
            "stopped": self.stopped or "",
        }
        return {name: value for name, value in facts.items() if value not in ("", "0", "0:00:00")}


@attrs.frozen
class BatchProgress:
    """How a batch stands at one moment.

    Attributes:
        total: Requests in the input.
        done: How many have an answer that is on disk.
        failed: How many have an error that is on disk.
        resumed: How many of both were there before.
        retried: Results of this run that took more than one attempt.
        in_flight: Requests sent and not ended.
        queued: Requests that wait for the limits.
        requests_per_minute: Results in the last minute.
        tokens_per_minute: Tokens used in the last minute.
        limits: What the client knows about the limits.
        limited_s: Seconds so far in which something waited for the limits.
        tokens: Used by all answers in the output.
        cost: What they cost in US dollars; None when a price is not known.
        elapsed_s: Seconds of this run so far.
        eta_s: Seconds to go at the present rate; None while there is none.
        state: What is going on, in a few words: empty when all is well.
    """

    total: int
    done: int
    failed: int
    resumed: int
    retried: int
    in_flight: int
    queued: int
    requests_per_minute: float
    tokens_per_minute: float
    limits: LimitsState
    limited_s: float
    tokens: int
    cost: float | None
    elapsed_s: float
    eta_s: float | None
    state: str


class Tally:
    """What is on disk, and how fast it came."""

    def __init__(self) -> None:
        self.done = self.failed = self.retried = 0
        self._seconds: deque[list[float]] = deque(maxlen=RATE_S + 1)  # second, results, tokens
        self._first: float | None = None

    def add(self, record: Record, now: float) -> None:
        """Takes a result."""
        self.done += record.ok
        self.failed += not record.ok
        self.retried += record.attempts > 1
        if self._first is None:
            self._first = now
        second = math.floor(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += record.total_tokens

    def rates(self, now: float) -> tuple[float, float]:
        """Returns results and tokens per minute, over the last minute or since the first result."""
        if self._first is None:
            return 0.0, 0.0
        seconds = [one for one in self._seconds if one[0] > now - RATE_S]
        span_s = max(1.0, min(RATE_S, now - self._first))
        return sum(one[1] for one in seconds) * 60 / span_s, sum(one[2] for one in seconds) * 60 / span_s
