"""A run under limits."""

import json
from pathlib import Path

from support.benchmarks import run_benchmarks


def test_a_tiny_run_under_limits(tmp_path: Path) -> None:
    """Emulator and client are processes of their own, with clocks that run thirty times as fast."""
    run = run_benchmarks("limits", "--clients", "ours", "--only", "down", "--quick", "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    (result,) = json.loads((tmp_path / "limits.json").read_text())["runs"]
    assert result["statuses"] == {"503": result["sent"]}
    assert 100 < result["sent"] <= 120
    assert result["finished"] is True
