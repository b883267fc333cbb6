"""Streams relayed to browsers through a web backend, here and as the others' documentation shows it.

Backend, load and harness are three processes. The backend (`backend_process`, an app of `apps`) has one core to itself;
the API and the browsers (`load`) share the other, in one process, so that one clock measures the times between them.
The backends take turns, round by round, so that whatever slows the machine down for a while affects all of them.

    cpu       CPU of a relayed token, 64 streams, in two regimes with different meanings: as fast as the backend accepts
              them, many per read; and paced, each token by itself, where most of the cost is waking up, reading and
              writing, which `by hand` has too
    streams   how many relays of 50 tokens/s one core carries while 99 of 100 tokens take less than 50 ms from the API's
              write to the browser's read
    memory    of the backend, when browsers stop reading after the first event and the API offers 20 MB to each
    leaving   from a browser's close to the moment when the API sees its stream closed
"""

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.processes import ChildError
from benchmarks.harness.this_process import version
from benchmarks.relay.backends import CPU, LEAVING, MEMORY, STREAMS_PART
from benchmarks.relay.benchmark import RelayBenchmark, RunningBackends
from benchmarks.relay.cpu import cpu
from benchmarks.relay.leaving import leaving
from benchmarks.relay.memory import memory
from benchmarks.relay.streams import streams

PARTS = {CPU: cpu, STREAMS_PART: streams, MEMORY: memory, LEAVING: leaving}


def run(clients: Sequence[str], only: Sequence[str], out: Path, *, rounds: int, quick: bool) -> int:
    """Runs everything, prints the tables, writes JSON; returns the exit status, 1 for a missed target."""
    started = time.monotonic()
    benchmark = RelayBenchmark(1 if quick else rounds, quick, clients)
    took: dict[str, float] = {}
    with RunningBackends(benchmark) as backends:
        for name, part in PARTS.items():
            if not only or name in only:
                began = time.monotonic()
                try:
                    part(benchmark, backends)
                except ChildError as error:  # what has been measured so far is kept
                    benchmark.broken.append(f"{name}: {error}")
                took[name] = round(time.monotonic() - began, 1)
    print("\n\n".join(benchmark.tables), end="\n\n")
    report.show([figure for figure in benchmark.figures if figure.target or ":" in figure.who])
    packages = ("fastapi", "uvicorn", "uvloop", "aiohttp", "openai", "sse-starlette")
    versions = {package: version(package) for package in packages}
    print(f"\n{', '.join(['python ' + platform.python_version(), *map(' '.join, versions.items())])}")
    print(
        f"{', '.join(f'{name} {seconds:.0f} s' for name, seconds in took.items())}; {time.monotonic() - started:.0f} s"
    )
    for name, why in benchmark.left_out.items():
        print(f"left out: {name}: {why}")
    print(write(out, benchmark, versions, took))
    for what in benchmark.broken:
        print(f"failed: {what}")
    missed = sum(figure.state == "missed" for figure in benchmark.figures)
    print(f"{missed} targets missed" if missed else "no target missed")
    return 1 if missed or benchmark.broken else 0


def write(out: Path, benchmark: RelayBenchmark, versions: dict[str, str], took: dict[str, float]) -> Path:
    """Writes `relay.json`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "relay.json"
    content: dict[str, Any] = {
        "machine": report.machine(),
        "versions": versions,
        "left_out": benchmark.left_out,
        "took_s": took,
    }
    content |= {
        "rounds": benchmark.rounds,
        "quick": benchmark.quick,
        "failures": benchmark.broken,
        "results": benchmark.results,
    }
    content |= {"figures": [figure.to_dict() for figure in benchmark.figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
