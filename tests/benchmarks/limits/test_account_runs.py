"""Which runs under accounts there are, and how long each may take."""

import pytest

from benchmarks.limits.account_runs import limit_s, plan, speed_of
from benchmarks.limits.ways import WAYS
from benchmarks.limits.workload import DOWN, DYNAMIC, FIXED, SETTINGS

OURS, OPENAI = WAYS["ours, Limits()"], WAYS["openai, as it comes"]


def test_our_ways_run_seed_by_seed_and_the_others_once() -> None:
    planned = list(plan([FIXED], ["ours", "openai"], 2))
    ours = [one.way.name for one in planned if one.way.client == "ours" and one.seed == 1]
    assert ours == [name for name in WAYS if name.startswith("ours")]
    assert [one.way.name for one in planned if one.seed == 2] == ours
    assert [one.way.name for one in planned if one.way.client == "openai"] == [
        "openai, as it comes",
        "openai, as advised",
    ]
    assert all(one.setting.name == FIXED for one in planned)


def test_accounts_that_are_not_for_comparison_are_for_our_usual_way_alone() -> None:
    assert {one.way for one in plan(["silent", "stray", "distance", "whole5"], [], 3)} == {OURS}
    assert {one.setting.part for one in plan([], ["ours"], 1)} == {setting.part for setting in SETTINGS.values()}


def test_a_run_may_take_longer_than_the_ideal_and_an_unscaled_one_less() -> None:
    assert limit_s(SETTINGS[DYNAMIC], 2_000, 10) == pytest.approx(1.5 * 260, rel=0.01)
    assert limit_s(SETTINGS[DYNAMIC], 250, 10) > 1.4 * SETTINGS[DYNAMIC].ideal_s(250)
    assert limit_s(SETTINGS[FIXED], 2_000, 1, scaled=False) == 40
    assert limit_s(SETTINGS[DOWN], 1_000, 100) == 4_000


def test_the_clocks_are_accelerated_as_far_as_the_client_and_the_account_allow() -> None:
    assert speed_of(OURS, SETTINGS[FIXED], 10) == 10
    assert speed_of(OPENAI, SETTINGS[FIXED], 10) == 1
    assert speed_of(WAYS["ours, run_batch"], SETTINGS[FIXED], 10) == 4
    assert speed_of(OURS, SETTINGS["fixed, 20 ms"], 10) == 2
    assert speed_of(OURS, SETTINGS["fixed, 20 ms"], 1) == 1
    assert speed_of(OURS, SETTINGS[DOWN], 10) == 100
