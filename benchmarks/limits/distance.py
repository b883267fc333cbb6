"""Distance: a TCP proxy, as its own process, that holds everything back for half of a round trip in each direction.

Loopback connects at once, so what a client sends first on a connection waits for one round trip more, as the handshake
of TCP would have taken. A TLS 1.3 handshake then costs its own round trip, since its messages are held back too.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os

from benchmarks.harness.this_process import raise_descriptor_limit


class Later:
    """What one end has sent and the other has not got yet, in order. An end of the connection comes through too."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self.loop = loop
        self.delay_s = delay_s
        self.not_before = 0.0
        self.waiting: collections.deque[bytes] = collections.deque()
        self.due = 0
        self.receiver: asyncio.Transport | None = None

    def add(self, data: bytes) -> None:
        """Takes data, or nothing for the end."""
        self.waiting.append(data)
        self.not_before = max(self.not_before, self.loop.time() + self.delay_s)
        self.loop.call_at(self.not_before, self.deliver)

    def deliver(self) -> None:
        self.due += 1
        self.flush()

    def connect(self, receiver: asyncio.Transport) -> None:
        """Takes the receiver, which gets what was due before."""
        self.receiver = receiver
        self.flush()

    def flush(self) -> None:
        """Passes on what is due, as long as there is somebody to take it."""
        while self.due and self.receiver is not None:
            self.due -= 1
            data = self.waiting.popleft()
            if not data:
                self.receiver.close()
            elif not self.receiver.is_closing():
                self.receiver.write(data)


class End(asyncio.Protocol):
    """One end of a connection: what it sends goes into `to`."""

    def __init__(self, to: Later) -> None:
        self.to = to

    def data_received(self, data: bytes) -> None:
        self.to.add(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.to.add(b"")


class ClientEnd(End):
    """The end of a client; it connects to the server."""

    def __init__(self, port: int, round_trip_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(Later(self.loop, round_trip_s / 2))
        self.port = port
        self.round_trip_s = round_trip_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        back = Later(self.loop, self.round_trip_s / 2)
        assert isinstance(transport, asyncio.Transport)
        back.connect(transport)
        self.to.not_before = self.loop.time() + 1.5 * self.round_trip_s
        self.connecting = self.loop.create_task(self.connect(back))

    async def connect(self, back: Later) -> None:
        """Connects to the server, as a rule long before the client's first data is due."""
        with contextlib.suppress(OSError):
            transport, _ = await self.loop.create_connection(lambda: End(back), "127.0.0.1", self.port)
            self.to.connect(transport)


async def serve(port: int, round_trip_s: float) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    listening = await loop.create_server(lambda: ClientEnd(port, round_trip_s), "127.0.0.1", 0, backlog=4096)
    loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    print(json.dumps({"port": listening.sockets[0].getsockname()[1]}), flush=True)
    await ended.wait()
    loop.remove_reader(0)
    listening.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=int, required=True, help="the server's port")
    parser.add_argument("--round-trip-s", type=float, required=True, help="in real seconds")
    args = parser.parse_args()
    raise_descriptor_limit()
    asyncio.run(serve(args.to, args.round_trip_s))


if __name__ == "__main__":
    main()
