"""Thousands of calls under an account's limits, here and with other clients.

Each client makes 2,000 calls of about 100 tokens at once (`workload`) against the emulator with an account of 600
requests and 60,000 tokens per minute, with fixed limits and with dynamic ones, and 1,000 while the platform answers
503; ours in several ways, and under further accounts, each several times with other calls (`account_runs`). Emulator
and client are two processes, each on its own core. Their clocks run `speed` times as fast (`scaled_clock`), except with
the SDKs when all calls start at once: that is seconds of work, which would count as minutes.

The throughput is a share of `ideal_seconds`, which no client can beat, for the tokens that the account charged; the
time counts from the first request at the server to the last, refused or not, or is the run's time limit.

What a first call costs is measured on real clocks against a server without limits (`cold`), many models too (`models`).
Measured without a server (`without_server`): a large request's wait among small ones, and what an admission costs.
"""

import asyncio
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.figures import Figure
from benchmarks.limits import cold, models, picture, without_server
from benchmarks.limits.account_runs import AccountRuns, plan
from benchmarks.limits.results import LimitsRun, figures_of, series_of, tables
from benchmarks.limits.workload import REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE

OWN_PARTS: Mapping[str, Callable[[bool, int], list[Figure]]] = {
    "cold": cold.figures,
    "models": models.figures,
    "fairness": lambda _quick, _rounds: without_server.fairness(),
    "cost": lambda quick, _rounds: asyncio.run(without_server.cost(20_000 if quick else 100_000)),
}
"""The parts without an account; each returns its figures, given `quick` and the number of rounds."""


def run(
    clients: Sequence[str],
    only: Sequence[str],
    out: Path,
    *,
    speed: float,
    quick: bool,
    rounds: int,
    jobs: int,
    pythons: dict[str, str],
) -> int:
    """Runs everything, prints the tables, writes JSON and picture; returns the exit status, 1 for a missed target."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        accounts = AccountRuns(speed, quick, pythons, Path(folder))
        runs = accounts.make(list(plan(only, clients, rounds)), jobs)
    series = series_of(runs)
    figures = figures_of(series)
    for part, measure in OWN_PARTS.items():
        if not only or part in only:
            figures += measure(quick, rounds)
    if runs:
        print(tables(series), end="\n\n")
    if shown := [figure for figure in figures if figure.target or not figure.group.startswith("limits ")]:
        report.show(shown)
    what = f"{REQUESTS_PER_MINUTE} requests and {TOKENS_PER_MINUTE:,} tokens per minute, clock x {speed:g}"
    took_s = time.monotonic() - started
    print(f"\n{', '.join(['python ' + platform.python_version(), *map(' '.join, accounts.versions.items())])}")
    print(f"{what}, {jobs} at once; {took_s:.0f} s")
    for name, why in accounts.left_out.items():
        print(f"left out: {name}: {why}")
    facts = {"versions": accounts.versions, "left_out": accounts.left_out, "speed": speed, "quick": quick, "jobs": jobs}
    print(", ".join(map(str, write(out, runs, figures, **facts))))
    missed = sum(figure.state == "missed" for figure in figures)
    print(f"{missed} targets missed" if missed else "no target missed")
    return 1 if missed else 0


def write(out: Path, runs: Sequence[LimitsRun], figures: Sequence[Figure], **facts: Any) -> list[Path]:
    """Writes `limits.json` and the picture; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "limits.json"
    content = {"machine": report.machine(), **facts}
    content |= {"runs": [run.to_dict() for run in runs], "figures": [figure.to_dict() for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return [path, *picture.draw(out, runs)]
