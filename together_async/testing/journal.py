"""The journal: an entry for each request that the emulator got, and what became of it.

The server's event loop writes the entries; any thread or loop may read them and wait for them.
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
"""How an exchange ended: not yet; the whole response was sent; the client closed the connection before that; a fault
ended the response; it had an error status."""


class Moment:
    """Something that happens once, and can be waited for from any thread or event loop.

    Attributes:
        at: When it happened, by `time.monotonic()`; None before.
    """

    __slots__ = ("_lock", "_waiters", "at")

    def __init__(self) -> None:
        self.at: float | None = None
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def set(self) -> None:
        """Records that it happens now."""
        with self._lock:
            if self.at is not None:
                return
            self.at = time.monotonic()
            waiters, self._waiters = self._waiters, []
        for loop, event in waiters:
            with contextlib.suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(event.set)

    async def wait(self, timeout: float, what: str) -> float:
        """Waits until it happens; returns when it did, by `time.monotonic()`.

        Args:
            timeout: In seconds.
            what: Its name in the error message.

        Raises:
            AssertionError: It did not happen within `timeout` seconds, which fails a test.
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
        assert self.at is not None  # noqa: S101 - set before the event
        return self.at


class Entry:
    """One request, and what became of it.

    Attributes:
        number: The number of requests before it.
        method: The HTTP method.
        path: The request's target, with the query.
        headers: The request's headers, names in lower case, including the key.
        body: The request's body: a dict if it was a JSON object, else bytes.
        request: The body as a checked request; None if it was not one.
        connection: The number of the connection it came on, 0 for the server's first.
        status: The response's status; 0 before it is known.
        faults: The faults that had a place in this response, in order.
        tokens_written: The number of tokens given to the socket so far.
        tokens: The number of tokens in the whole response.
        bytes_written: Bytes given to the socket so far, including the head.
        received_at: When the request was complete, by `time.monotonic()`.
        first_byte_at: When the first byte of the response was written, by `time.monotonic()`; None before.
        first_token_at: When the first token was written, by `time.monotonic()`; None before.
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
        """The model in the request; empty when there was none."""
        return str(self.body.get("model", "")) if isinstance(self.body, dict) else ""

    @property
    def streamed(self) -> bool:
        """Whether the request asked for a stream."""
        return isinstance(self.body, dict) and self.body.get("stream") is True

    @property
    def ended_at(self) -> float | None:
        """When the exchange ended, for whatever reason, by `time.monotonic()`; None before."""
        return self._ended.at

    @property
    def left_at(self) -> float | None:
        """When the client left before the response was complete, by `time.monotonic()`; None if it did not."""
        return self._left.at

    @property
    def client_left(self) -> bool:
        """Whether the client left before the response was complete."""
        return self._left.at is not None

    async def wait_left(self, timeout: float = 5.0) -> float:
        """Waits until the client has left; returns when, by `time.monotonic()`.

        Raises:
            AssertionError: It did not happen within `timeout` seconds.
        """
        return await self._left.wait(timeout, f"the client's leaving of request {self.number}")

    async def wait_ended(self, timeout: float = 5.0) -> float:
        """Waits until the exchange has ended; returns when, by `time.monotonic()`.

        Raises:
            AssertionError: It did not happen within `timeout` seconds.
        """
        return await self._ended.wait(timeout, f"the end of request {self.number}")

    def record_tokens(self, tokens: int) -> None:
        """Records that so many tokens are being written; called by the server."""
        if tokens and self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.tokens_written += tokens

    def record_end(self, outcome: Outcome) -> None:
        """Records how the exchange ended; called by the server. Only the first call counts."""
        if self.outcome != "open":
            return
        self.outcome = outcome
        if outcome == "client left":
            self._left.set()
        self._ended.set()


class Journal:
    """The entries in order of arrival: `journal[0]`, `journal[-1]`, `len(journal)`, a loop over them.

    Only the last `size` entries are kept; an index counts from the oldest of them.

    Attributes:
        total: The number of requests so far, also those whose entries are gone.
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
        """Waits until `number` requests have come; returns the entry of the last of them.

        Args:
            number: At least 1.
            timeout: In seconds.

        Raises:
            AssertionError: They did not come within `timeout` seconds.
            IndexError: The journal no longer has the entry; make `journal_size` larger.
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
        """Adds an entry; called by the server."""
        with self._lock:
            self._entries.append(entry)
            self.total += 1
            due = [moment for number, moment in self._arrivals if number <= self.total]
            if due:
                self._arrivals = [pair for pair in self._arrivals if pair[0] > self.total]
        for moment in due:
            moment.set()

    def clear(self) -> None:
        """Removes all entries, and starts to count again."""
        with self._lock:
            self._entries.clear()
            self.total = 0
