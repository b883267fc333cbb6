"""A client's process: reads jobs, one JSON object per line, measures, and prints one JSON line for each.

Everything a client itself prints goes to standard error, so that standard output holds results only. A job ends the
process when it takes longer than its `timeout_s`, whatever it is stuck in and whether or not the parent still lives.
"""

import argparse
import asyncio
import importlib
import importlib.metadata
import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.clients import PEERS


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "checkout"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", required=True)
    parser.add_argument("--loop", default="asyncio")
    args = parser.parse_args()
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    soft_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_hard[1], soft_hard[1]))
    peer = PEERS[args.client]
    module = peer.load()
    hello: dict[str, Any] = {"ready": args.client, "version": version(peer.package), "python": sys.version.split()[0]}
    print(json.dumps(hello), file=results)
    with asyncio.Runner(loop_factory=loop_factory(args.loop)) as runner:
        for line in sys.stdin:
            job = json.loads(line)
            signal.alarm(int(job["timeout_s"]))
            measure = importlib.import_module(f"benchmarks.groups.{job['group']}").measure
            result = runner.run(measure(module, job | {"variant": peer.variant}))
            signal.alarm(0)
            print(json.dumps(result), file=results)


if __name__ == "__main__":
    main()
