"""`python -m benchmarks soak`: 10,000 streams, a tenth of them broken, with every outcome checked.

One client reads the streams, 64 at once. The emulator is another process, so that the file descriptors, memory, tasks
and event loop that are checked belong to the client alone. The broken streams are the fault cases (without the floods)
and cuts at random tokens; each of the other streams has its own text, so that a mix-up shows. The seed decides
everything but the interleaving.

The run fails on: an outcome other than the one its fault must have, a stream that takes too long, file descriptors,
tasks, responses or connections left over, growing memory, and whatever Python reports meanwhile: unraisable exceptions
(`ResourceWarning`s under `-W error` among them), warnings, asyncio's own reports.
"""

import asyncio
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import observe
from benchmarks.faults.case import Case, Truth
from benchmarks.faults.cases import CASES
from benchmarks.faults.random_streams import plan
from benchmarks.faults.run import orders
from benchmarks.faults.verdicts import Verdict, judge
from benchmarks.harness import complaints
from benchmarks.harness.processes import EmulatorProcess
from benchmarks.harness.this_process import open_sockets, rss_kib
from together_async import AsyncTogether, RateLimiter, Retry, Timeouts, TogetherError

TIMEOUT_S = 2.0
"""Timeouts of the client: above any pause that is not a fault, with room for a busy loop."""
DEADLINE_S = 15.0
REPORT_EVERY = 1_000
TICK_S = 0.005
LOOP_SOCKETS = 2
"""The pair by which asyncio wakes itself."""
GROWTH_MIB = 8.0
"""By how much memory may grow from a tenth of the streams to the end."""


@dataclass
class Sample:
    """What the process holds at one moment."""

    streams: int
    descriptors: int
    rss_mib: float
    tasks: int
    took_s: float


@dataclass
class Soak:
    """What a run has found out so far."""

    started: float = field(default_factory=time.monotonic)
    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    blocked_s: float = 0.0
    done: int = 0

    def sample(self) -> None:
        descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
        tasks = len(asyncio.all_tasks())
        took = time.monotonic() - self.started
        self.samples.append(Sample(self.done, descriptors, rss_kib() / 1024, tasks, took))

    def note(self, kind: str, case: Case, verdict: Verdict, seen: dict[str, Any]) -> None:
        self.done += 1
        if verdict.verdict == "right":
            self.right[kind] += 1
        elif verdict.verdict == "wrong error" and case.limit:
            self.known[case.limit] += 1
        else:
            self.wrong[kind] += 1
            self.examples.append(f"{case.name}: {verdict.verdict}: {verdict.why} (after {seen['took_s']} s)")
        if self.done % REPORT_EVERY == 0:
            gc.collect()
            self.sample()


def chosen(streams: int, share: float, seed: int) -> Iterator[tuple[str, Case]]:
    """The streams of a run: the kind for the report, and the case."""
    rng = random.Random(seed)
    # Not cases of several streams: all streams share one client, so another could get what is meant for the second.
    broken = [case for case in CASES.values() if not (case.flood or case.streams > 1 or case.url == "silent")]
    for number in range(streams):
        if rng.random() >= share:
            yield "plain", planned(f"plain {number}")
        elif rng.random() < 0.25:
            case = planned(f"cut {number}")
            yield "cut at a random token", case
        else:
            case = rng.choice(broken)
            yield case.group, case


def planned(name: str) -> Case:
    """The case of a stream derived from a number."""
    made = plan(name)
    truth = Truth("".join(made.tokens))
    right = "error" if made.how else "complete"
    return Case(name, made.faults, right, made.ours, made.script, (truth,))


class _CheckedClient:
    """The client as `faults.observe` expects a module; it also compares the completion with the chunks."""

    ERRORS = TogetherError

    @staticmethod
    async def chunks(client: AsyncTogether, model: str, messages: list[Any], options: dict[str, Any]) -> Any:
        client._limiter = RateLimiter()  # a 402 or 429 of one case must not hold back the next
        stream = client.stream(messages, model=model, **options)
        texts: dict[int, str] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index or 0] = texts.get(choice.index or 0, "") + (choice.delta.content or "")
            yield chunk
        whole = {choice.index or 0: choice.message.content or "" for choice in (await stream.completion()).choices}
        if {k: v for k, v in whole.items() if v} != {k: v for k, v in texts.items() if v}:
            raise AssertionError(f"completion says {whole!r}, the chunks said {texts!r}")


def cut_text(case: Case, seen: dict[str, Any]) -> str:
    """What is wrong with the text before a random cut: a FIN loses none of it, a RST may; empty if nothing is wrong."""
    made = plan(case.name)
    text = seen["choices"].get("0", {}).get("text", "")
    arrived = "".join(made.tokens[: made.whole])
    if made.how != "reset" and text != arrived:
        return f"{len(text)} of {len(arrived)} characters before the cut"
    return "" if arrived.startswith(text) else f"more text than was sent: {text!r}"


async def run_case(client: AsyncTogether, elsewhere: dict[str, AsyncTogether], job: dict[str, Any], case: Case) -> Any:
    """Reads the streams of a case; returns what was observed of the last, and the verdict."""
    (order,) = orders([case])
    seen: dict[str, Any] = {}
    for number in range(case.streams):
        if number:
            await asyncio.sleep(0.05)
        seen = await observe.one_stream(_CheckedClient, elsewhere.get(case.url, client), job, order)  # type: ignore[arg-type]  # a class in place of a module
    verdict = judge(case, seen, exact=True)
    if verdict.verdict == "right" and case.name.startswith("cut ") and (why := cut_text(case, seen)):
        verdict = Verdict("silent", why)
    return seen, verdict


async def soak(found: Soak, base_url: str, streams: int, share: float, seed: int, at_once: int) -> None:
    """Reads the streams with one client, and checks what is left when it is closed."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, facts: found.complaints.append(f"asyncio: {facts.get('message')}"))
    loop.slow_callback_duration = 10.0  # the longest block is measured by `tick` instead, in every mode
    timeouts = Timeouts(connect=TIMEOUT_S, first_token=TIMEOUT_S, idle=TIMEOUT_S)
    job = {"base_url": base_url, "deadline_s": DEADLINE_S}
    found.sample()  # before the client exists: as many descriptors have to be open at the end
    with observe.ports_without_emulator() as ports:
        urls = {
            "refused": ports["refused"],
            "unresolvable": ports["unresolvable"],
            "tls": base_url.replace("http:", "https:"),
        }
        options = {"timeouts": timeouts, "retry": Retry(budget=0, max_retry_after=0)}
        async with AsyncTogether("key-of-the-soak", base_url=base_url, **options) as client:
            await asyncio.gather(*(run_case(client, {}, job, planned(f"plain {number}")) for number in range(at_once)))
            await asyncio.sleep(0.1)
            gc.collect()
            found.sample()
            ticking = asyncio.create_task(tick(found))
            elsewhere = {name: AsyncTogether("key-of-the-soak", base_url=url, **options) for name, url in urls.items()}
            left = chosen(streams, share, seed)

            async def work() -> None:
                for kind, case in left:
                    seen, verdict = await run_case(client, elsewhere, job, case)
                    found.note(kind, case, verdict, seen)

            try:
                await asyncio.gather(*(work() for _ in range(at_once)))
            finally:
                ticking.cancel()
                for other in elsewhere.values():
                    await other.aclose()
            await settled(found, client)
    await asyncio.gather(ticking, return_exceptions=True)
    await asyncio.sleep(0.1)
    gc.collect()
    found.sample()
    if remaining_tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        found.complaints.append(f"{len(remaining_tasks)} tasks left")
    if sockets := open_sockets() - LOOP_SOCKETS:
        found.complaints.append(f"{sockets} sockets left when the client was closed")


async def settled(found: Soak, client: AsyncTogether) -> None:
    """A response may take a second to end after [DONE]; after that, no response may be open."""
    transport = client._connections.current
    await asyncio.sleep(1.5)
    if transport is not None and (transport.responses or transport.openings):
        found.complaints.append(f"left when all streams had ended: {transport!r}")


async def tick(found: Soak) -> None:
    """Measures the longest time for which no other task could run."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(TICK_S)
        now = time.monotonic()
        found.blocked_s = max(found.blocked_s, now - last - TICK_S)
        last = now


def run(streams: int, share: float, seed: int, *, at_once: int = 64) -> int:
    """Runs it and prints the report; returns the exit status: 1 when something is wrong."""
    found = Soak()
    with complaints.collected(found.complaints.append), EmulatorProcess(seed) as emulator:
        asyncio.run(soak(found, emulator.base_url, streams, share, seed, at_once))
        gc.collect()
        state = emulator.state()
        for _ in range(20):  # the last connections may close a moment later
            if state["open"]:
                time.sleep(0.05)
                state = emulator.state()
    found.complaints += judged(found, state)
    print(text(found, state, seed))
    return 1 if found.complaints or found.wrong else 0


def judged(found: Soak, state: dict[str, int]) -> list[str]:
    """What is wrong with what is left over."""
    wrong = []
    first, last = found.samples[0], found.samples[-1]
    if state["open"]:
        wrong.append(f"{state['open']} connections left at the server")
    if last.descriptors > first.descriptors:
        wrong.append(f"{last.descriptors} file descriptors at the end, {first.descriptors} at the start")
    # Two samples are taken before the run, one after it.
    settled_at = found.samples[2] if len(found.samples) > 3 else found.samples[1]
    if last.rss_mib - settled_at.rss_mib > GROWTH_MIB:
        wrong.append(f"{last.rss_mib - settled_at.rss_mib:.1f} MiB more than after {settled_at.streams} streams")
    return wrong


def text(found: Soak, state: dict[str, int], seed: int) -> str:
    """The report."""
    lines = [f"{'fault':24}{'right':>8}{'wrong':>8}"]
    lines += [f"{kind:24}{found.right[kind]:8}{found.wrong[kind]:8}" for kind in sorted(found.right | found.wrong)]
    lines += [f"{'all':24}{found.right.total():8}{found.wrong.total():8}", ""]
    lines += [f"{'streams':>8}{'descriptors':>13}{'MiB':>8}{'tasks':>7}{'s':>7}"]
    lines += [f"{s.streams:8}{s.descriptors:13}{s.rss_mib:8.1f}{s.tasks:7}{s.took_s:7.1f}" for s in found.samples]
    lines += [
        "",
        *(f"{count} times an error of another class: {limit}" for limit, count in found.known.items()),
        f"longest time the event loop was blocked: {found.blocked_s * 1e3:.0f} ms",
        f"at the server: {state['accepted']} connections for {state['requests']} requests, {state['open']} open now",
        f"seed {seed}, Python {sys.version.split()[0]}{', dev mode' if sys.flags.dev_mode else ''}",
        *(f"wrong: {example}" for example in found.examples[:50]),
        *(f"complaint: {complaint}" for complaint, _ in Counter(found.complaints).most_common(50)),
        "everything is right" if not found.complaints and not found.wrong else "NOT everything is right",
    ]
    return "\n".join(lines)
