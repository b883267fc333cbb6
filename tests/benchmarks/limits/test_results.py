"""What the runs under limits came to."""

from typing import Any

import pytest

from benchmarks.limits import results
from benchmarks.limits.ways import WAYS
from benchmarks.limits.workload import DOWN, DYNAMIC, FIXED


def under(account: str, verdicts: list[tuple[float, int]], **facts: Any) -> results.LimitsRun:
    """A run of the limits benchmark in which the account gave these verdicts, at these times, on 100 tokens each."""
    recorded = [(at, status, 100, 10.0, 1000.0) for at, status in verdicts]
    usual: dict[str, Any] = {"speed": 10.0, "limit_s": 100.0, "finished": True, "took_s": 1.0}
    outcomes = {"ok": sum(status == 200 for _, status in verdicts)}
    way = WAYS["ours, Limits()"]
    own = {"way": way, "account": account, "calls": len(recorded), "verdicts": recorded, "outcomes": outcomes}
    return results.LimitsRun(**{**own, **usual, **facts})


def test_the_throughput_is_a_share_of_what_nobody_can_surpass() -> None:
    """The account holds ten requests and gives ten more a second: 110 in 10 s are all there are."""
    ideal = [(max(0.0, number / 10 - 0.9), 200) for number in range(110)]
    assert under(FIXED, ideal).throughput == pytest.approx(100)
    late = [(2 * at, status) for at, status in ideal]
    assert under(FIXED, late).throughput == pytest.approx(50)
    # Time in which everything was refused counts, and so does what is left of the time limit.
    assert under(FIXED, [*ideal, (20.0, 429)]).throughput == pytest.approx(50)
    assert under(FIXED, ideal, finished=False).throughput == pytest.approx(10)
    assert under(FIXED, [(0.0, 429)]).throughput == 0
    assert under(DYNAMIC, ideal).throughput > 100  # nobody gets this much of a dynamic account


def test_the_table_of_limits_tells_what_was_refused_what_failed_and_what_was_never_done() -> None:
    verdicts = [(0.1 * number, 429 if number < 2 else 200) for number in range(30_000)]
    run = under(FIXED, verdicts, outcomes={"ok": 29_990, "RateLimitError": 3}, finished=False, limit_s=9_000.0)
    assert results.table([run])[1][2:7] == ("< 0.01 %", "30,000", "29,990", "3", "7")
    assert {figure.what: figure.state for figure in run.figures()} == {"throughput": "missed", "429s": "reached"}
    down = under(DOWN, [(0.1 * number, 503) for number in range(12)], calls=10, outcomes={"OverloadedError": 10})
    assert results.table_down([down])[1][1:5] == ("10", "10", "12", "1.20")
