"""The emulator with an account, as a process of its own, that notes what it admits and what it refuses.

It prints `{"port": ...}`; a line on standard input asks for the record, and its end ends the process.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from typing import Any

from benchmarks.limits_load import DOWN, FIRST_TOKEN_S, RATES, TOKENS_PER_SECOND, number_of, orders
from together_async.request import ChatCompletionRequest
from together_async.testing import Account, EmulatorServer, Reply
from together_async.testing.account import Verdict
from together_async.testing.script import text_of

ALL = orders(1 << 14)


class Noting(Account):
    """An account that remembers every verdict."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.noted: list[tuple[float, int, int, float, float]] = []
        """Account time, status, tokens, and the live limits of requests and tokens per second."""

    def admit(self, model: str, tokens: int) -> Verdict:
        verdict = super().admit(model, tokens)
        state = self.state(model)
        limits = [0.0 if one is None else round(one.limit, 3) for one in (state.requests, state.tokens)]
        self.noted.append((round(self.now, 4), verdict.status, tokens, *limits))
        return verdict


def script(request: ChatCompletionRequest) -> Reply:
    text = text_of(request.messages[-1].get("content"))
    return Reply((" so",) * ALL[number_of(text)].reply_tokens)


async def serve(account: str, speed: float) -> None:
    noting = Noting(RATES[account], overloaded=1.0 if account == DOWN else 0.0, clock=lambda: time.monotonic() * speed)
    server = EmulatorServer(
        script,
        account=noting,
        first_token_s=FIRST_TOKEN_S / speed,
        tokens_per_second=TOKENS_PER_SECOND * speed,
        journal_size=1,
    )
    ended = asyncio.Event()

    def asked() -> None:
        lines = os.read(sys.stdin.fileno(), 4096)
        if not lines:
            ended.set()
        for _ in range(lines.count(b"\n")):
            record = {"noted": noting.noted, "requests": server.journal.total, "connections": server.connections}
            print(json.dumps(record), flush=True)

    async with server:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), asked)
        print(json.dumps({"port": server.port}), flush=True)
        await ended.wait()
        loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--account", choices=RATES, required=True)
    parser.add_argument("--speed", type=float, required=True)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # nobody reads standard error until the end, and a full pipe stops everything
    asyncio.run(serve(args.account, args.speed))


if __name__ == "__main__":
    main()
