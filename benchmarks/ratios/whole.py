"""CPU of a whole call, a fixed number at once, without the making of client and connections.

That is where it differs from `fanout`, which counts both: what a client adds to a call is a larger share here.
"""

import asyncio
import time
from types import ModuleType
from typing import Any

from benchmarks.clients import Settings
from benchmarks.fanout.workload import WHOLE_TEXT, texts


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    at_once = job["streams"]
    async with module.connect(Settings.for_job(job)) as client:
        await ask_all(module, client, texts(2 * at_once), at_once)
        prompts = texts(job["requests"])
        cpu = time.process_time()
        await ask_all(module, client, prompts, at_once)
        cpu = time.process_time() - cpu
    return {"us": cpu * 1e6 / len(prompts)}


async def ask_all(module: ModuleType, client: Any, prompts: list[str], at_once: int) -> None:
    places = asyncio.Semaphore(at_once)

    async def ask(prompt: str) -> None:
        async with places:
            text = await module.whole(client, [{"role": "user", "content": prompt}])
        if text != WHOLE_TEXT:
            raise RuntimeError(f"got {text!r}, expected {WHOLE_TEXT!r}")

    await asyncio.gather(*map(ask, prompts))
