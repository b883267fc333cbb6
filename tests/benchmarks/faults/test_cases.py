"""The table of fault cases."""

from collections import Counter

from benchmarks.faults.case import COMPLETE, ERROR
from benchmarks.faults.cases import CASES


def test_the_cases_say_what_is_right_without_contradiction() -> None:
    """Every case which has to fail names this library's class, and none which has to complete does."""
    assert len(CASES) > 205
    for case in CASES.values():
        assert bool(case.ours) is (case.right == ERROR) or case.right == "either", case.name
    assert Counter(case.right for case in CASES.values())[COMPLETE] > 60
