"""Objects that the garbage collector tracks for each open stream, by their owner, and how long a full collection takes.

An open stream has received one token and waits for the next, in a task. A full collection stops the event loop, so with
many streams it is the longest delay of a token that there is. Measured: what `gc.get_objects()` returns more with
200 more streams, divided by these; the median time of `gc.collect()` without streams and with 600.
"""

import asyncio
import gc
import types
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

from benchmarks.clients import Settings
from benchmarks.ratios.kept import collection_s
from benchmarks.stream.readers import TokenCounter, until

COLLECTIONS = 7
FIRST_STREAMS = 20  # with them comes what is there once for all streams
OF_AIOHTTP = ("aiohttp", "yarl", "multidict", "propcache", "frozenlist", "aiosignal")
OF_ASYNCIO = ("asyncio", "_asyncio", "socket", "_socket", "selectors", "_contextvars")
OWNERS = {
    "together_async": "ours",
    "benchmarks": "caller",
    **dict.fromkeys(OF_AIOHTTP, "aiohttp"),
    **dict.fromkeys(OF_ASYNCIO, "asyncio"),
}
"""By the top-level name of a module; what is of no such module belongs to whatever refers to it."""
ANYBODY = "?"
Kind = tuple[str, str]
"""Owner and type."""


def code_of(item: object) -> types.CodeType | None:
    match item:
        case types.FunctionType():
            return item.__code__
        case types.MethodType():
            return code_of(item.__func__)
        case types.CoroutineType():
            return item.cr_code
        case types.AsyncGeneratorType():
            return item.ag_code
        case types.GeneratorType():
            return item.gi_code
        case types.FrameType():
            return item.f_code
    return None


def named_owner(item: object) -> str:
    """The owner by the file of the code, if it has any, else by the module of the type."""
    code = code_of(item)
    if code is not None:
        parts = Path(code.co_filename).parts
        return next((OWNERS[part] for part in reversed(parts) if part in OWNERS), ANYBODY)
    return OWNERS.get(str(type(item).__module__).partition(".")[0], ANYBODY)


def owned(items: Iterable[object]) -> Counter[Kind]:
    """Counts objects by owner and type. A list or dict belongs to the object that refers to it, at any distance."""
    found = {id(item): item for item in items}
    owners = {key: owner for key, item in found.items() if (owner := named_owner(item)) != ANYBODY}
    frontier = list(owners)
    while frontier:
        reached = []
        for key in frontier:
            for referent in gc.get_referents(found[key]):
                if id(referent) in found and id(referent) not in owners:
                    owners[id(referent)] = owners[key]
                    reached.append(id(referent))
        frontier = reached
    return Counter((owners.get(key, ANYBODY), type(item).__name__) for key, item in found.items())


def shares(counts: Counter[Kind], streams: int) -> dict[str, dict[str, float]]:
    """Objects per stream, by owner and type, most frequent first; without what is not there for each stream."""
    found: dict[str, dict[str, float]] = {}
    for (owner, kind), count in counts.most_common():
        if count >= streams / 10:
            found.setdefault(owner, {})[kind] = round(count / streams, 2)
    return found


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    counter = TokenCounter()
    tasks: list[asyncio.Task[None]] = []
    async with module.connect(Settings.for_job(job, streams=job["most"])) as client:
        idle_ms = collection_ms()
        try:
            await open_more(module, client, FIRST_STREAMS, tasks, counter)
            before = tracked()  # held, so that no new object gets the address of an old one
            await open_more(module, client, FIRST_STREAMS + job["streams"], tasks, counter)
            known = set(map(id, before))
            counts = owned(item for item in tracked() if id(item) not in known)
            del before, known
            await open_more(module, client, job["most"], tasks, counter)
            open_ms = collection_ms()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return {"objects": shares(counts, job["streams"]), "idle_ms": idle_ms, "open_ms": open_ms}


def tracked() -> list[object]:
    gc.collect()
    return gc.get_objects()


async def open_more(
    module: ModuleType, client: Any, streams: int, tasks: list[asyncio.Task[None]], counter: TokenCounter
) -> None:
    while len(tasks) < streams:
        opening = range(min(50, streams - len(tasks)))
        tasks += [asyncio.create_task(module.consume(client, "bench.hold", counter.note)) for _ in opening]
        await until(counter, len(tasks), tasks)
    await asyncio.sleep(0.1)


def collection_ms() -> float:
    return median(collection_s() for _ in range(COLLECTIONS)) * 1e3
