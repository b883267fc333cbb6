"""A run of the fault cases."""

import json
from pathlib import Path

from benchmarks.faults import run as faults
from benchmarks.faults.verdicts import Verdict
from support.benchmarks import run_benchmarks


def test_the_share_is_never_rounded_up_to_all() -> None:
    verdicts = {"ours": {str(number): Verdict("right") for number in range(9999)} | {"bad": Verdict("hang")}}
    assert faults.table(verdicts)[1][:3] == ("ours", "10000", "99.9")


def test_a_tiny_run_of_fault_cases(tmp_path: Path) -> None:
    """Emulator and client are processes of their own; what is wrong is listed in the file."""
    only = "error in the stream: object"
    run = run_benchmarks("faults", "--clients", "ours", "--only", only, "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "faults.json").read_text())
    assert result["summary"][1][:3] == ["ours", "3", "100.0"]
    assert result["wrong"] == {"ours": {}}
