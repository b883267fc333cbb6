"""Runs of `python -m benchmarks`."""

import subprocess
import sys

from support.paths import ROOT


def run_benchmarks(*arguments: str, interpreter: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks` with these arguments, and options of the interpreter."""
    command = [sys.executable, *interpreter, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
