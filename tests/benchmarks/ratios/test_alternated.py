"""Two clients measured in turn."""

import itertools

from benchmarks.harness.figures import Target
from benchmarks.ratios.alternated import Samples, middle_half, turns


def test_every_second_round_goes_backwards() -> None:
    assert list(turns(("a", "b", "c"), 3)) == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]


def test_the_samples_of_a_round_are_compared_with_each_other() -> None:
    """A machine that is three times slower in one round changes neither the ratio nor the A/A."""
    slowness = itertools.chain.from_iterable([number] * 3 for number in (1, 3, 1, 1, 1))
    costs = {"who": 4.0, "by": 2.0, "again": 5.0}
    samples = Samples.taken(lambda name: costs[name] * next(slowness), 5)
    assert samples.by == [2.0, 6.0, 2.0, 2.0, 2.0]
    figure = samples.ratio("blast", "ours", "raw loop", "1 stream", Target(2.0))
    assert (figure.who, figure.value, figure.state) == ("ours : raw loop", 2.0, "reached")
    assert figure.note == "A/A 1.25; middle half of 5 ratios: 2.00 to 2.00"


def test_the_middle_half_leaves_out_a_quarter_at_each_end() -> None:
    assert middle_half([9.0, 1.0, 2.0, 3.0]) == (2.0, 3.0)
    assert middle_half([5.0]) == (5.0, 5.0)
