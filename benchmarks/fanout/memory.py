"""A map over a million prompts, without a server: does its memory grow? Measured in its own process.

In place of the session is one that answers in the next turn of the event loop, so only this library is measured; the
prompts come from a generator, and no result is kept.
"""

import argparse
import asyncio
import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from multidict import CIMultiDict, CIMultiDictProxy

from benchmarks.fanout.workload import MODEL, WHOLE
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.processes import Process, cores, module_command
from together_async import AsyncTogether

REQUESTS, QUICK_REQUESTS = 1_000_000, 50_000
EVERY = 10_000
"""Results between two memory samples."""
AT_ONCE = 256
TIMEOUT_S = 600.0
MOST_GROWTH_MIB = 30


class Body:
    """The body of a response that has arrived."""

    total_bytes = len(WHOLE)

    def __init__(self) -> None:
        self._left = WHOLE

    def is_eof(self) -> bool:
        return True

    def read_nowait(self, _size: int = -1) -> bytes:
        data, self._left = self._left, b""
        return data

    async def readany(self) -> bytes:
        return self.read_nowait()

    def set_exception(self, error: BaseException) -> None:
        raise error


class Response:
    """What this library uses of an `aiohttp.ClientResponse`."""

    status = 200
    headers = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json", "Content-Length": str(len(WHOLE))}))
    connection = None
    closed = True

    def __init__(self) -> None:
        self.content = Body()

    def close(self) -> None:
        pass


class Session:
    """What this library uses of an `aiohttp.ClientSession`."""

    closed = False
    headers: ClassVar[dict[str, str]] = {}
    auth = None

    async def post(self, *_: Any, **__: Any) -> Response:
        await asyncio.sleep(0)
        return Response()


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def prompts(count: int) -> Iterator[str]:
    return (f"Why is the sky blue? Answer in one sentence. {number}" for number in range(count))


async def measure(requests: int, every: int = EVERY) -> dict[str, Any]:
    """Returns the memory after every `every` results, and the cost of all requests."""
    samples, answered = [], 0
    session: Any = Session()
    cpu_s, started = time.process_time(), time.monotonic()
    async with AsyncTogether("key-of-the-benchmarks", base_url="http://nowhere.invalid/v1", session=session) as client:
        async for result in client.map(prompts(requests), model=MODEL, concurrency=AT_ONCE):
            assert result.completion is not None, result.error
            answered += 1
            if answered % every == 0:
                samples.append(round(resident_mib(), 2))
    took_s = time.monotonic() - started
    gc.collect()
    facts = {"answered": answered, "took_s": took_s, "cpu_s": time.process_time() - cpu_s}
    return {**facts, "samples_mib": samples, "end_mib": round(resident_mib(), 2)}


def figures(requests: int) -> list[Figure]:
    """Measures in a process of its own.

    Raises:
        ChildError: The process died.
    """
    command = module_command("benchmarks.fanout.memory", "--requests", str(requests))
    with Process(command, cores()[1], TIMEOUT_S) as process:
        found = process.hello
    samples = tuple(found["samples_mib"])
    what = f"{found['answered']:,} prompts, {AT_ONCE} at once"
    growth = max(samples) - samples[0]
    note = f"{samples[0]:.1f} MiB after {EVERY:,}, {max(samples):.1f} at most, {samples[-1]:.1f} at the end"
    return [
        Figure("million", "ours", f"growth of {what}", growth, "MiB", Target(MOST_GROWTH_MIB), samples, note),
        Figure("million", "ours", "without a server", found["answered"] / found["took_s"], "requests/s"),
        Figure("million", "ours", "without a server", found["cpu_s"] / found["answered"] * 1e6, "us CPU"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=REQUESTS)
    print(json.dumps(asyncio.run(measure(parser.parse_args().requests))), flush=True)


if __name__ == "__main__":
    main()
