"""The two sides of a backend, in one process: the API in front of it and the browsers behind it.

One thread, one epoll and one clock serve both, so that times between the two need no clock agreement, and no scheduling
between them counts as the backend's delay. The API is `harness/event_server.py`; the browsers read bytes and count
events.
"""

import heapq
import re
import select
import selectors
import socket
import time
from collections.abc import Callable

from benchmarks.harness import event_bytes, event_server
from benchmarks.harness.event_server import GOLDEN, Connection, Script, Server, Until, Wait
from benchmarks.relay.measured_process import cpu_s

READ_BYTES = 1 << 18
STALL_BYTES = 1 << 15
"""About what the socket of a browser that does not read holds: that of a slow phone, not of a fast network."""
STAMP = re.compile(rb'(?:"content": ?"|data: "?)(\d{10}\.\d{6})')
LEAVING = re.compile(rb'"bench\.leaving\.(\d+)\.(\d+)\.(\d+)"')
EVENT = b"data:"
QUIET_S = 0.2
CALM_S = 8.0
"""How long a backend may go on with streams that nobody reads any more."""


class Browser:
    """A browser's connection to the backend."""

    __slots__ = ("events", "failed", "first", "head", "number", "over", "sock", "tail")

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.head = b""
        self.tail = b""
        self.events = 0
        self.first = False
        self.over = False
        self.failed = ""


class Load(Server):
    """The API and the browsers.

    Attributes:
        browsers: The connected browsers.
        opened: How many browsers have received an event.
        ended: How many have received everything.
        events: How many events all of them have received.
        delays: Seconds from the API's write to a browser's read, for tokens that carry their time of writing; recorded
            while this is a list.
        stops: Whether browsers stop reading once they have received an event.
        closed_s: When the API saw the stream with this number closed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.browsers: set[Browser] = set()
        self.opened = self.ended = self.events = 0
        self.failures: list[str] = []
        self.delays: list[float] | None = None
        self.stops = False
        self.numbers: dict[Connection, int] = {}
        self.closed_s: dict[int, float] = {}
        self.selector.register(self.listener, selectors.EVENT_READ)

    # ---------------------------------------------------------------------------------------------------------- turns

    def until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Serves until `done()` or the timeout; returns whether it is done."""
        end = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() >= end:
                return False
            self.turn(end)
        return True

    def serve_for(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def turn(self, end: float) -> None:
        """Serves the sockets that are ready; waits for them, for the next due token, or for the end."""
        gap = min(self.timers[0][0] if self.timers else end, end) - time.monotonic()
        if gap > 0:
            select.select([self.selector.fileno()], [], [], gap)  # epoll itself counts in milliseconds
        for key, mask in self.selector.select(0):
            if isinstance(key.data, Browser):
                self._read(key.data)
            elif key.data is None:
                self._accept()
            elif key.data in self.connections:
                self._turn(key.data, mask)
        self._advance_due()

    def _advance_due(self) -> None:
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            conn = heapq.heappop(self.timers)[2]
            if conn in self.connections:
                self._guarded(self._advance, conn)

    # -------------------------------------------------------------------------------------------------------- the API

    def _script(self, conn: Connection, head: bytes, body: bytes) -> Script:
        match = LEAVING.search(body)
        if match is None:
            return super()._script(conn, head, body)
        rate, tokens, number = map(int, match.groups())
        self.numbers[conn] = number
        return leaving(conn, rate, tokens)

    def _close(self, conn: Connection) -> None:
        number = self.numbers.pop(conn, None)
        if number is not None:
            self.closed_s[number] = time.monotonic()
        super()._close(conn)

    # --------------------------------------------------------------------------------------------------- the browsers

    def open(self, port: int, model: str, number: int = 0) -> Browser:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.stops:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALL_BYTES)
        sock.connect(("127.0.0.1", port))
        sock.send(
            b"GET /chat?model=%b HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n"
            % model.encode()
        )
        sock.setblocking(False)
        browser = Browser(sock, number)
        self.browsers.add(browser)
        self.selector.register(sock, selectors.EVENT_READ, browser)
        return browser

    def _read(self, browser: Browser) -> None:
        try:
            data = browser.sock.recv(16384 if self.stops else READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(browser, repr(error))
            return
        now = time.monotonic()
        if not data:
            if not browser.tail.endswith(b"0\r\n\r\n"):
                self.fail(browser, "cut off")
                return
            self.ended += 1
            browser.over = True
            self.disconnect(browser)
            return
        events = data.count(EVENT) + (browser.tail[-4:] + data[:4]).count(EVENT)
        browser.tail = data[-5:] if len(data) >= 5 else (browser.tail + data)[-5:]
        if not browser.first:
            browser.head += data[:512]
            if not events:
                return
            if not browser.head.startswith(b"HTTP/1.1 200"):
                self.fail(browser, browser.head.partition(b"\r\n")[0].decode())
                return
            browser.first = True
            self.opened += 1
        browser.events += events
        self.events += events
        if self.delays is not None:
            self.delays += [now - float(stamp) for stamp in STAMP.findall(data)]
        if self.stops:
            self.selector.unregister(browser.sock)

    def fail(self, browser: Browser, why: str) -> None:
        browser.failed = why
        self.failures.append(why)
        self.disconnect(browser)

    def disconnect(self, browser: Browser) -> None:
        if browser in self.browsers:
            self.browsers.discard(browser)
            if browser.sock.fileno() in self.selector.get_map():
                self.selector.unregister(browser.sock)
            browser.sock.close()

    def open_all(self, port: int, model: str, count: int, timeout_s: float = 60) -> list[Browser]:
        """Connects so many browsers, and waits until each has received an event.

        Raises:
            RuntimeError: Some did not.
        """
        self.opened = self.ended = self.events = 0
        self.failures, self.delays = [], None
        browsers = []
        for number in range(count):
            browsers.append(self.open(port, model.format(number), number))
            if number % 16 == 15:
                self.turn(time.monotonic())
        if not self.until(lambda: self.opened + len(self.failures) >= count, timeout_s) or self.failures:
            why = f"{self.failures[:3]}" if self.failures else f"{self.opened} of {count} streams began"
            raise RuntimeError(why)
        return browsers

    def disconnect_all(self, pid: int) -> None:
        """Closes every connection, on both sides, and waits until the backend has finished with them."""
        for browser in list(self.browsers):
            self.disconnect(browser)
        end = time.monotonic() + 3
        while time.monotonic() < end and any(conn.script for conn in self.connections):
            self.serve_for(0.01)
        for conn in [conn for conn in self.connections if conn.script]:  # no browser will close them
            self._close(conn)
        self.numbers.clear()
        self.timers.clear()
        if pid:
            self.calm(pid, CALM_S)

    def calm(self, pid: int, timeout_s: float, needed_s: float = QUIET_S) -> bool:
        """Waits until the backend is nearly idle and nothing is sent; returns whether it became so."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            cpu, sent = cpu_s(pid), self.sent_bytes
            self.serve_for(needed_s)
            if cpu_s(pid) - cpu < 0.03 * needed_s and sent == self.sent_bytes:
                return True
        return False


def leaving(conn: Connection, rate: int, tokens: int) -> Script:
    """Without `tokens`, `rate` tokens per second for ever; otherwise `tokens` at once and then nothing."""
    yield event_bytes.HEAD + event_server.FIRST
    if tokens:
        yield event_bytes.block(tokens, 1, 1)
        yield Wait()
    due = time.monotonic() + (conn.serial * GOLDEN) % 1 / rate
    while True:
        yield Until(due)
        yield event_bytes.stamped(time.monotonic())
        due += 1 / rate
