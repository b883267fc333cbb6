"""CPU of a relayed token, 64 streams, in two regimes."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.harness.figures import Figure, Ratio, Target
from benchmarks.harness.report import aligned
from benchmarks.relay.backends import (
    BACKENDS,
    BY_HAND,
    CPU,
    LOOPS,
    MAIN,
    OTHERS_ROUNDS,
    OURS,
    PASSTHROUGH,
    PEER,
    SOCKETS,
    Backend,
)
from benchmarks.relay.benchmark import RATE, STREAMS, RelayBenchmark, RunningBackends
from benchmarks.relay.ratios import ratios

TOKENS, QUICK_TOKENS = 4_000, 1_000
SLOW_TOKENS, QUICK_SLOW_TOKENS = 300, 200
CPU_WINDOW_S, WINDOW_S = 1.5, 2.0
HOPELESS_S, NEVER_HOPELESS_S = 0.3, 1e9
REGIMES = {"fast": "as fast as it goes", "paced": f"{RATE} tokens/s in each stream"}
CPU_RATIOS = (
    Ratio(PEER, OURS, Target(10, more=True)),
    Ratio(PASSTHROUGH, OURS, Target(0.5)),
    Ratio(BY_HAND, OURS),
    Ratio(PEER, BY_HAND),
    Ratio(PEER, SOCKETS),
)


def cpu(benchmark: RelayBenchmark, backends: RunningBackends) -> None:
    for loop in benchmark.loops:
        ready = backends.ready(CPU, loop)
        for number in range(benchmark.rounds):
            for backend in ready:
                if number < OTHERS_ROUNDS or (backend.name in MAIN and loop == LOOPS[0]):
                    benchmark.say(f"cpu: {backend.name}, {loop}, round {number + 1}")
                    cpu_once(backends, backend, loop, number)
    for regime in REGIMES:
        benchmark.tables.append(aligned(cpu_table(benchmark, regime)))
        for loop in benchmark.loops:
            benchmark.figures += cpu_figures(benchmark, regime, loop)


def cpu_once(backends: RunningBackends, backend: Backend, loop: str, number: int) -> None:
    benchmark, quick = backends.benchmark, backends.benchmark.quick
    tokens = (QUICK_SLOW_TOKENS if quick else SLOW_TOKENS) if backend.slow else (QUICK_TOKENS if quick else TOKENS)
    if result := backends.do("blast", backend, loop, streams=STREAMS, tokens=tokens):
        benchmark.note(CPU, "fast", backend, loop, result, round=number)
    window = {"window_s": CPU_WINDOW_S, "hopeless_s": NEVER_HOPELESS_S}
    if result := backends.do("paced", backend, loop, streams=STREAMS, rate=RATE, **window):
        benchmark.note(CPU, "paced", backend, loop, result, round=number)


def cpu_table(benchmark: RelayBenchmark, regime: str) -> list[tuple[str, ...]]:
    """A row per backend and loop: medians of its rounds."""
    paced = ("p50", "p99", "backend busy", "load busy") if regime == "paced" else ()
    rows = [(f"{STREAMS} streams, {REGIMES[regime]}", "loop", "CPU/token", "least", "most", *paced, "rounds")]
    for loop in benchmark.loops:
        for name in BACKENDS:
            if own := benchmark.found(CPU, regime, loop, name):
                values = [result["us"] for result in own]
                cells = [
                    f"{value:.{1 if value < 100 else 0}f} us" for value in (median(values), min(values), max(values))
                ]
                rows.append((name, loop, *cells, *(delay_cells(own) if paced else ()), str(len(own))))
    return rows


def delay_cells(results: Sequence[dict[str, Any]]) -> list[str]:
    cells = [f"{median(result[name] for result in results):.1f} ms" for name in ("p50_ms", "p99_ms")]
    return cells + [f"{median(result[name] for result in results):.0%}" for name in ("busy", "load")]


def cpu_figures(benchmark: RelayBenchmark, regime: str, loop: str) -> list[Figure]:
    values = {
        name: [result["us"] for result in own] for name in BACKENDS if (own := benchmark.found(CPU, regime, loop, name))
    }
    what = f"CPU of a token, {regime}, {loop}"
    return ratios(CPU, what, values, CPU_RATIOS)
