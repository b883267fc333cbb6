"""Streams into browsers through a web backend, here and as the others' documentation shows it: what a relay costs.

Backend, load and harness are processes of their own. The backend (`relay_server`, an app of `relay_apps`) has one core
to itself; the API and the browsers (`relay_load`) share the other, in one process, so that a time between them is of
one clock. The backends take turns, round by round, so that what slows the machine down for a while slows all of them.

    cpu       CPU of a relayed token, 64 streams, in two regimes that say different things: as fast as the backend
              takes them, many to a read; and paced, each by itself, where most of the cost is that of waking up,
              reading and writing, which `by hand` has too
    streams   relays of 50 tokens/s that one core carries while 99 of 100 tokens take less than 50 ms from the API's
              write to the browser's read
    memory    of the backend when browsers stop reading after the first event, and the API offers 20 MB to each
    leaving   from a browser's close to the API's seeing that its stream was left
"""

import contextlib
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

from benchmarks import report
from benchmarks.child import version
from benchmarks.faults import aligned
from benchmarks.groups.ratios import Ratio
from benchmarks.limits import Child
from benchmarks.processes import ChildError, cores
from benchmarks.stats import Figure, Target, paired_ratio, percentile

UVLOOP, ASYNCIO = "uvloop", "asyncio"
"""The first is what uvicorn takes when it is installed with its usual extras."""
LOOPS = (UVLOOP, ASYNCIO) if importlib.util.find_spec("uvloop") else (ASYNCIO,)
STREAMS, RATE = 64, 50
TOKENS, QUICK_TOKENS = 4_000, 1_000
SLOW_TOKENS, QUICK_SLOW_TOKENS = 300, 200
WARM_UP_TOKENS = 100
CPU_WINDOW_S, WINDOW_S = 1.5, 2.0
LIMIT_MS, LEAST_SHARE = 50.0, 0.97
HOPELESS_S, NEVER_HOPELESS_S = 0.3, 1e9
NEAR_ENOUGH, QUICK_NEAR_ENOUGH = 1.1, 1.25
WAITED = 0.05
"""Share of a try in which others used our cores, from which on a failure counts for nothing."""
TRIES = 3
NEARLY = 1.2
"""How far above the limit a try gets a second chance."""
READERS, QUICK_READERS = 500, 100
OFFERED_BYTES, COMPLETION_TOKENS = 20_000_000, 6_000
EVENT_BYTES = 330
SEND_BYTES = 1 << 17
MEMORY_TIMEOUT_S = 90
LEFT, QUICK_LEFT = (200, 100), (40, 20)
"""Streams that are left while they are silent, and while tokens come."""
LEFT_RATE = 10
"""Tokens a second of each, so few that nobody is overloaded."""
LEFT_MS = 100
PATIENCE_S = 5.0
TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Way:
    """A backend: a function of `relay_apps`, and where it takes part.

    Attributes:
        slow: It gets fewer tokens, it would take minutes.
        whole: It takes all that is offered, and sends fewer events; so as much as a long completion is offered.
        first: How many streams are tried first.
        cpu: The event loops on which it takes part; the same for the other parts.
    """

    name: str
    app: str
    package: str = "together-async"
    slow: bool = False
    whole: bool = False
    first: int = 0
    cpu: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    leaving: tuple[str, ...] = LOOPS[:1]


ONE, BOTH = LOOPS[:1], LOOPS
SSE, OPENAI = "sse-starlette", "openai"
OURS, PASSTHROUGH, PEER = "ours", "ours passthrough", "openai+sse-starlette"
SOCKETS, BY_HAND = "sockets alone", "by hand"
WAYS = {
    way.name: way
    for way in (
        Way(SOCKETS, "sockets", "aiohttp", cpu=BOTH, leaving=()),
        Way(BY_HAND, "by_hand", "aiohttp", first=500, cpu=BOTH, streams=ONE, memory=ONE),
        Way(OURS, "ours_chunks", first=400, cpu=BOTH, streams=BOTH, memory=BOTH),
        Way("ours text", "ours_text", cpu=ONE, memory=ONE),
        Way(PASSTHROUGH, "ours_passthrough", first=450, cpu=BOTH, streams=ONE, memory=BOTH),
        Way("ours coalesce", "ours_coalesce", whole=True, memory=ONE),
        Way("ours aiohttp.web", "ours_aiohttp", cpu=BOTH, memory=ONE),
        Way(PEER, "sse_starlette_chunks", SSE, slow=True, first=80, cpu=BOTH, streams=BOTH, memory=BOTH),
        Way(f"{PEER} text", "sse_starlette_text", SSE, slow=True, cpu=ONE, leaving=()),
        Way(f"{PEER} break", "sse_starlette_break", SSE, slow=True),
        Way("openai+StreamingResponse", "streaming_response", OPENAI, slow=True, cpu=ONE),
        Way("openai+fastapi.sse", "fastapi_sse", "fastapi", slow=True, cpu=ONE),
        Way("openai+aiohttp.web", "openai_aiohttp_web", OPENAI, slow=True),
    )
}
MAIN = (SOCKETS, BY_HAND, OURS, PASSTHROUGH, PEER)
"""Those of which there are ratios: they take part in every round, the others in two."""
OTHERS_ROUNDS = 2
"""Of the others, and of all on the loop that is not uvicorn's usual one."""
CPU, STREAMS_PART, MEMORY, LEAVING = "cpu", "streams", "memory", "leaving"
REGIMES = {"fast": "as fast as it goes", "paced": f"{RATE} tokens/s in each stream"}
CPU_RATIOS = (
    Ratio(PEER, OURS, Target(10, more=True)),
    Ratio(PASSTHROUGH, OURS, Target(0.5)),
    Ratio(BY_HAND, OURS),
    Ratio(PEER, BY_HAND),
    Ratio(PEER, SOCKETS),
)
STREAMS_RATIOS = (Ratio(OURS, PEER, Target(3, more=True)), Ratio(OURS, BY_HAND))


@dataclass
class Bench:
    """One run: what was asked for, and what has come of it."""

    rounds: int
    quick: bool
    clients: Sequence[str] = ()
    results: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def loops(self) -> tuple[str, ...]:
        return LOOPS[:1] if self.quick else LOOPS

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def ways(self, part: str, loop: str) -> list[Way]:
        """Those that take part there."""
        return [
            way
            for way in WAYS.values()
            if loop in getattr(way, part)
            and (not self.clients or way.name in self.clients)
            and way.name not in self.left_out
        ]

    def note(self, part: str, what: str, way: Way, loop: str, result: dict[str, Any], **facts: Any) -> None:
        self.results.append({"part": part, "what": what, "way": way.name, "loop": loop, **facts, **result})

    def found(self, part: str, what: str, loop: str, way: str) -> list[dict[str, Any]]:
        wanted = {"part": part, "what": what, "loop": loop, "way": way}
        return [one for one in self.results if one.items() >= wanted.items()]


class Backends:
    """The load, and the backends, each started when it is needed first, and having done something by then."""

    def __init__(self, bench: Bench, *arguments: str) -> None:
        self.bench = bench
        self.arguments = arguments
        self.stack = contextlib.ExitStack()
        self.load = self.stack.enter_context(Child([sys.executable, "-m", "benchmarks.relay_load"], cores()[0]))
        self.children: dict[tuple[str, str], Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def ready(self, part: str, loop: str) -> list[Way]:
        """Starts what takes part there; returns those that could be started."""
        return [way for way in self.bench.ways(part, loop) if self._started(way, loop)]

    def _started(self, way: Way, loop: str) -> bool:
        if (way.name, loop) in self.children:
            return True
        command = [sys.executable, "-m", "benchmarks.relay_server", "--app", way.app, "--package", way.package]
        command += ["--loop", loop, "--base-url", f"http://127.0.0.1:{self.load.hello['port']}/v1", *self.arguments]
        try:
            self.children[way.name, loop] = self.stack.enter_context(Child(command, cores()[1]))
        except (ChildError, OSError) as error:
            self.bench.left_out[way.name] = str(error)
            return False
        return self.do("blast", way, loop, streams=STREAMS, tokens=WARM_UP_TOKENS) is not None

    def do(self, what: str, way: Way, loop: str, **job: Any) -> dict[str, Any] | None:
        """Has the load do something to a backend; None when it could not be done, which is noted."""
        child = self.children[way.name, loop]
        given = {"do": what, "port": child.hello["port"], "pid": child.process.pid, "merges": way.whole, **job}
        result = self.load.ask(json.dumps(given).encode(), TIMEOUT_S)
        if "error" in result:
            self.bench.broken.append(f"{what}: {way.name}, {loop}: {result['error']}")
            self.bench.say(f"  {self.bench.broken[-1]}")
            return None
        return result


# ----------------------------------------------------------------------------------------------------------------- cpu


def cpu(bench: Bench, running: Backends) -> None:
    for loop in bench.loops:
        ways = running.ready(CPU, loop)
        for number in range(bench.rounds):
            for way in ways:
                if number < OTHERS_ROUNDS or (way.name in MAIN and loop == LOOPS[0]):
                    bench.say(f"cpu: {way.name}, {loop}, round {number + 1}")
                    cpu_once(running, way, loop, number)
    for regime in REGIMES:
        bench.tables.append(aligned(cpu_table(bench, regime)))
        for loop in bench.loops:
            bench.figures += cpu_figures(bench, regime, loop)


def cpu_once(running: Backends, way: Way, loop: str, number: int) -> None:
    bench, quick = running.bench, running.bench.quick
    tokens = (QUICK_SLOW_TOKENS if quick else SLOW_TOKENS) if way.slow else (QUICK_TOKENS if quick else TOKENS)
    if result := running.do("blast", way, loop, streams=STREAMS, tokens=tokens):
        bench.note(CPU, "fast", way, loop, result, round=number)
    window = {"window_s": CPU_WINDOW_S, "hopeless_s": NEVER_HOPELESS_S}
    if result := running.do("paced", way, loop, streams=STREAMS, rate=RATE, **window):
        bench.note(CPU, "paced", way, loop, result, round=number)


def cpu_table(bench: Bench, regime: str) -> list[tuple[str, ...]]:
    """A row for each backend on each loop: medians of its rounds."""
    paced = ("p50", "p99", "backend busy", "load busy") if regime == "paced" else ()
    rows = [(f"{STREAMS} streams, {REGIMES[regime]}", "loop", "CPU/token", "least", "most", *paced, "rounds")]
    for loop in bench.loops:
        for name in WAYS:
            if own := bench.found(CPU, regime, loop, name):
                values = [one["us"] for one in own]
                cells = [
                    f"{value:.{1 if value < 100 else 0}f} us" for value in (median(values), min(values), max(values))
                ]
                rows.append((name, loop, *cells, *(delay_cells(own) if paced else ()), str(len(own))))
    return rows


def delay_cells(results: Sequence[dict[str, Any]]) -> list[str]:
    cells = [f"{median(one[name] for one in results):.1f} ms" for name in ("p50_ms", "p99_ms")]
    return cells + [f"{median(one[name] for one in results):.0%}" for name in ("busy", "load")]


def cpu_figures(bench: Bench, regime: str, loop: str) -> list[Figure]:
    values = {name: [one["us"] for one in own] for name in WAYS if (own := bench.found(CPU, regime, loop, name))}
    what = f"CPU of a token, {regime}, {loop}"
    return ratios(CPU, what, values, CPU_RATIOS)


def ratios(part: str, what: str, values: dict[str, list[float]], wanted: Sequence[Ratio]) -> list[Figure]:
    """Those of which both sides were measured."""
    found = []
    for ratio in wanted:
        if ratio.who in values and ratio.by in values:
            count = min(len(values[ratio.who]), len(values[ratio.by]))
            above, below = values[ratio.who][:count], values[ratio.by][:count]
            each = [one / other for one, other in zip(above, below, strict=True)]
            note = f"rounds: {min(each):.2f} to {max(each):.2f}" if count > 1 else ""
            who = f"{ratio.who} : {ratio.by}"
            found.append(Figure(part, who, what, paired_ratio(above, below), "x", ratio.target, tuple(each), note))
    return found


# ------------------------------------------------------------------------------------------------------------- streams


def streams(bench: Bench, running: Backends) -> None:
    heads = ("loop", "relays", "p50", "p99", "backend busy", "load busy", "tries")
    rows: list[tuple[str, ...]] = [(f"relays of {RATE} tokens/s that one core carries", *heads)]
    for loop in bench.loops:
        carried: dict[str, list[float]] = {}
        for way in running.ready(STREAMS_PART, loop):
            bench.say(f"streams: {way.name}, {loop}")
            most, best, tries = search(running, way, loop)
            if best is None:
                bench.broken.append(f"streams: {way.name}, {loop}: none was carried")
                continue
            bench.note(STREAMS_PART, "carried", way, loop, best, streams=most, tries=tries)
            carried[way.name] = [most]
            rows.append((way.name, loop, str(most), *delay_cells([best]), str(tries)))
        what = f"relays of {RATE} tokens/s on one core, {loop}"
        bench.figures += ratios(STREAMS_PART, what, carried, STREAMS_RATIOS)
    bench.tables.append(aligned(rows))


def search(running: Backends, way: Way, loop: str) -> tuple[int, dict[str, Any] | None, int]:
    """The largest number of streams that passes: doubling or halving, then bisection; how it did; and the tries."""
    near = QUICK_NEAR_ENOUGH if running.bench.quick else NEAR_ENOUGH
    passes, fails, count, tries = 0, 0, way.first, 0
    best: dict[str, Any] | None = None
    while count >= 4 and tries < 30 and (not (passes and fails) or fails / passes > near):
        result, needed = attempt(running, way, loop, count)
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


def attempt(running: Backends, way: Way, loop: str, count: int) -> tuple[dict[str, Any] | None, int]:
    """What so many streams came to, None if that was not good enough, and how often it was tried.

    What fails while others use the cores is tried again, and what fails by little gets a second chance.
    """
    most = 1 if running.bench.quick else TRIES
    for tries in range(1, most + 1):
        job = {"streams": count, "rate": RATE, "window_s": WINDOW_S, "hopeless_s": HOPELESS_S}
        result = running.do("paced", way, loop, **job)
        if result is None:
            return None, tries
        good = result["p99_ms"] < LIMIT_MS and result["share"] > LEAST_SHARE
        running.bench.say(
            f"  {count}: p50 {result['p50_ms']:.1f} ms, p99 {result['p99_ms']:.1f} ms, busy {result['busy']:.0%}, "
            f"load {result['load']:.0%}, waited {result['waited']:.1%}: {'passes' if good else 'fails'}"
        )
        if good:
            return result, tries
        if result["waited"] < WAITED and (tries > 1 or result["p99_ms"] > NEARLY * LIMIT_MS):
            break
    return None, tries


# -------------------------------------------------------------------------------------------------------------- memory


def memory(bench: Bench, _: Backends) -> None:
    readers = QUICK_READERS if bench.quick else READERS
    heads = ("loop", "before", "after", "at most", "for each", "taken for each", "CPU", "when they have left")
    rows: list[tuple[str, ...]] = [(f"{readers} browsers that stop reading", *heads)]
    # What the kernel keeps is not counted, and would be megabytes.
    with Backends(bench, "--send-bytes", str(SEND_BYTES)) as running:
        for loop in bench.loops:
            for way in running.ready(MEMORY, loop):
                bench.say(f"memory: {way.name}, {loop}")
                tokens = COMPLETION_TOKENS if way.whole else OFFERED_BYTES // EVENT_BYTES
                job = {"readers": readers, "tokens": tokens, "timeout_s": MEMORY_TIMEOUT_S / (3 if bench.quick else 1)}
                if result := running.do("memory", way, loop, **job):
                    bench.note(MEMORY, "stopped", way, loop, result, readers=readers)
                    each_kib = (result["peak_mib"] - result["before_mib"]) / readers * 1024
                    rows.append((way.name, loop, *memory_cells(result, each_kib)))
                    what = f"of each of {readers} stopped readers, at most, {loop}"
                    bench.figures.append(Figure(MEMORY, way.name, what, each_kib, "KiB"))
    bench.tables.append(aligned(rows))


def memory_cells(result: dict[str, Any], each_kib: float) -> tuple[str, ...]:
    sizes = [f"{result[name]:,.0f} MiB" for name in ("before_mib", "after_mib", "peak_mib")]
    taken = f"{result['taken_bytes'] / 1024:,.0f} KiB{'' if result['settled'] else ', going on'}"
    return *sizes, f"{each_kib:,.0f} KiB", taken, f"{result['cpu_s']:.1f} s", f"{result['left_mib']:,.0f} MiB"


# ------------------------------------------------------------------------------------------------------------- leaving


def leaving(bench: Bench, running: Backends) -> None:
    loop = LOOPS[0]
    silent, flowing = QUICK_LEFT if bench.quick else LEFT
    job = {"silent": silent, "flowing": flowing, "rate": LEFT_RATE, "between_s": 0.005, "max_pause_s": PATIENCE_S}
    heads = ("while", "streams", "median", "p99", "most", f"not within {PATIENCE_S:g} s")
    rows: list[tuple[str, ...]] = [("from the browser's close to the API's", *heads)]
    for way in running.ready(LEAVING, loop):
        bench.say(f"leaving: {way.name}")
        if result := running.do("leave", way, loop, **job):
            bench.note(LEAVING, "left", way, loop, result)
            for kind in ("silent", "flowing"):
                rows.append((way.name, kind, *left_cells(result[kind])))
                bench.figures.append(left_figure(way, kind, result[kind]))
    bench.tables.append(aligned(rows))


def left_cells(times_ms: Sequence[float | None]) -> tuple[str, ...]:
    """How many, the median, the 99th percentile and the most of the times, and how many have none."""
    all_ms = [PATIENCE_S * 1e3 if one is None else one for one in times_ms]
    middle = (median(all_ms), percentile(all_ms, 99), max(all_ms))
    cells = [f"> {PATIENCE_S:g} s" if one >= PATIENCE_S * 1e3 else f"{one:.1f} ms" for one in middle]
    return str(len(times_ms)), *cells, str(sum(one is None for one in times_ms))


def left_figure(way: Way, kind: str, times_ms: Sequence[float | None]) -> Figure:
    all_ms = [PATIENCE_S * 1e3 if one is None else one for one in times_ms]
    never = sum(one is None for one in times_ms)
    target = Target(LEFT_MS) if way.name.startswith(OURS) else None
    note = f"{never} not within {PATIENCE_S:g} s" if never else ""
    what = f"p99 of the API's being left, {kind}"
    return Figure(LEAVING, way.name, what, percentile(all_ms, 99), "ms", target, tuple(all_ms), note)


# ----------------------------------------------------------------------------------------------------------------- all

PARTS = {CPU: cpu, STREAMS_PART: streams, MEMORY: memory, LEAVING: leaving}


def run(clients: Sequence[str], only: Sequence[str], out: Path, *, rounds: int, quick: bool) -> int:
    """Runs everything, prints the tables, writes JSON; returns the exit status, 1 for a missed target."""
    started = time.monotonic()
    bench = Bench(1 if quick else rounds, quick, clients)
    took: dict[str, float] = {}
    with Backends(bench) as running:
        for name, part in PARTS.items():
            if not only or name in only:
                began = time.monotonic()
                try:
                    part(bench, running)
                except ChildError as error:  # what has been measured by then is worth having
                    bench.broken.append(f"{name}: {error}")
                took[name] = round(time.monotonic() - began, 1)
    print("\n\n".join(bench.tables), end="\n\n")
    report.show([figure for figure in bench.figures if figure.target or ":" in figure.who])
    packages = ("fastapi", "uvicorn", "uvloop", "aiohttp", "openai", "sse-starlette")
    versions = {package: version(package) for package in packages}
    print(f"\n{', '.join(['python ' + platform.python_version(), *map(' '.join, versions.items())])}")
    print(
        f"{', '.join(f'{name} {seconds:.0f} s' for name, seconds in took.items())}; {time.monotonic() - started:.0f} s"
    )
    for name, why in bench.left_out.items():
        print(f"left out: {name}: {why}")
    print(write(out, bench, versions, took))
    for what in bench.broken:
        print(f"failed: {what}")
    missed = sum(figure.state == "missed" for figure in bench.figures)
    print(f"{missed} targets missed" if missed else "no target missed")
    return 1 if missed or bench.broken else 0


def write(out: Path, bench: Bench, versions: dict[str, str], took: dict[str, float]) -> Path:
    """Writes `relay.json`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "relay.json"
    content: dict[str, Any] = {
        "machine": report.machine(),
        "versions": versions,
        "left_out": bench.left_out,
        "took_s": took,
    }
    content |= {"rounds": bench.rounds, "quick": bench.quick, "failures": bench.broken, "results": bench.results}
    content |= {"figures": [figure.to_dict() for figure in bench.figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
