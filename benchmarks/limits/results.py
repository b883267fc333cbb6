"""What the runs came to: their tables and figures. Pure."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.report import aligned
from benchmarks.limits.ways import Way
from benchmarks.limits.workload import DOWN, DYNAMIC, FIXED, RATES
from together_async.testing.ideal import ideal_seconds

CALLS, CALLS_DOWN = 2_000, 1_000
TARGETS = {
    (FIXED, "throughput"): Target(97, more=True),
    (FIXED, "429s"): Target(0.5),
    (DYNAMIC, "throughput"): Target(90, more=True),
    (DYNAMIC, "429s"): Target(1),
    (DOWN, "requests"): Target(1.2),
}


@dataclass(frozen=True)
class LimitsRun:
    """What a client did, and what the account saw of it; times are in account time.

    Attributes:
        verdicts: The account's verdicts (see `emulator.RecordingAccount`).
        outcomes: The calls that ended: `ok`, or the error class, with their number.
        limit_s: The run's time limit.
        finished: Whether all calls ended within it.
    """

    way: Way
    account: str
    calls: int
    speed: float
    verdicts: Sequence[tuple[float, int, int, float, float]]
    outcomes: dict[str, int]
    limit_s: float
    finished: bool
    took_s: float
    cpu_s: float = 0.0
    connections: int = 0

    @property
    def sent(self) -> int:
        return len(self.verdicts)

    def count(self, status: int) -> int:
        return sum(verdict[1] == status for verdict in self.verdicts)

    @property
    def tokens(self) -> float:
        """Tokens of an admitted request, on average."""
        if not self.count(200):
            return 0.0
        return statistics.fmean(verdict[2] for verdict in self.verdicts if verdict[1] == 200)

    @property
    def elapsed_s(self) -> float:
        if not self.finished:
            return self.limit_s
        return self.verdicts[-1][0] - self.verdicts[0][0] if self.verdicts else 0.0

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
        """Calls without an outcome yet."""
        return max(0, self.calls - sum(self.outcomes.values()))

    def figures(self) -> list[Figure]:
        group, who = f"limits {self.account}", self.way.name
        if self.account == DOWN:
            values = [("requests", self.sent / self.calls, "a call")]
        else:
            values = [("throughput", self.throughput, "%"), ("429s", self.refused, "%")]
        # The start costs time, and a run of few calls is hardly more than its start.
        ours = self.way.client == "ours" and (self.account == DOWN or self.calls >= CALLS)
        return [
            Figure(group, who, what, value, unit, TARGETS.get((self.account, what)) if ours else None)
            for what, value, unit in values
        ]

    def to_dict(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in ("account", "calls", "speed", "outcomes", "limit_s", "finished")}
        facts |= {name: getattr(self, name) for name in ("sent", "tokens", "elapsed_s", "took_s", "cpu_s")}
        facts |= {"throughput": self.throughput, "refused": self.refused, "connections": self.connections}
        return {"way": self.way.name, **facts, "statuses": dict(Counter(verdict[1] for verdict in self.verdicts))}


def table(runs: Iterable[LimitsRun]) -> list[tuple[str, ...]]:
    """A row per run under a working account."""
    rows = [("{} account", "throughput", "429s", "requests", "answered", "failed", "not done", "took", "clock")]
    rows += [
        (
            run.way.name,
            f"{run.throughput:.1f} %",
            # Never rounded down to zero.
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


def table_down(runs: Iterable[LimitsRun]) -> list[tuple[str, ...]]:
    """A row per run while everything fails."""
    rows = [("everything fails (503)", "calls", "ended", "requests", "requests/call", "took", "clock")]
    for run in runs:
        ended = sum(run.outcomes.values())
        each = f"{run.sent / ended:.2f}" if run.finished and ended else "-"
        row = (f"{run.calls:,}", f"{ended:,}", f"{run.sent:,}", each, f"{run.elapsed_s:.0f} s", f"x {run.speed:g}")
        rows.append((run.way.name, *row))
    return rows


def tables(runs: Sequence[LimitsRun]) -> str:
    """All tables."""
    texts = []
    for account in (FIXED, DYNAMIC):
        if found := [run for run in runs if run.account == account]:
            (first, *heads), *rows = table(found)
            texts.append(aligned([(first.format(account), *heads), *rows]))
    if found := [run for run in runs if run.account == DOWN]:
        texts.append(aligned(table_down(found)))
    return "\n\n".join(texts)
