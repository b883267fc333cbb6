"""What is compared with what."""

import importlib

import pytest

from benchmarks.clients import PEERS
from benchmarks.ratios import command
from benchmarks.ratios.plan import OPENAI, OURS, Comparison, comparisons

ALONE = {"kept", "objects", "capacity"}
"""Parts that are not a plain ratio of two costs."""


def test_every_part_is_measured() -> None:
    assert {comparison.part for comparison in comparisons(quick=False)} | ALONE == set(command.PARTS)


@pytest.mark.parametrize("comparison", comparisons(quick=True), ids=lambda row: f"{row.part}, {row.what}")
def test_clients_and_measurements_exist(comparison: Comparison) -> None:
    assert {comparison.who, comparison.by} <= set(PEERS)
    assert callable(importlib.import_module(f"benchmarks.{comparison.measurement}").measure)


def test_a_slow_client_gets_fewer_tokens() -> None:
    (comparison,) = [row for row in comparisons(quick=False) if row.part == "openai"]
    assert comparison.job_of(OURS) == {"streams": 1, "tokens": 300_000}
    assert comparison.job_of(OPENAI) == {"streams": 1, "tokens": 10_000}
