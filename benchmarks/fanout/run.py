"""Thousands of requests at once, here and with other clients: what they cost in CPU, how close to the ideal they come.

Each client makes the same requests (`clients`), a fixed number at once, against a server that answers every request
after 50 ms (`server`). Server and client are two processes, each on its own core, and both are started anew for every
run; the clients take turns, round by round, so that whatever slows the machine down for a while affects all of them.
Counted is the CPU of the client's process, user and system, from the making of the client to its end, with its
connections, but without imports and the work of a first use. In 50 ms nobody can finish more requests than are under
way at once: that is the ideal.

Measured without a server: the memory of a `map` over a million prompts (`memory`), what a durable batch costs, and how
long it takes to resume (`batch`).
"""

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fanout import batch, memory
from benchmarks.fanout.plan import DELAY_S, GROUPS, STREAM, FanoutClient, plan
from benchmarks.fanout.results import FanoutRun, figures_of, tables
from benchmarks.harness import report
from benchmarks.harness.figures import Figure
from benchmarks.harness.processes import ChildError, Process, cores, module_command

WARM_UP = 2
"""Requests before those that count: a client's first use imports and prepares things."""
TIMEOUT_S = 180.0
ALONE = ("million", "resume", "journal")
"""The groups that need no server."""
ALONE_ROUNDS = 3


def measure(client: FanoutClient, group: str, requests: int, at_once: int) -> tuple[FanoutRun, str]:
    """Measures one run; returns it with the client's version.

    Raises:
        ChildError, OSError: The client isn't installed, or its process died.
    """
    server_command = module_command("benchmarks.fanout.server", "--delay-s", str(DELAY_S))
    client_command = module_command(
        "benchmarks.fanout.client_process", "--client", client.function, "--package", client.package
    )
    with Process(server_command, cores()[0]) as server, Process(client_command, cores()[1]) as process:
        base_url = f"http://127.0.0.1:{server.hello['port']}/v1"
        job = {"base_url": base_url, "concurrency": at_once, "stream": group == STREAM}
        first = process.ask(json.dumps({**job, "requests": WARM_UP}).encode(), TIMEOUT_S)
        if first["outcomes"] != {"ok": WARM_UP}:
            raise ChildError(f"the first requests came to {first['outcomes']}")
        server.ask(b"", TIMEOUT_S)  # resets its counts
        result = process.ask(json.dumps({**job, "requests": requests}).encode(), TIMEOUT_S)
        saw = server.ask(b"", TIMEOUT_S)
    run = FanoutRun(
        group,
        client.name,
        requests,
        at_once,
        result["cpu_s"],
        result["took_s"],
        result["outcomes"],
        saw["connections"],
        saw["most_open"],
    )
    return run, process.hello["version"]


def chosen(groups: Iterable[str], only: Sequence[str]) -> list[str]:
    return [group for group in groups if not only or group in only]


def alone(group: str, clients: Sequence[str], left_out: dict[str, str], *, quick: bool, rounds: int) -> list[Figure]:
    """The figures of a group that needs no server."""
    if clients and "ours" not in clients:
        return []
    if group == "million":
        return memory.figures(memory.QUICK_REQUESTS if quick else memory.REQUESTS)
    if group == "journal":
        return batch.journal_figures(quick=quick, rounds=rounds)
    peers = not clients or "async-batch-llm" in clients
    figures, why = batch.resume_figures(quick=quick, rounds=rounds, peers=peers)
    left_out.update(why)
    return figures


def run(clients: Sequence[str], only: Sequence[str], out: Path, *, rounds: int, quick: bool) -> int:
    """Runs everything, prints the tables, writes JSON; returns the exit status, 1 for a missed target."""
    started = time.monotonic()
    runs: list[FanoutRun] = []
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    broken: list[str] = []
    for group in chosen(GROUPS, only):
        for number, client, requests, at_once in plan(group, 1 if quick else rounds, quick):
            if (clients and client.name not in clients) or client.name in left_out:
                continue
            print(f"{group}: {client.name}, round {number + 1}", file=sys.stderr, flush=True)
            try:
                done, versions[client.name] = measure(client, group, requests, at_once)
            except (ChildError, OSError) as error:
                left_out[client.name] = str(error)
                print(f"  left out: {error}", file=sys.stderr, flush=True)
                continue
            runs.append(done)
    figures = [figure for group in GROUPS for figure in figures_of(group, runs)]
    for group in chosen(ALONE, only):
        print(group, file=sys.stderr, flush=True)
        try:
            figures += alone(group, clients, left_out, quick=quick, rounds=min(rounds, ALONE_ROUNDS))
        except ChildError as error:  # what has been measured so far is kept
            broken.append(f"{group}: {error}")
    if runs:
        print(tables(runs), end="\n\n")
    report.show([figure for figure in figures if figure.target or figure.group in ALONE or ":" in figure.who])
    print(f"\n{', '.join(['python ' + platform.python_version(), *map(' '.join, versions.items())])}")
    print(f"the server answers after {DELAY_S * 1000:.0f} ms; {time.monotonic() - started:.0f} s")
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    print(write(out, runs, figures, versions, left_out, rounds=rounds, quick=quick))
    for what in broken:
        print(f"failed: {what}")
    failed = Counter({done.client: done.failed for done in runs if done.failed})
    for name, count in failed.items():
        print(f"{name}: {count} requests failed")
    missed = sum(figure.state == "missed" for figure in figures)
    print(f"{missed} targets missed" if missed else "no target missed")
    return 1 if missed or broken or failed["ours"] else 0


def write(
    out: Path,
    runs: Sequence[FanoutRun],
    figures: Sequence[Figure],
    versions: dict[str, str],
    left_out: dict[str, str],
    **facts: Any,
) -> Path:
    """Writes `fanout.json`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "fanout.json"
    content = {"machine": report.machine(), "versions": versions, "left_out": left_out, **facts}
    content |= {"runs": [asdict(run) for run in runs], "figures": [figure.to_dict() for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
