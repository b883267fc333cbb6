"""What becomes of thousands of calls under an account's limits, here and with other clients.

Each client makes 2,000 calls of about 100 tokens at once (`limits_load`) against the emulator with an account of 600
requests and 60,000 tokens per minute, once with fixed limits and once with dynamic ones, and 1,000 while the platform
answers 503. Emulator and client are processes of their own, each on a core of its own. Their clocks run `speed` times
as fast (`scaled_clock`), all but those of the SDKs with everything at once: these have work for seconds to do, which
would count as minutes.

The throughput is a share of what nobody can surpass, `ideal_seconds`, with the tokens that the account charged; the
time is that from the first request to the last at the server, refused or not, or the run's time limit. Then what needs
no server (`limits_pure`): a large request's wait among small ones, and what admission costs.
"""

import asyncio
import json
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import limits_picture, limits_pure, report
from benchmarks.faults import aligned
from benchmarks.limits_load import DOWN, DYNAMIC, FIXED, RATES, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE
from benchmarks.processes import ChildError, Process, cores
from benchmarks.stats import Figure, Target
from together_async.testing.account import ideal_seconds

CALLS, CALLS_DOWN = 2_000, 1_000
QUICK_CALLS, QUICK_CALLS_DOWN = 250, 100
PATIENCE = 1.5
"""Times the ideal, after which a run ends, and what was done by then counts."""
PATIENCE_REAL_S = 40.0
"""Of 2,000 calls that are not scaled, and of 1,000 while everything fails."""
SPEED_DOWN = 100.0
"""No rate is kept while everything fails, just delays."""


@dataclass(frozen=True, slots=True)
class Way:
    """A client and how it is used: `how` is for `benchmarks.clients.<module>`."""

    name: str
    module: str
    how: str
    package: str
    scaled: bool = True

    @property
    def client(self) -> str:
        return self.name.partition(",")[0]


WAYS = {
    way.name: way
    for way in (
        Way("ours, Limits()", "many_ours", "learns", "together-async"),
        Way("ours, rates given", "many_ours", "told", "together-async"),
        Way('ours, concurrency="auto"', "many_ours", "auto", "together-async"),
        Way("openai, as it comes", "many_sdk", "openai:gather", "openai", scaled=False),
        Way("openai, as advised", "many_sdk", "openai:advised", "openai"),
        Way("together, as it comes", "many_sdk", "together:gather", "together", scaled=False),
        Way("together, as advised", "many_sdk", "together:advised", "together"),
        Way("async-batch-llm, as it comes", "many_async_batch_llm", "plain", "async-batch-llm"),
        Way("async-batch-llm, as advised", "many_async_batch_llm", "advised", "async-batch-llm"),
        Way("lm-deluge, as it comes", "many_lm_deluge", "plain", "lm-deluge"),
        Way("lm-deluge, as advised", "many_lm_deluge", "advised", "lm-deluge"),
    )
}
CLIENTS = tuple(dict.fromkeys(way.client for way in WAYS.values()))
ACCOUNTS = (FIXED, DYNAMIC, DOWN)
PURE = ("fairness", "cost")
TARGETS = {
    (FIXED, "throughput"): Target(97, more=True),
    (FIXED, "429s"): Target(0.5),
    (DYNAMIC, "throughput"): Target(90, more=True),
    (DYNAMIC, "429s"): Target(1),
    (DOWN, "requests"): Target(1.2),
}


@dataclass(frozen=True)
class Run:
    """What a client did, and what the account saw of it; times are the account's.

    Attributes:
        noted: The account's verdicts (see `limits_emulator.Noting`).
        outcomes: What became of the calls that ended.
        limit_s: The run's time limit.
        finished: Whether all calls ended within it.
    """

    way: Way
    account: str
    calls: int
    speed: float
    noted: Sequence[tuple[float, int, int, float, float]]
    outcomes: dict[str, int]
    limit_s: float
    finished: bool
    took_s: float
    cpu_s: float = 0.0
    connections: int = 0

    @property
    def sent(self) -> int:
        return len(self.noted)

    def count(self, status: int) -> int:
        return sum(note[1] == status for note in self.noted)

    @property
    def tokens(self) -> float:
        """Tokens of an admitted request, in the mean."""
        return statistics.fmean(note[2] for note in self.noted if note[1] == 200) if self.count(200) else 0.0

    @property
    def elapsed_s(self) -> float:
        if not self.finished:
            return self.limit_s
        return self.noted[-1][0] - self.noted[0][0] if self.noted else 0.0

    @property
    def throughput(self) -> float:
        """Percent of what an oracle gets through in the same time."""
        admitted = self.count(200)
        if not admitted or not self.elapsed_s:
            return 0.0
        return 100 * ideal_seconds(RATES[self.account], admitted, self.tokens) / self.elapsed_s

    @property
    def refused(self) -> float:
        """Percent of the requests that were answered with 429."""
        return 100 * self.count(429) / max(1, self.sent)

    @property
    def answered(self) -> int:
        return self.outcomes.get("ok", 0)

    @property
    def failed(self) -> int:
        return sum(self.outcomes.values()) - self.answered

    @property
    def unfinished(self) -> int:
        """Calls of which nobody knows yet."""
        return max(0, self.calls - sum(self.outcomes.values()))

    def figures(self) -> list[Figure]:
        group, who = f"limits {self.account}", self.way.name
        if self.account == DOWN:
            values = [("requests", self.sent / self.calls, "a call")]
        else:
            values = [("throughput", self.throughput, "%"), ("429s", self.refused, "%")]
        # The start costs something, and few calls are hardly more than the start.
        ours = self.way.client == "ours" and (self.account == DOWN or self.calls >= CALLS)
        return [
            Figure(group, who, what, value, unit, TARGETS.get((self.account, what)) if ours else None)
            for what, value, unit in values
        ]

    def to_dict(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in ("account", "calls", "speed", "outcomes", "limit_s", "finished")}
        facts |= {name: getattr(self, name) for name in ("sent", "tokens", "elapsed_s", "took_s", "cpu_s")}
        facts |= {"throughput": self.throughput, "refused": self.refused, "connections": self.connections}
        return {"way": self.way.name, **facts, "statuses": dict(Counter(note[1] for note in self.noted))}


class Child(Process):
    """A process that is asked with a line and answers with one."""

    def ask(self, line: bytes, timeout_s: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        return self.read(timeout_s)


class Emulator(Child):
    """`limits_emulator.py` on the servers' core."""

    def __init__(self, account: str, speed: float) -> None:
        command = [sys.executable, "-m", "benchmarks.limits_emulator", "--account", account, "--speed", str(speed)]
        super().__init__(command, cores()[0])
        self.base_url = f"http://127.0.0.1:{self.hello['port']}/v1"


def limit_s(account: str, calls: int, speed: float) -> float:
    """How long a run may take, in the account's time."""
    if account == DOWN:
        return max(5.0, PATIENCE_REAL_S * calls / CALLS_DOWN) * speed
    longest = PATIENCE * ideal_seconds(RATES[account], calls, 100)
    return longest if speed > 1 else min(longest, max(10.0, PATIENCE_REAL_S * calls / CALLS))


def measure(way: Way, account: str, calls: int, speed: float, python: str = sys.executable) -> tuple[Run, str]:
    """One run, and the client's version.

    Raises:
        ChildError, OSError: The client isn't installed, or its process died.
    """
    if not way.scaled:
        speed = 1.0
    elif account == DOWN:
        speed = SPEED_DOWN
    command = [python, "-m", "benchmarks.limits_client", "--module", way.module, "--how", way.how]
    command += ["--package", way.package, "--speed", str(speed)]
    longest = limit_s(account, calls, speed)
    with Emulator(account, speed) as emulator, Child(command, cores()[1]) as client:
        given = {"base_url": emulator.base_url, "calls": calls, "limit_s": longest}
        result = client.ask(json.dumps(given).encode(), longest / speed + 60)
        record = emulator.ask(b"", 60)
    run = Run(
        way,
        account,
        calls,
        speed,
        [tuple(note) for note in record["noted"]],
        result["outcomes"],
        longest,
        result["finished"],
        result["took_s"],
        result["cpu_s"],
        record["connections"],
    )
    return run, client.hello["version"]


def table(runs: Iterable[Run]) -> list[tuple[str, ...]]:
    """A row for each run under an account that works."""
    rows = [("{} account", "throughput", "429s", "requests", "answered", "failed", "not done", "took", "clock")]
    rows += [
        (
            run.way.name,
            f"{run.throughput:.1f} %",
            # Never rounded down to none.
            f"{run.refused:.2f} %" if run.refused >= 0.01 or not run.refused else "< 0.01 %",
            f"{run.sent:,}",
            f"{run.answered:,}",
            f"{run.failed:,}",
            f"{run.unfinished:,}",
            f"{run.elapsed_s:.0f} s",
            f"x {run.speed:g}",
        )
        for run in runs
    ]
    return rows


def table_down(runs: Iterable[Run]) -> list[tuple[str, ...]]:
    """A row for each run while everything fails."""
    rows = [("everything fails (503)", "calls", "ended", "requests", "requests/call", "took", "clock")]
    for run in runs:
        ended = sum(run.outcomes.values())
        each = f"{run.sent / ended:.2f}" if run.finished and ended else "-"
        row = (f"{run.calls:,}", f"{ended:,}", f"{run.sent:,}", each, f"{run.elapsed_s:.0f} s", f"x {run.speed:g}")
        rows.append((run.way.name, *row))
    return rows


def tables(runs: Sequence[Run]) -> str:
    """All of them."""
    texts = []
    for account in (FIXED, DYNAMIC):
        if found := [run for run in runs if run.account == account]:
            (first, *heads), *rows = table(found)
            texts.append(aligned([(first.format(account), *heads), *rows]))
    if found := [run for run in runs if run.account == DOWN]:
        texts.append(aligned(table_down(found)))
    return "\n\n".join(texts)


def run(
    clients: Sequence[str], only: Sequence[str], out: Path, *, speed: float, quick: bool, pythons: dict[str, str]
) -> int:
    """Runs everything, prints the tables, writes JSON and picture; returns the exit status, 1 for a missed target."""
    calls, calls_down = (QUICK_CALLS, QUICK_CALLS_DOWN) if quick else (CALLS, CALLS_DOWN)
    started = time.monotonic()
    runs: list[Run] = []
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for account in filter(lambda name: not only or name in only, ACCOUNTS):
        for way in WAYS.values():
            if (clients and way.client not in clients) or way.client in left_out:
                continue
            if account == DOWN and way.how in ("told", "auto"):
                continue  # what is sent again does not depend on the limits
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
    figures = [figure for one in runs for figure in one.figures()]
    if not only or "fairness" in only:
        figures += limits_pure.fairness()
    if not only or "cost" in only:
        figures += asyncio.run(limits_pure.cost(20_000 if quick else 100_000))
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
    runs: Sequence[Run],
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
    return [path, *limits_picture.draw(out, runs)]
