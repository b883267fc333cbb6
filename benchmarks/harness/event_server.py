"""A server of canned event streams: one thread, one epoll, bytes rendered in advance. It runs as its own process.

It parses as little HTTP as possible, so that it is never the bottleneck. The request's `model` names the scenario:
`bench.<scenario>.<number>.<number>`, which every client passes on untouched. A scenario is a generator of steps:

    bytes           send them
    Until(seconds)  continue at this time of the monotonic clock
    Gather(n, s)    continue s seconds after n connections have reached this step; all get the same starting time
    Wait()          never continue: the client decides when the stream ends
    Cut()           close the connection in the middle of the stream
"""

import argparse
import gzip
import heapq
import itertools
import json
import re
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.harness import event_bytes

BLOCK_TOKENS = 512  # of one write of `blast`: 160 KB
EVENTS_PER_HTTP_CHUNK = 64
# Time for the client to go quiet between the first tokens and the flood.
GATHER_DELAY_S = 0.1
GATHER_DELAY_PER_STREAM_S = 0.005
BOMB_BYTES = 1 << 30
LONG_LINE_BYTES = 64 << 20
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, spread evenly however many there are

MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"]*/)?bench\.([a-z_]+)((?:\.\d+)*)"')
LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Until:
    seconds: float


@dataclass(frozen=True, slots=True)
class Gather:
    connections: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    pass


@dataclass(frozen=True, slots=True)
class Cut:
    pass


WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Script = Iterator["bytes | Until | Gather | Wait | Cut"]


class Connection:
    """A client's socket, and how far its scenario has come."""

    __slots__ = ("first_byte_s", "received", "script", "serial", "sock", "start_s", "unsent", "writing")

    def __init__(self, sock: socket.socket, serial: int) -> None:
        self.sock = sock
        self.serial = serial
        self.received = b""
        self.first_byte_s = 0.0
        self.start_s = 0.0
        self.script: Script | None = None
        self.unsent = memoryview(b"")
        self.writing = False


def blast(_conn: Connection, tokens: int, group: int = 1) -> Script:
    """One token; once `group` streams are open, the other tokens as fast as the socket accepts them."""
    yield event_bytes.HEAD + FIRST
    yield Gather(group, GATHER_DELAY_S + group * GATHER_DELAY_PER_STREAM_S)
    blocks, last_block = divmod(tokens - 2, BLOCK_TOKENS)
    yield from itertools.repeat(BLOCK, blocks)
    yield (event_bytes.block(last_block, 1, EVENTS_PER_HTTP_CHUNK) if last_block else b"") + event_bytes.tail()


def paced(conn: Connection, rate: int, group: int) -> Script:
    """`rate` tokens per second, for ever, once `group` streams are open; their phases are spread evenly."""
    yield event_bytes.HEAD + event_bytes.stamped(time.monotonic())
    yield Gather(group, 0.5)
    period = 1 / rate
    due = conn.start_s + period * ((conn.serial * GOLDEN) % 1)
    while True:
        yield Until(due)
        yield event_bytes.stamped(time.monotonic())
        due += period


def hold(_conn: Connection) -> Script:
    """One token, then nothing."""
    yield event_bytes.HEAD + FIRST
    yield Wait()


def first_byte(conn: Connection) -> Script:
    """One token whose text is the time at which the first byte of the request arrived."""
    yield event_bytes.HEAD + event_bytes.stamped(conn.first_byte_s) + event_bytes.tail()


def small(_conn: Connection, tokens: int) -> Script:
    """A whole stream of a few tokens in one write."""
    yield event_bytes.HEAD + event_bytes.block(tokens - 1, 1, tokens) + event_bytes.tail()


def cut(_conn: Connection, tokens: int) -> Script:
    """A few tokens, then the connection is closed."""
    yield event_bytes.HEAD + event_bytes.block(tokens, 1, tokens)
    yield Cut()


def long_line(_conn: Connection) -> Script:
    """An event of 64 MiB without a line break."""
    yield event_bytes.HEAD + event_bytes.http_chunk(b'data: {"id":"')
    piece = event_bytes.http_chunk(b"a" * (1 << 20))
    yield from itertools.repeat(piece, LONG_LINE_BYTES >> 20)
    yield event_bytes.http_chunk(b'"}\n\n') + event_bytes.tail()


def bomb(_conn: Connection) -> Script:
    """An event stream of 1 GiB in 1 MB of gzip, all of it a single line."""
    yield (
        event_bytes.HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        + event_bytes.http_chunk(zipped())
        + event_bytes.END
    )


def error_bomb(_conn: Connection) -> Script:
    """The same bytes as the body of an error that no client retries."""
    head = event_bytes.HEAD.replace(b"200 OK", b"400 Bad Request").replace(b"text/event-stream", b"application/json")
    yield (
        head.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        + event_bytes.http_chunk(zipped())
        + event_bytes.END
    )


SCENARIOS: dict[bytes, Callable[..., Script]] = {
    b"blast": blast,
    b"paced": paced,
    b"hold": hold,
    b"first_byte": first_byte,
    b"small": small,
    b"cut": cut,
    b"long_line": long_line,
    b"bomb": bomb,
    b"error_bomb": error_bomb,
}

FIRST = event_bytes.http_chunk(event_bytes.event(b"Hello"))
BLOCK = event_bytes.block(BLOCK_TOKENS, 0, EVENTS_PER_HTTP_CHUNK)
_zipped: list[bytes] = []


def zipped() -> bytes:
    """`data: aaaa...`, BOMB_BYTES of it, compressed on first use."""
    if not _zipped:
        _zipped.append(gzip.compress(b"data: " + b"a" * BOMB_BYTES, compresslevel=1))
    return _zipped[0]


class Server:
    """Accepts connections, reads requests, and plays the scenario that each request names."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.selector = selectors.EpollSelector()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.connections: set[Connection] = set()
        self.timers: list[tuple[float, int, Connection]] = []
        self.gathered: list[Connection] = []
        self.serial = itertools.count()
        self.sent_bytes = 0
        self.requests = 0

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def run(self, stop: int) -> None:
        """Serves until the file descriptor `stop` becomes readable (the parent's pipe ended)."""
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(stop, selectors.EVENT_READ)
        while True:
            for key, mask in self._ready():
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj == stop:
                    return
                else:
                    self._turn(key.data, mask)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                conn = heapq.heappop(self.timers)[2]
                if conn in self.connections:
                    self._guarded(self._advance, conn)

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Waits for sockets or the next timer. epoll counts in milliseconds, so the last millisecond is slept."""
        if not self.timers:
            return self.selector.select()
        gap = self.timers[0][0] - time.monotonic()
        if gap > 0.002:
            return self.selector.select(gap - 0.001)
        if gap > 0:
            time.sleep(gap)
        return self.selector.select(0)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            if self.tls is not None:
                sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            conn = Connection(sock, next(self.serial))
            self.connections.add(conn)
            self.selector.register(sock, selectors.EVENT_READ, conn)

    def _turn(self, conn: Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._guarded(self._advance, conn)
        if mask & selectors.EVENT_READ and conn in self.connections:
            self._guarded(self._receive, conn)

    def _guarded(self, do: Callable[[Connection], None], conn: Connection) -> None:
        try:
            do(conn)
        except WOULD_BLOCK:
            pass
        except OSError:
            self._close(conn)

    def _receive(self, conn: Connection) -> None:
        data = conn.sock.recv(65536)
        if not data:
            self._close(conn)
            return
        if not conn.received:
            conn.first_byte_s = time.monotonic()
        conn.received += data
        head, blank, body = conn.received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if blank and len(body) >= (int(length[1]) if length else 0):
            conn.received = b""
            self.requests += 1
            conn.script = self._script(conn, head, body)
            self._advance(conn)

    def _script(self, conn: Connection, head: bytes, body: bytes) -> Script:
        if head.startswith(b"GET "):
            return self._state()
        model = MODEL.search(body)
        if model is None:
            return iter([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"])
        return SCENARIOS[model[1]](conn, *(int(number) for number in model[2].split(b".")[1:]))

    def _state(self) -> Script:
        """For the harness: how many connections are open (this one excluded), and how much has been sent so far."""
        state = {"open": len(self.connections) - 1, "sent_bytes": self.sent_bytes, "requests": self.requests}
        body = json.dumps(state).encode()
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def _advance(self, conn: Connection) -> None:
        """Continues the scenario until it waits for a time, for other connections, or for the socket."""
        if conn.script is None:
            return
        while True:
            if conn.unsent and not self._send(conn):
                return
            step = next(conn.script, None)
            if isinstance(step, bytes):
                conn.unsent = memoryview(step)
                self._want_write(conn, len(step) > 16384)
                if conn.writing:
                    return  # large writes take turns, so that many streams are served evenly
                continue
            self._want_write(conn, False)
            if step is None:
                conn.script = None
            elif isinstance(step, Until):
                heapq.heappush(self.timers, (step.seconds, conn.serial, conn))
            elif isinstance(step, Gather):
                self._gather(conn, step)
            elif isinstance(step, Cut):
                self._close(conn)
            return

    def _send(self, conn: Connection) -> bool:
        """Sends what the socket accepts. False: not everything; the selector reports when it accepts more."""
        try:
            sent = conn.sock.send(conn.unsent)
        except WOULD_BLOCK:
            sent = 0
        self.sent_bytes += sent
        conn.unsent = conn.unsent[sent:]
        if conn.unsent:
            self._want_write(conn, True)
        return not conn.unsent

    def _want_write(self, conn: Connection, wanted: bool) -> None:
        if conn.writing is not wanted:
            conn.writing = wanted
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self.selector.modify(conn.sock, events, conn)

    def _gather(self, conn: Connection, step: Gather) -> None:
        self.gathered = [other for other in self.gathered if other in self.connections]
        self.gathered.append(conn)
        if len(self.gathered) >= step.connections:
            start = time.monotonic() + step.delay_s
            for other in self.gathered:
                other.start_s = start
                heapq.heappush(self.timers, (start, other.serial, other))
            self.gathered = []

    def _close(self, conn: Connection) -> None:
        if conn in self.connections:
            self.connections.discard(conn)
            self.selector.unregister(conn.sock)
            conn.sock.close()
            conn.script = None


def main() -> None:
    """Prints `{"port": ...}` and serves until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cert", help="PEM file with the certificate and its key: serve TLS")
    args = parser.parse_args()
    tls = None
    if args.cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(args.cert)
    server = Server(tls)
    print(json.dumps({"port": server.port}), flush=True)
    server.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
