"""A client's process: it scales its clock, makes the calls of one job, and prints what became of them."""

# ruff: noqa: E402 - the clock has to be replaced before any module takes a function from `time`
import argparse

from benchmarks.limits import scaled_clock

_parser = argparse.ArgumentParser()
_parser.add_argument("--module", required=True)
_parser.add_argument("--how", required=True)
_parser.add_argument("--package", required=True)
_parser.add_argument("--speed", type=float, required=True)
ARGS = _parser.parse_args()
scaled_clock.install()

import asyncio
import importlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.harness.this_process import raise_descriptor_limit, version
from benchmarks.limits.clients.job import Job
from benchmarks.limits.workload import MAX_TOKENS, MODEL, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, orders


class TimedJob:
    """The job, and its report: at its end, or when its time is over, whatever it is doing then."""

    def __init__(self, given: dict[str, Any], results: Any) -> None:
        self.results = results
        self.limit_s = given["limit_s"]
        self.job = Job(
            base_url=given["base_url"],
            model=MODEL,
            how=ARGS.how,
            texts=[order.text for order in orders(given["calls"], given["seed"])],
            max_tokens=MAX_TOKENS,
            requests_per_minute=REQUESTS_PER_MINUTE,
            tokens_per_minute=TOKENS_PER_MINUTE,
            on_begun=self.begin,
            ca=given["ca"],
            folder=Path(given["folder"]),
        )
        self.started = 0.0

    def begin(self) -> None:
        scaled_clock.accelerate(ARGS.speed)
        self.started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, self.limit_s / ARGS.speed)

    async def work(self, module: Any) -> None:
        # A signal, because an event loop busy with thousands of calls may not look at its timers for a minute.
        signal.signal(signal.SIGALRM, lambda *_: self.report(finished=False))
        self.report(finished=True, limits_seen=await module.run(self.job))

    def report(self, *, finished: bool, limits_seen: str | None = None) -> None:
        outcomes, took_s = dict(self.job.outcomes), time.monotonic() - self.started
        result = {"finished": finished, "outcomes": outcomes, "took_s": took_s, "limits_seen": limits_seen}
        print(json.dumps(result | {"cpu_s": time.process_time()}), file=self.results)
        self.results.flush()
        os._exit(0)  # cleaning up after thousands of calls may take longer than the run


def main() -> None:
    results = os.fdopen(os.dup(1), "w", buffering=1)
    # Nobody reads what a client prints about every 429, and a full pipe would stop it.
    os.dup2(2 if os.environ.get("BENCH_DEBUG") else os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    raise_descriptor_limit()
    module = importlib.import_module(f"benchmarks.limits.clients.{ARGS.module}")
    print(json.dumps({"version": version(ARGS.package)}), file=results)
    given = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=scaled_clock.loop_factory) as runner:
        runner.run(TimedJob(given, results).work(module))


if __name__ == "__main__":
    main()
