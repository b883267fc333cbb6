"""The numbers of the report, counted in one pass over the results.

Memory does not grow with the number of results. Durations go into bins of half a percent, moments into the bins of
`timeline`, and only a few names and texts are kept, shortened.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from together_async.batch.record import Record
from together_async.batch.report.timeline import Sample, TimelineBuilder, sane_count, sane_duration, sane_moment

MOST_ID: Final = 80
"""Most characters of a custom_id that are shown."""
MOST_MESSAGE: Final = 300
"""Most characters of an error's text that are shown."""
_MOST_WORD: Final = 40
_MOST_KINDS: Final = 50
_OTHER_KINDS: Final = "other kinds"
_MOST_EXAMPLES: Final = 5
_MOST_SLOW: Final = 20


def shortened(text: str, most: int) -> str:
    """Returns a text of at most `most` characters, its middle left out."""
    if len(text) <= most:
        return text
    tail = most // 4
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


# ------------------------------------------------------------------------------------------------------------ durations


class Distribution:
    """Durations in bins of half a percent, each with its sum, so that percentiles are at most half a percent off.

    Attributes:
        count: Number of durations.
        total_s: Their sum in seconds.
        most_s: The longest, in seconds.
        bins: By index, which grows with the logarithm of the duration: how many, and their sum in seconds.
    """

    PER_E: Final = 200
    """Bins for each factor of e."""
    LEAST_S: Final = 0.001
    """Shorter durations go into the lowest bin."""

    __slots__ = ("bins", "count", "most_s", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self.most_s = 0.0
        self.bins: dict[int, list[float]] = {}

    def add(self, seconds: float) -> None:
        """Adds a duration."""
        self.count += 1
        self.total_s += seconds
        self.most_s = max(self.most_s, seconds)
        totals = self.bins.setdefault(self.index(seconds), [0, 0.0])
        totals[0] += 1
        totals[1] += seconds

    @classmethod
    def index(cls, seconds: float) -> int:
        """Returns the index of a duration's bin."""
        return round(math.log(max(seconds, cls.LEAST_S)) * cls.PER_E)

    @property
    def mean_s(self) -> float:
        """The mean in seconds; 0 without durations."""
        return self.total_s / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Returns the duration in seconds that `percent` of all do not exceed: the mean of the bin with this rank."""
        rank = max(1, math.ceil(self.count * percent / 100))
        for index in sorted(self.bins):
            many, sum_s = self.bins[index]
            rank -= int(many)
            if rank <= 0:
                return sum_s / many
        return 0.0


# ------------------------------------------------------------------------------------------------------------ examples


@attrs.define
class ErrorKind:
    """Errors of one kind.

    Attributes:
        code: The kind, as in `Record.code`.
        count: Number of errors.
        message: The first text that was not empty.
        custom_ids: The first few requests.
        latency: Their latencies, as in `Statistics`.
    """

    code: str
    count: int = 0
    message: str = ""
    custom_ids: list[str] = attrs.field(factory=list)
    latency: Distribution = attrs.field(factory=Distribution)


@attrs.define
class RetryReason:
    """Attempts that failed for one reason and were followed by another attempt.

    Attributes:
        reason: The reason, as in `Record.retries`.
        count: Number of attempts.
        waited_s: Seconds waited before the next attempts, in sum.
    """

    reason: str
    count: int = 0
    waited_s: float = 0.0


@attrs.frozen
class SlowRequest:
    """One of the slowest requests.

    Attributes:
        custom_id: Its name, shortened.
        code: The kind of its error; None for a completion.
        sent_at: When its first attempt was sent, in seconds since 1970; None if not known.
        waited_s: Its wait for the limits; None if not known. This and the next two are durations as in `Statistics`.
        first_token_s: The time to its first token; None without streaming.
        latency_s: Its latency.
        attempts: HTTP requests made for it.
    """

    custom_id: str
    code: str | None
    sent_at: float | None
    waited_s: float | None
    first_token_s: float | None
    latency_s: float
    attempts: int


class Statistics:
    """Counts the results of a batch.

    A request has three durations: its wait for the limits, before it is sent; and from there the time to its first
    token, and its latency, the time to its end. The latter two include all attempts.

    Args:
        samples: The state of this run about every second; may be empty.

    Attributes:
        answers: Number of completions.
        errors: Number of errors.
        retried: Results that took more than one attempt.
        attempts: HTTP requests made for all results.
        prompt_tokens: Prompt tokens of the completions.
        completion_tokens: Completion tokens of the completions.
        latency: Latencies of the completions.
        first_token: Times to the first token, of the completions that were streamed.
        waited: Waits for the limits, of all results.
        timeline: All results whose moment is known.
    """

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        self.answers = self.errors = self.retried = self.attempts = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.latency, self.first_token, self.waited = Distribution(), Distribution(), Distribution()
        self.timeline = TimelineBuilder(samples)
        self._error_kinds: dict[str, ErrorKind] = {}
        self._retry_reasons: dict[str, RetryReason] = {}
        self._slowest: list[tuple[float, int, SlowRequest]] = []

    def add(self, record: Record) -> None:
        """Counts a result."""
        queued = sane_duration(record.queued_s)
        first, latency = _since(queued, record.first_token_s), _since(queued, record.total_s)
        attempts = sane_count(record.attempts)
        self.attempts += attempts
        self.retried += attempts > 1
        if queued is not None:
            self.waited.add(queued)
        if record.code is None:
            self._add_answer(record, first, latency)
        else:
            self._add_error(record, record.code, latency)
        for reason, waited_s in record.retries:
            self._add_retry(reason, sane_duration(waited_s) or 0.0)
        sent_at = sane_moment(record.sent_at)
        if sent_at is not None:
            self.timeline.add(record, sent_at, latency or 0.0)
        if latency is not None:
            self._add_slow(record, (queued, first, latency), attempts)

    def _add_answer(self, record: Record, first: float | None, latency: float | None) -> None:
        self.answers += 1
        self.prompt_tokens += sane_count(record.prompt_tokens)
        self.completion_tokens += sane_count(record.completion_tokens)
        if first is not None:
            self.first_token.add(first)
        if latency is not None:
            self.latency.add(latency)

    def _add_error(self, record: Record, code: str, latency: float | None) -> None:
        self.errors += 1
        code = shortened(code, _MOST_WORD)
        kind = self._error_kinds.get(code)
        if kind is None:
            code = code if len(self._error_kinds) < _MOST_KINDS else _OTHER_KINDS
            kind = self._error_kinds.setdefault(code, ErrorKind(code))
        kind.count += 1
        if not kind.message:
            kind.message = shortened(record.message, MOST_MESSAGE)
        if len(kind.custom_ids) < _MOST_EXAMPLES:
            kind.custom_ids.append(shortened(record.custom_id, MOST_ID))
        if latency is not None:
            kind.latency.add(latency)

    def _add_retry(self, reason: str, waited_s: float) -> None:
        reason = shortened(reason, _MOST_WORD)
        retries = self._retry_reasons.get(reason)
        if retries is None:
            reason = reason if len(self._retry_reasons) < _MOST_KINDS else _OTHER_KINDS
            retries = self._retry_reasons.setdefault(reason, RetryReason(reason))
        retries.count += 1
        retries.waited_s += waited_s

    def _add_slow(self, record: Record, times: tuple[float | None, float | None, float], attempts: int) -> None:
        waited, first, latency = times
        if len(self._slowest) == _MOST_SLOW and latency <= self._slowest[0][0]:
            return
        code = None if record.code is None else shortened(record.code, _MOST_WORD)
        name, sent_at = shortened(record.custom_id, MOST_ID), sane_moment(record.sent_at)
        slow = SlowRequest(name, code, sent_at, waited, first, latency, attempts)
        # Among equal latencies the first request stays. The number decides, as the requests have no order.
        entry = (latency, -self.results, slow)
        (heapq.heappush if len(self._slowest) < _MOST_SLOW else heapq.heappushpop)(self._slowest, entry)

    @property
    def results(self) -> int:
        """Number of results."""
        return self.answers + self.errors

    def error_kinds(self) -> list[ErrorKind]:
        """Returns the kinds of errors, the most frequent first."""
        return sorted(self._error_kinds.values(), key=lambda kind: (kind.code == _OTHER_KINDS, -kind.count, kind.code))

    def retry_reasons(self) -> list[RetryReason]:
        """Returns the reasons of retries, the most frequent first."""
        return sorted(
            self._retry_reasons.values(),
            key=lambda retries: (retries.reason == _OTHER_KINDS, -retries.count, retries.reason),
        )

    def slowest(self) -> list[SlowRequest]:
        """Returns the slowest requests, the slowest first."""
        return [slow for _, _, slow in sorted(self._slowest, key=lambda entry: entry[:2], reverse=True)]


def _since(queued_s: float | None, until_s: float | None) -> float | None:
    """Returns the seconds from the first attempt on, or None if they are not known."""
    until_s = sane_duration(until_s)
    return None if until_s is None else max(0.0, until_s - (queued_s or 0.0))


def count_results(records: Iterable[Record], samples: Sequence[Sample]) -> Statistics:
    """Returns the statistics of all results of a batch, which are read once."""
    statistics = Statistics(samples)
    for record in records:
        statistics.add(record)
    return statistics
