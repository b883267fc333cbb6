"""Streams derived from a number."""

import pytest

from benchmarks.faults.random_streams import plan


def test_a_planned_stream_is_the_same_on_both_sides() -> None:
    plans = [plan(f"cut {number}") for number in range(50)]
    assert plans == [plan(f"cut {number}") for number in range(50)]
    assert len({made.tokens for made in plans}) == 50
    assert all(0 <= made.whole <= len(made.tokens) for made in plans)
    with pytest.raises(ValueError, match="no stream is called"):
        plan("Why is the sky blue?")
