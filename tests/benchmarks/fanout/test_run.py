"""A run of many requests."""

import json
from pathlib import Path

from support.benchmarks import run_benchmarks


def test_a_tiny_fan_out(tmp_path: Path) -> None:
    """Server and clients are processes of their own; every answer is the right one, on a connection a place at most."""
    only = ("--clients", "raw loop,ours", "--only", "whole,stream")
    run = run_benchmarks("fanout", *only, "--quick", "--output", str(tmp_path))
    assert run.returncode in (0, 1), run.stdout + run.stderr  # whether a target is reached is the machine's business
    runs = json.loads((tmp_path / "fanout.json").read_text())["runs"]
    assert [(measured["group"], measured["way"]) for measured in runs] == [
        (group, way) for group in ("whole", "stream") for way in ("raw loop", "ours")
    ]
    for measured in runs:
        assert measured["outcomes"] == {"ok": 1_000}
        if measured["way"] == "raw loop":
            assert measured["connections"] == 256
        else:  # ours are let go within 0.2 s, in which the first connections are free again
            assert 128 <= measured["connections"] <= 256
