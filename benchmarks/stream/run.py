"""Measures the chosen groups, prints their table, and writes JSON and the picture."""

import contextlib
import importlib
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness import report
from benchmarks.stream import picture
from benchmarks.stream.benchmark import StreamBenchmark


def run(benchmark: StreamBenchmark, groups: Iterable[str], out: Path) -> int:
    """Measures the groups and reports them; returns the exit status, 0 even if targets were missed."""
    started = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # what has been measured so far is kept
        for name in groups:
            attempt_group(benchmark, name)
    report.show(benchmark.figures)
    for name, why in benchmark.left_out.items():
        print(f"left out: {name}: {why}")
    for failure in benchmark.failures:
        print(f"failed: {failure}")
    path = report.write(
        out,
        benchmark.figures,
        versions=benchmark.versions,
        left_out=benchmark.left_out,
        failures=benchmark.failures,
        seed=benchmark.seed,
        rounds=benchmark.rounds,
        quick=benchmark.quick,
        took_s=round(time.monotonic() - started),
    )
    print(", ".join(str(path) for path in [path, *picture.draw(out, benchmark.figures)]))
    missed = [figure for figure in benchmark.figures if figure.state == "missed"]
    print(f"{len(missed)} targets missed" if missed else "no target missed")
    return 0


def attempt_group(benchmark: StreamBenchmark, name: str) -> None:
    """Measures one group; if it fails as a whole (no trustme for TLS, no sockets left), the others still run."""
    try:
        importlib.import_module(f"benchmarks.stream.{name}").run(benchmark)
    except Exception as exc:
        benchmark.failures.append(f"{name}: {exc!r}")
        benchmark.say(f"  {benchmark.failures[-1]}")
