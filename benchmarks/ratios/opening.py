"""CPU of a stream of one token, call and end included: the streams follow each other on an open connection."""

import time
from types import ModuleType
from typing import Any

from benchmarks.clients import Settings
from benchmarks.stream.readers import TokenCounter

WARM_UP_STREAMS = 30
MODEL = "bench.small.2"  # a token, then the finish reason


async def measure(module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    counter = TokenCounter()
    async with module.connect(Settings(job["base_url"], variant=job["variant"])) as client:
        for _ in range(WARM_UP_STREAMS):
            await module.consume(client, MODEL, counter.note)
        cpu = time.process_time()
        for _ in range(job["streams"]):
            await module.consume(client, MODEL, counter.note)
        cpu = time.process_time() - cpu
    return {"us": cpu * 1e6 / job["streams"]}
