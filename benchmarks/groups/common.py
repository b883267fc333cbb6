"""What the measurements in the clients' processes share. Imported there, so it imports next to nothing."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.clients import Note, Settings

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Counter:
    """The cheapest thing to do with a token that still shows that it came."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = 0

    def note(self, _text: object) -> None:
        self.tokens += 1


def settings(job: dict[str, Any], **more: Any) -> Settings:
    keys = ("streams", "read_bytes", "ca", "variant")
    return Settings(job["base_url"], **{key: job[key] for key in keys if key in job} | more)


def rss_kib() -> int:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


def open_sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith("socket:")
    return count


async def until(counter: Counter, tokens: int, tasks: Sequence[asyncio.Task[None]], timeout_s: float = 60) -> None:
    """Wait for so many tokens in all; a reader that failed ends the wait with its exception."""
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
    """`streams` tasks that read one stream each; cancelled at the end if they still run."""
    tasks = [asyncio.create_task(module.consume(client, model, note)) for _ in range(streams)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
