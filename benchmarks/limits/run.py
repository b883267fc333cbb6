"""Thousands of calls under an account's limits, here and with other clients.

Each client makes 2,000 calls of about 100 tokens at once (`workload`) against the emulator with an account of 600
requests and 60,000 tokens per minute, with fixed limits and with dynamic ones, and 1,000 while the platform answers
503. Emulator and client are two processes, each on its own core. Their clocks run `speed` times as fast
(`scaled_clock`), except with the SDKs when all calls start at once: that is seconds of work, which would count as
minutes.

The throughput is a share of `ideal_seconds`, which no client can beat, for the tokens that the account charged; the
time counts from the first request at the server to the last, refused or not, or is the run's time limit. Measured
without a server (`without_server`): a large request's wait among small ones, and what an admission costs.
"""

import asyncio
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.figures import Figure
from benchmarks.harness.processes import ChildError, Process, cores, module_command
from benchmarks.limits import picture, without_server
from benchmarks.limits.results import CALLS, CALLS_DOWN, LimitsRun, tables
from benchmarks.limits.ways import WAYS, Way
from benchmarks.limits.workload import DOWN, DYNAMIC, FIXED, RATES, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE
from together_async.testing.ideal import ideal_seconds

QUICK_CALLS, QUICK_CALLS_DOWN = 250, 100
LONGEST_RUN = 1.5
"""A run ends after this many times the ideal; what was done by then counts."""
LONGEST_UNSCALED_S = 40.0
"""The time limit of 2,000 unscaled calls, and of 1,000 while everything fails; in real seconds."""
SPEED_DOWN = 100.0
"""There is no rate to keep while everything fails, only delays."""
ACCOUNTS = (FIXED, DYNAMIC, DOWN)


class AccountEmulator(Process):
    """`emulator.py`, on the servers' core."""

    def __init__(self, account: str, speed: float) -> None:
        command = module_command("benchmarks.limits.emulator", "--account", account, "--speed", str(speed))
        super().__init__(command, cores()[0])
        self.base_url = f"http://127.0.0.1:{self.hello['port']}/v1"


def limit_s(account: str, calls: int, speed: float) -> float:
    """How long a run may take, in account time."""
    if account == DOWN:
        return max(5.0, LONGEST_UNSCALED_S * calls / CALLS_DOWN) * speed
    longest = LONGEST_RUN * ideal_seconds(RATES[account], calls, 100)
    return longest if speed > 1 else min(longest, max(10.0, LONGEST_UNSCALED_S * calls / CALLS))


def measure(way: Way, account: str, calls: int, speed: float, python: str = sys.executable) -> tuple[LimitsRun, str]:
    """Measures one run; returns it with the client's version.

    Raises:
        ChildError, OSError: The client isn't installed, or its process died.
    """
    if not way.scaled:
        speed = 1.0
    elif account == DOWN:
        speed = SPEED_DOWN
    command = module_command(
        "benchmarks.limits.client_process", "--module", way.module, "--how", way.how, python=python
    )
    command += ["--package", way.package, "--speed", str(speed)]
    longest = limit_s(account, calls, speed)
    with AccountEmulator(account, speed) as emulator, Process(command, cores()[1]) as client:
        given = {"base_url": emulator.base_url, "calls": calls, "limit_s": longest}
        result = client.ask(json.dumps(given).encode(), longest / speed + 60)
        record = emulator.ask(b"", 60)
    run = LimitsRun(
        way,
        account,
        calls,
        speed,
        [tuple(verdict) for verdict in record["verdicts"]],
        result["outcomes"],
        longest,
        result["finished"],
        result["took_s"],
        result["cpu_s"],
        record["connections"],
    )
    return run, client.hello["version"]


def run(
    clients: Sequence[str], only: Sequence[str], out: Path, *, speed: float, quick: bool, pythons: dict[str, str]
) -> int:
    """Runs everything, prints the tables, writes JSON and picture; returns the exit status, 1 for a missed target."""
    calls, calls_down = (QUICK_CALLS, QUICK_CALLS_DOWN) if quick else (CALLS, CALLS_DOWN)
    started = time.monotonic()
    runs: list[LimitsRun] = []
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for account in filter(lambda name: not only or name in only, ACCOUNTS):
        for way in WAYS.values():
            if (clients and way.client not in clients) or way.client in left_out:
                continue
            if account == DOWN and way.how in ("given", "auto"):
                continue  # the retries do not depend on the limits
            print(f"{account}: {way.name}", file=sys.stderr, flush=True)
            try:
                done, versions[way.client] = measure(
                    way,
                    account,
                    calls_down if account == DOWN else calls,
                    speed,
                    pythons.get(way.client, sys.executable),
                )
            except (ChildError, OSError) as error:
                left_out[way.client] = str(error)
                print(f"  left out: {error}", file=sys.stderr, flush=True)
                continue
            runs.append(done)
    figures = [figure for done in runs for figure in done.figures()]
    if not only or "fairness" in only:
        figures += without_server.fairness()
    if not only or "cost" in only:
        figures += asyncio.run(without_server.cost(20_000 if quick else 100_000))
    if runs:
        print(tables(runs), end="\n\n")
    if shown := [figure for figure in figures if figure.target or figure.group == "admission"]:
        report.show(shown)
    what = f"{REQUESTS_PER_MINUTE} requests and {TOKENS_PER_MINUTE:,} tokens per minute, clock x {speed:g}"
    took_s = time.monotonic() - started
    print(f"\n{', '.join(['python ' + platform.python_version(), *map(' '.join, versions.items())])}")
    print(f"{what}; {took_s:.0f} s")
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    print(", ".join(map(str, write(out, runs, figures, versions, left_out, speed=speed, quick=quick))))
    missed = sum(figure.state == "missed" for figure in figures)
    print(f"{missed} targets missed" if missed else "no target missed")
    return 1 if missed else 0


def write(
    out: Path,
    runs: Sequence[LimitsRun],
    figures: Sequence[Figure],
    versions: dict[str, str],
    left_out: dict[str, str],
    **facts: Any,
) -> list[Path]:
    """Writes `limits.json` and the picture; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "limits.json"
    content = {"machine": report.machine(), "versions": versions, "left_out": left_out, **facts}
    content |= {"runs": [run.to_dict() for run in runs], "figures": [figure.to_dict() for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return [path, *picture.draw(out, runs)]
