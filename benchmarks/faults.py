"""`python -m benchmarks faults`: what each client makes of some 270 fault cases.

The same emulator, cases, deadline and rules for every client; each in a process of its own, each case with a client
object of its own, retries off, and `TIMEOUT_S` set in the way that client's documentation shows. A call is the plain
loop of the documentation (`async for chunk in stream`); what an app would see of it is judged:

    right          what the case asks for (see `cases`)
    silent         the loop ended as if all were well and the answer was not whole, or a text was handed out that the
                   model had not said; `deceived` is those of them where even a look at the finish reason shows nothing
    foreign        an exception that is none of the client's own tree: `except openai.OpenAIError` does not catch it.
                   An AttributeError in the documented loop because of what the client handed out counts as one
    hang           no end `DEADLINE_S` after the start, with a timeout of `TIMEOUT_S`
    wrong error    an error status was told as something else; of this library also: another class than it promises,
                   or a `.partial` that is not what had been delivered
    false alarm    an error although the answer was complete
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import CASES, COMPLETE, ERROR, Case
from benchmarks.clients import PEERS
from benchmarks.processes import ChildError, ClientProcess, EmulatorProcess

TIMEOUT_S = 1.0
DEADLINE_S = 5.0
"""From the start of a stream to its end, whatever happens. The slowest that is right takes 2.5 s."""
FLOOD_DEADLINE_S = 15.0
"""The same for floods, which some clients need seconds of computing for."""
AT_ONCE = 16
CLIENTS = ("ours", "openai", "together", "litellm")
VERDICTS = ("right", "silent", "foreign", "hang", "wrong error", "false alarm")
REASONS = ("stop", "length", "tool_calls")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is thought of one client's way with one case. `deceived`: silent, and the finish reason told it too."""

    verdict: str
    why: str = ""
    deceived: bool = False


def judge(case: Case, seen: dict[str, Any], *, exact: bool = False) -> Verdict:
    """Returns the verdict on what was seen of a case.

    Args:
        case: The case.
        seen: What `groups.faults` observed.
        exact: Ask for the class that this library promises, and for the right `.partial`.
    """
    if seen["hang"]:
        return Verdict("hang", f"no end after {seen['took_s']:.1f} s")
    wrong_text = _wrong_text(case, seen)
    if seen["error"] is None:
        if case.right == ERROR:
            # Nothing was raised, so for the app this answer is finished. Whether a look at the finish reason would
            # have told is counted, not excused: no client's documentation asks for it.
            return Verdict("silent", f"no error; {wrong_text or _how_far(case, seen)}", _all_finished(case, seen))
        lack = wrong_text or _lack(case, seen)
        if lack:
            return Verdict("silent", lack, _all_finished(case, seen))
        if exact and case.ours:
            return Verdict("wrong error", f"no error, expected {case.ours}")
        return Verdict("right")
    raised = f"{seen.get('module', '')}.{seen['error']}: {seen.get('said', '')}"
    if not seen["own"]:
        return Verdict("foreign", raised)
    if case.right == COMPLETE or (exact and not case.ours):
        return Verdict("false alarm", raised)
    if wrong_text:
        return Verdict("silent", f"{wrong_text}; then {raised}")
    if case.status and not _tells_status(case, seen):
        return Verdict("wrong error", f"{raised} with status {seen['status']}, expected {case.status}")
    if exact:
        return _exactly(case, seen, raised)
    return Verdict("right")


def _exactly(case: Case, seen: dict[str, Any], raised: str) -> Verdict:
    if seen["error"] not in case.ours.split("|"):
        return Verdict("wrong error", f"{raised}, expected {case.ours}")
    delivered = {index: choice["text"] for index, choice in seen["choices"].items()}
    partial = seen["partial"] if seen["partial"] is not None else delivered
    if _texts(partial) != _texts(delivered):
        return Verdict("wrong error", f"partial is {partial!r}, delivered was {delivered!r}")
    return Verdict("right")


def _texts(choices: dict[str, str]) -> dict[str, str]:
    return {index: text for index, text in choices.items() if text}


def _tells_status(case: Case, seen: dict[str, Any]) -> bool:
    # Where the body stalls a client may as well say that time ran out, if it says so in time.
    return seen["status"] == case.status or ("stall" in case.name and "imeout" in seen["error"])


def _wrong_text(case: Case, seen: dict[str, Any]) -> str:
    """What is wrong with the text as far as it goes: it has to be a prefix of what the model said."""
    truths = {str(index): truth for index, truth in enumerate(case.truth)}
    for index, choice in seen["choices"].items():
        if choice["text"] is None or choice["reasoning"] is None:
            return f"choice {index}: something was handed out as text which is none"
        truth = truths.get(index)
        if truth is None:
            if choice["text"]:
                return f"choice {index} does not exist and says {_short(choice['text'])}"
            continue
        if not any(said.startswith(choice["text"]) for said in (truth.text, case.other_text)):
            return f"choice {index}: text is {_short(choice['text'])}, the model said {_short(truth.text)}"
    return ""


def _lack(case: Case, seen: dict[str, Any]) -> str:
    """What a finished answer lacks."""
    for index, truth in enumerate(case.truth):
        choice = seen["choices"].get(str(index))
        if choice is None:
            return f"choice {index} is missing"
        if choice["text"] not in (truth.text, case.other_text or truth.text):
            return f"choice {index}: text ends after {len(choice['text'])} of {len(truth.text)} characters"
        if choice["reasoning"] != truth.reasoning:
            return (
                f"choice {index}: reasoning is {_short(choice['reasoning'])}, the model said {_short(truth.reasoning)}"
            )
        if [tuple(call) for call in choice["calls"]] != list(truth.calls):
            return f"choice {index}: tool calls are {choice['calls']}, the model made {list(truth.calls)}"
        # Some clients translate the names they do not know; that there is one is asked of all.
        if choice["reason"] != truth.reason and (choice["reason"] is None or truth.reason in REASONS):
            return f"choice {index}: finish reason is {choice['reason']!r}, the model's was {truth.reason!r}"
    return ""


def _how_far(case: Case, seen: dict[str, Any]) -> str:
    ends = (
        f"choice {index} ended after {len(seen['choices'].get(str(index), {}).get('text') or '')} of {len(truth.text)}"
        for index, truth in enumerate(case.truth)
    )
    return f"{', '.join(ends)} characters"


def _all_finished(case: Case, seen: dict[str, Any]) -> bool:
    found = seen["choices"]
    return all(found.get(str(index), {}).get("reason") in REASONS for index in range(len(case.truth)))


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} characters)"


# ----------------------------------------------------------------------------------------------------------------- runs


def orders(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """What a client's process has to know of the cases."""
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

    First those that share the processor, in an order that the seed decides; then the floods, one after the other. A
    process that does not come back is ended, and started again for what is left.
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
                    seen |= client.run("faults", emulator.base_url, timeout_s, **job)["seen"]
                except ChildError as exc:
                    client.close()
                    client = None
                    seen |= {case.name: lost(str(exc), timeout_s) for case in batch}
        finally:
            if client is not None:
                client.close()
    return version, seen


def lost(why: str, timeout_s: float) -> dict[str, Any]:
    """What is seen of a case that took the process with it, or blocked it beyond all patience."""
    return {
        "error": why, "own": False, "hang": True, "status": None, "partial": None, "took_s": timeout_s, "choices": {}
    }  # fmt: skip


def table(verdicts: dict[str, dict[str, Verdict]]) -> list[tuple[str, ...]]:
    """A row for each client: the share that is right, and how many of each kind are not."""
    rows: list[tuple[str, ...]] = [("client", "cases", "right %", *VERDICTS[1:], "deceived")]
    for client, found in verdicts.items():
        count = Counter(verdict.verdict for verdict in found.values())
        share = 100 * count["right"] / max(1, len(found))
        deceived = sum(verdict.deceived for verdict in found.values())
        kinds = (str(count[kind]) for kind in VERDICTS[1:])
        # Never rounded up to all.
        rows.append((client, str(len(found)), f"{int(share * 10) / 10:.1f}", *kinds, str(deceived)))
    return rows


def by_group(verdicts: dict[str, dict[str, Verdict]]) -> list[tuple[str, ...]]:
    """A row for each group of cases: how many are right, by client."""
    groups = list(dict.fromkeys(CASES[name].group for found in verdicts.values() for name in found))
    rows: list[tuple[str, ...]] = [("right, of", "cases", *verdicts)]
    for group in groups:
        names = [name for name in CASES if CASES[name].group == group and name in next(iter(verdicts.values()))]
        right = (
            str(sum(found[name].verdict == "right" for name in names if name in found)) for found in verdicts.values()
        )
        rows.append((group, str(len(names)), *right))
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


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
