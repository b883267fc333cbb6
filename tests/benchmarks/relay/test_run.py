"""A run of the relay benchmark."""

import json
from pathlib import Path

from benchmarks.relay import leaving
from support.benchmarks import run_benchmarks


def test_a_tiny_relay(tmp_path: Path) -> None:
    """API, backend and browsers: every stream that its browser leaves is left at the API."""
    only = ("--clients", "ours", "--only", "leaving", "--quick")
    run = run_benchmarks("relay", *only, "--out", str(tmp_path))
    assert run.returncode in (0, 1), run.stdout + run.stderr  # whether a target is reached is the machine's business
    (result,) = json.loads((tmp_path / "relay.json").read_text())["results"]
    assert [len(result[kind]) for kind in ("silent", "flowing")] == list(leaving.QUICK_LEFT)
    assert None not in result["silent"] + result["flowing"]
