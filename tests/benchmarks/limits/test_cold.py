"""What the first calls are compared with."""

import pytest

from benchmarks.limits import cold
from benchmarks.limits.cold import COLD, UNLIMITED, Comparison
from together_async.testing import EmulatorServer


@pytest.mark.parametrize(
    ("work", "way"),
    [(work, way) for work in (cold.GATHER, cold.MAP, cold.STREAMS) for way in Comparison(work, 1, 1.0).ways],
)
async def test_each_way_makes_all_calls(work: str, way: str) -> None:
    async with EmulatorServer("Hello there!") as server:
        job = {"base_url": server.base_url, "work": work, "way": way, "calls": 3, "ca": None}
        assert (await cold.measure(cold, job))["took_s"] > 0
        assert server.journal.total == 3


def test_every_size_at_every_answer_and_distance_is_compared() -> None:
    titles = [comparison.title for comparison in cold.comparisons(quick=False)]
    assert len(titles) == len(set(titles)) == 6 * 2 * 2 + 3 + 1
    assert "gather of 64, answers after 1 s, TLS, 100 ms away" in titles
    targets = {comparison.calls: comparison.target.reach for comparison in cold.comparisons(quick=False)[:6]}
    assert targets == {2: 1.05, 5: 1.05, 20: 1.05, 64: 1.05, 200: 1.12, 1_000: 1.25}


def test_the_figure_is_the_median_of_the_ratios_within_a_round() -> None:
    """A round in which everything was slow says as much as another."""
    took = {COLD: (1.1, 4.4, 1.0), UNLIMITED: (1.0, 4.0, 1.0)}
    made = {figure.who: figure for figure in cold.figures_of(Comparison(cold.MAP, 20, 1.0), took)}
    ratio = made[f"{COLD} : {UNLIMITED}"]
    assert ratio.value == pytest.approx(1.1)
    assert ratio.state == "missed"
    assert made[COLD].state == ""
