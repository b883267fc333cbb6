"""What every group of figures shares: the clients that can run here, the number of rounds, the figures so far."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

from benchmarks.clients import PEERS
from benchmarks.harness.figures import Figure
from benchmarks.harness.processes import ChildError, ClientProcess, ServerProcess
from benchmarks.harness.side_environments import python_for


@dataclass
class StreamBenchmark:
    """One run of the stream benchmark.

    Attributes:
        rounds: How often each measurement is repeated, with the clients alternating.
        quick: Fewer tokens, streams and seconds: to check that it works, not for figures to quote.
        loops: The event loops to measure on.
        clients: Names of the clients to measure; empty means all.
    """

    rounds: int = 5
    quick: bool = False
    loops: Sequence[str] = ("asyncio",)
    clients: Sequence[str] = ()
    seed: int = 1
    figures: list[Figure] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)

    def wanted(self, *names: str) -> list[str]:
        """Those of `names` (no names: all clients) that were asked for and can run."""
        return [
            name
            for name in names or tuple(PEERS)
            if name not in self.left_out and (not self.clients or name in self.clients)
        ]

    @contextlib.contextmanager
    def started(self, names: Sequence[str], loop: str) -> Iterator[dict[str, ClientProcess]]:
        """A process for each client; a client that does not start is left out from then on, with a message."""
        with contextlib.ExitStack() as stack:
            processes = {}
            for name in names:
                if (process := self.start(name, loop)) is not None:
                    processes[name] = stack.enter_context(process)
            yield processes

    def start(self, name: str, loop: str) -> ClientProcess | None:
        try:
            requirement = PEERS[name].requirement
            process = ClientProcess(name, loop, python_for(requirement) if requirement else sys.executable)
        except (ChildError, OSError, subprocess.SubprocessError) as exc:
            self.left_out[name] = str(exc)
            self.say(f"  {name} left out: {exc}")
            return None
        self.versions[name] = process.hello["version"]
        return process

    def attempt(self, process: ClientProcess, group: str, base_url: str, **job: Any) -> dict[str, Any] | None:
        """The result of one job; None, with a message, if the client did not survive it."""
        try:
            return process.run(f"stream.{group}", base_url, **job)
        except (ChildError, OSError) as exc:
            self.failures.append(f"{process.hello.get('ready')}: {group}: {exc}")
            self.say(f"  {self.failures[-1]}")
            return None

    def rounds_of(
        self, names: Sequence[str], loop: str, server: ServerProcess, group: str, jobs: dict[str, dict[str, Any]]
    ) -> dict[str, list[dict[str, Any]]]:
        """`rounds` results of each client, measured in turn; `jobs` are by client."""
        results: dict[str, list[dict[str, Any]]] = {}
        with self.started(names, loop) as processes:
            for _ in range(self.rounds):
                for name in list(processes):
                    result = self.attempt(processes[name], group, server.base_url, **jobs[name])
                    if result is None:
                        del processes[name]
                        results.pop(name, None)
                        continue
                    results.setdefault(name, []).append(result)
        return results


def server_state(base_url: str) -> dict[str, int]:
    """The server's own counts: `open` connections, `sent_bytes`, `requests`. Plain HTTP only."""
    host, _, port = base_url.removeprefix("http://").partition("/")[0].partition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", "/state")
        state: dict[str, int] = json.loads(connection.getresponse().read())
        return state
    finally:
        connection.close()
