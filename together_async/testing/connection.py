"""One accepted connection of the emulator: HTTP/1.1 requests in, planned responses out, byte by byte as planned.

aiohttp's own server would mend what is meant to be broken: framing, lengths, the end of a connection. So this reads
just enough of HTTP to serve a client, and writes whatever the plan says.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Protocol

import attrs

from together_async.testing.journal import Entry
from together_async.testing.response import End, Piece, Response

MAX_HEAD = 65_536
MAX_BODY = 256 * 1024 * 1024
_BATCH = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@attrs.frozen
class Incoming:
    """One request as it came over the wire; names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class BadRequest(Exception):  # noqa: N818 - the connection's own
    """What came is no HTTP request that can be answered."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Handler(Protocol):
    """What a connection asks of its server."""

    def answer(self, incoming: Incoming, connection: int) -> tuple[Entry, Response]:
        """Returns the plan of the response, and the journal's entry to write what becomes of it."""
        ...

    def refuse(self, error: BadRequest) -> Response:
        """Returns the response to what is no request."""
        ...

    def ended(self, entry: Entry) -> None:
        """Hears that an exchange has ended."""
        ...


class Connection(asyncio.Protocol):
    """One connection: reads all the time, so that leaving is seen while a response is under way.

    Args:
        number: How many were accepted before.
        handler: The server.
        on_end: Called when the connection is gone.
    """

    def __init__(self, number: int, handler: Handler, on_end: Callable[[Connection], None]) -> None:
        self.number = number
        self.left = False
        self.task: asyncio.Task[None] | None = None
        self._handler = handler
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._entry: Entry | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.stalled = False  # the response is in a fault's wait

    def __repr__(self) -> str:
        return f"<Connection {self.number} {'gone' if self.left else 'busy' if self._entry else 'idle'}>"

    # --------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream socket's
        self._transport = transport
        # Whatever the kernel does not take pauses us: what the journal calls written has left this process.
        transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client has left, or we have."""
        self.left = True
        self._paused = False
        if self._entry is not None:
            self._end("client left")
        self._wake()
        self._on_end(self)

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a request."""
        self._buffer += data
        if self._entry is None:
            self._next()

    # -------------------------------------------------------------------------------------------------------- requests

    def _next(self) -> None:
        """Answers the requests that are complete in the buffer, as far as that needs no waiting."""
        while not self.left and self._entry is None:
            try:
                incoming = _parse(self._buffer, self._write)
            except BadRequest as error:
                self._buffer.clear()
                response = self._handler.refuse(error)
                self._write(_at_once(response))
                self._close(None)
                return
            if incoming is None:
                return
            entry, response = self._handler.answer(incoming, self.number)
            self._entry = entry
            if _is_simple(response):
                self._answer_at_once(entry, response)
            else:
                self.task = self._loop.create_task(self._carry_out(entry, response))

    def _answer_at_once(self, entry: Entry, response: Response) -> None:
        self._write(_at_once(response))
        entry.tokens_written = response.tokens
        self._end("refused" if response.status >= 300 else "complete")

    def _end(self, outcome: str) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.end(outcome)  # type: ignore[arg-type]  # one of the literals
            self._handler.ended(entry)

    # -------------------------------------------------------------------------------------------------------- response

    async def _carry_out(self, entry: Entry, response: Response) -> None:
        """Writes a response as planned, waits included."""
        try:
            ended = await _Writer(self, entry, response).write()
            if self.left:
                return
            self._end("broken off" if ended else "refused" if response.status >= 300 else "complete")
            if ended is None and not response.keep_alive:
                await self.wait(response.close_after_s)
            if ended is not None or not response.keep_alive:
                self._close(ended)
        except asyncio.CancelledError:
            self._end("broken off")
            raise
        finally:
            self.task = None
        self._next()

    def _close(self, end: End | None) -> None:
        transport = self._transport
        if transport is None or self.left:
            return
        if end is End.RESET:
            sock = transport.get_extra_info("socket")
            # Closing with a linger time of zero makes the kernel send a RST.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        else:
            transport.close()

    def abort(self) -> None:
        """Ends the connection and what is going on on it: the server stops."""
        if self.task is not None:
            self.task.cancel()
        self._end("broken off")
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self.left:
            entry = self._entry
            if entry is not None:
                entry.bytes_written += len(data)
                if entry.first_byte_at is None:
                    entry.first_byte_at = self._loop.time()
            self._transport.write(data)

    async def send(self, data: bytes) -> None:
        """Writes bytes, and waits while the client does not take them."""
        self._write(data)
        while self._paused and not self.left:
            await self._wait_to_be_woken(None)

    async def wait(self, seconds: float) -> None:
        """Waits, but not longer than the client stays; a stall also ends when it is released."""
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
        """Ends the stall which the response is in, if it is in one."""
        self.stalled = False
        self._wake()


class _Writer:
    """Carries out one plan on one connection."""

    def __init__(self, connection: Connection, entry: Entry, response: Response) -> None:
        self._connection = connection
        self._entry = entry
        self._response = response
        self._chunked = response.framing == "chunked"
        self._squeeze = zlib.compressobj(wbits=31) if response.gzip else None
        self._batch: list[Piece] = []
        self._batch_size = 0
        self._due = 0.0

    async def write(self) -> End | None:
        """Writes all of it; returns how the connection has to be ended, None when the response is whole."""
        response = self._response
        if response.replaced_by is not None:
            await self._connection.send(response.replaced_by)
            return End.CLOSE
        for piece in response.pieces_of_head():
            if (end := await self._piece(attrs.evolve(piece, raw=True))) is not None:
                return end
        for piece in response.body:
            if (end := await self._piece(piece)) is not None:
                return end
        await self._flush()
        if self._squeeze is not None:
            await self._connection.send(self._framed(self._squeeze.flush()))
        if self._chunked:
            await self._connection.send(b"0\r\n\r\n")
        if response.framing == "close":
            response.keep_alive = False
        return None

    async def _piece(self, piece: Piece) -> End | None:
        """Writes a piece. What can go out together does, or a fast response would be many small writes."""
        if self._connection.left:
            return End.CLOSE
        if piece.plain:
            self._batch.append(piece)
            self._batch_size += len(piece.data)
            if self._batch_size >= _BATCH:
                await self._flush()
            return None
        await self._flush()
        connection, sent = self._connection, 0
        connection.stalled = piece.stall
        while sent < piece.times and not connection.left:
            await self._pause(piece)
            if connection.left or connection.stalled is not piece.stall:
                break
            await self._write(piece)
            sent += 1
        connection.stalled = False
        return piece.end

    async def _pause(self, piece: Piece) -> None:
        if piece.stall:
            await self._connection.wait(piece.wait_s)
            self._due = 0.0
        elif piece.wait_s:
            # Due times are added up, so that a late timer does not slow the whole stream down.
            now = asyncio.get_running_loop().time()
            self._due = (self._due or now) + piece.wait_s
            await self._connection.wait(self._due - now)
        if piece.flush or piece.times != 1:
            await asyncio.sleep(0)

    async def _write(self, piece: Piece) -> None:
        self._entry.tokens_written += piece.tokens
        await self._connection.send(piece.data if piece.raw else self._framed(self._squeezed(piece.data)))

    async def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_size = self._batch, [], 0
            data = b"".join(piece.data for piece in batch)
            self._entry.tokens_written += sum(piece.tokens for piece in batch)
            await self._connection.send(self._framed(self._squeezed(data)))

    def _squeezed(self, data: bytes) -> bytes:
        if self._squeeze is None or not data:
            return data
        return self._squeeze.compress(data) + self._squeeze.flush(zlib.Z_SYNC_FLUSH)

    def _framed(self, data: bytes) -> bytes:
        return _chunk(data) if self._chunked and data else data


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _is_simple(response: Response) -> bool:
    """Whether a response is bytes that can be written at once."""
    return (
        response.replaced_by is None
        and not response.head_pieces
        and not response.gzip
        and response.keep_alive
        and response.framing != "close"
        and all(piece.plain for piece in response.body)
        and sum(len(piece.data) for piece in response.body) <= _BATCH
    )


def _at_once(response: Response) -> bytes:
    body = b"".join(piece.data for piece in response.body)
    if response.framing == "chunked":
        body = (_chunk(body) if body else b"") + b"0\r\n\r\n"
    return response.head() + body


# -------------------------------------------------------------------------------------------------------------- parsing


def _parse(buffer: bytearray, write: Callable[[bytes], None]) -> Incoming | None:
    """Takes one complete request out of the buffer; None when there is none yet.

    Raises:
        BadRequest: What came is none, or is above the caps.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEAD:
            raise BadRequest(431, f"a head of more than {MAX_HEAD} bytes")
        return None
    line, *fields = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise BadRequest(400, "got no HTTP/1.1 request line; was https:// or HTTP/2 spoken to a plain HTTP/1.1 server?")
    headers: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        headers[name.strip().lower()] = value.strip()
    body, size = _body(buffer, end + 4, headers)
    if body is None:
        if headers.get("expect", "").lower() == "100-continue" and len(buffer) == end + 4:
            write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None
    del buffer[: end + 4 + size]
    return Incoming(parts[0], parts[1], headers, body)


def _body(buffer: bytearray, start: int, headers: dict[str, str]) -> tuple[bytes | None, int]:
    """The body that begins at `start` and how many bytes it takes; None when it is not all there."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunked_body(buffer, start)
    told = headers.get("content-length", "0")
    if not told.isascii() or not told.isdigit():
        raise BadRequest(400, "the content-length is no number")
    size = int(told)
    if size > MAX_BODY:
        raise BadRequest(413, f"a body of {size} bytes, expected at most {MAX_BODY}")
    return (bytes(buffer[start : start + size]), size) if len(buffer) >= start + size else (None, 0)


def _chunked_body(buffer: bytearray, start: int) -> tuple[bytes | None, int]:
    pieces: list[bytes] = []
    at = start
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None, 0
        try:
            size = int(bytes(buffer[at:line_end]).partition(b";")[0], 16)
        except ValueError:
            raise BadRequest(400, "a chunk's size is no hexadecimal number") from None
        at = line_end + 2
        if at + size > start + MAX_BODY:
            raise BadRequest(413, f"a body above {MAX_BODY} bytes")
        if len(buffer) < at + size + 2:
            return None, 0
        pieces.append(bytes(buffer[at : at + size]))
        at += size + 2
        if size == 0:  # trailers are not used by anyone who talks to us
            return b"".join(pieces), at - start
