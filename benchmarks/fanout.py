"""Thousands of requests at once, here and with other clients: what they cost in CPU, how near to the ideal they come.

Each client makes the same requests (`fanout_ways`), so many at once, against a server that answers every request 50 ms
after it came (`fanout_server`). Server and client are processes of their own, each on a core of its own, and new ones
for every run; the clients take turns, round by round, so that what slows the machine down for a while slows all of
them. What is counted is the CPU of the client's process, user and system, from the making of the client to its end,
with its connections, and without imports and what happens at a first use.

Nobody can surpass as many requests in 50 ms as are under way at once. Then what needs no server: the memory of a `map`
that does not end (`fanout_memory`), what a durable batch costs, and how it goes on (`fanout_batch`).
"""

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import fanout_batch, fanout_memory, report
from benchmarks.faults import aligned
from benchmarks.groups.ratios import Ratio
from benchmarks.limits import Child
from benchmarks.processes import ChildError, cores
from benchmarks.stats import Figure, Target, paired_ratio

DELAY_S = 0.05
AT_ONCE, MANY_AT_ONCE = 256, 1_000
REQUESTS, QUICK_REQUESTS = 5_000, 1_000
WARM_UP = 2
"""Requests before those that count: what a client imports and prepares when it is used first."""
TIMEOUT_S = 180.0
WHOLE, STREAM, CONNECTIONS = "whole", "stream", "connections"


@dataclass(frozen=True, slots=True)
class Way:
    """A client: a function of `fanout_ways`, and how much it is asked to do of what all do.

    Attributes:
        slow: Takes part in fewer rounds, and makes fewer requests if they are streams: it would take many minutes.
        streams: Whether it is there for streams too.
    """

    name: str
    function: str
    package: str
    slow: bool = True
    streams: bool = False


WAYS = {
    way.name: way
    for way in (
        Way("raw loop", "raw", "aiohttp", slow=False, streams=True),
        Way("ours", "ours", "together-async", slow=False, streams=True),
        Way("openai", "openai", "openai", streams=True),
        Way("openai+aiohttp", "openai_aiohttp", "openai", streams=True),
        Way("together", "together", "together", streams=True),
        Way("together+aiohttp", "together_aiohttp", "together", streams=True),
        Way("litellm", "litellm", "litellm"),
        Way("async-batch-llm", "async_batch_llm", "async-batch-llm"),
        Way("lm-deluge", "lm_deluge", "lm-deluge"),
    )
}
SLOW_STREAMS, SLOW_ROUNDS = 1_000, 2
RATIOS = (
    Ratio("ours", "raw loop", Target(1.4, 1.3)),
    Ratio("openai", "ours", Target(8, more=True)),
    Ratio("together", "ours", Target(8, more=True)),
    Ratio("openai+aiohttp", "ours", Target(3, more=True)),
    Ratio("together+aiohttp", "ours", Target(3, more=True)),
    Ratio("litellm", "ours"),
    Ratio("async-batch-llm", "ours"),
    Ratio("lm-deluge", "ours"),
)
SHARE = Target(80, more=True)
GROUPS = {
    WHOLE: f"whole responses, {AT_ONCE} at once",
    STREAM: f"streams of 64 tokens, {AT_ONCE} at once",
    CONNECTIONS: f"whole responses, {MANY_AT_ONCE:,} at once: is a connection made twice",
}
ALONE = ("million", "resume", "journal")
"""What needs no server."""
ALONE_ROUNDS = 3


@dataclass(frozen=True)
class Run:
    """What a client did in one round, and what the server saw of it.

    Attributes:
        outcomes: What became of the requests.
        connections: How many were made, by all of the client's requests.
        most_open: How many were open at the same time.
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
        """Percent of what nobody can surpass."""
        return 100 * self.rate * DELAY_S / self.at_once

    @property
    def failed(self) -> int:
        return self.requests - self.outcomes.get("ok", 0)


def measure(way: Way, group: str, requests: int, at_once: int) -> tuple[Run, str]:
    """One run, and the client's version.

    Raises:
        ChildError, OSError: The client isn't installed, or its process died.
    """
    server_command = [sys.executable, "-m", "benchmarks.fanout_server", "--delay-s", str(DELAY_S)]
    client_command = [sys.executable, "-m", "benchmarks.fanout_client", "--way", way.function, "--package", way.package]
    with Child(server_command, cores()[0]) as server, Child(client_command, cores()[1]) as client:
        base_url = f"http://127.0.0.1:{server.hello['port']}/v1"
        job = {"base_url": base_url, "concurrency": at_once, "stream": group == STREAM}
        first = client.ask(json.dumps({**job, "requests": WARM_UP}).encode(), TIMEOUT_S)
        if first["outcomes"] != {"ok": WARM_UP}:
            raise ChildError(f"the first requests came to {first['outcomes']}")
        server.ask(b"", TIMEOUT_S)  # so that it counts from here
        result = client.ask(json.dumps({**job, "requests": requests}).encode(), TIMEOUT_S)
        saw = server.ask(b"", TIMEOUT_S)
    run = Run(
        group,
        way.name,
        requests,
        at_once,
        result["cpu_s"],
        result["took_s"],
        result["outcomes"],
        saw["connections"],
        saw["most_open"],
    )
    return run, client.hello["version"]


def table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row for each client: medians of its rounds."""
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


def tables(runs: Sequence[Run]) -> str:
    """All of them."""
    texts = []
    for group, what in GROUPS.items():
        if found := [run for run in runs if run.group == group]:
            (first, *heads), *rows = table(found)
            texts.append(aligned([(first.format(what), *heads), *rows]))
    return "\n\n".join(texts)


def figures_of(group: str, runs: Sequence[Run]) -> list[Figure]:
    """What the runs of a group come to."""
    by_way: dict[str, list[Run]] = {}
    for run in runs:
        if run.group == group:
            by_way.setdefault(run.way, []).append(run)
    if group == CONNECTIONS:
        return [connections(way, own) for way, own in by_way.items()]
    found = []
    for way, own in by_way.items():
        cpu, shares = [run.cpu_us for run in own], [run.share for run in own]
        found.append(Figure(group, way, "CPU of a request", median(cpu), "us", samples=tuple(cpu)))
        # The start costs something, and few requests are hardly more than the start.
        target = SHARE if way == "ours" and own[0].requests >= REQUESTS else None
        found.append(Figure(group, way, "of the ideal", median(shares), "%", target, tuple(shares)))
    for ratio in RATIOS:
        if ratio.who in by_way and ratio.by in by_way:
            pairs = list(zip(by_way[ratio.who], by_way[ratio.by], strict=False))  # the slow ones have fewer rounds
            value = paired_ratio([one.cpu_us for one, _ in pairs], [other.cpu_us for _, other in pairs])
            found.append(Figure(group, f"{ratio.who} : {ratio.by}", "CPU of a request", value, "x", ratio.target))
    return found


def connections(way: str, runs: Sequence[Run]) -> Figure:
    most = max(run.connections for run in runs)
    target = Target(runs[0].at_once) if way in ("ours", "raw loop") else None
    return Figure(CONNECTIONS, way, f"made by {runs[0].requests:,} requests", most, "connections", target)


def plan(group: str, rounds: int, quick: bool) -> Iterable[tuple[int, Way, int, int]]:
    """Which client makes how many requests, how many at once, in the order in which they take turns."""
    most = QUICK_REQUESTS if quick else REQUESTS
    for number in range(min(rounds, 2) if group == CONNECTIONS else rounds):
        for way in WAYS.values():
            if group == CONNECTIONS:
                if not way.slow:
                    yield number, way, max(most, 2 * MANY_AT_ONCE), MANY_AT_ONCE
            elif (group == WHOLE or way.streams) and (not way.slow or number < SLOW_ROUNDS):
                yield number, way, min(most, SLOW_STREAMS) if way.slow and group == STREAM else most, AT_ONCE


def chosen(groups: Iterable[str], only: Sequence[str]) -> list[str]:
    return [group for group in groups if not only or group in only]


def alone(group: str, clients: Sequence[str], left_out: dict[str, str], *, quick: bool, rounds: int) -> list[Figure]:
    """The figures of what needs no server."""
    if clients and "ours" not in clients:
        return []
    if group == "million":
        return fanout_memory.figures(fanout_memory.QUICK_REQUESTS if quick else fanout_memory.REQUESTS)
    if group == "journal":
        return fanout_batch.journal_figures(quick=quick, rounds=rounds)
    peers = not clients or "async-batch-llm" in clients
    figures, why = fanout_batch.resume_figures(quick=quick, rounds=rounds, peers=peers)
    left_out.update(why)
    return figures


def run(clients: Sequence[str], only: Sequence[str], out: Path, *, rounds: int, quick: bool) -> int:
    """Runs everything, prints the tables, writes JSON; returns the exit status, 1 for a missed target."""
    started = time.monotonic()
    runs: list[Run] = []
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    broken: list[str] = []
    for group in chosen(GROUPS, only):
        for number, way, requests, at_once in plan(group, 1 if quick else rounds, quick):
            if (clients and way.name not in clients) or way.name in left_out:
                continue
            print(f"{group}: {way.name}, round {number + 1}", file=sys.stderr, flush=True)
            try:
                done, versions[way.name] = measure(way, group, requests, at_once)
            except (ChildError, OSError) as error:
                left_out[way.name] = str(error)
                print(f"  left out: {error}", file=sys.stderr, flush=True)
                continue
            runs.append(done)
    figures = [figure for group in GROUPS for figure in figures_of(group, runs)]
    for group in chosen(ALONE, only):
        print(group, file=sys.stderr, flush=True)
        try:
            figures += alone(group, clients, left_out, quick=quick, rounds=min(rounds, ALONE_ROUNDS))
        except ChildError as error:  # what has been measured by then is worth having
            broken.append(f"{group}: {error}")
    if runs:
        print(tables(runs), end="\n\n")
    report.show([figure for figure in figures if figure.target or figure.group in ALONE or ":" in figure.who])
    print(f"\n{', '.join(['python ' + platform.python_version(), *map(' '.join, versions.items())])}")
    print(f"the server answers after {DELAY_S * 1000:.0f} ms; {time.monotonic() - started:.0f} s")
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    print(write(out, runs, figures, versions, left_out, rounds=rounds, quick=quick))
    for what in broken:
        print(f"failed: {what}")
    failed = Counter({one.way: one.failed for one in runs if one.failed})
    for name, count in failed.items():
        print(f"{name}: {count} requests failed")
    missed = sum(figure.state == "missed" for figure in figures)
    print(f"{missed} targets missed" if missed else "no target missed")
    return 1 if missed or broken or failed["ours"] else 0


def write(
    out: Path,
    runs: Sequence[Run],
    figures: Sequence[Figure],
    versions: dict[str, str],
    left_out: dict[str, str],
    **facts: Any,
) -> Path:
    """Writes `fanout.json`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "fanout.json"
    content = {"machine": report.machine(), "versions": versions, "left_out": left_out, **facts}
    content |= {"runs": [asdict(run) for run in runs], "figures": [figure.to_dict() for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
