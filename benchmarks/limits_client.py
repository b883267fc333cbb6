"""A client's process for `limits`: its clock is scaled, it makes the calls of one job and says what they came to."""

# ruff: noqa: E402 - the clock has to be another one before anybody looks at it
import argparse

from benchmarks import scaled_clock

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
import resource
import signal
import sys
import time
import warnings
from typing import Any

from benchmarks.child import version
from benchmarks.clients.many import Job
from benchmarks.limits_load import MAX_TOKENS, MODEL, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, orders


class Run:
    """The job, and how it says what has become of it: at its end, or when its time is over, in whatever it is then."""

    def __init__(self, given: dict[str, Any], results: Any) -> None:
        self.results = results
        self.limit_s = given["limit_s"]
        self.job = Job(
            base_url=given["base_url"],
            model=MODEL,
            how=ARGS.how,
            texts=[order.text for order in orders(given["calls"])],
            max_tokens=MAX_TOKENS,
            requests_per_minute=REQUESTS_PER_MINUTE,
            tokens_per_minute=TOKENS_PER_MINUTE,
            on_begun=self.begin,
        )
        self.started = 0.0

    def begin(self) -> None:
        scaled_clock.accelerate(ARGS.speed)
        self.started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, self.limit_s / ARGS.speed)

    async def work(self, module: Any) -> None:
        # A signal, because an event loop that is busy with thousands of calls may not look at a timer for a minute.
        signal.signal(signal.SIGALRM, lambda *_: self.report(finished=False))
        self.report(finished=True, said=await module.run(self.job))

    def report(self, *, finished: bool, said: str | None = None) -> None:
        outcomes, took_s = dict(self.job.outcomes), time.monotonic() - self.started
        result = {"finished": finished, "outcomes": outcomes, "took_s": took_s, "said": said}
        print(json.dumps(result | {"cpu_s": time.process_time()}), file=self.results)
        self.results.flush()
        os._exit(0)  # clearing up after thousands of calls may take longer than the run


def main() -> None:
    results = os.fdopen(os.dup(1), "w", buffering=1)
    # What a client prints about every 429 is read by nobody, and a full pipe would stop it.
    os.dup2(2 if os.environ.get("BENCH_DEBUG") else os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    soft_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_hard[1], soft_hard[1]))
    module = importlib.import_module(f"benchmarks.clients.{ARGS.module}")
    print(json.dumps({"version": version(ARGS.package)}), file=results)
    given = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=scaled_clock.loop_factory) as runner:
        runner.run(Run(given, results).work(module))


if __name__ == "__main__":
    main()
