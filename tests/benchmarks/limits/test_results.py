"""What the runs under limits came to."""

from typing import Any

import pytest

from benchmarks.limits import results
from benchmarks.limits.ways import WAYS
from benchmarks.limits.workload import DOWN, DYNAMIC, FIXED, SETTINGS


def under(setting: str, verdicts: list[tuple[float, int]], **facts: Any) -> results.LimitsRun:
    """A run of the limits benchmark in which the account gave these verdicts, at these times, on 100 tokens each."""
    recorded = [(at, status, 100, 10.0, 1000.0) for at, status in verdicts]
    usual: dict[str, Any] = {"speed": 10.0, "limit_s": 100.0, "finished": True, "took_s": 1.0}
    outcomes = {"ok": sum(status == 200 for _, status in verdicts)}
    way = WAYS["ours, Limits()"]
    own = {"way": way, "setting": setting, "calls": len(recorded), "verdicts": recorded, "outcomes": outcomes}
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
    (series,) = results.series_of([run])
    assert results.table([series], "account", lambda one: one.way.name)[1][4:9] == (
        "< 0.01 %",
        "< 0.01 %",
        "30,000",
        "3",
        "7",
    )
    states = {figure.what: figure.state for figure in series.figures()}
    assert states == {"throughput": "missed", "429s": "go", "failed": "missed"}
    down = under(DOWN, [(0.1 * number, 503) for number in range(12)], calls=10, outcomes={"OverloadedError": 10})
    assert results.table_down(results.series_of([down]))[1][1:5] == ("10", "10", "12", "1.20")


def test_a_series_is_told_by_its_median_and_its_worst_run() -> None:
    ideal = [(max(0.0, number / 10 - 0.9), 200) for number in range(2000)]
    runs = [under(FIXED, [(slow * at, status) for at, status in ideal], seed=slow) for slow in (1, 2, 4)]
    (series,) = results.series_of(runs)
    share = series.figures()[0]
    assert share.value == pytest.approx(50)
    assert share.note == "worst of 3: 25"
    assert share.state == "missed"


@pytest.mark.parametrize(("way", "state"), [("ours, Limits()", "reached"), ("ours, run_batch", "missed")])
def test_a_batch_has_to_do_better_with_dynamic_limits(way: str, state: str) -> None:
    """2,000 calls take an oracle 260 s; ours may take a fifth more, a batch a fourteenth."""
    late = [(0.15 * number, 200) for number in range(2000)]
    (series,) = results.series_of([under(DYNAMIC, late, way=WAYS[way])])
    assert series.figures()[0].state == state


def test_a_short_run_is_little_but_its_start_and_has_no_target_but_that_nothing_fails() -> None:
    (series,) = results.series_of([under(FIXED, [(0.0, 200), (9.0, 200)])])
    assert [figure.state for figure in series.figures()] == ["", "", "reached"]


def test_stray_429s_are_compared_with_the_same_calls_without() -> None:
    fresh = under("fresh", [(0.1 * number, 200) for number in range(151)])
    stray = under("first", [(0.1 * number, 200 if number else 429) for number in range(166)])
    figures = results.figures_of(results.series_of([stray, fresh]))
    assert {figure.what: figure.state for figure in figures if figure.group == "limits first"} == {
        "took": "",
        "against fresh": "reached",
        "failed": "reached",
    }


def test_a_part_of_several_settings_has_one_table() -> None:
    runs = [under(name, [(0.0, 200), (9.0, 200)]) for name in ("fresh", FIXED, "first", "silent, 1/s")]
    tables = results.tables(results.series_of(runs)).split("\n\n")
    assert [table.splitlines()[0].partition("  ")[0] for table in tables] == ["fixed account"] + ["ours, Limits()"] * 2
    assert [line.partition("  ")[0] for line in tables[2].splitlines()[1:]] == [
        SETTINGS["fresh"].title,
        SETTINGS["first"].title,
    ]


def test_every_target_is_of_a_setting() -> None:
    assert {name for name, _ in (*results.TARGETS, *results.BATCH_TARGETS)} <= set(SETTINGS)
