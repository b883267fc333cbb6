"""How the report draws charts over time, all with the same axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs

from together_async.batch.report.charts import (
    Label,
    draw_bars,
    draw_labels,
    draw_plot,
    draw_tooltip,
    height,
    num,
    steps,
)
from together_async.batch.report.formats import DAY_S, clock, count, day, duration
from together_async.batch.report.timeline import Bin, Timeline


@attrs.frozen
class Series:
    """A quantity over time.

    Attributes:
        name: What it counts.
        kind: Class of the style sheet.
        value: Returns its value for a bin and the bin's width in seconds.
    """

    name: str
    kind: str
    value: Callable[[Bin, float], float]


@attrs.frozen
class Panel:
    """A chart over time, with its series stacked.

    Attributes:
        title: Its heading.
        series: Its series, the lowest first.
        size: Class of the style sheet.
        whole: Whether its axis has whole numbers only.
        always: Whether it is shown when all its values are 0.
    """

    title: str
    series: tuple[Series, ...]
    size: str = "middle"
    whole: bool = False
    always: bool = False


# One number on each line would hide the series.
# fmt: off
_TICK_STEPS_S: Final = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, DAY_S,
    2 * DAY_S, 7 * DAY_S, 30 * DAY_S, 365 * DAY_S,
)
# fmt: on
_MOST_TICKS: Final = 8
_LEAST_SHADE: Final = 0.12
_MOST_GAP: Final = 0.03
"""Most width of a gap, as a part of that of all bins."""
_MOST_GAPS: Final = 0.2
"""Most width of all gaps together."""


class TimeAxis:
    """The horizontal axis of charts over time: the runs side by side, with a gap between two.

    Attributes:
        timeline: What is shown.
        columns: For each bin its place on the axis, its number and the bin.
        width: Length of the axis, in bins.
        gaps: For each gap its place on the axis, its width there, and the seconds it stands for.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.columns: list[tuple[float, int, Bin]] = []
        self.gaps: list[tuple[float, float, float]] = []
        bins, between = sum(len(run.bins) for run in timeline.runs), len(timeline.runs) - 1
        gap = bins * min(_MOST_GAP, _MOST_GAPS / max(between, 1))
        self.width, before = 0.0, None
        for run in timeline.runs:
            if before is not None:
                self.gaps.append((self.width, gap, (run.first - before.end) * timeline.width_s))
                self.width += gap
            self.columns += [(self.width + n, run.first + n, bin_) for n, bin_ in enumerate(run.bins)]
            self.width += len(run.bins)
            before = run

    def ticks(self) -> list[Label]:
        """Returns the labels of its moments. The first label of each day, and of each run, has the date."""
        width_s, working_s = self.timeline.width_s, self.timeline.width_s * len(self.columns)
        step_s = next((step for step in _TICK_STEPS_S if working_s / step <= _MOST_TICKS), _TICK_STEPS_S[-1])
        starts = {run.first for run in self.timeline.runs}
        labels, last_day = [], ""
        for place, number, _ in self.columns:
            at = number * width_s
            if round(at * 10) % round(step_s * 10) == 0 or number in starts:
                today = day(at, year=step_s > 7 * DAY_S)
                lines = (clock(at, step_s), today) if step_s < DAY_S else (today,)
                shows_day = number in starts or today != last_day
                labels.append(
                    Label(100 * place / self.width, lines if shows_day else lines[:1], is_important=shows_day)
                )
                last_day = today
        return labels

    def name(self, number: int) -> str:
        """Returns the interval of a bin, for people."""
        begin, end = (clock(place * self.timeline.width_s, self.timeline.width_s) for place in (number, number + 1))
        return f"{day(number * self.timeline.width_s)}, {begin} to {end}"

    def gap_labels(self) -> list[Label]:
        """Returns the labels of its gaps."""
        return [Label(100 * (place + gap / 2) / self.width, (duration(s),)) for place, gap, s in self.gaps]


def draw_panels(timeline: Timeline, panels: Sequence[Panel]) -> list[tuple[Panel, str]]:
    """Returns the charts over time that have something to show, all with the same axis."""
    axis = TimeAxis(timeline)
    values = [
        (panel, [[series.value(bin_, timeline.width_s) for _, _, bin_ in axis.columns] for series in panel.series])
        for panel in panels
    ]
    shown = [(panel, rows) for panel, rows in values if panel.always or any(map(any, rows))]
    ticks, gaps = draw_labels(axis.ticks(), "below"), draw_labels(axis.gap_labels(), "above")
    backdrop = _draw_backdrop(axis)
    return [
        (
            panel,
            _draw_panel(panel, rows, axis, backdrop, (gaps if n == 0 else "", ticks if n == len(shown) - 1 else "")),
        )
        for n, (panel, rows) in enumerate(shown)
    ]


def _draw_panel(panel: Panel, rows: list[list[float]], axis: TimeAxis, backdrop: str, labels: tuple[str, str]) -> str:
    sums = [sum(column) for column in zip(*rows, strict=True)]
    ticks = steps(max(sums), whole=panel.whole, most=2 if panel.size == "low" else 4)
    drawing, feet = backdrop, [0.0] * len(sums)
    for series, row in zip(panel.series, rows, strict=True):
        heads = [foot + height(value, ticks[-1]) for foot, value in zip(feet, row, strict=True)]
        places = [place for place, _, _ in axis.columns]
        drawing += draw_bars(zip(places, [1.0] * len(row), feet, heads, strict=True), series.kind)
        feet = heads
    for (place, number, _), column in zip(axis.columns, zip(*rows, strict=True), strict=True):
        values = ", ".join(f"{series.name} {count(value)}" for series, value in zip(panel.series, column, strict=True))
        drawing += draw_tooltip(place, 1, f"{axis.name(number)}: {values}")
    return draw_plot(drawing, axis.width, panel.title, ticks=ticks, size=panel.size, labels=labels)


def _draw_backdrop(axis: TimeAxis) -> str:
    """Returns the background of all charts over time: pauses of all requests, and gaps between runs."""
    drawn = ""
    for place, _, bin_ in axis.columns:
        if bin_.paused_s:
            part = max(_LEAST_SHADE, min(1.0, bin_.paused_s / axis.timeline.width_s))
            drawn += f'<rect class="paused" x="{num(place)}" y="0" width="1" height="100" fill-opacity="{num(part)}"/>'
    for place, gap, silent_s in axis.gaps:
        drawn += f'<path class="silence" d="M{num(place)} 0V100M{num(place + gap)} 0V100"/>'
        drawn += draw_tooltip(place, gap, f"{duration(silent_s)} between two runs")
    return drawn
