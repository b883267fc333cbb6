"""`python -m benchmarks faults`: what each client makes of some 270 fault cases.

Emulator, cases, deadline and rules (`verdicts`) are the same for every client. Each client runs in its own process,
each case with its own client object, with retries off and with `TIMEOUT_S` set as the client's documentation shows. A
call is the plain loop of that documentation (`async for chunk in stream`); what an app would see of it is judged.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.clients import PEERS
from benchmarks.faults.cases import CASES, Case
from benchmarks.faults.verdicts import VERDICTS, Verdict, judge
from benchmarks.harness import report
from benchmarks.harness.processes import ChildError, ClientProcess, EmulatorProcess
from benchmarks.harness.report import aligned

TIMEOUT_S = 1.0
DEADLINE_S = 5.0
"""From the start of a stream to its end, whatever happens. The slowest right answer takes 2.5 s."""
FLOOD_DEADLINE_S = 15.0
"""The same for floods, which cost some clients seconds of CPU."""
AT_ONCE = 16
CLIENTS = ("ours", "openai", "together", "litellm")


def orders(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """What a client's process has to know about the cases."""
    return [
        {
            "name": case.name,
            "model": case.dialect.name,
            "options": case.options,
            "streams": case.streams,
            "url": case.url,
        }
        for case in cases
    ]


def observe(name: str, cases: Sequence[Case], seed: int, timeout_s: float) -> tuple[str, dict[str, Any]]:
    """Runs the cases with one client; returns its version and what was seen.

    The cases that share the processor run first, in an order that the seed decides; then the floods, one after the
    other. A process that does not answer is ended, and another is started for the remaining cases.
    """
    together = [case for case in cases if not case.flood]
    random.Random(seed).shuffle(together)
    batches = [together, *([case] for case in cases if case.flood)]
    seen: dict[str, Any] = {}
    version = ""
    with EmulatorProcess(seed) as emulator:
        client: ClientProcess | None = None
        try:
            for batch in filter(None, batches):
                if client is None:
                    client = ClientProcess(name)
                    version = client.hello["version"]
                job = {
                    "cases": orders(batch),
                    "warm_up": orders([CASES["odd but right: nothing odd"]])[0],
                    "at_once": AT_ONCE,
                    "timeout_s_of_client": TIMEOUT_S,
                    "deadline_s": FLOOD_DEADLINE_S if batch[0].flood else DEADLINE_S,
                }
                try:
                    seen |= client.run("faults.observe", emulator.base_url, timeout_s, **job)["seen"]
                except ChildError as exc:
                    client.close()
                    client = None
                    seen |= {case.name: lost(str(exc), timeout_s) for case in batch}
        finally:
            if client is not None:
                client.close()
    return version, seen


def lost(why: str, timeout_s: float) -> dict[str, Any]:
    """What is recorded for a case that ended the process, or blocked it for too long."""
    return {
        "error": why,
        "own": False,
        "hang": True,
        "status": None,
        "partial": None,
        "took_s": timeout_s,
        "choices": {},
    }


def table(verdicts: dict[str, dict[str, Verdict]]) -> list[tuple[str, ...]]:
    """A row per client: the share of right cases, and how many of the others are of each kind."""
    rows: list[tuple[str, ...]] = [("client", "cases", "right %", *VERDICTS[1:], "deceived")]
    for client, found in verdicts.items():
        count = Counter(verdict.verdict for verdict in found.values())
        share = 100 * count["right"] / max(1, len(found))
        deceived = sum(verdict.deceived for verdict in found.values())
        kinds = (str(count[kind]) for kind in VERDICTS[1:])
        # Never rounded up to 100.0.
        rows.append((client, str(len(found)), f"{int(share * 10) / 10:.1f}", *kinds, str(deceived)))
    return rows


def by_group(verdicts: dict[str, dict[str, Verdict]]) -> list[tuple[str, ...]]:
    """A row per group of cases: how many are right, by client."""
    groups = list(dict.fromkeys(CASES[name].group for found in verdicts.values() for name in found))
    rows: list[tuple[str, ...]] = [("right, of", "cases", *verdicts)]
    for group in groups:
        names = [name for name in CASES if CASES[name].group == group and name in next(iter(verdicts.values()))]
        right = (
            str(sum(found[name].verdict == "right" for name in names if name in found)) for found in verdicts.values()
        )
        rows.append((group, str(len(names)), *right))
    return rows


def run(clients: Sequence[str], only: str, seed: int, out: Path | None, timeout_s: float = 120) -> int:
    """Runs everything and prints the tables; returns the exit status: 1 when this library got a case wrong."""
    cases = [case for case in CASES.values() if only in case.name]
    started = time.monotonic()
    verdicts: dict[str, dict[str, Verdict]] = {}
    versions: dict[str, str] = {}
    for name in clients or CLIENTS:
        print(f"{name}: {len(cases)} cases", file=sys.stderr, flush=True)
        try:
            versions[name], seen = observe(name, cases, seed, timeout_s)
        except (ChildError, OSError) as exc:
            print(f"{name} left out: {exc}", file=sys.stderr)
            continue
        exact = PEERS[name].module == "ours"
        verdicts[name] = {case.name: judge(case, seen[case.name], exact=exact) for case in cases}
    if not verdicts:
        return 1
    print(aligned(table(verdicts)), aligned(by_group(verdicts)), sep="\n\n")
    print(f"\n{', '.join(f'{n} {v}' for n, v in versions.items())}; seed {seed}; {time.monotonic() - started:.0f} s")
    wrong = {
        client: {
            name: {"verdict": verdict.verdict, "deceived": verdict.deceived, "why": verdict.why}
            for name, verdict in found.items()
            if verdict.verdict != "right"
        }
        for client, found in verdicts.items()
    }
    for name, facts in wrong.get("ours", {}).items():
        print(f"ours: {name}: {facts['verdict']}: {facts['why']}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "faults.json"
        facts = {"machine": report.machine(), "versions": versions, "seed": seed, "cases": list(CASES)}
        content = {**facts, "summary": table(verdicts), "groups": by_group(verdicts), "wrong": wrong}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(path)
    return 1 if wrong.get("ours") else 0
