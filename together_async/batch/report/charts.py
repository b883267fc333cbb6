"""How the report writes figures and draws them: text, HTML and SVG from numbers.

A chart is an SVG that is stretched to the width there is. Its labels stand beside it as HTML, which keeps its size; so
it can be read on a telephone and on paper. It has no script: what a pointer shows are `<title>` elements. What comes
from a file goes through `text` or `quoted`, and through nothing else.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import attrs

from together_async.batch.report.statistics import Distribution
from together_async.batch.report.timeline import Bin, Course

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SPACE: Final = "\u00a0"
UNKNOWN: Final = "\u2013"
_JOINERS: Final = "\u200c\u200d"  # of Persian, of Hindi, of emoji
_DAY_S: Final = 86_400
_LONG: Final = (
    (3_599.5, 1, 60, "min", "s"),
    (_DAY_S - 30, 60, 60, "h", "min"),
    (math.inf, 3_600, 24, "d", "h"),
)
"""How long durations are written: up to which, in how many seconds, how many of these in the unit; both units."""


# ---------------------------------------------------------------------------------------------------------------- text


def text(value: str) -> str:
    """Returns somebody's text as HTML: nothing in it is markup, and characters that show nothing are shown as codes."""
    plain = " ".join(value.split())
    return html.escape(plain if plain.isprintable() else "".join(map(_visible, plain)))


def _visible(character: str) -> str:
    # Controls, overrides of the direction, halves of pairs, private and unassigned code points, odd line ends.
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} and character not in _JOINERS:
        return f"\\u{ord(character):04x}"
    return character


def quoted(value: str) -> str:
    """Returns somebody's text as HTML that leaves the direction of what stands beside it alone."""
    shown = text(value)
    return f"<bdi>{shown}</bdi>" if shown else '<span class="quiet">(blank)</span>'


def count(number: float) -> str:
    """Returns a count, or a rate: `12,345`, `0.25`."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"


def compact(number: float) -> str:
    """Returns a number for an axis: `250`, `12k`, `1.5M`."""
    for least, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= least:
            return f"{number / (1e3 if unit == 'k' else least):.4g}{unit}"
    return count(number)


def share(part: float, whole: float) -> str:
    """Returns a part in percent, in so many digits that only all is `100 %` and only nothing is `0 %`."""
    percent = 100 * part / whole if whole else 0.0
    rest = min(percent, 100 - percent)
    digits = 0 if rest == 0 else 1 if rest >= 0.1 else -math.floor(math.log10(rest))
    return f"{percent:.{digits}f}{_SPACE}%"


def duration(seconds: float | None, *, brief: bool = False) -> str:
    """Returns `48 ms`, `1.20 s`, `2 min 05 s`, `3 h 12 min` or `2 d 04 h`; a dash when nobody knows.

    Args:
        seconds: How long.
        brief: It is a round number: `1.2 s`, `2 min`.
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995:
        return f"{seconds * 1e3:.{4 if brief else 2 if seconds < 0.00995 else 3}g}{_SPACE}ms"
    if seconds < (60 if brief else 99.95):
        return (f"{seconds:.4g}" if brief else f"{seconds:#.3g}") + f"{_SPACE}s"
    _, part_s, parts, unit, part = next(row for row in _LONG if seconds < row[0])
    whole, rest = divmod(round(seconds / part_s), parts)
    return f"{whole:,}{_SPACE}{unit}" + ("" if brief and not rest else f" {rest:02}{_SPACE}{part}")


def clock(at: float, step_s: float = 1.0) -> str:
    """Returns a moment's time of day, UTC, as exact as steps of this length ask for."""
    moment = datetime.fromtimestamp(at, UTC)
    if step_s >= 60:
        return f"{moment:%H:%M}"
    return f"{moment:%H:%M:%S}" if step_s >= 1 else f"{moment:%H:%M:%S}.{moment.microsecond // 100_000}"


def day(at: float, *, year: bool = False) -> str:
    """Returns a moment's day, UTC: `23 Nov`."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment.day}{_SPACE}{_MONTHS[moment.month - 1]}" + (f"{_SPACE}{moment.year}" if year else "")


# --------------------------------------------------------------------------------------------------------------- charts


@attrs.frozen
class Mark:
    """A label beside a chart.

    Attributes:
        percent: Where, from the left.
        lines: Of ours, not of a file.
        before: Whether it comes before others when there is no room for all.
    """

    percent: float
    lines: tuple[str, ...]
    before: bool = False


_CHARACTER: Final = 0.7
"""Width of a character, in percent of a chart on a screen."""
_NARROW: Final = 3.0
"""How much more that is on a telephone."""


def _labels(marks: Iterable[Mark], where: str) -> str:
    """Returns the labels as HTML, without those that would stand upon others; some are for wide screens alone."""
    shown = ""
    wide: list[tuple[float, float]] = []
    narrow: list[tuple[float, float]] = []
    for one in sorted(marks, key=lambda mark: (not mark.before, mark.percent)):
        half = _CHARACTER * (max(map(len, one.lines)) + 1) / 2
        if not _free(one.percent, half, wide):
            continue
        # At the edges the labels stand inside, however wide it is.
        edge = "first" if one.percent < 4 else "last" if one.percent > 96 else ""
        kind = edge if _free(one.percent, half * _NARROW, narrow) else f"{edge} wide"
        shown += f'<span class="{kind}" style="left:{_n(one.percent)}%">{"<br>".join(one.lines)}</span>'
    return f'<div class="{where}" aria-hidden="true">{shown}</div>' if shown else ""


def _free(place: float, half: float, taken: list[tuple[float, float]]) -> bool:
    """Returns whether there is room, and takes it."""
    begin = min(max(0.0, place - half), 100.0 - 2 * half)
    free = all(begin + 2 * half <= other[0] or begin >= other[1] for other in taken)
    if free:
        taken.append((begin, begin + 2 * half))
    return free


def _n(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def steps(top: float, *, whole: bool = False, most: int = 4) -> list[float]:
    """Returns the ticks of an axis from 0 to a round number that is not below `top`.

    Args:
        top: The highest value.
        whole: Nothing between whole numbers.
        most: Steps, about.
    """
    if top <= 0:
        return [0, 1]
    raw = top / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    step = max(math.ceil(step), 1) if whole else step
    return [step * number for number in range(max(1, math.ceil(top / step - 1e-9)) + 1)]


def _bars(bars: Iterable[tuple[float, float, float, float]], name: str) -> str:
    """Returns bars as one path: left, width, and how high it begins and ends, in percent."""
    drawn = "".join(
        f"M{_n(left)} {_n(100 - begin)}V{_n(100 - end)}h{_n(width)}V{_n(100 - begin)}z"
        for left, width, begin, end in bars
        if end > begin
    )
    return f'<path class="{name}" d="{drawn}"/>' if drawn else ""


def _pointed(left: float, width: float, says: str) -> str:
    """Returns the part of a chart that says something to whoever points there."""
    return (
        f'<rect class="point" x="{_n(left)}" y="0" width="{_n(width)}" height="100"><title>{text(says)}</title></rect>'
    )


def _plot(drawing: str, width: float, name: str, *, ticks: list[float], size: str, marks: tuple[str, str]) -> str:
    """Returns a drawing with its axes.

    Args:
        drawing: SVG, 100 high.
        width: Of the drawing, in its own units.
        name: What it shows, for those who don't see it.
        ticks: Of the axis that goes up, the first at its foot and the last at its head.
        size: Class of the style sheet.
        marks: Labels above and below.
    """
    ups = [100 * tick / ticks[-1] for tick in ticks]
    lines = "".join(f"M0 {_n(100 - up)}H{_n(width)}" for up in ups[1:])
    shown = "".join(
        f'<span style="bottom:{_n(up)}%">{compact(tick)}</span>' for tick, up in zip(ticks, ups, strict=True)
    )
    return (
        f'<div class="plot {size}">{marks[0]}<div class="up" aria-hidden="true">{shown}</div>'
        f'<svg role="img" aria-label="{text(name)}" viewBox="0 0 {_n(width)} 100" preserveAspectRatio="none">'
        f'<path class="grid" d="{lines}"/>{drawing}<path class="foot" d="M0 100H{_n(width)}"/></svg>{marks[1]}</div>'
    )


def parts(values: Sequence[tuple[str, float]], name: str) -> str:
    """Returns one bar made of parts: class and value of each. What is there is seen, however little it is.

    Args:
        values: The parts, from the left.
        name: What it shows; empty when that stands beside it.
    """
    least = sum(value for _, value in values) * _LEAST_PART
    widths = [max(value, least) if value else 0.0 for _, value in values]
    whole, left, drawn = sum(widths) or 1.0, 0.0, ""
    for (kind, _), width in zip(values, widths, strict=True):
        drawn += f'<rect class="{kind}" x="{_n(left)}" y="0" width="{_n(100 * width / whole)}" height="1"/>'
        left += 100 * width / whole
    label = f'role="img" aria-label="{text(name)}"' if name else 'aria-hidden="true"'
    return f'<svg class="parts" {label} viewBox="0 0 100 1" preserveAspectRatio="none">{drawn}</svg>'


_LEAST_PART: Final = 0.004


# ------------------------------------------------------------------------------------------------------- distributions

PERCENTILES: Final = (50, 90, 99)
_MOST_BARS: Final = 48
_FEWEST_BARS: Final = 10
_DECADE: Final = math.log(10) * Distribution.PER_E
# fmt: off
_TICKS_S: Final = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1_200, 3_600, 7_200,
    18_000, 36_000, _DAY_S, 2 * _DAY_S, 5 * _DAY_S, 10 * _DAY_S,
)
_FEW_TICKS_S: Final = (
    0.001, 0.01, 0.1, 1, 10, 60, 600, 3_600, 36_000, _DAY_S, 10 * _DAY_S, 100 * _DAY_S, 1_000 * _DAY_S,
)
# fmt: on


def histogram(distribution: Distribution, name: str) -> str:
    """Returns a histogram over a logarithmic axis, with the percentiles marked."""
    first, wide, counts = _grouped(distribution)
    begin, width = first * wide, len(counts) * wide
    ticks = steps(max(counts), whole=True)
    drawing, above = "", []
    for n, many in enumerate(counts):
        ends = [math.exp((begin + place * wide) / Distribution.PER_E) for place in (n, n + 1)]
        says = f"{duration(ends[0])} to {duration(ends[1])}: {count(many)} ({share(many, distribution.count)})"
        drawing += _pointed(n * wide, wide, says)
    bars = ((n * wide + wide * 0.05, wide * 0.9, 0, _height(many, ticks[-1])) for n, many in enumerate(counts))
    drawing = _bars(bars, "answers") + drawing
    for percent in PERCENTILES:
        place = Distribution.index(distribution.percentile(percent)) - begin + 0.5
        drawing += f'<path class="percentile" d="M{_n(place)} 0V100"/>'
        above.append(Mark(100 * place / width, (f"p{percent}",)))
    below = [
        Mark(100 * (math.log(seconds) * Distribution.PER_E - begin) / width, (duration(seconds, brief=True),))
        for seconds in _logarithmic_ticks(begin, begin + width)
    ]
    marks = (_labels(above, "above"), _labels(below, "below"))
    return _plot(drawing, width, name, ticks=ticks, size="middle", marks=marks)


def _grouped(distribution: Distribution) -> tuple[int, int, list[int]]:
    """Returns the bars of a histogram: number of the first, bins in each, and how many are in each.

    By Rice's rule there are as many as there is something to see in. One more at each end is empty.
    """
    low, high = min(distribution.bins), max(distribution.bins)
    bars = min(_MOST_BARS, max(_FEWEST_BARS, round(2 * distribution.count ** (1 / 3))))
    wide = max(1, math.ceil((high - low + 1) / bars))
    room = max(1, (_FEWEST_BARS - (high // wide - low // wide)) // 2)
    first, last = low // wide - room, high // wide + room
    counts = [0] * (last - first + 1)
    for index, (many, _) in distribution.bins.items():
        counts[index // wide - first] += int(many)
    return first, wide, counts


def _logarithmic_ticks(begin: int, end: int) -> list[float]:
    """Returns round numbers of seconds between two bins."""
    low, high = math.exp(begin / Distribution.PER_E), math.exp(end / Distribution.PER_E)
    decades = (end - begin) / _DECADE
    if decades < 1:
        step = steps(high - low)[1]
        return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [seconds for seconds in (_TICKS_S if decades < 4 else _FEW_TICKS_S) if low <= seconds <= high]


def _height(value: float, top: float) -> float:
    """Returns how high a value stands, in percent; what is there is seen."""
    return max(100 * value / top, _LEAST_HEIGHT) if value > 0 else 0.0


_LEAST_HEIGHT: Final = 1.0


# ------------------------------------------------------------------------------------------------------------ over time


@attrs.frozen
class Series:
    """One quantity over time.

    Attributes:
        name: What it counts.
        kind: Class of the style sheet.
        value: Of a bin that is so many seconds long.
    """

    name: str
    kind: str
    value: Callable[[Bin, float], float]


@attrs.frozen
class Panel:
    """One chart over time; its series stand upon each other.

    Attributes:
        title: Its heading.
        series: What it shows, the lowest first.
        size: Class of the style sheet.
        whole: Whether its axis has whole numbers alone.
        always: Whether it is there when there is nothing to see.
    """

    title: str
    series: tuple[Series, ...]
    size: str = "middle"
    whole: bool = False
    always: bool = False


# fmt: off
_TICK_STEPS_S: Final = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200,
    _DAY_S, 2 * _DAY_S, 7 * _DAY_S, 30 * _DAY_S, 365 * _DAY_S,
)
# fmt: on
_MOST_TICKS: Final = 8
_LEAST_SHADE: Final = 0.12
_SILENCE: Final = 0.03  # of the time at work
_SILENCES: Final = 0.2


class TimeAxis:
    """Where each moment of a course stands: its runs side by side, with a gap for the time between two.

    Attributes:
        course: What is shown.
        columns: Each bin with its place and its number.
        width: Of the whole, in bins.
        silences: Gaps: place, width, seconds.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        self.columns: list[tuple[float, int, Bin]] = []
        self.silences: list[tuple[float, float, float]] = []
        bins, between = sum(len(run.bins) for run in course.runs), len(course.runs) - 1
        gap = bins * min(_SILENCE, _SILENCES / max(between, 1))
        self.width, before = 0.0, None
        for run in course.runs:
            if before is not None:
                self.silences.append((self.width, gap, (run.first - before.end) * course.width_s))
                self.width += gap
            self.columns += [(self.width + n, run.first + n, one) for n, one in enumerate(run.bins)]
            self.width += len(run.bins)
            before = run

    def ticks(self) -> list[Mark]:
        """Returns the labels of its moments. Where a day begins to be shown, it is named."""
        width_s, working_s = self.course.width_s, self.course.width_s * len(self.columns)
        step_s = next((step for step in _TICK_STEPS_S if working_s / step <= _MOST_TICKS), _TICK_STEPS_S[-1])
        starts = {run.first for run in self.course.runs}
        marks, days = [], ""
        for place, number, _ in self.columns:
            at = number * width_s
            if round(at * 10) % round(step_s * 10) == 0 or number in starts:
                today = day(at, year=step_s > 7 * _DAY_S)
                lines = (clock(at, step_s), today) if step_s < _DAY_S else (today,)
                new = number in starts or today != days
                marks.append(Mark(100 * place / self.width, lines if new else lines[:1], before=new))
                days = today
        return marks

    def name(self, number: int) -> str:
        """Returns which stretch of time a bin is."""
        begin, end = (clock(place * self.course.width_s, self.course.width_s) for place in (number, number + 1))
        return f"{day(number * self.course.width_s)}, {begin} to {end}"

    def spans(self) -> list[Mark]:
        """Returns the labels of its gaps."""
        return [Mark(100 * (place + gap / 2) / self.width, (duration(s),)) for place, gap, s in self.silences]


def panels(course: Course, table: Sequence[Panel]) -> list[tuple[Panel, str]]:
    """Returns the charts over time of which there is something to see, on one axis."""
    axis = TimeAxis(course)
    values = [
        (panel, [[series.value(one, course.width_s) for _, _, one in axis.columns] for series in panel.series])
        for panel in table
    ]
    shown = [(panel, rows) for panel, rows in values if panel.always or any(map(any, rows))]
    ticks, spans, backdrop = _labels(axis.ticks(), "below"), _labels(axis.spans(), "above"), _backdrop(axis)
    return [
        (panel, _panel(panel, rows, axis, backdrop, (spans if n == 0 else "", ticks if n == len(shown) - 1 else "")))
        for n, (panel, rows) in enumerate(shown)
    ]


def _panel(panel: Panel, rows: list[list[float]], axis: TimeAxis, backdrop: str, marks: tuple[str, str]) -> str:
    sums = [sum(column) for column in zip(*rows, strict=True)]
    ticks = steps(max(sums), whole=panel.whole, most=2 if panel.size == "low" else 4)
    drawing, feet = backdrop, [0.0] * len(sums)
    for series, row in zip(panel.series, rows, strict=True):
        heads = [foot + _height(value, ticks[-1]) for foot, value in zip(feet, row, strict=True)]
        places = [place for place, _, _ in axis.columns]
        drawing += _bars(zip(places, [1.0] * len(row), feet, heads, strict=True), series.kind)
        feet = heads
    for (place, number, _), column in zip(axis.columns, zip(*rows, strict=True), strict=True):
        said = ", ".join(f"{series.name} {count(value)}" for series, value in zip(panel.series, column, strict=True))
        drawing += _pointed(place, 1, f"{axis.name(number)}: {said}")
    return _plot(drawing, axis.width, panel.title, ticks=ticks, size=panel.size, marks=marks)


def _backdrop(axis: TimeAxis) -> str:
    """Returns what stands behind all charts over time: when everything was held back, and the gaps between runs."""
    drawn = ""
    for place, _, one in axis.columns:
        if one.paused_s:
            part = max(_LEAST_SHADE, min(1.0, one.paused_s / axis.course.width_s))
            drawn += f'<rect class="paused" x="{_n(place)}" y="0" width="1" height="100" fill-opacity="{_n(part)}"/>'
    for place, gap, silent_s in axis.silences:
        drawn += f'<path class="silence" d="M{_n(place)} 0V100M{_n(place + gap)} 0V100"/>'
        drawn += _pointed(place, gap, f"{duration(silent_s)} between two runs")
    return drawn
