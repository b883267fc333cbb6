"""The emulator as its own process, for `faults` and `soak`: a request's first message names what it does.

The name is that of a case of `cases`, or of a stream of `random_streams`. The model's name is that of a dialect.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.faults.cases import CASES
from benchmarks.faults.random_streams import plan
from together_async.request import ChatCompletionRequest
from together_async.testing import DIALECTS, EmulatorServer, Model


def case_name(request: ChatCompletionRequest) -> str:
    return str(request.messages[0]["content"])


def script(request: ChatCompletionRequest) -> Any:
    case = CASES.get(case_name(request))
    return plan(case_name(request)).script if case is None else case.script


def faults(request: ChatCompletionRequest) -> Any:
    case = CASES.get(case_name(request))
    return plan(case_name(request)).faults if case is None else case.faults


def server_of(seed: int) -> EmulatorServer:
    models = [Model(name, dialect) for name, dialect in DIALECTS.items()]
    return EmulatorServer(script, faults=faults, seed=seed, models=models, journal_size=64)


async def serve(server_of: Callable[[int], EmulatorServer], seed: int) -> None:
    """Prints `{"port": ...}` and serves until standard input ends; a line there asks for the state."""
    server = server_of(seed)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def answer_stdin() -> None:
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
        loop.add_reader(sys.stdin.fileno(), answer_stdin)
        print(json.dumps({"port": server.port}), flush=True)
        await ended.wait()
        loop.remove_reader(sys.stdin.fileno())


def main(server_of: Callable[[int], EmulatorServer]) -> None:
    """Serves, as a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    # Nobody reads standard error before the end, and a full pipe would stop everything.
    logging.disable(logging.CRITICAL)
    asyncio.run(serve(server_of, parser.parse_args().seed))


if __name__ == "__main__":
    main(server_of)
