"""Counts the results of a batch over time.

Memory stays small however long the batch took and however many runs it needed: when there are too many bins, all of
them become wider.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from together_async.batch.record import Record

_LONGEST_S: Final = 1e9  # files may be damaged: impossible durations, moments and counts are ignored
_LAST_AT: Final = 2.5e11  # the year 9892; `datetime` ends soon after
_MOST_COUNT: Final = 10**12


@attrs.frozen
class Sample:
    """The state of a running batch at one moment.

    Attributes:
        at: The moment, in seconds since 1970.
        done: Requests with a completion so far.
        failed: Requests with an error so far.
        in_flight: Requests sent whose result has not come yet.
        queued: Requests that wait for the limits.
        paused: Whether a 429 or 503 holds all requests back.
        rate_limited: 429s so far.
    """

    at: float
    done: int
    failed: int
    in_flight: int
    queued: int
    paused: bool
    rate_limited: int


def sane_duration(seconds: float | None) -> float | None:
    """Returns a duration in seconds, or None if it is impossible."""
    return seconds if seconds is not None and 0 <= seconds < _LONGEST_S else None


def sane_moment(at: float | None) -> float | None:
    """Returns a moment in seconds since 1970, or None if it is impossible."""
    return at if at is not None and 0 <= at < _LAST_AT else None


def sane_count(number: int) -> int:
    """Returns a count, limited to what is possible."""
    return min(max(number, 0), _MOST_COUNT)


@attrs.define
class Bin:
    """What happened in one interval of time.

    Attributes:
        began: When the first of the requests that ended here was sent, in seconds since 1970.
        ended: When the last of its events happened, in seconds since 1970.
        answers: Completions that came.
        errors: Errors that came.
        tokens: Prompt and completion tokens of these completions.
        limited: 429s.
        sampled_s: Seconds of it that samples cover.
        in_flight_s: Requests in flight, summed over these seconds.
        queued_s: Requests that waited for the limits, summed over these seconds.
        paused_s: Seconds during which a 429 or 503 held all requests back.
    """

    began: float = math.inf
    ended: float = -math.inf
    answers: int = 0
    errors: int = 0
    tokens: int = 0
    limited: int = 0
    sampled_s: float = 0.0
    in_flight_s: float = 0.0
    queued_s: float = 0.0
    paused_s: float = 0.0

    def absorb(self, other: Bin) -> None:
        """Adds the counts of another bin, without those from samples."""
        self.began = min(self.began, other.began)
        self.ended = max(self.ended, other.ended)
        self.answers += other.answers
        self.errors += other.errors
        self.tokens += other.tokens
        self.limited += other.limited


@attrs.frozen
class Run:
    """An interval of time without a long silence.

    Attributes:
        first: Number of its first bin; bins are counted from 1970.
        bins: Its bins, empty ones included.
    """

    first: int
    bins: list[Bin]

    @property
    def end(self) -> int:
        """Number of the bin after its last one."""
        return self.first + len(self.bins)


@attrs.frozen
class Timeline:
    """The bins of a batch, run by run.

    Attributes:
        width_s: Seconds that each bin covers.
        runs: The runs in order; nothing happened between them.
        begin: When the first request was sent, in seconds since 1970.
        end: When the last result came or the last sample was taken, in seconds since 1970.
        working_s: Seconds that all runs took together.
    """

    width_s: float
    runs: list[Run]
    begin: float
    end: float
    working_s: float

    def sum(self, value: Callable[[Bin], float]) -> float:
        """Returns the sum of a value over all bins."""
        return sum(value(bin_) for run in self.runs for bin_ in run.bins)


# One number on each line would hide the series.
# fmt: off
_WIDTHS: Final = (1, 2, 10, 20, 100, 300, 600, 1_200, 6_000, 12_000, 36_000, 72_000, 216_000, 432_000, 864_000)
"""Widths of bins in tenths of a second. Each divides the next, so that bins can be merged."""
_SHOWN_WIDTHS: Final = (
    1, 2, 5, 10, 20, 50, 100, 150, 300, 600, 1_200, 3_000, 6_000, 9_000, 18_000, 36_000, 72_000, 108_000, 216_000,
    432_000, 864_000,
)
# fmt: on
_MOST_BINS: Final = 1_500
"""Most bins while counting; beyond, all become wider."""
_MOST_SHOWN: Final = 150
"""About how many bins a timeline has at most."""
_ENOUGH_SHOWN: Final = 24
"""About how many bins a timeline with few results has."""
_LEAST_WORK_S: Final = 0.001
"""Least time at work, since rates are divided by it."""
_LEAST_SILENCE: Final = 600
"""Least silence between two runs, in tenths of a second."""
_LONG_SILENCE: Final = 0.25  # of the time at work: a longer silence separates two runs
_MOST_RUNS: Final = 25
"""With more silences the batch has a slow pace: only those much longer than the others separate runs."""
_LONG_FOR_PACE: Final = 10
_FEWEST_SHOWN: Final = 12
"""Fewest bins of a timeline; empty ones are added."""
_LONGEST_SAMPLE_S: Final = 5.0
"""How long a sample holds at most; a longer gap means that the machine slept."""


class TimelineBuilder:
    """Counts results by the moment they came, on the machine's clock, which `Record.sent_at` uses.

    Args:
        samples: The state of this run about every second; may be empty.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._held = list(_held(sorted(samples, key=lambda sample: sample.at)))
        self._sampled = (self._held[0][0].at, self._held[-1][0].at) if samples else (math.inf, -math.inf)
        self._bins: dict[int, Bin] = {}
        self._width = _WIDTHS[0]
        for sample, until in self._held:
            if sample.in_flight or sample.queued or sample.paused:
                self._bin(sample.at)
                self._bin(until)

    def add(self, record: Record, sent_at: float, latency_s: float) -> None:
        """Counts a result.

        Args:
            record: The result.
            sent_at: When its first attempt was sent, in seconds since 1970.
            latency_s: Seconds from there to its end.
        """
        came_at = sent_at + latency_s
        bin_ = self._bin(came_at)
        bin_.began = min(bin_.began, sent_at)
        if record.code is None:
            bin_.answers += 1
            bin_.tokens += sane_count(record.prompt_tokens) + sane_count(record.completion_tokens)
        else:
            bin_.errors += 1
            if record.code == "429":
                self._count_limited(came_at)
        refused_at = sent_at
        for reason, waited_s in record.retries:
            if reason == "429":  # a refusal comes at once, so nearly all the time in between is waits
                self._count_limited(refused_at)
            refused_at = min(refused_at + (sane_duration(waited_s) or 0.0), came_at)

    def _count_limited(self, at: float) -> None:
        """Counts a 429, unless samples cover its moment: they count it more exactly, and without a result too."""
        if not self._sampled[0] - 1 <= at <= self._sampled[1]:
            self._bin(at).limited += 1

    def _bin(self, at: float) -> Bin:
        """Returns the bin of a moment, extended to it."""
        bin_ = self._bins.get(int(at * 10) // self._width)
        if bin_ is None:
            while len(self._bins) >= _MOST_BINS:
                self._widen()
            bin_ = self._bins.setdefault(int(at * 10) // self._width, Bin())
        bin_.began = min(bin_.began, at)
        bin_.ended = max(bin_.ended, at)
        return bin_

    def _widen(self) -> None:
        wider = next((width for width in _WIDTHS if width > self._width), self._width * 10)
        factor, self._width = wider // self._width, wider
        self._bins = _regrouped(self._bins, factor)

    def build(self) -> Timeline | None:
        """Returns the timeline, or None if no result has a known moment and no sample shows activity."""
        if not self._bins:
            return None
        stretches = _without_short_silences(self._stretches())
        working = sum(end - begin for begin, end in stretches)
        results = sum(bin_.answers + bin_.errors for bin_ in self._bins.values())
        least = working / min(_MOST_SHOWN, max(_ENOUGH_SHOWN, 2 * math.sqrt(results)))
        fits = (width for width in _SHOWN_WIDTHS if width >= least and width % self._width == 0)
        width = next(fits, self._width * max(1, math.ceil(least / self._width)))
        bins = _regrouped(self._bins, width // self._width)
        runs: list[Run] = []
        for begin, end in stretches:
            first, after = int(begin // width), int(end // width) + 1
            if runs and first <= runs[-1].end:
                first = runs[-1].end
                runs[-1].bins.extend(bins.get(key, Bin()) for key in range(first, after))
            else:
                runs.append(Run(first, [bins.get(key, Bin()) for key in range(first, after)]))
        missing = _FEWEST_SHOWN - sum(len(run.bins) for run in runs)
        runs[-1].bins.extend(Bin() for _ in range(missing))
        begin, end = stretches[0][0] / 10, stretches[-1][1] / 10
        timeline = Timeline(width / 10, runs, begin, end, max(working / 10, _LEAST_WORK_S))
        self._spread_samples(timeline)
        return timeline

    def _stretches(self) -> list[tuple[float, float]]:
        """Returns begin and end of each stretch without a minute's silence, in tenths of a second.

        The time from sending a request to its result is not silent. Bins go by results, so the search runs backwards.
        """
        stretches: list[tuple[float, float]] = []
        for key in sorted(self._bins, reverse=True):
            began, end = self._bins[key].began * 10, self._bins[key].ended * 10
            if stretches and end >= stretches[-1][0] - _LEAST_SILENCE:
                stretches[-1] = (min(stretches[-1][0], began), stretches[-1][1])
            else:
                stretches.append((began, end))
        return stretches[::-1]

    def _spread_samples(self, timeline: Timeline) -> None:
        """Adds the samples to the bins."""
        width_s = timeline.width_s
        bins = {key: bin_ for run in timeline.runs for key, bin_ in enumerate(run.bins, run.first)}
        limited = 0
        for sample, last in self._held:
            at, new, limited = sample.at, sample.rate_limited - limited, sample.rate_limited
            if (bin_ := bins.get(int(at // width_s))) is not None:
                bin_.limited += max(new, 0)
            for key in range(int(at // width_s), int(last // width_s) + 1):
                part_s = min(last, (key + 1) * width_s) - max(at, key * width_s)
                if (bin_ := bins.get(key)) is not None and part_s > 0:
                    bin_.sampled_s += part_s
                    bin_.in_flight_s += part_s * sample.in_flight
                    bin_.queued_s += part_s * sample.queued
                    bin_.paused_s += part_s * sample.paused


def _held(samples: Sequence[Sample]) -> Iterator[tuple[Sample, float]]:
    """Yields each sample and the moment until which it holds: the next one, unless the machine slept in between."""
    for sample, later in itertools.zip_longest(samples, samples[1:]):
        yield sample, sample.at if later is None else min(later.at, sample.at + _LONGEST_SAMPLE_S)


def _regrouped(bins: dict[int, Bin], factor: int) -> dict[int, Bin]:
    """Returns bins that are `factor` times as wide."""
    wider: dict[int, Bin] = {}
    for key, bin_ in bins.items():
        wider.setdefault(key // factor, Bin()).absorb(bin_)
    return wider


def _without_short_silences(stretches: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the runs: only a silence that would take up much of the chart separates two."""
    silences = [later[0] - earlier[1] for earlier, later in itertools.pairwise(stretches)]
    long = _LONG_SILENCE * sum(end - begin for begin, end in stretches)
    if len(silences) >= _MOST_RUNS:
        long = max(long, _LONG_FOR_PACE * statistics.median(silences))
    runs = stretches[:1]
    for silence, (begin, end) in zip(silences, stretches[1:], strict=True):
        if silence > long:
            runs.append((begin, end))
        else:
            runs[-1] = (runs[-1][0], end)
    return runs
