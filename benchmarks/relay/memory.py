"""Memory of the backend when browsers stop reading."""

from typing import Any

from benchmarks.harness.figures import Figure
from benchmarks.harness.report import aligned
from benchmarks.relay.backends import MEMORY
from benchmarks.relay.benchmark import RelayBenchmark, RunningBackends

READERS, QUICK_READERS = 500, 100
OFFERED_BYTES, COMPLETION_TOKENS = 20_000_000, 6_000
EVENT_BYTES = 330
SEND_BYTES = 1 << 17
MEMORY_TIMEOUT_S = 90


def memory(benchmark: RelayBenchmark, _: RunningBackends) -> None:
    readers = QUICK_READERS if benchmark.quick else READERS
    heads = ("loop", "before", "after", "at most", "for each", "taken for each", "CPU", "when they have left")
    rows: list[tuple[str, ...]] = [(f"{readers} browsers that stop reading", *heads)]
    # The kernel's send buffers, not part of the process's memory, would take megabytes.
    with RunningBackends(benchmark, "--send-bytes", str(SEND_BYTES)) as backends:
        for loop in benchmark.loops:
            for backend in backends.ready(MEMORY, loop):
                benchmark.say(f"memory: {backend.name}, {loop}")
                tokens = COMPLETION_TOKENS if backend.reads_everything else OFFERED_BYTES // EVENT_BYTES
                job = {
                    "readers": readers,
                    "tokens": tokens,
                    "timeout_s": MEMORY_TIMEOUT_S / (3 if benchmark.quick else 1),
                }
                if result := backends.do("memory", backend, loop, **job):
                    benchmark.note(MEMORY, "stopped", backend, loop, result, readers=readers)
                    each_kib = (result["peak_mib"] - result["before_mib"]) / readers * 1024
                    rows.append((backend.name, loop, *memory_cells(result, each_kib)))
                    what = f"of each of {readers} stopped readers, at most, {loop}"
                    benchmark.figures.append(Figure(MEMORY, backend.name, what, each_kib, "KiB"))
    benchmark.tables.append(aligned(rows))


def memory_cells(result: dict[str, Any], each_kib: float) -> tuple[str, ...]:
    sizes = [f"{result[name]:,.0f} MiB" for name in ("before_mib", "after_mib", "peak_mib")]
    taken = f"{result['taken_bytes'] / 1024:,.0f} KiB{'' if result['settled'] else ', going on'}"
    return *sizes, f"{each_kib:,.0f} KiB", taken, f"{result['cpu_s']:.1f} s", f"{result['left_mib']:,.0f} MiB"
