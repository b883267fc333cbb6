"""Runs against the emulator's accounts: which there are, and how one is measured."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.certificate import certificate
from benchmarks.harness.processes import ChildError, Process, cores, module_command
from benchmarks.limits.results import LimitsRun
from benchmarks.limits.ways import OURS, WAYS, Way
from benchmarks.limits.workload import DOWN, SETTINGS, Setting

LONGEST_UNSCALED_S = 40.0
"""The time limit of all calls of a setting when their client's clock isn't accelerated; in real seconds."""
LEAST_LIMIT_S = 60.0
SPEED_DOWN = 100.0
"""There is no rate to keep while everything fails, only delays."""


class AccountEmulator(Process):
    """`emulator.py`, on the servers' core."""

    def __init__(self, setting: Setting, speed: float, seed: int, cert: str | None = None) -> None:
        options = ["--setting", setting.name, "--speed", str(speed), "--seed", str(seed)]
        options += ["--cert", cert] if cert else []
        super().__init__(module_command("benchmarks.limits.emulator", *options), cores()[0])


class Distance(Process):
    """`distance.py`, on the servers' core; `round_trip_s` is in real seconds."""

    def __init__(self, to: int, round_trip_s: float) -> None:
        options = ("--to", str(to), "--round-trip-s", str(round_trip_s))
        super().__init__(module_command("benchmarks.limits.distance", *options), cores()[0])


def limit_s(setting: Setting, calls: int, speed: float, *, scaled: bool = True) -> float:
    """How long a run may take, in account time."""
    unscaled_s = max(10.0, LONGEST_UNSCALED_S * calls / setting.calls)
    if setting.name == DOWN:
        return unscaled_s * speed
    longest = max(setting.longest * setting.ideal_s(calls), LEAST_LIMIT_S)
    return longest if scaled else min(longest, unscaled_s)


def speed_of(way: Way, setting: Setting, speed: float) -> float:
    """By how much the clocks of a run are accelerated, if the command was given `speed`."""
    if setting.name == DOWN and way.scaled:
        return SPEED_DOWN
    return min(each for each in (speed, way.speed, setting.speed) if each is not None)


@dataclass(frozen=True, slots=True)
class Planned:
    """A run to be made."""

    setting: Setting
    way: Way
    seed: int


def plan(parts: Sequence[str], clients: Sequence[str], rounds: int) -> Iterator[Planned]:
    """Yields the runs in their order: seed by seed, so that a noisy while is spread; other clients run once.

    Args:
        parts: Names of parts; empty for all.
        clients: Names of clients; empty for all.
        rounds: How many seeds.
    """
    for setting in SETTINGS.values():
        if parts and setting.part not in parts:
            continue
        for seed in range(1, rounds + 1):
            for way in WAYS.values():
                taken = (not clients or way.client in clients) and (not way.parts or setting.part in way.parts)
                if taken and (seed == 1 or way.client == OURS):
                    yield Planned(setting, way, seed)


@dataclass
class AccountRuns:
    """Makes the runs.

    Attributes:
        speed: By how much the clocks are accelerated where nothing else is asked for.
        quick: Whether to make fewer calls.
        pythons: Interpreters of clients that can't be installed next to the others.
        folder: For the certificate and the files of the clients.
        versions: Of the clients.
        left_out: Clients that could not be measured, and why.
    """

    speed: float
    quick: bool
    pythons: Mapping[str, str]
    folder: Path
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def make(self, planned: Sequence[Planned], jobs: int) -> list[LimitsRun]:
        """Makes the runs, `jobs` at once; a client that isn't there is left out."""
        with ThreadPoolExecutor(jobs) as pool:
            return [run for run in pool.map(self.attempt, planned) if run is not None]

    def attempt(self, planned: Planned) -> LimitsRun | None:
        """Makes a run; None if its client isn't installed or its process died."""
        way = planned.way
        if way.client in self.left_out:
            return None
        print(f"{planned.setting.name}: {way.name}, seed {planned.seed}", file=sys.stderr, flush=True)
        try:
            return self.measure(planned)
        except (ChildError, OSError) as error:
            self.left_out[way.client] = str(error)
            print(f"  left out: {way.client}: {error}", file=sys.stderr, flush=True)
            return None

    def measure(self, planned: Planned) -> LimitsRun:
        """Makes a run.

        Raises:
            ChildError, OSError: The client isn't installed, or its process died.
        """
        setting, way, seed = planned.setting, planned.way, planned.seed
        calls = setting.quick_calls if self.quick else setting.calls
        speed = speed_of(way, setting, self.speed)
        longest = limit_s(setting, calls, speed, scaled=way.scaled)
        with ExitStack() as stack:
            base_url, ca, emulator = self._server(stack, setting, speed, seed)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder))
            client = stack.enter_context(Process(self._command(way, speed), cores()[1]))
            given = {"base_url": base_url, "calls": calls, "seed": seed, "limit_s": longest, "ca": ca, "folder": folder}
            result = client.ask(json.dumps(given).encode(), longest / speed + 60)
            record = emulator.ask(b"", 60)
        self.versions[way.client] = client.hello["version"]
        verdicts = [tuple(verdict) for verdict in record["verdicts"]]
        facts = {name: result[name] for name in ("outcomes", "finished", "took_s", "cpu_s")}
        facts |= {"verdicts": verdicts, "connections": record["connections"], "limit_s": longest}
        return LimitsRun(way=way, setting=setting.name, calls=calls, speed=speed, seed=seed, **facts)

    def _server(
        self, stack: ExitStack, setting: Setting, speed: float, seed: int
    ) -> tuple[str, str | None, AccountEmulator]:
        """Starts the emulator, at its distance; returns the client's base URL, the authority, and the emulator."""
        if not setting.round_trip_s:
            emulator = stack.enter_context(AccountEmulator(setting, speed, seed))
            return f"http://127.0.0.1:{emulator.hello['port']}/v1", None, emulator
        cert, ca = certificate(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder))))
        emulator = stack.enter_context(AccountEmulator(setting, speed, seed, cert))
        proxy = stack.enter_context(Distance(emulator.hello["port"], setting.round_trip_s / speed))
        return f"https://127.0.0.1:{proxy.hello['port']}/v1", ca, emulator

    def _command(self, way: Way, speed: float) -> list[str]:
        command = module_command(
            "benchmarks.limits.client_process",
            *("--module", way.module, "--how", way.how),
            python=self.pythons.get(way.client, sys.executable),
        )
        return [*command, "--package", way.package, "--speed", str(speed)]
