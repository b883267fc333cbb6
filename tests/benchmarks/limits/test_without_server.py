"""Fairness and cost of an admission, measured without a server."""

import pytest

from benchmarks.limits import without_server
from benchmarks.limits.workload import FIXED, SETTINGS


def test_whoever_is_served_in_turn_waits_for_what_came_before() -> None:
    """Ten go at once; then a large one when the bucket is full, and those behind it when its debt is paid."""
    times = without_server.first_come_first_served(SETTINGS[FIXED].rate, [100.0] * 10 + [5000.0] + [100.0] * 2)
    assert times == pytest.approx([0] * 10 + [1, 5.1, 5.2])


async def test_the_large_request_is_overtaken_by_nobody_and_an_idle_limiter_leaves_nothing() -> None:
    fairness = {figure.what.partition(" ")[0]: figure for figure in without_server.fairness(400)}
    assert fairness["later"].value == 0
    assert fairness["wait"].value > 15
    costs = await without_server.cost(700)
    assert [figure.value for figure in costs if figure.what.startswith("timers")] == [0]
    assert {figure.who for figure in costs if figure.unit == "times"} == {
        f"{name} : asyncio.Semaphore" for name in without_server.COSTED
    }
