"""A client's process: it reads jobs, one JSON object per line, measures, and prints one JSON line for each.

Whatever the client itself prints goes to standard error, so that standard output holds results only. A job that takes
longer than its `timeout_s` ends the process, whatever it is stuck in and whether or not the parent is still alive.
"""

import argparse
import asyncio
import importlib
import importlib.metadata
import json
import os
import signal
import sys
import warnings
from typing import Any

from benchmarks.clients import PEERS
from benchmarks.harness.this_process import loop_factory, raise_descriptor_limit, version


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", required=True)
    parser.add_argument("--loop", default="asyncio")
    args = parser.parse_args()
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    raise_descriptor_limit()
    peer = PEERS[args.client]
    module = peer.load()
    hello: dict[str, Any] = {"ready": args.client, "version": version(peer.package), "python": sys.version.split()[0]}
    print(json.dumps(hello), file=results)
    with asyncio.Runner(loop_factory=loop_factory(args.loop)) as runner:
        for line in sys.stdin:
            job = json.loads(line)
            signal.alarm(int(job["timeout_s"]))
            measure = importlib.import_module(f"benchmarks.{job['group']}").measure
            result = runner.run(measure(module, job | {"variant": peer.variant}))
            signal.alarm(0)
            print(json.dumps(result), file=results)


if __name__ == "__main__":
    main()
