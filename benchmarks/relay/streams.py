"""How many relays of 50 tokens/s one core carries, found by search."""

from typing import Any

from benchmarks.harness.figures import Ratio, Target
from benchmarks.harness.report import aligned
from benchmarks.relay.backends import BY_HAND, OURS, PEER, STREAMS_PART, Backend
from benchmarks.relay.benchmark import RATE, RelayBenchmark, RunningBackends
from benchmarks.relay.cpu import HOPELESS_S, WINDOW_S, delay_cells
from benchmarks.relay.ratios import ratios

LIMIT_MS, LEAST_SHARE = 50.0, 0.97
NEAR_ENOUGH, QUICK_NEAR_ENOUGH = 1.1, 1.25
WAITED = 0.05
"""The share of an attempt in which other processes used our cores; from here on a failure does not count."""
TRIES = 3
NEARLY = 1.2
"""Up to how many times the limit an attempt gets a second chance."""
STREAMS_RATIOS = (Ratio(OURS, PEER, Target(3, more=True)), Ratio(OURS, BY_HAND))


def streams(benchmark: RelayBenchmark, backends: RunningBackends) -> None:
    heads = ("loop", "relays", "p50", "p99", "backend busy", "load busy", "tries")
    rows: list[tuple[str, ...]] = [(f"relays of {RATE} tokens/s that one core carries", *heads)]
    for loop in benchmark.loops:
        carried: dict[str, list[float]] = {}
        for backend in backends.ready(STREAMS_PART, loop):
            benchmark.say(f"streams: {backend.name}, {loop}")
            most, best, tries = search(backends, backend, loop)
            if best is None:
                benchmark.broken.append(f"streams: {backend.name}, {loop}: none was carried")
                continue
            benchmark.note(STREAMS_PART, "carried", backend, loop, best, streams=most, tries=tries)
            carried[backend.name] = [most]
            rows.append((backend.name, loop, str(most), *delay_cells([best]), str(tries)))
        what = f"relays of {RATE} tokens/s on one core, {loop}"
        benchmark.figures += ratios(STREAMS_PART, what, carried, STREAMS_RATIOS)
    benchmark.tables.append(aligned(rows))


def search(backends: RunningBackends, backend: Backend, loop: str) -> tuple[int, dict[str, Any] | None, int]:
    """Doubles or halves, then bisects; returns the most streams that pass, their result, and the number of attempts."""
    near = QUICK_NEAR_ENOUGH if backends.benchmark.quick else NEAR_ENOUGH
    passes, fails, count, tries = 0, 0, backend.first_attempt, 0
    best: dict[str, Any] | None = None
    while count >= 4 and tries < 30 and (not (passes and fails) or fails / passes > near):
        result, needed = attempt(backends, backend, loop, count)
        tries += needed
        if result is None:
            fails = count
        else:
            passes, best = count, result
        if passes and fails:
            count = round((passes * fails) ** 0.5)
            if count in (passes, fails):
                break
        else:
            count = count * 2 if passes else count // 2
    return passes, best, tries


def attempt(backends: RunningBackends, backend: Backend, loop: str, count: int) -> tuple[dict[str, Any] | None, int]:
    """The result with so many streams (None if it was not good enough), and the number of attempts.

    A failure while other processes use the cores is repeated, and a narrow failure gets a second chance.
    """
    most = 1 if backends.benchmark.quick else TRIES
    for tries in range(1, most + 1):
        job = {"streams": count, "rate": RATE, "window_s": WINDOW_S, "hopeless_s": HOPELESS_S}
        result = backends.do("paced", backend, loop, **job)
        if result is None:
            return None, tries
        good = result["p99_ms"] < LIMIT_MS and result["share"] > LEAST_SHARE
        backends.benchmark.say(
            f"  {count}: p50 {result['p50_ms']:.1f} ms, p99 {result['p99_ms']:.1f} ms, busy {result['busy']:.0%}, "
            f"load {result['load']:.0%}, waited {result['waited']:.1%}: {'passes' if good else 'fails'}"
        )
        if good:
            return result, tries
        if result["waited"] < WAITED and (tries > 1 or result["p99_ms"] > NEARLY * LIMIT_MS):
            break
    return None, tries
