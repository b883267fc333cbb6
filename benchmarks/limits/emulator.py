"""The emulator with an account, as its own process, that records what it admits and what it refuses.

It prints `{"port": ...}`; a line on standard input asks for the record, and its end ends the process.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import time

from benchmarks.harness.certificate import server_tls
from benchmarks.limits.workload import DOWN, SETTINGS, Setting, number_of, orders
from together_async.request import ChatCompletionRequest
from together_async.testing import Account, EmulatorServer, Reply
from together_async.testing.account import Verdict
from together_async.testing.script import text_of

MOST_CALLS = 1 << 14
STRAY_BODY = {"error": {"message": "Too many requests.", "type": None, "param": None, "code": None}}


class RecordingAccount(Account):
    """A setting's account, which records every verdict, hides its headers if it is silent, and has stray 429s."""

    def __init__(self, setting: Setting, speed: float, seed: int) -> None:
        overloaded = 1.0 if setting.name == DOWN else 0.0
        super().__init__(setting.rate, overloaded=overloaded, clock=lambda: time.monotonic() * speed)
        self.setting = setting
        self.rng = random.Random(seed)
        self.verdicts: list[tuple[float, int, int, float, float]] = []
        """Account time, status, tokens, and the current limits of requests and of tokens per second."""

    def admit(self, model: str, tokens: int) -> Verdict:
        began = self.verdicts[0][0] if self.verdicts else self.now
        if self.setting.strays(len(self.verdicts), self.now - began, self.rng):
            verdict = Verdict(429, {}, STRAY_BODY)
        else:
            verdict = super().admit(model, tokens)
        state = self.state(model)
        limits = [0.0 if bucket is None else round(bucket.limit, 3) for bucket in (state.requests, state.tokens)]
        self.verdicts.append((round(self.now, 4), verdict.status, tokens, limits[0], limits[1]))
        if self.setting.silent:
            return Verdict(verdict.status, {}, None if verdict.admitted else STRAY_BODY)
        return verdict


async def serve(setting: Setting, speed: float, seed: int, cert: str | None) -> None:
    recording, expected = RecordingAccount(setting, speed, seed), orders(MOST_CALLS, seed)

    def script(request: ChatCompletionRequest) -> Reply:
        text = text_of(request.messages[-1].get("content"))
        return Reply((" so",) * expected[number_of(text)].reply_tokens)

    server = EmulatorServer(
        script,
        account=recording,
        first_token_s=setting.first_token_s / speed,
        tokens_per_second=None if setting.tokens_per_second is None else setting.tokens_per_second * speed,
        journal_size=1,
        ssl=server_tls(cert),
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
    parser.add_argument("--setting", choices=SETTINGS, required=True)
    parser.add_argument("--speed", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cert", help="PEM file with the certificate and its key: serve TLS")
    args = parser.parse_args()
    # Nobody reads standard error before the end, and a full pipe would stop everything.
    logging.disable(logging.CRITICAL)
    asyncio.run(serve(SETTINGS[args.setting], args.speed, args.seed, args.cert))


if __name__ == "__main__":
    main()
