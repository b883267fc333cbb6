"""What a client makes of the fault cases: observed here, in its process, and judged in `benchmarks.faults`."""

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

from benchmarks.groups.common import settings


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """Runs cases, `at_once` of them at the same time; returns what was seen, by the case's name."""
    silence()
    seen: dict[str, Any] = {}
    waiting = iter(job["cases"])

    async def work() -> None:
        for case in waiting:
            seen[case["name"]] = await observe(module, job, case)

    with strange_ports() as ports:
        job = {**job, "ports": ports}
        if job.get("warm_up"):
            await observe(module, job, job["warm_up"])
        await asyncio.gather(*(work() for _ in range(job["at_once"])))
        gc.collect()
    return {"seen": seen}


def silence() -> None:
    """Nobody reads what a client prints until the end; a full pipe would stop it."""
    logging.disable(logging.CRITICAL)
    if not os.environ.get("BENCH_DEBUG"):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for as long as the process lives


@contextlib.contextmanager
def strange_ports() -> Iterator[dict[str, str]]:
    """Base URLs of what is no emulator: nobody listens; nobody ever reads; no such host."""
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
    strange: dict[str, str] = {**job["ports"], "tls": ours.replace("http://", "https://")}
    return strange.get(case["url"], ours)


async def observe(module: ModuleType, job: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """One case with a client of its own, so that none can spoil another's pool.

    Making the client is not timed, the streams are. The last stream is what counts.
    """
    made = settings(job | {"base_url": base_url(job, case)}, timeout_s=job["timeout_s_of_client"])
    seen: dict[str, Any] = {"error": "the client could not be made"}
    async with module.connect(made) as client:
        for number in range(case["streams"]):
            if number:
                await asyncio.sleep(0.05)  # for whatever the server does after the stream
            seen = await one_stream(module, client, job, case)
    return seen


async def one_stream(module: ModuleType, client: Any, job: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    heard = Heard()
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
                heard.add(chunk)
    except BaseException as exc:
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            raise
        seen["hang"] = scope.expired()
        seen |= facts_of(exc, module.ERRORS)
    seen["took_s"] = round(time.monotonic() - started, 3)
    return seen | {"choices": heard.result()}


def facts_of(exc: BaseException, own: type[BaseException]) -> dict[str, Any]:
    status, partial = getattr(exc, "status_code", None), getattr(exc, "partial", None)
    return {
        "error": type(exc).__name__,
        "module": type(exc).__module__,
        "said": str(exc)[:200],
        "own": isinstance(exc, own),
        "status": status if isinstance(status, int) else None,
        "partial": None if partial is None else {str(c.index or 0): c.message.content or "" for c in partial.choices},
    }


class Heard:
    """The answer as an app would put it together, by choice; it takes what it gets, as the clients' examples do."""

    def __init__(self) -> None:
        self.choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Any) -> None:
        for choice in chunk.choices or ():
            delta = choice.delta
            # The examples don't look at the index; who asked for several choices must.
            index = choice.index if isinstance(choice.index, int) else 0
            heard = self.choices.setdefault(index, {"texts": [], "reason": None, "calls": {}, "reasoning": []})
            if choice.finish_reason:
                heard["reason"] = choice.finish_reason
            if delta is None:
                continue
            if delta.content:
                heard["texts"].append(delta.content)
            if reasoning := getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None):
                heard["reasoning"].append(reasoning)
            for call in getattr(delta, "tool_calls", None) or ():
                parts = heard["calls"].setdefault(call.index, ["", ""])
                if call.function:
                    parts[0] += call.function.name or ""
                    parts[1] += call.function.arguments or ""

    def result(self) -> dict[str, Any]:
        """`text` is None where something was handed out as text that is none."""
        return {
            str(index): {
                "text": joined(heard["texts"]),
                "reasoning": joined(heard["reasoning"]),
                "reason": str(heard["reason"]) if heard["reason"] else None,
                "calls": [heard["calls"][at] for at in sorted(heard["calls"])],
            }
            for index, heard in self.choices.items()
        }


def joined(parts: list[Any]) -> str | None:
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None
