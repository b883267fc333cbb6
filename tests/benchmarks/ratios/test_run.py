"""A run of the ratios."""

import json
from pathlib import Path

from support.benchmarks import run_benchmarks


def test_a_tiny_run(tmp_path: Path) -> None:
    """Servers and clients are processes of their own; each ratio has the two figures it is made of before it."""
    run = run_benchmarks("ratios", "--quick", "--only", "opening,whole,kept,objects", "--output", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    written = json.loads((tmp_path / "ratios.json").read_text())
    assert written["failures"] == []
    for part in ("opening", "whole"):
        clients = [figure["who"] for figure in written["figures"] if figure["group"] == part]
        assert clients == ["ours", "raw loop", "ours : raw loop"]
    kept = {figure["who"]: figure["value"] for figure in written["figures"] if figure["unit"] == "bytes each"}
    assert kept["raw loop"] > 100
    assert kept["ours"] > 100
    assert written["objects"]["ours"]["ours"]["Reading"] == 1
    assert written["objects"]["raw loop"]["asyncio"]["Task"] == 1
