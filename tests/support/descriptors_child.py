"""A child process with a low limit of open files: many calls at once, in one of several ways. It prints their outcomes.

Run as a module with: the way, the number of calls, the limit, the base URL, and how many files the process holds open.
"""

import asyncio
import collections
import json
import os
import resource
import sys
from typing import Any

from together_async import AsyncTogether, TogetherError


async def create(client: AsyncTogether, number: int) -> Any:
    return await client.create(f"call {number}", model="m")


async def stream(client: AsyncTogether, number: int) -> Any:
    return await client.stream(f"call {number}", model="m").completion()


async def main(way: str, count: int, base_url: str) -> dict[str, Any]:
    outcomes: collections.Counter[str] = collections.Counter()
    attempts: collections.Counter[int] = collections.Counter()
    texts: set[str] = set()

    def note(result: Any) -> None:
        outcomes[type(result).__name__] += 1
        attempts[result.attempts] += 1
        if isinstance(result, TogetherError):
            texts.add(str(result))

    began = asyncio.get_running_loop().time()
    async with AsyncTogether("key", base_url=base_url) as client:
        if way == "map":
            async for result in client.map((f"call {n}" for n in range(count)), model="m", concurrency=count):
                note(result.completion or result.error)
        else:
            make_call = {"create": create, "stream": stream}[way]
            for result in await asyncio.gather(*(make_call(client, n) for n in range(count)), return_exceptions=True):
                note(result)
        budget = client._budget.left
        state = client.limits
        assert (state.in_flight, state.queued) == (0, 0)
    return {
        "outcomes": outcomes,
        "attempts": attempts,
        "texts": sorted(texts),
        "seconds": asyncio.get_running_loop().time() - began,
        "budget": budget,
        "sent": state.sent,
    }


if __name__ == "__main__":
    _, way, count, limit, base_url, held = sys.argv
    import together_async.http.transport  # noqa: F401 - its files are open before the limit counts

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(held))]
    print(json.dumps(asyncio.run(main(way, int(count), base_url))))
