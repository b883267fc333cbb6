"""What the process holds at one moment, when nothing is under way."""

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.this_process import open_sockets, rss_kib
from together_async import AsyncTogether, RateLimiter

HELD = ("in flight", "queued", "responses", "openings", "sockets", "server's connections", "tasks", "threads", "files")
"""What has to be as it was before the first call."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is there at one moment.

    Attributes:
        seconds: Since the start.
        calls: So far.
        held: How many there are of each of `HELD`.
        rss_mib: Resident memory.
        objects: Objects by type, as far as the garbage collector tracks them, those of the start left out.
        wrong: How many things were wrong so far.
        settled_s: Seconds until everything had ended, from the last call's end.
    """

    seconds: float
    calls: int
    held: dict[str, int]
    rss_mib: float
    objects: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    settled_s: float = 0.0


def held(limiters: Iterable[RateLimiter], clients: Iterable[AsyncTogether], server_connections: int) -> dict[str, int]:
    """Counts what has to be gone when nothing is under way."""
    states = [limiter.state for limiter in limiters]
    transports = [transport for client in clients if (transport := client._connections.current) is not None]
    return {
        "in flight": sum(state.in_flight for state in states),
        "queued": sum(state.queued for state in states),
        "responses": sum(len(transport.responses) for transport in transports),
        "openings": sum(len(transport.openings) for transport in transports),
        "sockets": open_sockets(),
        "server's connections": server_connections,
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
    }


def objects() -> Counter[str]:
    """Objects by type. What was there at `gc.freeze` does not count."""
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        found[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return found


def memory_mib() -> float:
    return rss_kib() / 1024


def empty_pool(client: AsyncTogether) -> None:
    """Closes a client's idle connections: how many there are is chance, and each is some objects and a socket."""
    transport = client._connections.current
    if transport is None:
        return
    for session in transport._own_sessions():
        pools = getattr(session.connector, "_conns", {})
        for protocol, _ in [pooled for pool in pools.values() for pooled in pool]:
            protocol.close()
        pools.clear()
