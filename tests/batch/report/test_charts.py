"""Histograms, and the axes of charts."""

import re

import pytest

from support.report import answer, page_of, tooltips
from together_async.batch.report.charts import steps


def test_histogram_shows_every_request():
    contents = tooltips(page_of([answer(n, sent_at=None, latency_s=1 + n % 50, queued_s=None) for n in range(700)]))
    assert sum(int(re.search(r": (\d+) \(", content)[1]) for content in contents) == 700


@pytest.mark.parametrize("top", [0, 0.003, 1, 3, 7, 9.99, 10, 64, 1_001, 3e9])
@pytest.mark.parametrize("whole", [True, False])
def test_axes_reach_their_highest_value_in_round_steps(top, whole):
    ticks = steps(top, whole=whole)
    assert ticks[0] == 0
    assert ticks[-1] >= top
    assert 2 <= len(ticks) <= 6
    assert not whole or all(tick == int(tick) for tick in ticks)
