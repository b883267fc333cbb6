"""A client's process: it does each job it is given, and prints what the job cost."""

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
import time
import warnings
from typing import Any

from benchmarks.fanout import clients
from benchmarks.fanout.workload import Job, texts
from benchmarks.harness.this_process import raise_descriptor_limit, version


async def measure(client: str, given: dict[str, Any]) -> dict[str, Any]:
    """Makes all requests; returns their cost, from the making of the client to its end. CPU is user and system."""
    run = getattr(clients, client)
    job = Job(given["base_url"], texts(given["requests"]), given["concurrency"], given["stream"])
    gc.collect()
    cpu_s, started = time.process_time(), time.monotonic()
    await run(job)
    cpu_s, took_s = time.process_time() - cpu_s, time.monotonic() - started
    return {"cpu_s": cpu_s, "took_s": took_s, "outcomes": dict(job.outcomes)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", required=True)
    parser.add_argument("--package", required=True)
    args = parser.parse_args()
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2 if os.environ.get("BENCH_DEBUG") else os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    raise_descriptor_limit()
    print(json.dumps({"version": version(args.package)}), file=results)
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(measure(args.client, json.loads(line)))), file=results)


if __name__ == "__main__":
    main()
