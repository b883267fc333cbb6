"""Readers of many streams, for the measurements in the clients' processes; so it imports next to nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from types import ModuleType
from typing import Any

from benchmarks.clients import Note


class TokenCounter:
    """Counts tokens: the cheapest use of a token that still proves it arrived."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = 0

    def note(self, _text: object) -> None:
        self.tokens += 1


async def until(counter: TokenCounter, tokens: int, tasks: Sequence[asyncio.Task[None]], timeout_s: float = 60) -> None:
    """Waits for so many tokens in total; a reader that failed ends the wait with its exception."""
    deadline = time.monotonic() + timeout_s
    while counter.tokens < tokens:
        for task in tasks:
            if task.done():
                task.result()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{counter.tokens} of {tokens} tokens after {timeout_s} s")
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(
    module: ModuleType, client: Any, model: str, streams: int, note: Note
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """`streams` tasks that read one stream each; those still running at the end are cancelled."""
    tasks = [asyncio.create_task(module.consume(client, model, note)) for _ in range(streams)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
