"""The progress of a batch while it runs, its summary at the end, and the rate of its results."""

from __future__ import annotations

import datetime as dt
import math
from collections import deque
from typing import Final

import attrs

from together_async.batch.record import Record
from together_async.ratelimit import LimitsState

_MOST_MODELS: Final = 5
RATE_S: Final = 60
"""Seconds over which rates are averaged."""


@attrs.frozen
class BatchSummary:
    """The outcome of a batch.

    Counts of requests and tokens cover the whole output, earlier runs included, unless they say otherwise.

    Attributes:
        input: Path of the input.
        output: Path of the output.
        total: Requests in the input. If the batch was stopped while it read the input, those read so far.
        done: Requests with a completion.
        failed: Requests with an error.
        resumed: Results of earlier runs, completions and errors; part of `done` and `failed`.
        edited: Requests sent again because their body was edited after an earlier run had completed them.
        prompt_tokens: Tokens of all prompts, as the server counted them; estimated where it did not.
        completion_tokens: Tokens of all completions, as the server counted them; estimated where it did not.
        cost: US dollars for all completions. None if the price of a model is not known, which it is only with
            `prices` or `max_cost`.
        elapsed_s: Seconds that this run took.
        retried: Results of this run that took more than one attempt.
        limited_s: Seconds of this run during which at least one request waited for the limits.
        stopped: Why the batch stopped before every request had a result; None if it did not.
        strangers: Results in the output whose custom_id is not in the input.
        models: The models that used tokens, in the order of their first completion.
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
        """Requests without a result yet. Running the batch again continues with them."""
        return self.total - self.done - self.failed

    @property
    def ok(self) -> bool:
        """Whether every request has a completion."""
        return self.done == self.total and self.stopped is None

    def facts(self) -> dict[str, str]:
        """Returns names and values for people, without those that are empty or zero."""
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
    """A snapshot of a running batch. Results count once they are on disk.

    Attributes:
        total: Requests in the input; 0 until the input has been read.
        done: Requests with a completion, earlier runs included.
        failed: Requests with an error, earlier runs included.
        resumed: Results of earlier runs; part of `done` and `failed`.
        retried: Results of this run that took more than one attempt.
        in_flight: Requests sent whose result has not come yet.
        queued: Requests that wait for the limits.
        requests_per_minute: Results per minute, averaged over the last minute.
        tokens_per_minute: Prompt and completion tokens per minute, averaged over the last minute.
        limits: The state of the client's rate limiter.
        limited_s: Seconds of this run so far during which at least one request waited for the limits.
        tokens: Prompt and completion tokens of all results, earlier runs included.
        cost: US dollars for these tokens. None if the price of a model is not known.
        elapsed_s: Seconds since this run began; 0 before.
        eta_s: Seconds until the end at the present rate; None before the first result.
        state: What the batch is doing or waiting for, in a few words; empty when requests go out normally.
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


class Throughput:
    """Counts the results that are on disk, and their rate.

    Attributes:
        done: Requests with a completion.
        failed: Requests with an error.
        retried: Results that took more than one attempt.
    """

    def __init__(self) -> None:
        self.done = self.failed = self.retried = 0
        self._seconds: deque[list[float]] = deque(maxlen=RATE_S + 1)  # second, results, tokens
        self._first_at: float | None = None

    def add(self, record: Record, now: float) -> None:
        """Counts a result that has reached the disk.

        Args:
            record: The result.
            now: Seconds on a monotonic clock.
        """
        self.done += record.ok
        self.failed += not record.ok
        self.retried += record.attempts > 1
        if self._first_at is None:
            self._first_at = now
        second = math.floor(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += record.total_tokens

    def rates(self, now: float) -> tuple[float, float]:
        """Returns results and tokens per minute, over the last minute or since the first result.

        Args:
            now: Seconds on the clock given to `add`.
        """
        if self._first_at is None:
            return 0.0, 0.0
        recent = [row for row in self._seconds if row[0] > now - RATE_S]
        span_s = max(1.0, min(RATE_S, now - self._first_at))
        results, tokens = sum(row[1] for row in recent), sum(row[2] for row in recent)
        return results * 60 / span_s, tokens * 60 / span_s
