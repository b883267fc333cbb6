"""Samples of two clients, taken in turn, and what they come to. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.harness.figures import Figure, Target, paired_ratio


def turns(names: Iterable[str], rounds: int) -> Iterable[str]:
    """The names in order, backwards in every second round: so none is always the first after a pause."""
    order = list(names)
    for number in range(rounds):
        yield from order if number % 2 == 0 else order[::-1]


@dataclass(frozen=True, slots=True)
class Samples:
    """What two clients cost in each round, and the first of them once more in a process of its own: the A/A."""

    who: list[float] = field(default_factory=list)
    by: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)

    @classmethod
    def taken(cls, measure: Callable[[str], float], rounds: int) -> "Samples":
        """Calls `measure` with "who", "by" and "again" in turn."""
        samples = cls()
        for name in turns(cls.__slots__, rounds):
            getattr(samples, name).append(measure(name))
        return samples

    def ratio(self, group: str, who: str, by: str, what: str, target: Target | None) -> Figure:
        """The median of the ratios round by round, with the A/A and the middle half of the rounds beside it."""
        each = [value / other for value, other in zip(self.who, self.by, strict=True)]
        same = paired_ratio(self.again, self.who)
        low, high = middle_half(each)
        note = f"A/A {same:.2f}; middle half of {len(each)} ratios: {low:.2f} to {high:.2f}"
        return Figure(group, f"{who} : {by}", what, median(each), "x", target, tuple(each), note)


def middle_half(values: Iterable[float]) -> tuple[float, float]:
    """The bounds between which the middle half of the values is."""
    ordered = sorted(values)
    skipped = len(ordered) // 4
    return ordered[skipped], ordered[-1 - skipped]
