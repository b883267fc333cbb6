"""The verdict on what a client made of a fault case."""

from typing import Any

import pytest

from benchmarks.faults.case import ERROR, TEXT, Case, Truth
from benchmarks.faults.verdicts import judge


def seen(**facts: Any) -> dict[str, Any]:
    """What is observed of a client that gives the whole answer, with other facts in place of some."""
    whole = {"text": TEXT, "reasoning": "", "reason": "stop", "calls": []}
    usual = {"error": None, "own": True, "hang": False, "status": None, "partial": None, "took_s": 0.1}
    return {**usual, "choices": {"0": {**whole, **facts.pop("choice", {})}}, **facts}


WHOLE = Case("whole")


BROKEN = Case("broken", right=ERROR, ours="StreamAPIError")


REFUSED = Case("refused", right=ERROR, ours="RateLimitError", status=429)


OPEN = Case("open", right="either")


@pytest.mark.parametrize(
    ("case", "facts", "verdict"),
    [
        (WHOLE, {}, "right"),
        (WHOLE, {"choice": {"text": TEXT[:-1]}}, "silent"),
        (WHOLE, {"choice": {"text": TEXT + "."}}, "silent"),
        (WHOLE, {"choice": {"text": None}}, "silent"),
        (WHOLE, {"choice": {"reason": None}}, "silent"),
        (WHOLE, {"choice": {"reason": "length"}}, "silent"),
        (WHOLE, {"choice": {"calls": [["f", "{}"]]}}, "silent"),
        (WHOLE, {"choices": {}}, "silent"),
        (WHOLE, {"error": "APIError"}, "false alarm"),
        (WHOLE, {"error": "ReadError", "own": False}, "foreign"),
        (WHOLE, {"error": "TimeoutError", "own": False, "hang": True}, "hang"),
        (Case("new", truth=(Truth(reason="tired"),)), {}, "right"),
        (BROKEN, {}, "silent"),
        (BROKEN, {"error": "APIError", "choice": {"text": TEXT[:9]}}, "right"),
        (BROKEN, {"error": "APIError", "choice": {"text": "Something else"}}, "silent"),
        (REFUSED, {"error": "APIError", "status": 429, "choices": {}}, "right"),
        (REFUSED, {"error": "APIError", "status": 500, "choices": {}}, "wrong error"),
        (OPEN, {}, "right"),
        (OPEN, {"error": "APIError", "choice": {"text": TEXT[:9]}}, "right"),
        (OPEN, {"choice": {"text": TEXT[:9]}}, "silent"),
    ],
)
def test_one_rule_judges_every_client(case: Case, facts: dict[str, Any], verdict: str) -> None:
    assert judge(case, seen(**facts)).verdict == verdict


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"error": "StreamAPIError", "partial": {"0": TEXT}}, "right"),
        ({"error": "StreamAPIError", "partial": {"0": TEXT[:-1]}}, "wrong error"),
        ({"error": "StreamTimeoutError", "partial": {"0": TEXT}}, "wrong error"),
    ],
)
def test_this_library_is_held_to_the_class_and_the_partial_that_it_promises(
    facts: dict[str, Any], verdict: str
) -> None:
    assert judge(BROKEN, seen(**facts), exact=True).verdict == verdict


def test_a_silent_loss_that_the_finish_reason_tells_of_is_no_deceit() -> None:
    assert judge(BROKEN, seen()).deceived
    assert not judge(BROKEN, seen(choice={"reason": None})).deceived
