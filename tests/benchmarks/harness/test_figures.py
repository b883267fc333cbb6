"""The arithmetic of the figures."""

import pytest

from benchmarks.harness.figures import Target, paired_ratio, percentile


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which the machine was three times slower must not count as a difference."""
    assert paired_ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.0]) == 2.0
    assert percentile(range(100), 99) == 99
    assert percentile([5.0], 99) == 5.0


@pytest.mark.parametrize(
    ("target", "value", "state"),
    [
        (Target(1.25, 1.0), 0.9, "go"),
        (Target(1.25, 1.0), 1.2, "reached"),
        (Target(1.25, 1.0), 1.3, "missed"),
        (Target(6, 8, more=True), 9, "go"),
        (Target(6, 8, more=True), 7, "reached"),
        (Target(6, 8, more=True), 5, "missed"),
    ],
)
def test_a_target_says_whether_it_is_reached(target: Target, value: float, state: str) -> None:
    assert target.state(value) == state
