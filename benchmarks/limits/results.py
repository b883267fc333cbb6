"""What the runs came to: their tables and figures. Pure."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.report import aligned
from benchmarks.limits.ways import OURS, Way
from benchmarks.limits.workload import DOWN, DYNAMIC, FIXED, SETTINGS, STRAY, WHOLE, Setting
from together_async.testing.ideal import ideal_seconds

SHARE, REFUSED, FAILED, TOOK, TIMES_FRESH, REQUESTS = (
    "throughput",
    "429s",
    "failed",
    "took",
    "against fresh",
    "requests",
)
TARGETS: Mapping[tuple[str, str], Target] = {
    (FIXED, SHARE): Target(97, 99, more=True),
    (FIXED, REFUSED): Target(2, 1),
    **{(f"fixed, {ms} ms", SHARE): Target(97, more=True) for ms in (20, 50, 100)},
    **{(f"fixed, {ms} ms", REFUSED): Target(most) for ms, most in ((20, 3), (50, 6), (100, 10))},
    (DYNAMIC, SHARE): Target(83, 87, more=True),
    (DYNAMIC, REFUSED): Target(2),
    (WHOLE, SHARE): Target(70, 80, more=True),
    ("silent, 60/s", SHARE): Target(90, 95, more=True),
    ("silent, 1/s", SHARE): Target(78, 80, more=True),
    ("silent, dynamic from a tenth", SHARE): Target(38, 50, more=True),
    ("silent, dynamic from its ceiling", SHARE): Target(50, 60, more=True),
    ("first", TIMES_FRESH): Target(1.1),
    ("tenth", TIMES_FRESH): Target(1.5),
    ("spell", TOOK): Target(10),
    (DOWN, REQUESTS): Target(1.2, 1.1),
}
Table: TypeAlias = list[tuple[str, ...]]
BATCH_TARGETS: Mapping[tuple[str, str], Target] = {
    (DYNAMIC, SHARE): Target(93, 95, more=True),
    (DYNAMIC, REFUSED): Target(0.5),
}
"""Of `run_batch`, which may wait for its first answer."""


@dataclass(frozen=True)
class LimitsRun:
    """What a client did, and what the account saw of it; times are in account time.

    Attributes:
        setting: The name of the setting.
        seed: Of the calls, and of everything else that chance decides.
        verdicts: The account's verdicts (see `emulator.RecordingAccount`).
        outcomes: The calls that ended: `ok`, or the error class, with their number.
        limit_s: The run's time limit.
        finished: Whether all calls ended within it.
    """

    way: Way
    setting: str
    calls: int
    speed: float
    verdicts: Sequence[tuple[float, int, int, float, float]]
    outcomes: dict[str, int]
    limit_s: float
    finished: bool
    took_s: float
    cpu_s: float = 0.0
    connections: int = 0
    seed: int = 1

    @property
    def of(self) -> Setting:
        return SETTINGS[self.setting]

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
        return 100 * ideal_seconds(self.of.rate, admitted, self.tokens) / self.elapsed_s

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

    def to_dict(self) -> dict[str, Any]:
        own = ("setting", "seed", "calls", "speed", "outcomes", "limit_s", "finished", "took_s", "cpu_s", "connections")
        counted = ("sent", "tokens", "elapsed_s", "throughput", "refused")
        facts = {name: getattr(self, name) for name in (*own, *counted)}
        return {"way": self.way.name, **facts, "statuses": dict(Counter(verdict[1] for verdict in self.verdicts))}


@dataclass(frozen=True)
class Series:
    """The runs of one way in one setting, which differ by their seed."""

    way: Way
    setting: Setting
    runs: tuple[LimitsRun, ...]

    def median(self, what: str) -> float:
        return statistics.median(self.samples(what))

    def samples(self, what: str) -> tuple[float, ...]:
        """The values of an attribute of the runs."""
        return tuple(float(getattr(run, what)) for run in self.runs)

    @property
    def failed(self) -> int:
        """Calls of all runs that failed. Those that were not done in time show in the throughput."""
        return sum(run.failed for run in self.runs)

    def figures(self, fresh: float | None = None) -> list[Figure]:
        """The figures, with targets if the client is ours and made all calls: a short run is little but its start.

        Args:
            fresh: How long the same calls take without stray 429s; None if that was not measured.
        """
        if self.setting.name == DOWN:
            each = tuple(sent / run.calls for sent, run in zip(self.samples("sent"), self.runs, strict=True))
            return [self._figure(REQUESTS, each, "a call", worst=max)]
        figures = []
        if self.setting.part == STRAY:
            took = self.samples("elapsed_s")
            figures.append(self._figure(TOOK, took, "s", worst=max))
            if fresh and self.setting.name != "fresh" and self.setting.name != "spell":
                times = tuple(seconds / fresh for seconds in took)
                figures.append(self._figure(TIMES_FRESH, times, "times", worst=max))
        else:
            figures.append(self._figure(SHARE, self.samples("throughput"), "%", worst=min))
            figures.append(self._figure(REFUSED, self.samples("refused"), "%", worst=max))
        target = Target(0) if self.way.client == OURS else None
        return [*figures, Figure(self._group, self.way.name, FAILED, self.failed, "", target)]

    @property
    def _group(self) -> str:
        return f"limits {self.setting.name}"

    def _figure(self, what: str, samples: tuple[float, ...], unit: str, *, worst: Any) -> Figure:
        target = TARGETS.get((self.setting.name, what))
        if self.way.how == "run_batch":
            target = BATCH_TARGETS.get((self.setting.name, what), target)
        whole = self.setting.name == DOWN or self.runs[0].calls >= self.setting.calls
        if self.way.client != OURS or not whole:
            target = None
        note = f"worst of {len(samples)}: {worst(samples):.4g}" if len(samples) > 1 else ""
        return Figure(self._group, self.way.name, what, statistics.median(samples), unit, target, samples, note)


def series_of(runs: Iterable[LimitsRun]) -> list[Series]:
    """Groups the runs by setting and way, in the settings' order."""
    grouped: dict[tuple[str, str], list[LimitsRun]] = {}
    for run in runs:
        grouped.setdefault((run.setting, run.way.name), []).append(run)
    made = [Series(each[0].way, each[0].of, tuple(each)) for each in grouped.values()]
    order = list(SETTINGS)
    return sorted(made, key=lambda one: order.index(one.setting.name))


def figures_of(series: Sequence[Series]) -> list[Figure]:
    """All figures; those with stray 429s also as a share of the time without."""
    fresh = next((one.median("elapsed_s") for one in series if one.setting.name == "fresh"), None)
    return [figure for one in series for figure in one.figures(fresh)]


def percent(share: float) -> str:
    """A share that is never rounded down to zero."""
    return f"{share:.2f} %" if share >= 0.01 or not share else "< 0.01 %"


def table(series: Iterable[Series], heading: str, name: Callable[[Series], str]) -> Table:
    """A row per series under a working account: medians, and the worst run's.

    Args:
        series: What to show.
        heading: Of the names.
        name: Names a series.
    """
    heads = ("seeds", "throughput", "worst", "429s", "worst", "requests", "failed", "not done", "took", "clock")
    rows: Table = [(heading, *heads)]
    for one in series:
        shares, refused = one.samples("throughput"), one.samples("refused")
        row = (
            f"{statistics.median(shares):.1f} %",
            f"{min(shares):.1f} %",
            percent(statistics.median(refused)),
            percent(max(refused)),
            f"{one.median('sent'):,.0f}",
            f"{one.failed:,}",
            f"{sum(run.unfinished for run in one.runs):,}",
            f"{one.median('elapsed_s'):.1f} s",
            f"x {one.runs[0].speed:g}",
        )
        rows.append((name(one), f"{len(one.runs)}", *row))
    return rows


def table_down(series: Iterable[Series]) -> Table:
    """A row per series while everything fails; the first seed's."""
    rows: Table = [(SETTINGS[DOWN].title, "calls", "ended", "requests", "requests/call", "took", "clock")]
    for one in series:
        run = one.runs[0]
        ended = sum(run.outcomes.values())
        each = f"{run.sent / ended:.2f}" if run.finished and ended else "-"
        row = (f"{run.calls:,}", f"{ended:,}", f"{run.sent:,}", each, f"{run.elapsed_s:.0f} s", f"x {run.speed:g}")
        rows.append((run.way.name, *row))
    return rows


def tables(series: Sequence[Series]) -> str:
    """A table for each part: of the ways if it has one setting, else of the settings, which only one way has."""
    texts = []
    for part in dict.fromkeys(one.setting.part for one in series):
        found = [one for one in series if one.setting.part == part]
        if part == DOWN:
            rows = table_down(found)
        elif len({setting.name for setting in SETTINGS.values() if setting.part == part}) == 1:
            rows = table(found, found[0].setting.title, lambda one: one.way.name)
        else:
            rows = table(found, found[0].way.name, lambda one: one.setting.title)
        texts.append(aligned(rows))
    return "\n\n".join(texts)
