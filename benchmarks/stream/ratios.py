"""Figures from the rounds of several clients: medians, and ratios round by round with their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.harness.figures import Figure, Ratio, Target, paired_ratio

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark


BLAST_RATIOS = (
    Ratio("ours", "raw loop", Target(1.25, 1.0)),
    Ratio("ours text()", "raw loop", Target(1.1, 0.8)),
    Ratio("openai", "ours", Target(40, 55, more=True)),
    Ratio("together", "ours", Target(40, 55, more=True)),
    Ratio("together<2", "ours"),
    Ratio("litellm", "ours"),
)
PACED_RATIOS = (
    Ratio("ours", "raw loop", Target(1.15, 1.05)),
    Ratio("ours text()", "raw loop"),
    Ratio("ours", "openai", Target(0.28)),
    Ratio("ours", "together"),
    Ratio("ours", "together<2"),
)
CAPACITY_RATIOS = (
    Ratio("ours", "openai", Target(6, 8, more=True)),
    Ratio("ours", "together<2", Target(1.5, more=True)),
    Ratio("ours", "raw loop"),
)
FIRST_BYTE_RATIOS = (
    Ratio("ours", "raw loop", Target(1.3, 1.1)),
    Ratio("together<2", "ours"),
    Ratio("openai", "ours"),
)


def add_values(
    benchmark: StreamBenchmark, group: str, where: str, values: Mapping[str, Sequence[float]], unit: str, what: str = ""
) -> None:
    for name, samples in values.items():
        benchmark.add(Figure(group, name, what or where, median(samples), unit, samples=tuple(samples)))


def add_ratios(
    benchmark: StreamBenchmark, group: str, where: str, values: Mapping[str, Sequence[float]], ratios: Sequence[Ratio]
) -> None:
    """A figure for every ratio of which both sides were measured equally often."""
    for ratio in ratios:
        above, below = values.get(ratio.who), values.get(ratio.by)
        if above and below and len(above) == len(below):
            who = f"{ratio.who} : {ratio.by}"
            each = [value / other for value, other in zip(above, below, strict=True)]
            note = f"rounds: {min(each):.2f} to {max(each):.2f}"
            benchmark.add(Figure(group, who, where, paired_ratio(above, below), "x", ratio.target, tuple(each), note))
