"""One run of the benchmark, and the processes that it starts: the load and the backends."""

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from benchmarks.harness.figures import Figure
from benchmarks.harness.processes import ChildError, Process, cores, module_command
from benchmarks.relay.backends import BACKENDS, LOOPS, Backend

STREAMS, RATE = 64, 50
WARM_UP_TOKENS = 100
TIMEOUT_S = 180.0


@dataclass
class RelayBenchmark:
    """One run: its options, and its results so far."""

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

    def taking_part(self, part: str, loop: str) -> list[Backend]:
        """The backends that take part in this measurement, on this loop."""
        return [
            backend
            for backend in BACKENDS.values()
            if loop in getattr(backend, part)
            and (not self.clients or backend.name in self.clients)
            and backend.name not in self.left_out
        ]

    def note(self, part: str, what: str, backend: Backend, loop: str, result: dict[str, Any], **facts: Any) -> None:
        self.results.append({"part": part, "what": what, "way": backend.name, "loop": loop, **facts, **result})

    def found(self, part: str, what: str, loop: str, backend: str) -> list[dict[str, Any]]:
        wanted = {"part": part, "what": what, "loop": loop, "way": backend}
        return [result for result in self.results if result.items() >= wanted.items()]


class RunningBackends:
    """The load and the backends. A backend is started, and warmed up, when it is first needed."""

    def __init__(self, benchmark: RelayBenchmark, *arguments: str) -> None:
        self.benchmark = benchmark
        self.arguments = arguments
        self.stack = contextlib.ExitStack()
        self.load = self.stack.enter_context(Process(module_command("benchmarks.relay.load_process"), cores()[0]))
        self.children: dict[tuple[str, str], Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def ready(self, part: str, loop: str) -> list[Backend]:
        """Starts the backends that take part; returns those that could be started."""
        return [backend for backend in self.benchmark.taking_part(part, loop) if self._started(backend, loop)]

    def _started(self, backend: Backend, loop: str) -> bool:
        if (backend.name, loop) in self.children:
            return True
        command = module_command("benchmarks.relay.backend_process", "--app", backend.app, "--package", backend.package)
        command += ["--loop", loop, "--base-url", f"http://127.0.0.1:{self.load.hello['port']}/v1", *self.arguments]
        try:
            self.children[backend.name, loop] = self.stack.enter_context(Process(command, cores()[1]))
        except (ChildError, OSError) as error:
            self.benchmark.left_out[backend.name] = str(error)
            return False
        return self.do("blast", backend, loop, streams=STREAMS, tokens=WARM_UP_TOKENS) is not None

    def do(self, what: str, backend: Backend, loop: str, **job: Any) -> dict[str, Any] | None:
        """Has the load do a job with a backend; None if that failed, which is recorded."""
        child = self.children[backend.name, loop]
        given = {
            "do": what,
            "port": child.hello["port"],
            "pid": child.process.pid,
            "merges": backend.reads_everything,
            **job,
        }
        result = self.load.ask(json.dumps(given).encode(), TIMEOUT_S)
        if "error" in result:
            self.benchmark.broken.append(f"{what}: {backend.name}, {loop}: {result['error']}")
            self.benchmark.say(f"  {self.benchmark.broken[-1]}")
            return None
        return result
