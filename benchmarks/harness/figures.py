"""Medians, ratios and figures. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must reach (`reach`), and what we aim for (`go`). `more`: larger is better."""

    reach: float
    go: float | None = None
    more: bool = False

    def state(self, value: float) -> str:
        """`go`, `reached` or `missed`."""
        sign = -1 if self.more else 1
        if self.go is not None and sign * value <= sign * self.go:
            return "go"
        return "reached" if sign * value <= sign * self.reach else "missed"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the report: what was measured, of which client, under which conditions."""

    group: str
    who: str
    what: str
    value: float
    unit: str
    target: Target | None = None
    samples: tuple[float, ...] = ()
    note: str = ""

    @property
    def state(self) -> str:
        return "" if self.target is None else self.target.state(self.value)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}


def paired_ratio(values: Sequence[float], yardstick: Sequence[float]) -> float:
    """Median of the ratios round by round: whatever slowed the machine down in a round slowed both."""
    return median(value / other for value, other in zip(values, yardstick, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed. Not interpolated."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def spread(values: Sequence[float]) -> float:
    """Half the distance between the largest and the smallest value, as a share of the median."""
    middle = median(values)
    return (max(values) - min(values)) / 2 / middle if middle else 0.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """`who` divided by `by`, and the target of the quotient."""

    who: str
    by: str
    target: Target | None = None
