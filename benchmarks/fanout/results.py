"""What the runs came to: tables and figures. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.fanout.plan import CONNECTIONS, DELAY_S, GROUPS, RATIOS, REQUESTS, SHARE
from benchmarks.harness.figures import Figure, Target, paired_ratio
from benchmarks.harness.report import aligned


@dataclass(frozen=True)
class FanoutRun:
    """What a client did in one round, and what the server saw of it.

    Attributes:
        outcomes: The requests by outcome: `ok`, or the name of the error's class.
        connections: How many connections the client made.
        most_open: How many connections were open at the same time.
    """

    group: str
    way: str
    requests: int
    at_once: int
    cpu_s: float
    took_s: float
    outcomes: dict[str, int]
    connections: int
    most_open: int

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of a request."""
        return self.cpu_s / self.requests * 1e6

    @property
    def rate(self) -> float:
        """Requests in a second."""
        return self.requests / self.took_s

    @property
    def share(self) -> float:
        """Percent of the ideal rate."""
        return 100 * self.rate * DELAY_S / self.at_once

    @property
    def failed(self) -> int:
        return self.requests - self.outcomes.get("ok", 0)


def table(runs: Sequence[FanoutRun]) -> list[tuple[str, ...]]:
    """A row per client: medians of its rounds."""
    rows = [("{}", "CPU/request", "requests/s", "of the ideal", "connections", "failed", "requests", "rounds")]
    for way in dict.fromkeys(run.way for run in runs):
        own = [run for run in runs if run.way == way]
        rows.append(
            (
                way,
                f"{median(run.cpu_us for run in own):,.0f} us",
                f"{median(run.rate for run in own):,.0f}",
                f"{median(run.share for run in own):.0f} %",
                f"{max(run.connections for run in own):,}",
                f"{sum(run.failed for run in own):,}",
                f"{own[0].requests:,}",
                f"{len(own)}",
            )
        )
    return rows


def tables(runs: Sequence[FanoutRun]) -> str:
    """All tables."""
    texts = []
    for group, what in GROUPS.items():
        if found := [run for run in runs if run.group == group]:
            (first, *heads), *rows = table(found)
            texts.append(aligned([(first.format(what), *heads), *rows]))
    return "\n\n".join(texts)


def figures_of(group: str, runs: Sequence[FanoutRun]) -> list[Figure]:
    """The figures of a group of runs."""
    by_way: dict[str, list[FanoutRun]] = {}
    for run in runs:
        if run.group == group:
            by_way.setdefault(run.way, []).append(run)
    if group == CONNECTIONS:
        return [connections(way, own) for way, own in by_way.items()]
    found = []
    for way, own in by_way.items():
        cpu, shares = [run.cpu_us for run in own], [run.share for run in own]
        found.append(Figure(group, way, "CPU of a request", median(cpu), "us", samples=tuple(cpu)))
        # The start costs time, and a run of few requests is hardly more than its start.
        target = SHARE if way == "ours" and own[0].requests >= REQUESTS else None
        found.append(Figure(group, way, "of the ideal", median(shares), "%", target, tuple(shares)))
    for ratio in RATIOS:
        if ratio.who in by_way and ratio.by in by_way:
            pairs = list(zip(by_way[ratio.who], by_way[ratio.by], strict=False))  # slow clients have fewer rounds
            value = paired_ratio([above.cpu_us for above, _ in pairs], [below.cpu_us for _, below in pairs])
            found.append(Figure(group, f"{ratio.who} : {ratio.by}", "CPU of a request", value, "x", ratio.target))
    return found


def connections(way: str, runs: Sequence[FanoutRun]) -> Figure:
    most = max(run.connections for run in runs)
    target = Target(runs[0].at_once) if way in ("ours", "raw loop") else None
    return Figure(CONNECTIONS, way, f"made by {runs[0].requests:,} requests", most, "connections", target)
