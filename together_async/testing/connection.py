"""One accepted connection of the emulator: HTTP/1.1 requests in, planned responses out, byte by byte as planned.

aiohttp's own server would repair what a test means to break: framing, lengths, the end of a connection. So the emulator
reads just enough of HTTP to serve a client, and writes whatever the plan says.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import time
from typing import Protocol, cast

from together_async.testing.incoming import Incoming, MalformedRequestError, take_request
from together_async.testing.journal import Entry, Outcome
from together_async.testing.response import ConnectionEnd, ResponsePlan
from together_async.testing.writer import BATCH, PlanWriter, http_chunk

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Handler(Protocol):
    """The server of a connection."""

    def answer(self, incoming: Incoming, connection: int) -> tuple[Entry, ResponsePlan]:
        """Returns the request's entry in the journal, which the connection fills in, and the response's plan."""
        ...

    def refuse(self, error: MalformedRequestError) -> ResponsePlan:
        """Returns the response to a malformed request."""
        ...

    def record_end(self, entry: Entry) -> None:
        """Called once for each exchange, when it has ended."""
        ...

    def record_failure(self, error: Exception) -> None:
        """Called when a plan could not be carried out."""
        ...


class Connection(asyncio.Protocol):
    """One connection. It reads all the time, so that it notices a client that leaves during a response.

    Args:
        number: The number of connections accepted before.
        handler: The server.
        among: The set of open connections; it adds and removes itself.

    Attributes:
        left: Whether the connection is closed, by whichever side.
        stalled: Whether the response is in the wait of a fault.
        task: The response under way; None if there is none, or if it is written at once.
    """

    def __init__(self, number: int, handler: Handler, among: set[Connection]) -> None:
        self.number = number
        self.left = False
        self.task: asyncio.Task[None] | None = None
        self._handler = handler
        self._among = among
        self._closing = False  # no further request will be answered
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._entry: Entry | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.stalled = False

    def __repr__(self) -> str:
        return f"<Connection {self.number} {'gone' if self.left else 'busy' if self._entry else 'idle'}>"

    # --------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stores the transport."""
        # uvloop's transports are not of asyncio's class.
        transport = self._transport = cast("asyncio.Transport", transport)
        # Pause as soon as the kernel takes no more, so that bytes the journal counts as written have left this process.
        # (A TLS transport never has an empty buffer.)
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("ssl_object") is None else 1)
        self._among.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio declares it
        """The client has left, or the server has closed the connection."""
        self.left = True
        self._paused = False
        if self._entry is not None:
            self._end_exchange("client left")
        self._wake()
        self._among.discard(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than the response is written."""
        self._paused = True

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._paused = False
        self._wake()
        self._answer_next()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request have come."""
        self._buffer += data
        self._answer_next()

    # -------------------------------------------------------------------------------------------------------- requests

    def _answer_next(self) -> None:
        """Answers the complete requests in the buffer, until one has to wait."""
        while self._entry is None and not (self.left or self._closing or self._paused):
            try:
                incoming = take_request(self._buffer, self._write)
            except MalformedRequestError as error:
                self._buffer.clear()
                response = self._handler.refuse(error)
                self._write(_at_once(response))
                self._close(None)
                return
            if incoming is None:
                return
            entry, response = self._handler.answer(incoming, self.number)
            self._entry = entry
            # Quick path of _carry_out; tests/testing/test_connection.py::test_quick_and_full holds the two together.
            if _is_simple(response):
                self._answer_at_once(entry, response)
            else:
                self.task = self._loop.create_task(self._carry_out(entry, response))

    def _answer_at_once(self, entry: Entry, response: ResponsePlan) -> None:
        entry.record_tokens(response.tokens)
        self.record_end(response)
        self._write(_at_once(response))
        self._end_exchange(_outcome(response))

    def record_end(self, response: ResponsePlan) -> None:
        """Records the end before the last bytes go out, so that a client with the whole response finds it there."""
        self._closing = not response.keep_alive
        entry = self._entry
        if entry is not None:
            entry.first_byte_at = entry.first_byte_at or time.monotonic()
            entry.record_end(_outcome(response))

    def _end_exchange(self, outcome: Outcome) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.record_end(outcome)
            self._handler.record_end(entry)

    # -------------------------------------------------------------------------------------------------------- response

    async def _carry_out(self, entry: Entry, response: ResponsePlan) -> None:
        """Writes a response as planned, with its waits."""
        try:
            ended = await PlanWriter(self, entry, response).write()
            if self.left:
                return
            # Before the end is recorded: a request that comes now must find the connection stale.
            self._closing = ended is not None or not response.keep_alive
            self._end_exchange("broken off" if ended else _outcome(response))
            if self._closing:
                if ended is None:
                    await self.wait(response.close_after_s)
                self._close(ended)
        except asyncio.CancelledError:
            self._end_exchange("broken off")
            raise
        except Exception as error:  # noqa: BLE001 - raised where the server is closed
            self._handler.record_failure(error)
            self.abort()
        finally:
            self.task = None
        self._answer_next()

    def _close(self, end: ConnectionEnd | None) -> None:
        transport = self._transport
        self._closing = True
        if transport is None or self.left:
            return
        if end is ConnectionEnd.RESET:
            sock = transport.get_extra_info("socket")
            # Closing with a linger time of 0 makes the kernel send a RST.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        else:
            transport.close()

    def abort(self) -> None:
        """Ends the connection with a RST, and the response under way: the server stops, or pretends to crash."""
        if self.task is not None and self.task is not asyncio.current_task(self._loop):
            self.task.cancel()
        self._end_exchange("broken off")
        self._close(ConnectionEnd.RESET)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self.left:
            entry = self._entry
            if entry is not None:
                entry.bytes_written += len(data)
                if entry.first_byte_at is None:
                    entry.first_byte_at = time.monotonic()
            self._transport.write(data)

    async def send(self, data: bytes) -> None:
        """Writes bytes, and waits while the client does not read them."""
        self._write(data)
        if self._transport is not None and self._transport.is_closing() and not self.left:
            # The client has reset the connection, which asyncio reports in the next turn of the loop. A lost transport
            # never pauses, so a long response would count as written before that.
            await asyncio.sleep(0)
        while self._paused and not self.left:
            await self._wait_to_be_woken(None)

    async def wait(self, seconds: float) -> None:
        """Waits until the time is over or the client leaves; a stall also ends when it is released."""
        stalled = self.stalled
        until = None if math.isinf(seconds) else self._loop.time() + seconds
        while not self.left and self.stalled is stalled and (until is None or self._loop.time() < until):
            await self._wait_to_be_woken(until)

    async def _wait_to_be_woken(self, until: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = None if until is None else self._loop.call_at(until, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def release(self) -> None:
        """Ends the response's current stall, if any."""
        self.stalled = False
        self._wake()


def _is_simple(response: ResponsePlan) -> bool:
    """Whether a response is plain bytes that can be written at once."""
    return (
        response.replaced_by is None
        and not response.head_pieces
        and not response.think_s
        and not response.gzip
        and response.keep_alive
        and response.framing != "close"
        and all(piece.plain for piece in response.body)
        and sum(len(piece.data) for piece in response.body) <= BATCH
    )


def _outcome(response: ResponsePlan) -> Outcome:
    return "refused" if response.status >= 300 else "complete"


def _at_once(response: ResponsePlan) -> bytes:
    body = b"".join(piece.data for piece in response.body)
    if response.framing == "chunked":
        body = (http_chunk(body) if body else b"") + b"0\r\n\r\n"
    return response.head() + body
