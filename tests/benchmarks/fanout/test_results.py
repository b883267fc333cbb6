"""What the runs of many requests came to."""

from typing import Any

import pytest

from benchmarks.fanout import plan as fanout_plan
from benchmarks.fanout import results as fanout_results


def fanned(way: str, cpu_s: float, group: str = fanout_plan.WHOLE, **facts: Any) -> fanout_results.FanoutRun:
    """A run of the fan-out benchmark: 5,000 requests, 256 at once, in 1.25 s."""
    usual: dict[str, Any] = {"requests": 5_000, "at_once": 256, "took_s": 1.25, "outcomes": {"ok": 5_000}}
    return fanout_results.FanoutRun(group, way, cpu_s=cpu_s, most_open=256, **{**usual, "connections": 256, **facts})


def test_what_a_request_costs_is_compared_round_by_round() -> None:
    """A client that takes part in fewer rounds is compared with those rounds, not with all."""
    runs = [fanned("raw loop", 0.5), fanned("ours", 0.6), fanned("openai", 12.0)]
    runs += [fanned("raw loop", 1.0), fanned("ours", 1.2), fanned("raw loop", 0.5), fanned("ours", 0.6)]
    figures = {(figure.who, figure.what): figure for figure in fanout_results.figures_of(fanout_plan.WHOLE, runs)}
    assert figures["ours : raw loop", "CPU of a request"].value == pytest.approx(1.2)
    assert figures["openai : ours", "CPU of a request"].value == pytest.approx(20)
    share = figures["ours", "of the ideal"]
    assert (share.value, share.state) == (pytest.approx(100 * 4_000 / 5_120), "missed")
    assert figures["raw loop", "of the ideal"].target is None
    assert fanout_results.table(runs)[2] == ("ours", "120 us", "4,000", "78 %", "256", "0", "5,000", "3")


def test_a_connection_made_twice_misses_the_target() -> None:
    runs = [fanned("ours", 1.0, fanout_plan.CONNECTIONS, at_once=1_000, connections=made) for made in (1_000, 1_001)]
    (figure,) = fanout_results.figures_of(fanout_plan.CONNECTIONS, runs)
    assert (figure.value, figure.state) == (1_001, "missed")
