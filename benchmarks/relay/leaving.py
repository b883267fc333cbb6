"""From a browser's close to the API's seeing that its stream was left."""

from collections.abc import Sequence
from statistics import median

from benchmarks.harness.figures import Figure, Target, percentile
from benchmarks.harness.report import aligned
from benchmarks.relay.backends import LEAVING, LOOPS, OURS, Backend
from benchmarks.relay.benchmark import RelayBenchmark, RunningBackends

LEFT, QUICK_LEFT = (200, 100), (40, 20)
"""Streams that are left while they are silent, and while tokens arrive."""
LEFT_RATE = 10
"""Tokens per second of each stream, so few that nothing is overloaded."""
LEFT_MS = 100
LONGEST_WAIT_S = 5.0


def leaving(benchmark: RelayBenchmark, backends: RunningBackends) -> None:
    loop = LOOPS[0]
    silent, flowing = QUICK_LEFT if benchmark.quick else LEFT
    job = {"silent": silent, "flowing": flowing, "rate": LEFT_RATE, "between_s": 0.005, "max_pause_s": LONGEST_WAIT_S}
    heads = ("while", "streams", "median", "p99", "most", f"not within {LONGEST_WAIT_S:g} s")
    rows: list[tuple[str, ...]] = [("from the browser's close to the API's", *heads)]
    for backend in backends.ready(LEAVING, loop):
        benchmark.say(f"leaving: {backend.name}")
        if result := backends.do("leave", backend, loop, **job):
            benchmark.note(LEAVING, "left", backend, loop, result)
            for kind in ("silent", "flowing"):
                rows.append((backend.name, kind, *left_cells(result[kind])))
                benchmark.figures.append(left_figure(backend, kind, result[kind]))
    benchmark.tables.append(aligned(rows))


def left_cells(times_ms: Sequence[float | None]) -> tuple[str, ...]:
    """The number of times, their median, 99th percentile and maximum, and how many streams have no time."""
    all_ms = [LONGEST_WAIT_S * 1e3 if took is None else took for took in times_ms]
    middle = (median(all_ms), percentile(all_ms, 99), max(all_ms))
    cells = [f"> {LONGEST_WAIT_S:g} s" if took >= LONGEST_WAIT_S * 1e3 else f"{took:.1f} ms" for took in middle]
    return str(len(times_ms)), *cells, str(sum(took is None for took in times_ms))


def left_figure(backend: Backend, kind: str, times_ms: Sequence[float | None]) -> Figure:
    all_ms = [LONGEST_WAIT_S * 1e3 if took is None else took for took in times_ms]
    never = sum(took is None for took in times_ms)
    target = Target(LEFT_MS) if backend.name.startswith(OURS) else None
    note = f"{never} not within {LONGEST_WAIT_S:g} s" if never else ""
    what = f"p99 of the API's being left, {kind}"
    return Figure(LEAVING, backend.name, what, percentile(all_ms, 99), "ms", target, tuple(all_ms), note)
