"""How the report draws charts: HTML and SVG from numbers.

A chart is an SVG that stretches to the available width. Its labels are HTML next to it, which keeps its size, so that a
chart can be read on a small screen and on paper. There is no script: tooltips are `<title>` elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from together_async.batch.report.formats import DAY_S, compact, count, duration, share, text
from together_async.batch.report.statistics import Distribution


@attrs.frozen
class Label:
    """A label of a chart.

    Attributes:
        percent: Its place, from the left.
        lines: Its lines, as HTML.
        is_important: Whether it stays when there is not enough room for all.
    """

    percent: float
    lines: tuple[str, ...]
    is_important: bool = False


_CHARACTER: Final = 0.7
"""Width of a character, in percent of a chart's width on a large screen."""
_NARROW: Final = 3.0
"""How many times as much it is on a small screen."""


def draw_labels(labels: Iterable[Label], where: str) -> str:
    """Returns labels as HTML, without those that would overlap; some are shown on wide screens only."""
    shown = ""
    wide: list[tuple[float, float]] = []
    narrow: list[tuple[float, float]] = []
    for label in sorted(labels, key=lambda label: (not label.is_important, label.percent)):
        half = _CHARACTER * (max(map(len, label.lines)) + 1) / 2
        if not _claim(label.percent, half, wide):
            continue
        # At the edges a label stays inside the chart, however narrow the chart is.
        edge = "first" if label.percent < 4 else "last" if label.percent > 96 else ""
        kind = edge if _claim(label.percent, half * _NARROW, narrow) else f"{edge} wide"
        shown += f'<span class="{kind}" style="left:{num(label.percent)}%">{"<br>".join(label.lines)}</span>'
    return f'<div class="{where}" aria-hidden="true">{shown}</div>' if shown else ""


def _claim(place: float, half: float, taken: list[tuple[float, float]]) -> bool:
    """Returns whether there is room for a label, and claims it."""
    begin = min(max(0.0, place - half), 100.0 - 2 * half)
    free = all(begin + 2 * half <= other[0] or begin >= other[1] for other in taken)
    if free:
        taken.append((begin, begin + 2 * half))
    return free


def num(number: float) -> str:
    """Returns a number for SVG and CSS, with at most two decimals."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def steps(top: float, *, whole: bool = False, most: int = 4) -> list[float]:
    """Returns the ticks of an axis, from 0 to a round number not below `top`.

    Args:
        top: The highest value.
        whole: Whether ticks are whole numbers only.
        most: About how many steps there are.
    """
    if top <= 0:
        return [0, 1]
    raw = top / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    step = max(math.ceil(step), 1) if whole else step
    return [step * number for number in range(max(1, math.ceil(top / step - 1e-9)) + 1)]


def draw_bars(bars: Iterable[tuple[float, float, float, float]], name: str) -> str:
    """Returns bars as one path.

    Args:
        bars: For each its left edge, its width, and its foot and head in percent of the height.
        name: Class of the style sheet.
    """
    drawn = "".join(
        f"M{num(left)} {num(100 - begin)}V{num(100 - end)}h{num(width)}V{num(100 - begin)}z"
        for left, width, begin, end in bars
        if end > begin
    )
    return f'<path class="{name}" d="{drawn}"/>' if drawn else ""


def draw_tooltip(left: float, width: float, content: str) -> str:
    """Returns an invisible area of a chart that shows a text when the pointer is over it."""
    area = f'x="{num(left)}" y="0" width="{num(width)}" height="100"'
    return f'<rect class="point" {area}><title>{text(content)}</title></rect>'


def draw_plot(drawing: str, width: float, name: str, *, ticks: list[float], size: str, labels: tuple[str, str]) -> str:
    """Returns a drawing with its axes.

    Args:
        drawing: SVG, 100 units high.
        width: The drawing's width in its own units.
        name: What it shows, for screen readers.
        ticks: The ticks of the vertical axis, the first at its foot and the last at its head.
        size: Class of the style sheet.
        labels: Labels above and below the drawing, as HTML.
    """
    ups = [100 * tick / ticks[-1] for tick in ticks]
    lines = "".join(f"M0 {num(100 - up)}H{num(width)}" for up in ups[1:])
    shown = "".join(
        f'<span style="bottom:{num(up)}%">{compact(tick)}</span>' for tick, up in zip(ticks, ups, strict=True)
    )
    return (
        f'<div class="plot {size}">{labels[0]}<div class="up" aria-hidden="true">{shown}</div>'
        f'<svg role="img" aria-label="{text(name)}" viewBox="0 0 {num(width)} 100" preserveAspectRatio="none">'
        f'<path class="grid" d="{lines}"/>{drawing}<path class="foot" d="M0 100H{num(width)}"/></svg>{labels[1]}</div>'
    )


def parts(values: Sequence[tuple[str, float]], name: str) -> str:
    """Returns one bar made of parts. A part above 0 is visible, however small it is.

    Args:
        values: Class and value of each part, from the left.
        name: What it shows, for screen readers; empty if the text next to it says so.
    """
    least = sum(value for _, value in values) * _LEAST_PART
    widths = [max(value, least) if value else 0.0 for _, value in values]
    whole, left, drawn = sum(widths) or 1.0, 0.0, ""
    for (kind, _), width in zip(values, widths, strict=True):
        drawn += f'<rect class="{kind}" x="{num(left)}" y="0" width="{num(100 * width / whole)}" height="1"/>'
        left += 100 * width / whole
    label = f'role="img" aria-label="{text(name)}"' if name else 'aria-hidden="true"'
    return f'<svg class="parts" {label} viewBox="0 0 100 1" preserveAspectRatio="none">{drawn}</svg>'


_LEAST_PART: Final = 0.004


# -------------------------------------------------------------------------------------------------------- distributions

PERCENTILES: Final = (50, 90, 99)
_MOST_BARS: Final = 48
_FEWEST_BARS: Final = 10
_DECADE: Final = math.log(10) * Distribution.PER_E
# One number on each line would hide the series.
# fmt: off
_TICKS_S: Final = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1_200, 3_600, 7_200,
    18_000, 36_000, DAY_S, 2 * DAY_S, 5 * DAY_S, 10 * DAY_S,
)
_FEW_TICKS_S: Final = (
    0.001, 0.01, 0.1, 1, 10, 60, 600, 3_600, 36_000, DAY_S, 10 * DAY_S, 100 * DAY_S, 1_000 * DAY_S,
)
# fmt: on


def histogram(distribution: Distribution, name: str) -> str:
    """Returns a histogram over a logarithmic axis, with the percentiles marked."""
    first, size, counts = _grouped(distribution)
    begin, width = first * size, len(counts) * size
    ticks = steps(max(counts), whole=True)
    drawing, above = "", []
    for n, many in enumerate(counts):
        ends = [math.exp((begin + edge * size) / Distribution.PER_E) for edge in (n, n + 1)]
        content = f"{duration(ends[0])} to {duration(ends[1])}: {count(many)} ({share(many, distribution.count)})"
        drawing += draw_tooltip(n * size, size, content)
    bars = ((n * size + size * 0.05, size * 0.9, 0, height(many, ticks[-1])) for n, many in enumerate(counts))
    drawing = draw_bars(bars, "answers") + drawing
    for percent in PERCENTILES:
        place = Distribution.index(distribution.percentile(percent)) - begin + 0.5
        drawing += f'<path class="percentile" d="M{num(place)} 0V100"/>'
        above.append(Label(100 * place / width, (f"p{percent}",)))
    below = [
        Label(100 * (math.log(seconds) * Distribution.PER_E - begin) / width, (duration(seconds, brief=True),))
        for seconds in _logarithmic_ticks(begin, begin + width)
    ]
    labels = (draw_labels(above, "above"), draw_labels(below, "below"))
    return draw_plot(drawing, width, name, ticks=ticks, size="middle", labels=labels)


def _grouped(distribution: Distribution) -> tuple[int, int, list[int]]:
    """Returns the bars of a histogram: the number of the first one, bins per bar, and the count of each bar.

    The number of bars follows Rice's rule. One more bar at each end is empty.
    """
    low, high = min(distribution.bins), max(distribution.bins)
    bars = min(_MOST_BARS, max(_FEWEST_BARS, round(2 * distribution.count ** (1 / 3))))
    size = max(1, math.ceil((high - low + 1) / bars))
    margin = max(1, (_FEWEST_BARS - (high // size - low // size)) // 2)
    first, last = low // size - margin, high // size + margin
    counts = [0] * (last - first + 1)
    for index, (many, _) in distribution.bins.items():
        counts[index // size - first] += int(many)
    return first, size, counts


def _logarithmic_ticks(begin: int, end: int) -> list[float]:
    """Returns round numbers of seconds between two bins of a `Distribution`."""
    low, high = math.exp(begin / Distribution.PER_E), math.exp(end / Distribution.PER_E)
    decades = (end - begin) / _DECADE
    if decades < 1:
        step = steps(high - low)[1]
        return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [seconds for seconds in (_TICKS_S if decades < 4 else _FEW_TICKS_S) if low <= seconds <= high]


def height(value: float, top: float) -> float:
    """Returns the height of a value in percent of `top`; a value above 0 is visible."""
    return max(100 * value / top, _LEAST_HEIGHT) if value > 0 else 0.0


_LEAST_HEIGHT: Final = 1.0
