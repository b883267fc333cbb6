"""The server: it answers every request after the same time. It runs as its own process.

A bare protocol that parses as little HTTP as possible and sends bytes rendered in advance, so that it is never the
bottleneck. A whole response has Together's shape and about 500 bytes; a stream has Together's chunks, all in one write.
For each line on standard input it prints what it has seen since the line before.
"""

import argparse
import asyncio
import collections
import importlib.util
import json
import os
import re
import ssl
import sys
from typing import Any

from benchmarks.fanout.workload import CHUNKS, WHOLE
from benchmarks.harness import event_bytes
from benchmarks.harness.certificate import server_tls
from benchmarks.harness.this_process import raise_descriptor_limit

LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
STREAM = re.compile(rb'"stream"\s*:\s*true')

WHOLE_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n"
    b"x-request-id: bench\r\n\r\n%b" % (len(WHOLE), WHOLE)
)
STREAMED_RESPONSE = event_bytes.HEAD + event_bytes.block(CHUNKS - 1, 1, CHUNKS) + event_bytes.tail()


class Seen:
    """What has arrived since the last report."""

    def __init__(self) -> None:
        self.connections = self.requests = self.most_open = 0
        self.open = 0

    def report(self) -> dict[str, int]:
        facts = {"connections": self.connections, "requests": self.requests, "most_open": self.most_open}
        self.connections = self.requests = 0
        self.most_open = self.open
        return facts


class DelayedResponses:
    """Responses in the order in which they are due: all have the same delay.

    Each new request also sends what is due by then, so the delays are exact however coarse the loop's timers are.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self.loop = loop
        self.delay_s = delay_s
        self.waiting: collections.deque[tuple[float, asyncio.Transport, bytes]] = collections.deque()
        self.timer: asyncio.TimerHandle | None = None

    def add(self, transport: asyncio.Transport, response: bytes) -> None:
        self.waiting.append((self.loop.time() + self.delay_s, transport, response))
        self.send()

    def send(self) -> None:
        waiting, now = self.waiting, self.loop.time()
        while waiting and waiting[0][0] <= now:
            _, transport, response = waiting.popleft()
            if not transport.is_closing():
                transport.write(response)
        if waiting and self.timer is None:
            self.timer = self.loop.call_at(waiting[0][0], self.on_timer)

    def on_timer(self) -> None:
        self.timer = None
        self.send()


class Connection(asyncio.Protocol):
    def __init__(self, seen: Seen, responses: DelayedResponses) -> None:
        self.seen = seen
        self.responses = responses
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.seen.connections += 1
        self.seen.open += 1
        self.seen.most_open = max(self.seen.most_open, self.seen.open)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.seen.open -= 1

    def data_received(self, data: bytes) -> None:
        received = self.received + data
        while (end := received.find(b"\r\n\r\n") + 4) >= 4:
            length = LENGTH.search(received, 0, end)
            whole = end + (int(length[1]) if length else 0)
            if len(received) < whole:
                break
            self.seen.requests += 1
            stream = STREAM.search(received, end, whole)
            self.responses.add(self.transport, STREAMED_RESPONSE if stream else WHOLE_RESPONSE)
            received = received[whole:]
        self.received = received


async def serve(delay_s: float, tls: ssl.SSLContext | None = None) -> None:
    loop = asyncio.get_running_loop()
    seen, responses, ended = Seen(), DelayedResponses(loop, delay_s), asyncio.Event()
    listening = await loop.create_server(lambda: Connection(seen, responses), "127.0.0.1", 0, backlog=4096, ssl=tls)

    def answer_stdin() -> None:
        if os.read(0, 4096):
            print(json.dumps(seen.report()), flush=True)
        else:
            ended.set()

    loop.add_reader(0, answer_stdin)
    print(json.dumps({"port": listening.sockets[0].getsockname()[1], "loop": type(loop).__module__}), flush=True)
    await ended.wait()
    loop.remove_reader(0)
    listening.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-s", type=float, required=True)
    parser.add_argument("--cert", help="PEM file with the certificate and its key: serve TLS")
    args = parser.parse_args()
    raise_descriptor_limit()
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(args.delay_s, server_tls(args.cert)))


if __name__ == "__main__":
    sys.exit(main())
