"""What the emulator saw: an entry for each request, and when the client left.

Entries are written by the server's event loop and may be read and waited for from any thread or loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, overload

from together_async.request import ChatCompletionRequest

Outcome = Literal["open", "complete", "client left", "broken off", "refused"]
"""How an exchange ended: still open; all of the answer is out; the client closed the connection before that; a fault
ended it; the answer was an HTTP status other than the model's."""


class Moment:
    """Something that happens once, at a time, and can be waited for from any thread or event loop."""

    __slots__ = ("_lock", "_waiters", "at")

    def __init__(self) -> None:
        self.at: float | None = None
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def set(self) -> None:
        """Says that it happens now."""
        with self._lock:
            if self.at is not None:
                return
            self.at = time.monotonic()
            waiters, self._waiters = self._waiters, []
        for loop, event in waiters:
            with contextlib.suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(event.set)

    async def wait(self, timeout: float, what: str) -> float:
        """Waits for it; returns when it was, by `time.monotonic()`.

        Raises:
            AssertionError: It did not happen within `timeout` seconds: in a test, that is the finding.
        """
        event = asyncio.Event()
        with self._lock:
            if self.at is None:
                self._waiters.append((asyncio.get_running_loop(), event))
        if self.at is None:
            try:
                await asyncio.wait_for(event.wait(), timeout)
            except TimeoutError:
                raise AssertionError(f"{what} did not happen within {timeout} s") from None
        assert self.at is not None  # noqa: S101 - the event says so
        return self.at


class Entry:
    """One request, and what became of it.

    Attributes:
        number: 0 for the first request of the server.
        method: HTTP's method.
        path: The request's target, with the query.
        headers: The request's headers, names in lower case, the key among them.
        body: The request's body: a dict when it was a JSON object, else the bytes.
        request: The body as a checked request; None when it was none.
        connection: Which of the server's connections it came on, 0 for the first.
        status: The answer's status; 0 before it is known.
        faults: What went wrong on purpose: the faults that had a place in this response.
        tokens_written: How many tokens were given to the socket.
        tokens: How many the whole answer holds.
        bytes_written: Bytes given to the socket, the head included.
        received_at, first_byte_at, first_token_at, ended_at: Times by `time.monotonic()`; None when it was not yet.
        outcome: How it ended (see `Outcome`).
    """

    def __init__(
        self, number: int, method: str, path: str, headers: Mapping[str, str], body: Any, *, connection: int
    ) -> None:
        self.number = number
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.connection = connection
        self.request: ChatCompletionRequest | None = None
        self.status = 0
        self.faults: tuple[Any, ...] = ()
        self.tokens = 0
        self.tokens_written = 0
        self.bytes_written = 0
        self.received_at = time.monotonic()
        self.first_byte_at: float | None = None
        self.first_token_at: float | None = None
        self.outcome: Outcome = "open"
        self._ended = Moment()
        self._left = Moment()

    def __repr__(self) -> str:
        # Neither key nor prompt: this is what a failing test prints.
        faults = f" {', '.join(map(repr, self.faults))}" if self.faults else ""
        return (
            f"<Entry {self.number} {self.model or self.path!r} {self.status} {self.outcome}, "
            f"{self.tokens_written} of {self.tokens} tokens{faults}>"
        )

    @property
    def model(self) -> str:
        """The model asked for; empty when there was none."""
        return str(self.body.get("model", "")) if isinstance(self.body, dict) else ""

    @property
    def streamed(self) -> bool:
        """Whether a stream was asked for."""
        return isinstance(self.body, dict) and self.body.get("stream") is True

    @property
    def ended_at(self) -> float | None:
        """When the exchange ended, for whatever reason."""
        return self._ended.at

    @property
    def left_at(self) -> float | None:
        """When the client left before the answer was complete; None when it did not."""
        return self._left.at

    @property
    def client_left(self) -> bool:
        """Whether the client left before the answer was complete."""
        return self._left.at is not None

    async def wait_left(self, timeout: float = 5.0) -> float:
        """Waits until the client has left; returns when, by `time.monotonic()`.

        Raises:
            AssertionError: It did not within `timeout` seconds.
        """
        return await self._left.wait(timeout, f"the client's leaving of request {self.number}")

    async def wait_ended(self, timeout: float = 5.0) -> float:
        """Waits until the exchange has ended; returns when, by `time.monotonic()`.

        Raises:
            AssertionError: It did not within `timeout` seconds.
        """
        return await self._ended.wait(timeout, f"the end of request {self.number}")

    def count(self, tokens: int) -> None:
        """Says that so many tokens are being written; called by the server."""
        if tokens and self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.tokens_written += tokens

    def end(self, outcome: Outcome) -> None:
        """Says how the exchange ended; called by the server."""
        if self.outcome != "open":
            return
        self.outcome = outcome
        if outcome == "client left":
            self._left.set()
        self._ended.set()


class Journal:
    """The entries in order of arrival: `journal[0]`, `journal[-1]`, `len(journal)`, a loop over them.

    Only the last `size` are kept; `total` counts all, and an index counts from the oldest kept.
    """

    def __init__(self, size: int) -> None:
        self.total = 0
        self._entries: deque[Entry] = deque(maxlen=size)
        self._arrivals: list[tuple[int, Moment]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries))

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return list(self._entries)[index]
        try:
            return self._entries[index]
        except IndexError:
            raise IndexError(f"request {index}: the journal holds {len(self)}; `await journal.wait(n)` waits") from None

    def __repr__(self) -> str:
        return f"<Journal {self.total} requests>"

    async def wait(self, number: int = 1, timeout: float = 5.0) -> Entry:
        """Waits until so many requests have come; returns the last of them.

        Raises:
            AssertionError: They did not within `timeout` seconds.
            IndexError: The journal was too small to keep it.
            ValueError: `number` is less than 1.
        """
        if number < 1:
            raise ValueError(f"number: got {number}, expected at least 1")
        moment = Moment()
        with self._lock:
            if self.total >= number:
                moment.set()
            else:
                self._arrivals.append((number, moment))
        await moment.wait(timeout, f"request number {number} ({self.total} came)")
        with self._lock:
            if self.total - number >= len(self._entries):
                raise IndexError(f"request number {number}: the journal keeps the last {self._entries.maxlen} only")
            return self._entries[number - 1 - self.total]

    def add(self, entry: Entry) -> None:
        """Takes an entry; called by the server."""
        with self._lock:
            self._entries.append(entry)
            self.total += 1
            due = [moment for number, moment in self._arrivals if number <= self.total]
            if due:
                self._arrivals = [pair for pair in self._arrivals if pair[0] > self.total]
        for moment in due:
            moment.set()

    def clear(self) -> None:
        """Forgets all entries and starts to count anew."""
        with self._lock:
            self._entries.clear()
            self.total = 0
