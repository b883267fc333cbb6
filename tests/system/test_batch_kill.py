"""`run_batch` in a process that is killed with SIGKILL at any moment, and started again, and again.

25 kills in the suite; `KILLS=1000 pytest tests/system/test_batch_kill.py -s` for more, with figures at the end.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.paths import TESTS
from together_async.batch.record import body_hash
from together_async.testing import Cut, EmulatorServer, Entry, Fault, Status

KILLS = int(os.environ.get("KILLS", "25"))
SEED = int(os.environ.get("KILLS_SEED", str(random.randrange(1 << 30))))
CHILD = TESTS / "support" / "batch_child.py"
MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
LINES = 300
CONCURRENCY = 16
LONGEST_S = 0.2
"""A child is killed at a random moment from its fork on until then; a batch takes longer than that."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

Answer = tuple[str, str]
"""A custom_id, and the hash of the body that was asked."""
Run = tuple[set[str], set[str]]
"""The prompts whose answers were on disk before a child began, and after it ended."""


class Children:
    """The process that forks the children that run batches."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def _ask(self, command: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, **settings: Any) -> int:
        return self._ask({"run": settings})

    def kill(self) -> int:
        """Kills the child; returns how it ended, because it may have ended before."""
        return self._ask({"kill": True})

    def wait(self) -> int:
        return self._ask({"kill": False})

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class Service:
    """The server: completions that repeat the prompt, some failures, and the prompts of each child."""

    def __init__(self) -> None:
        self.asked: dict[int, list[tuple[str, str]]] = collections.defaultdict(list)  # by child: prompt, how it ended
        self._seen: set[str] = set()
        self.server = EmulatorServer(
            lambda request: f"answer to {_prompt(request.messages)}",
            faults=self._fault,
            first_token_s=0.015,
            on_end=self._note,
            journal_size=1,
        )

    def _fault(self, request: Any) -> Fault | None:
        """Of twenty prompts one fails at first with a transient error, one is cut off at first, one is refused."""
        prompt = _prompt(request.messages)
        if prompt in self._seen:
            return None
        self._seen.add(prompt)
        return {0: Status(500), 1: Cut(after_token=1), 2: Status(400)}.get(zlib.crc32(prompt.encode()) % 20)

    def _note(self, entry: Entry) -> None:
        if entry.request is not None:
            self.asked[int(entry.headers["x-run"])].append((_prompt(entry.request.messages), entry.outcome))


def _prompt(messages: Any) -> str:
    return str(messages[0]["content"])


class Work:
    """One input with its output, and what must hold whenever no child runs."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        folder.mkdir()
        self.input, self.output, self.reported = folder / "in.jsonl", folder / "out.jsonl", folder / "reported"
        self._rng = rng
        self._versions = [0] * LINES
        self.stored: set[Answer] = set()
        self.torn = False
        self._write()

    def _body(self, number: int) -> dict[str, Any]:
        prompt = f"r{number} v{self._versions[number]} of {self.input.parent.name}"
        return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 20}

    def _write(self) -> None:
        self.bodies = {f"r{number}": self._body(number) for number in range(LINES)}
        self.wanted = {(name, body_hash(body)) for name, body in self.bodies.items()}
        lines = [json.dumps({"custom_id": name, "body": body}) + "\n" for name, body in self.bodies.items()]
        new_path = self.input.with_suffix(".new")
        new_path.write_text("".join(lines))
        new_path.replace(self.input)

    def edit(self) -> None:
        """Changes some of the requests; their answers are superseded then."""
        for number in self._rng.sample(range(LINES), LINES // 6):
            self._versions[number] += 1
        self._write()

    def prompts(self, answers: set[Answer]) -> set[str]:
        """The prompts of the stored completions that are still wanted."""
        return {_prompt(self.bodies[name]["messages"]) for name, _ in answers & self.wanted}

    def check(self, *, ended: bool) -> None:
        """No reported result is lost, none is there twice, and every completion belongs to its request."""
        lines = self.output.read_bytes().splitlines(keepends=True) if self.output.exists() else []
        self.torn = bool(lines) and not lines[-1].endswith(b"\n")
        if self.torn:
            lines.pop()
        results = [json.loads(line) for line in lines]
        names = [result["custom_id"] for result in results]
        assert len(names) == len(set(names)), "a custom_id stands there twice"
        assert not ended or set(names) == self.bodies.keys()
        superseded = self.output.with_name("out.jsonl.superseded")
        old = [json.loads(line) for line in superseded.read_bytes().splitlines()] if superseded.exists() else []
        in_output = {_answer(result) for result in results if "response" in result}
        anywhere = in_output | {_answer(result) for result in old if "response" in result}
        lost = self._reported() - anywhere
        assert not lost, f"{len(lost)} results were reported as done and are gone"
        gone = self.stored - anywhere
        assert not gone, f"{len(gone)} results were on disk and are gone"
        self.stored = in_output

    def tear(self) -> None:
        """Cuts off the file anywhere after the last reported result, as a power failure might."""
        data, reported = self.output.read_bytes(), self._reported_at_all() | {name for name, _ in self.stored}
        safe = position = 0
        for line in data.splitlines(keepends=True):
            position += len(line)
            if line.endswith(b"\n") and json.loads(line)["custom_id"] in reported:
                safe = position
        os.truncate(self.output, self._rng.randint(safe, len(data)))

    def _reported_at_all(self) -> set[str]:
        return {line.split()[0] for line in self.reported.read_text().splitlines()} if self.reported.exists() else set()

    def _reported(self) -> set[Answer]:
        lines = self.reported.read_text().splitlines() if self.reported.exists() else []
        reported = [line.split() for line in lines]
        return {(name, hashed) for name, hashed, ok in reported if ok == "1"}


def _answer(result: dict[str, Any]) -> Answer:
    """Returns name and hash of a completion, whose text repeats the prompt."""
    text = result["response"]["body"]["choices"][0]["message"]["content"]
    assert text.startswith(f"answer to {result['custom_id']} v"), text
    return result["custom_id"], result["meta"]["hash"]


class Figures:
    """Figures for long runs."""

    def __init__(self) -> None:
        self.killed = self.finished = self.asked = self.again = self.most_open = self.most_answered = 0
        self.torn = 0

    def show(self, seconds: float) -> None:
        """Prints them."""
        print(
            f"\n{self.killed} kills in {seconds:.0f} s, {self.finished} batches ended, {self.torn} torn ends;"
            f" {self.asked:,} requests, {self.again:,} of them sent again after a kill: of a child at most "
            f"{self.most_open} that were under way (concurrency {CONCURRENCY}) and {self.most_answered} that had been "
            f"answered and were not on disk; KILLS_SEED={SEED}"
        )


@contextlib.contextmanager
def children() -> Iterator[Children]:
    made = Children()
    try:
        yield made
    finally:
        made.close()


def test_sigkill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """A reported result is in the output, once; only requests in flight are sent again; in the end all are done."""
    rng, service, figures = random.Random(SEED), Service(), Figures()
    print(f"KILLS_SEED={SEED}")
    began, works, runs = time.monotonic(), 0, list[Run]()
    with children() as made, service.server:
        work = Work(tmp_path / "0", rng)
        while figures.killed < KILLS or not work.stored >= work.wanted:
            before = work.prompts(work.stored)
            status = _run_child(made, service, work, len(runs), kill=figures.killed < KILLS, rng=rng)
            if status != 0 and rng.random() < 0.3 and work.output.exists():
                work.tear()
            work.check(ended=status == 0)
            runs.append((before, work.prompts(work.stored)))
            figures.killed += status == signal.SIGKILL
            figures.finished += status == 0
            figures.torn += work.torn
            if figures.killed < KILLS:
                if work.stored >= work.wanted and rng.random() < 0.5:
                    works += 1
                    work = Work(tmp_path / str(works), rng)
                elif work.stored >= work.wanted or rng.random() < 0.1:
                    work.edit()
    _check_asked(service, runs, figures)
    figures.show(time.monotonic() - began)


def _run_child(made: Children, service: Service, work: Work, number: int, *, kill: bool, rng: random.Random) -> int:
    """Returns how it ended: 0, or the signal that killed it."""
    made.start(
        base_url=service.server.base_url,
        input=str(work.input),
        output=str(work.output),
        reported=str(work.reported),
        number=number,
        options={"concurrency": CONCURRENCY, "retry_errors": True},
    )
    if kill:
        time.sleep(rng.uniform(0, LONGEST_S))
        status = made.kill()
    else:
        status = made.wait()
    assert status in (0, signal.SIGKILL), f"a child ended with {status}"
    return status


def _check_asked(service: Service, runs: list[Run], figures: Figures) -> None:
    """No child sends a request whose result was on disk before; the requests that it leaves in flight are bounded."""
    earlier: set[str] = set()
    for number, (before, after) in enumerate(runs):
        asked = service.asked[number]
        prompts = {prompt for prompt, _ in asked}
        assert not prompts & before, "asked again although the answer was on disk"
        broken_off = sum(outcome == "client left" for _, outcome in asked)
        assert broken_off <= CONCURRENCY
        figures.asked += len(asked)
        figures.again += len(prompts & earlier)
        figures.most_open = max(figures.most_open, broken_off)
        answered = {prompt for prompt, outcome in asked if outcome == "complete"}
        figures.most_answered = max(figures.most_answered, len(answered - after))
        earlier |= prompts
