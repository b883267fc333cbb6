"""What a client makes of the fault cases: observed here, in the client's process, and judged in `verdicts`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from benchmarks.clients import Settings


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """Runs the cases, `at_once` at a time; returns what was observed, by the case's name."""
    silence()
    seen: dict[str, Any] = {}
    waiting = iter(job["cases"])

    async def work() -> None:
        for case in waiting:
            seen[case["name"]] = await observe(module, job, case)

    with ports_without_emulator() as ports:
        job = {**job, "ports": ports}
        if job.get("warm_up"):
            await observe(module, job, job["warm_up"])
        await asyncio.gather(*(work() for _ in range(job["at_once"])))
        gc.collect()
    return {"seen": seen}


def silence() -> None:
    """Discards what a client prints: nobody reads it before the end, and a full pipe would stop it."""
    logging.disable(logging.CRITICAL)
    if not os.environ.get("BENCH_DEBUG"):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open as long as the process lives


@contextlib.contextmanager
def ports_without_emulator() -> Iterator[dict[str, str]]:
    """Base URLs without an emulator: nobody listens; nobody ever reads; no such host."""
    with socket.socket() as unused, socket.socket() as silent:
        unused.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        yield {
            "refused": f"http://127.0.0.1:{unused.getsockname()[1]}/v1",
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}/v1",
            "unresolvable": "http://nobody.invalid/v1",
        }


def base_url(job: dict[str, Any], case: dict[str, Any]) -> str:
    ours: str = job["base_url"]
    elsewhere: dict[str, str] = {**job["ports"], "tls": ours.replace("http://", "https://")}
    return elsewhere.get(case["url"], ours)


async def observe(module: ModuleType, job: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Runs one case with its own client, so that no case can spoil another's pool.

    The time counts from the start of the stream, not from the making of the client. The last stream counts.
    """
    made = Settings.for_job(job | {"base_url": base_url(job, case)}, timeout_s=job["timeout_s_of_client"])
    seen: dict[str, Any] = {"error": "the client could not be made"}
    async with module.connect(made) as client:
        for number in range(case["streams"]):
            if number:
                await asyncio.sleep(0.05)  # lets the server do what it does after the stream
            seen = await one_stream(module, client, job, case)
    return seen


async def one_stream(module: ModuleType, client: Any, job: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    answer = ObservedAnswer()
    seen: dict[str, Any] = {"error": None, "own": True, "hang": False, "status": None, "partial": None}
    messages = [{"role": "user", "content": case["name"]}]
    started = time.monotonic()
    scope = asyncio.timeout(job["deadline_s"])
    try:
        async with (
            scope,
            contextlib.aclosing(module.chunks(client, case["model"], messages, case["options"])) as chunks,
        ):
            async for chunk in chunks:
                answer.add(chunk)
    except BaseException as exc:
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            raise
        seen["hang"] = scope.expired()
        seen |= facts_of(exc, module.ERRORS)
    seen["took_s"] = round(time.monotonic() - started, 3)
    return seen | {"choices": answer.result()}


def facts_of(exc: BaseException, own: type[BaseException]) -> dict[str, Any]:
    status, partial = getattr(exc, "status_code", None), getattr(exc, "partial", None)
    return {
        "error": type(exc).__name__,
        "module": type(exc).__module__,
        "message": str(exc)[:200],
        "own": isinstance(exc, own),
        "status": status if isinstance(status, int) else None,
        "partial": None if partial is None else {str(c.index or 0): c.message.content or "" for c in partial.choices},
    }


class ObservedAnswer:
    """The answer as an app would assemble it, by choice; like the clients' examples, it checks nothing."""

    def __init__(self) -> None:
        self.choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Any) -> None:
        for choice in chunk.choices or ():
            delta = choice.delta
            # The examples ignore the index; an app that asks for several choices can't.
            index = choice.index if isinstance(choice.index, int) else 0
            choice_seen = self.choices.setdefault(index, {"texts": [], "reason": None, "calls": {}, "reasoning": []})
            if choice.finish_reason:
                choice_seen["reason"] = choice.finish_reason
            if delta is None:
                continue
            if delta.content:
                choice_seen["texts"].append(delta.content)
            if reasoning := getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None):
                choice_seen["reasoning"].append(reasoning)
            for call in getattr(delta, "tool_calls", None) or ():
                parts = choice_seen["calls"].setdefault(call.index, ["", ""])
                if call.function:
                    parts[0] += call.function.name or ""
                    parts[1] += call.function.arguments or ""

    def result(self) -> dict[str, Any]:
        """The choices by index; `text` and `reasoning` are None where a part was not a str."""
        return {
            str(index): {
                "text": joined(choice_seen["texts"]),
                "reasoning": joined(choice_seen["reasoning"]),
                "reason": str(choice_seen["reason"]) if choice_seen["reason"] else None,
                "calls": [choice_seen["calls"][at] for at in sorted(choice_seen["calls"])],
            }
            for index, choice_seen in self.choices.items()
        }


def joined(parts: list[Any]) -> str | None:
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None
