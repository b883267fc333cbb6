"""What the report says in numbers: counted in one walk over the results, in little memory.

Nothing here grows with the number of results. Durations go into bins of half a percent, moments into the bins of
`course`, and of names and texts a few examples are kept, shortened.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from together_async.batch.record import Record
from together_async.batch.report.timeline import Calendar, Sample, sane_count, sane_duration, sane_moment

MOST_ID: Final = 80
"""Characters of a custom_id that are shown."""
MOST_MESSAGE: Final = 300
"""Characters of an error's text that are shown."""
_MOST_WORD: Final = 40
_MOST_KINDS: Final = 50
_OTHER_KINDS: Final = "other kinds"
_MOST_EXAMPLES: Final = 5
_MOST_SLOW: Final = 20


def shortened(text: str, most: int) -> str:
    """Returns a text of at most so many characters: its begin and its end tell most."""
    if len(text) <= most:
        return text
    tail = most // 4
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


# ------------------------------------------------------------------------------------------------------------ durations


class Distribution:
    """Durations in bins of half a percent, each with its sum: percentiles are half a percent off at most.

    Attributes:
        count: How many.
        total_s: Their sum.
        most_s: The longest.
        bins: By index, which is the logarithm: how many, and their sum.
    """

    PER_E: Final = 200
    """Bins for each factor of e."""
    LEAST_S: Final = 0.001
    """What takes less is in the lowest bin."""

    __slots__ = ("bins", "count", "most_s", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self.most_s = 0.0
        self.bins: dict[int, list[float]] = {}

    def add(self, seconds: float) -> None:
        """Takes one."""
        self.count += 1
        self.total_s += seconds
        self.most_s = max(self.most_s, seconds)
        one = self.bins.setdefault(self.index(seconds), [0, 0.0])
        one[0] += 1
        one[1] += seconds

    @classmethod
    def index(cls, seconds: float) -> int:
        """Returns the bin of a duration."""
        return round(math.log(max(seconds, cls.LEAST_S)) * cls.PER_E)

    @property
    def mean_s(self) -> float:
        """The mean; 0 of none."""
        return self.total_s / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Returns the duration that so many percent do not exceed: of the bin with this rank, the mean."""
        rank = max(1, math.ceil(self.count * percent / 100))
        for index in sorted(self.bins):
            many, sum_s = self.bins[index]
            rank -= int(many)
            if rank <= 0:
                return sum_s / many
        return 0.0


# ------------------------------------------------------------------------------------------------------------ examples


@attrs.define
class Kind:
    """Errors of one kind.

    Attributes:
        code: Which.
        count: How many.
        message: The text of the first one that had one.
        custom_ids: The first few.
        took: How long they took.
    """

    code: str
    count: int = 0
    message: str = ""
    custom_ids: list[str] = attrs.field(factory=list)
    took: Distribution = attrs.field(factory=Distribution)


@attrs.define
class Again:
    """Attempts that failed for one reason and were made again.

    Attributes:
        reason: Which.
        count: How many.
        waited_s: How long it was waited before the next attempts.
    """

    reason: str
    count: int = 0
    waited_s: float = 0.0


@attrs.frozen
class Slow:
    """One of the slowest requests. Durations as in `Tally`."""

    custom_id: str
    code: str | None
    sent_at: float | None
    waited_s: float | None
    first_token_s: float | None
    latency_s: float
    attempts: int


class Tally:
    """Counts the results of a batch.

    A request has three durations: the wait for the limits before it is sent; from there on the time to its first token,
    and its latency, to its end. Attempts that were made again are part of the latter two.

    Attributes:
        answers: How many results are answers.
        errors: How many are errors.
        retried: How many needed more than one attempt.
        attempts: HTTP requests for all of them.
        prompt_tokens: Of the answers.
        completion_tokens: Of the answers.
        latency: Of the answers.
        first_token: Of the answers that came as streams.
        waited: Of all.
        calendar: All of which the moment is known.
    """

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        self.answers = self.errors = self.retried = self.attempts = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.latency, self.first_token, self.waited = Distribution(), Distribution(), Distribution()
        self.calendar = Calendar(samples)
        self._kinds: dict[str, Kind] = {}
        self._again: dict[str, Again] = {}
        self._slowest: list[tuple[float, int, Slow]] = []

    def add(self, record: Record) -> None:
        """Takes a result."""
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
            self._add_again(reason, sane_duration(waited_s) or 0.0)
        sent_at = sane_moment(record.sent_at)
        if sent_at is not None:
            self.calendar.add(record, sent_at, latency or 0.0)
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
        kind = self._kinds.get(code)
        if kind is None:
            code = code if len(self._kinds) < _MOST_KINDS else _OTHER_KINDS
            kind = self._kinds.setdefault(code, Kind(code))
        kind.count += 1
        if not kind.message:
            kind.message = shortened(record.message, MOST_MESSAGE)
        if len(kind.custom_ids) < _MOST_EXAMPLES:
            kind.custom_ids.append(shortened(record.custom_id, MOST_ID))
        if latency is not None:
            kind.took.add(latency)

    def _add_again(self, reason: str, waited_s: float) -> None:
        reason = shortened(reason, _MOST_WORD)
        again = self._again.get(reason)
        if again is None:
            reason = reason if len(self._again) < _MOST_KINDS else _OTHER_KINDS
            again = self._again.setdefault(reason, Again(reason))
        again.count += 1
        again.waited_s += waited_s

    def _add_slow(self, record: Record, times: tuple[float | None, float | None, float], attempts: int) -> None:
        waited, first, latency = times
        if len(self._slowest) == _MOST_SLOW and latency <= self._slowest[0][0]:
            return
        code = None if record.code is None else shortened(record.code, _MOST_WORD)
        name, sent_at = shortened(record.custom_id, MOST_ID), sane_moment(record.sent_at)
        slow = Slow(name, code, sent_at, waited, first, latency, attempts)
        # Of those that took equally long the first one stays: a number comes before the values, which have no order.
        entry = (latency, -self.results, slow)
        (heapq.heappush if len(self._slowest) < _MOST_SLOW else heapq.heappushpop)(self._slowest, entry)

    @property
    def results(self) -> int:
        """How many."""
        return self.answers + self.errors

    def kinds(self) -> list[Kind]:
        """Returns the kinds of errors, the most frequent first."""
        return sorted(self._kinds.values(), key=lambda kind: (kind.code == _OTHER_KINDS, -kind.count, kind.code))

    def again(self) -> list[Again]:
        """Returns the reasons of attempts that were made again, the most frequent first."""
        return sorted(
            self._again.values(), key=lambda again: (again.reason == _OTHER_KINDS, -again.count, again.reason)
        )

    def slowest(self) -> list[Slow]:
        """Returns the slowest requests, the slowest first."""
        return [slow for _, _, slow in sorted(self._slowest, key=lambda entry: entry[:2], reverse=True)]


def _since(queued_s: float | None, until_s: float | None) -> float | None:
    """Returns how long it took from the first attempt on, None when nobody knows."""
    until_s = sane_duration(until_s)
    return None if until_s is None else max(0.0, until_s - (queued_s or 0.0))


def tally(records: Iterable[Record], samples: Sequence[Sample]) -> Tally:
    """Returns what was counted."""
    counted = Tally(samples)
    for record in records:
        counted.add(record)
    return counted
