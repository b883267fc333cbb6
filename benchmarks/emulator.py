"""The emulator as a process of its own, told by a request's first message what to do. Run by `faults` and `soak`.

`faults` names a case of `cases`; every other text is read by `cases.plan`. The model's name is a dialect's.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from typing import Any

from benchmarks import cases
from together_async.request import ChatCompletionRequest
from together_async.testing import DIALECTS, EmulatorServer, Model


def said(request: ChatCompletionRequest) -> str:
    return str(request.messages[0]["content"])


def script(request: ChatCompletionRequest) -> Any:
    case = cases.CASES.get(said(request))
    return cases.plan(said(request)).script if case is None else case.script


def faults(request: ChatCompletionRequest) -> Any:
    case = cases.CASES.get(said(request))
    return cases.plan(said(request)).faults if case is None else case.faults


async def serve(seed: int) -> None:
    """Print `{"port": ...}` and serve until standard input ends; a line there asks for the state."""
    models = [Model(name, dialect) for name, dialect in DIALECTS.items()]
    server = EmulatorServer(script, faults=faults, seed=seed, models=models, journal_size=64)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def asked() -> None:
        lines = os.read(sys.stdin.fileno(), 4096)
        if not lines:
            ended.set()
        for _ in range(lines.count(b"\n")):
            state = {
                "accepted": server.connections,
                "open": server.open_connections,
                "requests": server.journal.total,
                "tasks": len(asyncio.all_tasks()) - 1,
            }
            print(json.dumps(state), flush=True)

    async with server:
        loop.add_reader(sys.stdin.fileno(), asked)
        print(json.dumps({"port": server.port}), flush=True)
        await ended.wait()
        loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    # Nobody reads what is written to standard error until the end; a full pipe would stop everything.
    logging.disable(logging.CRITICAL)
    asyncio.run(serve(parser.parse_args().seed))


if __name__ == "__main__":
    main()
