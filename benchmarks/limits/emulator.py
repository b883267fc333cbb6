"""The emulator with an account, as its own process, that records what it admits and what it refuses.

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

from benchmarks.limits.workload import DOWN, FIRST_TOKEN_S, RATES, TOKENS_PER_SECOND, number_of, orders
from together_async.request import ChatCompletionRequest
from together_async.testing import Account, EmulatorServer, Reply
from together_async.testing.account import Verdict
from together_async.testing.script import text_of

ALL = orders(1 << 14)


class RecordingAccount(Account):
    """An account that records every verdict."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.verdicts: list[tuple[float, int, int, float, float]] = []
        """Account time, status, tokens, and the current limits of requests and of tokens per second."""

    def admit(self, model: str, tokens: int) -> Verdict:
        verdict = super().admit(model, tokens)
        state = self.state(model)
        limits = [0.0 if bucket is None else round(bucket.limit, 3) for bucket in (state.requests, state.tokens)]
        self.verdicts.append((round(self.now, 4), verdict.status, tokens, *limits))
        return verdict


def script(request: ChatCompletionRequest) -> Reply:
    text = text_of(request.messages[-1].get("content"))
    return Reply((" so",) * ALL[number_of(text)].reply_tokens)


async def serve(account: str, speed: float) -> None:
    overloaded = 1.0 if account == DOWN else 0.0
    recording = RecordingAccount(RATES[account], overloaded=overloaded, clock=lambda: time.monotonic() * speed)
    server = EmulatorServer(
        script,
        account=recording,
        first_token_s=FIRST_TOKEN_S / speed,
        tokens_per_second=TOKENS_PER_SECOND * speed,
        journal_size=1,
    )
    ended = asyncio.Event()

    def answer_stdin() -> None:
        lines = os.read(sys.stdin.fileno(), 4096)
        if not lines:
            ended.set()
        for _ in range(lines.count(b"\n")):
            record = {"verdicts": recording.verdicts, "connections": server.connections}
            print(json.dumps(record | {"requests": server.journal.total}), flush=True)

    async with server:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), answer_stdin)
        print(json.dumps({"port": server.port}), flush=True)
        await ended.wait()
        loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--account", choices=RATES, required=True)
    parser.add_argument("--speed", type=float, required=True)
    args = parser.parse_args()
    # Nobody reads standard error before the end, and a full pipe would stop everything.
    logging.disable(logging.CRITICAL)
    asyncio.run(serve(args.account, args.speed))


if __name__ == "__main__":
    main()
