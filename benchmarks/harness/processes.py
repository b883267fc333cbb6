"""Starts the servers' and the clients' processes, each on its own core, and never leaves one behind."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60
JOB_TIMEOUT_S = 120


class ChildError(Exception):
    """A process ended, printed something other than JSON, or took too long."""


def cores() -> tuple[set[int], set[int]]:
    """A core for the server and another for the client; the same core if there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return {available[-1]}, {available[0]}


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", module, *arguments]


class Process:
    """A child process that prints a line of JSON when it is ready, and one for each line it is sent."""

    def __init__(self, command: Sequence[str], core: set[int], start_timeout_s: float = START_TIMEOUT_S) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("BENCH_DEBUG") else None,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        )
        try:
            os.sched_setaffinity(self.process.pid, core)
            self.hello = self.read(start_timeout_s)
        except BaseException:
            self.close()
            raise

    def read(self, timeout_s: float) -> dict[str, Any]:
        stdout = self.process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout_s)[0]:
            raise ChildError(f"no answer within {timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise ChildError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, line: bytes, timeout_s: float) -> dict[str, Any]:
        """Writes a line to the process and returns its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        return self.read(timeout_s)

    def _last_words(self) -> str:
        code = self.process.wait(5)
        error = self.process.stderr.read().decode(errors="replace") if self.process.stderr else ""
        lines = [line for line in error.strip().splitlines() if line.strip()]
        return f"ended with {code}: {lines[-1][:300] if lines else 'no message'}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ServerProcess(Process):
    """`event_server.py`, on the servers' core."""

    def __init__(self, cert: str | None = None) -> None:
        command = module_command("benchmarks.harness.event_server", *(["--cert", cert] if cert else []))
        super().__init__(command, cores()[0])
        self.base_url = f"{'https' if cert else 'http'}://127.0.0.1:{self.hello['port']}/v1"


class EmulatorProcess(Process):
    """`faults/emulator.py`, or another module like it, on the servers' core."""

    def __init__(self, seed: int = 0, *, module: str = "benchmarks.faults.emulator") -> None:
        super().__init__(module_command(module, "--seed", str(seed)), cores()[0])
        self.base_url = f"http://127.0.0.1:{self.hello['port']}/v1"

    def state(self) -> dict[str, int]:
        """Its connections accepted and open, the requests it received, and its tasks."""
        return self.ask(b"", START_TIMEOUT_S)


class ClientProcess(Process):
    """`client_process.py` with one client, on the clients' core."""

    def __init__(self, client: str, loop: str = "asyncio", python: str = sys.executable) -> None:
        arguments = ("--client", client, "--loop", loop)
        super().__init__(module_command("benchmarks.harness.client_process", *arguments, python=python), cores()[1])

    def run(self, group: str, base_url: str, timeout_s: float = JOB_TIMEOUT_S, **job: Any) -> dict[str, Any]:
        """Runs `benchmarks.<group>.measure` there and returns its result."""
        order = {"group": group, "base_url": base_url, "timeout_s": timeout_s, **job}
        return self.ask(json.dumps(order).encode(), timeout_s + 5)
