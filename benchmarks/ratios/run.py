"""Measures the chosen parts, prints their table, and writes JSON.

Two clients take turns, and each figure is the median of their ratios round by round. A second process of the first
client takes part as well: its ratio to the first, the A/A, would be 1 on a machine that does nothing else.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.processes import ChildError, ClientProcess, Process, ServerProcess, cores, module_command
from benchmarks.ratios.alternated import Samples, turns
from benchmarks.ratios.plan import OURS, RAW, Comparison, comparisons
from benchmarks.stream import capacity
from benchmarks.stream.benchmark import StreamBenchmark

KEPT_BYTES, KEPT_MS = Target(1_300), Target(10)
CAPACITY = Target(0.85, 0.9, more=True)


def run(parts: Sequence[str], out: Path, *, rounds: int, quick: bool) -> int:
    """Measures the parts and reports them; returns the exit status, 0 even if targets were missed."""
    started = time.monotonic()
    benchmark = StreamBenchmark(rounds=rounds, quick=quick)
    facts: dict[str, Any] = {}
    with contextlib.suppress(KeyboardInterrupt):  # what has been measured so far is kept
        for part in parts:
            benchmark.say(part)
            try:
                measure_part(benchmark, part, facts)
            except (ChildError, OSError) as error:
                benchmark.failures.append(f"{part}: {error}")
    report.show(benchmark.figures)
    for failure in benchmark.failures:
        print(f"failed: {failure}")
    facts |= {"versions": benchmark.versions, "failures": benchmark.failures, "rounds": rounds, "quick": quick}
    facts["took_s"] = round(time.monotonic() - started)
    print(report.write(out, benchmark.figures, file="ratios.json", **facts))
    return 0


def measure_part(benchmark: StreamBenchmark, part: str, facts: dict[str, Any]) -> None:
    """Adds the figures of a part.

    Raises:
        ChildError, OSError: A client isn't installed, or its process died.
    """
    if part == "kept":
        add_kept(benchmark)
    elif part == "objects":
        facts["objects"] = add_objects(benchmark)
    elif part == "capacity":
        add_capacity(benchmark)
    for comparison in comparisons(quick=benchmark.quick):
        if comparison.part == part:
            compare(benchmark, comparison)


@contextlib.contextmanager
def clients(benchmark: StreamBenchmark, **names: str) -> Iterator[dict[str, ClientProcess]]:
    """A process for each, by its role."""
    with contextlib.ExitStack() as stack:
        processes = {role: stack.enter_context(ClientProcess(name)) for role, name in names.items()}
        for role, name in names.items():
            benchmark.versions[name] = processes[role].hello["version"]
        yield processes


@contextlib.contextmanager
def served(comparison: Comparison) -> Iterator[str]:
    """The base URL of the server that a comparison needs."""
    if not comparison.answers:
        with ServerProcess() as server:
            yield server.base_url
        return
    with Process(module_command("benchmarks.fanout.server", "--delay-s", "0.05"), cores()[0]) as answers:
        yield f"http://127.0.0.1:{answers.hello['port']}/v1"


def compare(benchmark: StreamBenchmark, comparison: Comparison) -> None:
    who, by = comparison.who, comparison.by
    names = {"who": who, "by": by, "again": who}
    with served(comparison) as base_url, clients(benchmark, **names) as processes:

        def cost(role: str) -> float:
            job = comparison.job_of(names[role])
            result: float = processes[role].run(comparison.measurement, base_url, **job)[comparison.key]
            return result

        samples = Samples.taken(cost, benchmark.rounds)
    part, what = comparison.part, comparison.what
    for name, values in ((who, samples.who), (by, samples.by)):
        benchmark.add(Figure(part, name, what, median(values), comparison.unit, samples=tuple(values)))
    benchmark.add(samples.ratio(part, who, by, what, comparison.target))


def add_capacity(benchmark: StreamBenchmark) -> None:
    """The streams that one core carries are searched for, and each search begins where the last ended."""
    names = {"who": OURS, "by": RAW, "again": OURS}
    first = dict.fromkeys(names, capacity.FIRST_TRY[OURS])
    with ServerProcess() as server, clients(benchmark, **names) as processes:

        def carried(role: str) -> float:
            found = capacity.search(benchmark, processes[role], server.base_url, first[role])
            if not found:
                raise ChildError(f"{names[role]} carries no stream in time; the machine is too busy")
            first[role] = found
            return found

        samples = Samples.taken(carried, benchmark.rounds)
    what = "50 tokens/s, p99 < 20 ms"
    for name, values in ((OURS, samples.who), (RAW, samples.by)):
        benchmark.add(Figure("capacity", name, what, median(values), "streams", samples=tuple(values)))
    benchmark.add(samples.ratio("capacity", OURS, RAW, what, CAPACITY))


def add_kept(benchmark: StreamBenchmark) -> None:
    job = {"chunks": 10_000 if benchmark.quick else 100_000}
    results: dict[str, list[dict[str, Any]]] = {}
    with ServerProcess() as server, clients(benchmark, ours=OURS, raw=RAW) as processes:
        for role in turns(("ours", "raw"), benchmark.rounds):
            results.setdefault(role, []).append(processes[role].run("ratios.kept", server.base_url, **job))
    for role, name in (("ours", OURS), ("raw", RAW)):
        for key, unit, target in (("bytes", "bytes each", KEPT_BYTES), ("ms", "CPU ms of a full collection", KEPT_MS)):
            values = tuple(result[key] for result in results[role])
            reach = target if name == OURS else None
            benchmark.add(Figure("kept", name, f"{job['chunks']:,} chunks", median(values), unit, reach, values))


def add_objects(benchmark: StreamBenchmark) -> dict[str, Any]:
    """Returns the objects by client, owner and type, of which the figures are the sums."""
    job = {"streams": 50, "most": 100} if benchmark.quick else {"streams": 200, "most": 600}
    found: dict[str, Any] = {}
    for name in (OURS, RAW):
        with ServerProcess() as server, clients(benchmark, client=name) as processes:
            result = processes["client"].run("ratios.objects", server.base_url, **job)
        found[name] = result["objects"]
        for owner, kinds in result["objects"].items():
            benchmark.add(Figure("objects", name, "per open stream", sum(kinds.values()), f"of {owner}"))
        total = sum(sum(kinds.values()) for kinds in result["objects"].values())
        benchmark.add(Figure("objects", name, "per open stream", total, "in all"))
        for key, what in (("idle_ms", "no stream"), ("open_ms", f"{job['most']} open streams")):
            benchmark.add(Figure("objects", name, what, result[key], "CPU ms of a full collection"))
    return found
