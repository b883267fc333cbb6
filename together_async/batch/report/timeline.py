"""How a batch went over time: results counted by the moment they came.

However long it lasted, and however many runs it took, little is kept: bins that widen as they become many.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from together_async.batch.record import Record

_LONGEST_S: Final = 1e9  # files may be damaged: what is no duration, moment or count of this world is left out
_LAST_AT: Final = 2.5e11  # the year 9892; `datetime` ends soon after
_MOST_COUNT: Final = 10**12


@attrs.frozen
class Sample:
    """How a batch stood at one moment of its run.

    Attributes:
        at: The moment, in seconds since 1970.
        done: Answers so far.
        failed: Errors so far.
        in_flight: Requests sent and not ended.
        queued: Requests that wait for the limits.
        paused: Whether a 429 or 503 holds everything back.
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
    """Returns a number of seconds, None when it can be none."""
    return seconds if seconds is not None and 0 <= seconds < _LONGEST_S else None


def sane_moment(at: float | None) -> float | None:
    """Returns a moment in seconds since 1970, None when it can be none."""
    return at if at is not None and 0 <= at < _LAST_AT else None


def sane_count(number: int) -> int:
    """Returns a count of what there may be so many of."""
    return min(max(number, 0), _MOST_COUNT)


@attrs.define
class Bin:
    """What happened within one stretch of time.

    Attributes:
        began: When the first request was sent of those that ended here, in seconds since 1970.
        ended: When the last thing happened here.
        answers: Results that came.
        errors: Results that came, too.
        tokens: Of the answers, prompt and completion.
        limited: 429s.
        sampled_s: How much of it is known from samples.
        in_flight_s: Requests in flight, times seconds.
        queued_s: Requests that waited for the limits, times seconds.
        paused_s: How long a 429 or 503 held everything back.
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
        """Takes what another counted from records."""
        self.began = min(self.began, other.began)
        self.ended = max(self.ended, other.ended)
        self.answers += other.answers
        self.errors += other.errors
        self.tokens += other.tokens
        self.limited += other.limited


@attrs.frozen
class Run:
    """A stretch of time without long silence.

    Attributes:
        first: Number of its first bin; bins are counted since 1970.
        bins: Its bins, empty ones too.
    """

    first: int
    bins: list[Bin]

    @property
    def end(self) -> int:
        """Number of the first bin after it."""
        return self.first + len(self.bins)


@attrs.frozen
class Course:
    """How it went over time.

    Attributes:
        width_s: How long each bin is.
        runs: In order, with nothing between them.
        begin: When the first request was sent, in seconds since 1970.
        end: When the last result came, or the last sample was taken.
        working_s: How long all runs are together.
    """

    width_s: float
    runs: list[Run]
    begin: float
    end: float
    working_s: float

    def sum(self, value: Callable[[Bin], float]) -> float:
        """Returns the sum of something over all bins."""
        return sum(value(one) for run in self.runs for one in run.bins)


# fmt: off
_WIDTHS: Final = (1, 2, 10, 20, 100, 300, 600, 1_200, 6_000, 12_000, 36_000, 72_000, 216_000, 432_000, 864_000)
"""How wide bins are, in tenths of a second. Each divides the next, so that bins can be put together."""
_SHOWN_WIDTHS: Final = (
    1, 2, 5, 10, 20, 50, 100, 150, 300, 600, 1_200, 3_000, 6_000, 9_000, 18_000,
    36_000, 72_000, 108_000, 216_000, 432_000, 864_000,
)
# fmt: on
_MOST_BINS: Final = 1_500
_MOST_SHOWN: Final = 150
_ENOUGH_SHOWN: Final = 24
_LEAST_WORK_S: Final = 0.001
_LEAST_SILENCE: Final = 600  # a minute
_LONG_SILENCE: Final = 0.25  # of the time at work: what is longer parts two runs
_MOST_RUNS: Final = 25
"""If there are more it is no series of runs but a slow pace, and only silence that is long beside it parts them."""
_LONG_BESIDE_PACE: Final = 10
_FEWEST_SHOWN: Final = 12
_LONGEST_SAMPLE_S: Final = 5.0


class Calendar:
    """Counts results by the moment they came. The clock is the one of `sent_at`, the machine's.

    Each width of a bin divides the next; when there are too many bins, all of them become wider.
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

    def add(self, record: Record, sent_at: float, took_s: float) -> None:
        """Takes a result, whose first attempt was sent then and whose end came so much later."""
        came_at = sent_at + took_s
        one = self._bin(came_at)
        one.began = min(one.began, sent_at)
        if record.code is None:
            one.answers += 1
            one.tokens += sane_count(record.prompt_tokens) + sane_count(record.completion_tokens)
        else:
            one.errors += 1
            if record.code == "429":
                self._limited(came_at)
        refused_at = sent_at
        for reason, waited_s in record.retries:
            if reason == "429":  # these come at once, so the time until then is about the waits before
                self._limited(refused_at)
            refused_at = min(refused_at + (sane_duration(waited_s) or 0.0), came_at)

    def _limited(self, at: float) -> None:
        """Counts a 429, unless samples tell it: they know the moment, and those of requests that have no result yet."""
        if not self._sampled[0] - 1 <= at <= self._sampled[1]:
            self._bin(at).limited += 1

    def _bin(self, at: float) -> Bin:
        """Returns the bin of a moment in which something happened."""
        one = self._bins.get(int(at * 10) // self._width)
        if one is None:
            while len(self._bins) >= _MOST_BINS:
                self._widen()
            one = self._bins.setdefault(int(at * 10) // self._width, Bin())
        one.began = min(one.began, at)
        one.ended = max(one.ended, at)
        return one

    def _widen(self) -> None:
        wider = next((width for width in _WIDTHS if width > self._width), self._width * 10)
        factor, self._width = wider // self._width, wider
        self._bins = _regrouped(self._bins, factor)

    def course(self) -> Course | None:
        """Returns how it went, None when no moment is known."""
        if not self._bins:
            return None
        stretches = _without_short_silences(self._stretches())
        working = sum(end - begin for begin, end in stretches)
        results = sum(one.answers + one.errors for one in self._bins.values())
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
        course = Course(width / 10, runs, begin, end, max(working / 10, _LEAST_WORK_S))
        self._spread_samples(course)
        return course

    def _stretches(self) -> list[tuple[float, float]]:
        """Returns begin and end of each stretch without a minute's silence, in tenths of a second.

        A request on its way is no silence: what counts is when it was sent. So they are found from the last one back.
        """
        stretches: list[tuple[float, float]] = []
        for key in sorted(self._bins, reverse=True):
            began, end = self._bins[key].began * 10, self._bins[key].ended * 10
            if stretches and end >= stretches[-1][0] - _LEAST_SILENCE:
                stretches[-1] = (min(stretches[-1][0], began), stretches[-1][1])
            else:
                stretches.append((began, end))
        return stretches[::-1]

    def _spread_samples(self, course: Course) -> None:
        """Counts what the samples say."""
        width_s = course.width_s
        bins = {key: one for run in course.runs for key, one in enumerate(run.bins, run.first)}
        limited = 0
        for sample, last in self._held:
            at, new, limited = sample.at, sample.rate_limited - limited, sample.rate_limited
            if (one := bins.get(int(at // width_s))) is not None:
                one.limited += max(new, 0)
            for key in range(int(at // width_s), int(last // width_s) + 1):
                part_s = min(last, (key + 1) * width_s) - max(at, key * width_s)
                if (one := bins.get(key)) is not None and part_s > 0:
                    one.sampled_s += part_s
                    one.in_flight_s += part_s * sample.in_flight
                    one.queued_s += part_s * sample.queued
                    one.paused_s += part_s * sample.paused


def _held(samples: Sequence[Sample]) -> Iterator[tuple[Sample, float]]:
    """Yields each sample, and until when it holds: until the next, unless the machine slept in between."""
    for sample, later in itertools.zip_longest(samples, samples[1:]):
        yield sample, sample.at if later is None else min(later.at, sample.at + _LONGEST_SAMPLE_S)


def _regrouped(bins: dict[int, Bin], factor: int) -> dict[int, Bin]:
    """Returns bins that are so many times as wide."""
    wider: dict[int, Bin] = {}
    for key, one in bins.items():
        wider.setdefault(key // factor, Bin()).absorb(one)
    return wider


def _without_short_silences(stretches: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the runs: only silence that would take much of the picture parts them."""
    silences = [later[0] - earlier[1] for earlier, later in itertools.pairwise(stretches)]
    long = _LONG_SILENCE * sum(end - begin for begin, end in stretches)
    if len(silences) >= _MOST_RUNS:
        long = max(long, _LONG_BESIDE_PACE * statistics.median(silences))
    runs = stretches[:1]
    for silence, (begin, end) in zip(silences, stretches[1:], strict=True):
        if silence > long:
            runs.append((begin, end))
        else:
            runs[-1] = (runs[-1][0], end)
    return runs
