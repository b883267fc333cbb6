"""What a benchmark asks of the process it runs in: its event loop, its memory, its open files, installed versions."""

import asyncio
import contextlib
import importlib
import importlib.metadata
import os
import resource
from collections.abc import Callable
from pathlib import Path


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "checkout"


PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def raise_descriptor_limit() -> None:
    """Allows as many open files as the system lets this process have: each stream needs a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def rss_kib() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


def open_sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith("socket:")
    return count
