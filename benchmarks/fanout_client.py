"""A client's process for `fanout`: does each job that it is given, and says what it cost."""

import argparse
import asyncio
import gc
import json
import logging
import os
import resource
import sys
import time
import warnings
from typing import Any

from benchmarks import fanout_ways
from benchmarks.child import version
from benchmarks.fanout_load import Job, texts


async def measure(way: str, given: dict[str, Any]) -> dict[str, Any]:
    """Asks everything and returns what it cost, user and system, from the making of the client to its end."""
    run = getattr(fanout_ways, way)
    job = Job(given["base_url"], texts(given["requests"]), given["concurrency"], given["stream"])
    gc.collect()
    cpu_s, started = time.process_time(), time.monotonic()
    await run(job)
    cpu_s, took_s = time.process_time() - cpu_s, time.monotonic() - started
    return {"cpu_s": cpu_s, "took_s": took_s, "outcomes": dict(job.outcomes)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--way", required=True)
    parser.add_argument("--package", required=True)
    args = parser.parse_args()
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2 if os.environ.get("BENCH_DEBUG") else os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    soft_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_hard[1], soft_hard[1]))
    print(json.dumps({"version": version(args.package)}), file=results)
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(measure(args.way, json.loads(line)))), file=results)


if __name__ == "__main__":
    main()
