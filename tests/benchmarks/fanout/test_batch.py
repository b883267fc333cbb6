"""The durable batch, measured without a server."""

from pathlib import Path

import pytest

from benchmarks.fanout import batch


def test_resuming_is_linear_when_a_line_costs_the_same_in_every_file() -> None:
    seconds = {"10000": [0.1, 0.3, 0.1], "30000": [0.3], "100000": [1.4]}
    *sizes, linear = batch.resumed("ours", seconds, full=True)
    assert [(figure.value, figure.state) for figure in sizes] == [(0.1, ""), (0.3, ""), (1.4, "missed")]
    assert (linear.value, linear.state) == (pytest.approx(1.4), "missed")


async def test_a_batch_is_written_resumed_and_compared_without_a_server(tmp_path: Path) -> None:
    found = await batch.resume(tmp_path, (10, 40), rounds=1)
    assert {size: len(samples) for size, samples in found["seconds"].items()} == {"10": 1, "40": 1}
    found = await batch.journal(tmp_path, 50, rounds=1)
    assert found["fsyncs"][0] >= 1
    assert not (tmp_path / "out.jsonl").exists()
