"""What stands on both sides of a backend in `relay`: the API in front of it and the browsers behind it, as one process.

One thread, one epoll and one clock for both, so that a time between the two needs no agreement, and no scheduler
between them is taken for the backend's delay. The API is `server.py`, the browsers read bytes and count events. Each
line on standard input is a job, a function below; the line that answers it is what the function returns.

The backend's CPU is that of its process's own clock, user and system; its memory is what the kernel says.
"""

import heapq
import json
import re
import resource
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import server, wire
from benchmarks.server import GOLDEN, Connection, Script, Server, Until, Wait
from benchmarks.stats import percentile

READ_BYTES = 1 << 18
STALL_BYTES = 1 << 15
"""What the socket of a browser that does not read takes, by and large: a slow phone's, not a fast network's."""
STAMP = re.compile(rb'(?:"content": ?"|data: "?)(\d{10}\.\d{6})')
LEAVING = re.compile(rb'"bench\.leaving\.(\d+)\.(\d+)\.(\d+)"')
EVENT = b"data:"
QUIET_S = 0.2
CALM_S = 8.0
"""How long a backend may go on with what nobody waits for any more."""
GATHERED_S = 0.5
"""What `server.paced` waits for when all streams are open."""
WARM_UP_S = 0.7
SETTLED_S = 1.0


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system, by its own clock (what `clock_getcpuclockid` gives)."""
    return time.clock_gettime((~pid << 3) | 2)


def waited_s(pid: int) -> float:
    """Seconds which a process and this one have waited for a core that others used."""
    return sum(int(Path(f"/proc/{one}/schedstat").read_text().split()[1]) for one in (pid, "self")) / 1e9


class Meter:
    """What a window of time cost, the backend and this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.began = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        return cpu_s(self.pid), time.process_time(), waited_s(self.pid), time.monotonic()

    def read(self) -> dict[str, float]:
        """CPU seconds of the backend, seconds that passed, and what shares of them each was busy or had to wait."""
        cpu, own, waited, took = (now - then for now, then in zip(self._now(), self.began, strict=True))
        return {"cpu_s": cpu, "took_s": took, "busy": cpu / took, "load": own / took, "waited": waited / took}


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process: now, and at most since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB", status, re.MULTILINE))
    return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Browser:
    """One client's connection to the backend."""

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
        browsers: Those that are connected.
        opened: How many have had an event.
        ended: How many have had all there was.
        events: How many all of them have had.
        delays: From the API's write to a browser's read, in seconds, of tokens that say when they were written; noted
            while this is a list.
        stops: Browsers do not read on once they have had an event.
        closed_s: When the API saw that the stream with this number was left.
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
        """Serves until something is so; returns whether it is."""
        end = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() >= end:
                return False
            self.turn(end)
        return True

    def rest(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def turn(self, end: float) -> None:
        """Serves what is ready; waits for it, for the next token that is due, or for the end."""
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
            self.leave(browser)
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
        self.leave(browser)

    def leave(self, browser: Browser) -> None:
        if browser in self.browsers:
            self.browsers.discard(browser)
            if browser.sock.fileno() in self.selector.get_map():
                self.selector.unregister(browser.sock)
            browser.sock.close()

    def open_all(self, port: int, model: str, count: int, timeout_s: float = 60) -> list[Browser]:
        """Connects so many, and waits until all have had an event.

        Raises:
            RuntimeError: Some have not.
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

    def part(self, pid: int) -> None:
        """Closes everything, on both sides, and waits until the backend has done with it."""
        for browser in list(self.browsers):
            self.leave(browser)
        end = time.monotonic() + 3
        while time.monotonic() < end and any(conn.script for conn in self.connections):
            self.rest(0.01)
        for conn in [conn for conn in self.connections if conn.script]:  # nobody will leave them
            self._close(conn)
        self.numbers.clear()
        self.timers.clear()
        if pid:
            self.calm(pid, CALM_S)

    def calm(self, pid: int, timeout_s: float, needed_s: float = QUIET_S) -> bool:
        """Waits until the backend has next to nothing to do, and nothing is sent; returns whether it came to that."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            cpu, sent = cpu_s(pid), self.sent_bytes
            self.rest(needed_s)
            if cpu_s(pid) - cpu < 0.03 * needed_s and sent == self.sent_bytes:
                return True
        return False


def leaving(conn: Connection, rate: int, tokens: int) -> Script:
    """Tokens as often as `rate` says, for ever, or so many at once and then nothing."""
    yield wire.HEAD + server.FIRST
    if tokens:
        yield wire.block(tokens, 1, 1)
        yield Wait()
    due = time.monotonic() + (conn.serial * GOLDEN) % 1 / rate
    while True:
        yield Until(due)
        yield wire.stamped(time.monotonic())
        due += 1 / rate


# ---------------------------------------------------------------------------------------------------------------- jobs


def blast(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """CPU of a token when they come as fast as the backend takes them."""
    streams, tokens, pid = job["streams"], job["tokens"], job["pid"]
    browsers = load.open_all(job["port"], f"bench.blast.{tokens}.{streams}", streams)
    load.rest(QUIET_S)
    meter = Meter(pid)
    load.until(lambda: load.ended + len(load.failures) >= streams, 120)
    result = meter.read()
    least = min(browser.events for browser in browsers)
    complete = load.ended
    load.part(pid)
    if complete < streams or (least < 0.999 * (tokens - 2) and not job["merges"]):
        raise RuntimeError(f"{complete} of {streams} complete, {least} of {tokens} tokens; {load.failures[:3]}")
    return {**result, "us": result["cpu_s"] / streams / tokens * 1e6}


def paced(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """CPU of a token, and its delay, when each comes by itself."""
    streams, rate, pid = job["streams"], job["rate"], job["pid"]
    load.open_all(job["port"], f"bench.paced.{rate}.{streams}", streams)
    load.delays, meter = [], Meter(pid)
    load.rest(GATHERED_S + WARM_UP_S)
    late = percentile(load.delays[-streams:] or [job["hopeless_s"]], 50)
    if late >= job["hopeless_s"]:
        load.part(pid)
        return {**meter.read(), "p50_ms": late * 1e3, "p99_ms": late * 1e3, "share": 0.0}
    load.delays.clear()
    events, meter = load.events, Meter(pid)
    load.rest(job["window_s"])
    result, events, delays, failures = meter.read(), load.events - events, load.delays, load.failures
    load.delays = None
    load.part(pid)
    if failures or not delays:
        raise RuntimeError(f"{events} tokens, {len(delays)} that say when; {failures[:3]}")
    return {
        **result,
        "us": result["cpu_s"] / events * 1e6,
        "p50_ms": percentile(delays, 50) * 1e3,
        "p99_ms": percentile(delays, 99) * 1e3,
        "share": events / (result["took_s"] * rate * streams),
    }


def memory(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """The backend's memory when so many browsers stop reading, each after its first event."""
    readers, tokens, pid = job["readers"], job["tokens"], job["pid"]
    load.calm(pid, 10)
    forget_peak(pid)
    before = memory_mib(pid)[0]
    sent, cpu = load.sent_bytes, cpu_s(pid)
    load.stops = True
    try:
        load.open_all(job["port"], f"bench.blast.{tokens}.{readers}", readers)
        load.rest(2 * QUIET_S + server.GATHER_DELAY_S + readers * server.GATHER_DELAY_PER_STREAM_S)
        settled = load.calm(pid, job["timeout_s"], SETTLED_S)
        after, peak = memory_mib(pid)
        result = {
            "before_mib": before,
            "after_mib": after,
            "peak_mib": peak,
            "settled": settled,
            "taken_bytes": (load.sent_bytes - sent) / readers,
            "cpu_s": cpu_s(pid) - cpu,
            "failures": load.failures[:3],
        }
        load.part(pid)
        result["left_mib"] = memory_mib(pid)[0]
    finally:
        load.stops = False
    return result


def leave(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """How long after a browser has left the API sees it, in milliseconds; None for never within the patience."""
    return {"silent": left(load, job, job["silent"], 3), "flowing": left(load, job, job["flowing"], 0)}


def left(load: Load, job: dict[str, Any], count: int, tokens: int) -> list[float | None]:
    load.closed_s.clear()
    browsers = load.open_all(job["port"], f"bench.leaving.{job['rate']}.{tokens}.{{}}", count)
    load.rest(0.5)
    left_s = {}
    for browser in browsers:
        load.leave(browser)
        left_s[browser.number] = time.monotonic()
        load.rest(job["between_s"])
    load.until(lambda: len(load.closed_s) >= count, job["max_pause_s"])
    longest = {number: load.closed_s.get(number, float("inf")) - at for number, at in left_s.items()}
    load.part(job["pid"])
    return [took * 1e3 if took < job["max_pause_s"] else None for took in longest.values()]


JOBS = {"blast": blast, "paced": paced, "memory": memory, "leave": leave}


def main() -> None:
    soft_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_hard[1], soft_hard[1]))
    load = Load()
    print(json.dumps({"port": load.port}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = JOBS[job["do"]](load, job)
        except (RuntimeError, OSError) as error:
            load.part(0)
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
