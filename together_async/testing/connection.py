"""One accepted connection of the emulator: HTTP/1.1 requests in, planned responses out, byte by byte as planned.

aiohttp's own server would mend what is meant to be broken: framing, lengths, the end of a connection. So this reads
just enough of HTTP to serve a client, and writes whatever the plan says.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable
from typing import Protocol, cast

import attrs

from together_async.testing.journal import Entry, Outcome
from together_async.testing.response import ConnectionEnd, Piece, ResponsePlan

MAX_HEAD = 65_536
MAX_BODY = 256 * 1024 * 1024
_DIGITS = 18
_TLS_HELLO = b"\x16\x03"
_BATCH = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@attrs.frozen
class Incoming:
    """One request as it came over the wire; names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    version: str = "HTTP/1.1"

    @property
    def wants_close(self) -> bool:
        """Whether the client asks that the connection be closed after the response."""
        asked = self.headers.get("connection", "").lower()
        return "close" in asked or (self.version == "HTTP/1.0" and "keep-alive" not in asked)


class MalformedRequestError(Exception):
    """What came is no HTTP request that can be answered."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Handler(Protocol):
    """What a connection asks of its server."""

    def answer(self, incoming: Incoming, connection: int) -> tuple[Entry, ResponsePlan]:
        """Returns the plan of the response, and the journal's entry to write what becomes of it."""
        ...

    def refuse(self, error: MalformedRequestError) -> ResponsePlan:
        """Returns the response to what is no request."""
        ...

    def ended(self, entry: Entry) -> None:
        """Hears that an exchange has ended."""
        ...

    def failed(self, error: Exception) -> None:
        """Hears that a plan could not be carried out."""
        ...


class Connection(asyncio.Protocol):
    """One connection: reads all the time, so that leaving is seen while a response is under way.

    Args:
        number: How many were accepted before.
        handler: The server.
        among: The open connections; it is one of them as long as it is open.
    """

    def __init__(self, number: int, handler: Handler, among: set[Connection]) -> None:
        self.number = number
        self.left = False
        self.task: asyncio.Task[None] | None = None
        self._handler = handler
        self._among = among
        self._closing = False  # no further request is answered
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
        # uvloop's is none of asyncio's classes.
        transport = self._transport = cast("asyncio.Transport", transport)
        # Whatever the kernel does not take pauses us: what the journal calls written has left this process.
        # (A TLS transport has no such thing as nothing in its buffer.)
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("ssl_object") is None else 1)
        self._among.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client has left, or we have."""
        self.left = True
        self._paused = False
        if self._entry is not None:
            self._end("client left")
        self._wake()
        self._among.discard(self)

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused = False
        self._wake()
        self._next()

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a request."""
        self._buffer += data
        self._next()

    # -------------------------------------------------------------------------------------------------------- requests

    def _next(self) -> None:
        """Answers the requests that are complete in the buffer, as far as that needs no waiting."""
        while self._entry is None and not (self.left or self._closing or self._paused):
            try:
                incoming = _parse(self._buffer, self._write)
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
            if _is_simple(response):
                self._answer_at_once(entry, response)
            else:
                self.task = self._loop.create_task(self._carry_out(entry, response))

    def _answer_at_once(self, entry: Entry, response: ResponsePlan) -> None:
        entry.count(response.tokens)
        self.ends_with_the_next(response)
        self._write(_at_once(response))
        self._end(_outcome(response))

    def ends_with_the_next(self, response: ResponsePlan) -> None:
        """Says the end before the last bytes go out, so that who has the whole answer finds it in the journal."""
        self._closing = not response.keep_alive
        entry = self._entry
        if entry is not None:
            entry.first_byte_at = entry.first_byte_at or time.monotonic()
            entry.end(_outcome(response))

    def _end(self, outcome: Outcome) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.end(outcome)
            self._handler.ended(entry)

    # -------------------------------------------------------------------------------------------------------- response

    async def _carry_out(self, entry: Entry, response: ResponsePlan) -> None:
        """Writes a response as planned, waits included."""
        try:
            ended = await _Writer(self, entry, response).write()
            if self.left:
                return
            # Before the end is told: a request that comes now must find the connection stale.
            self._closing = ended is not None or not response.keep_alive
            self._end("broken off" if ended else _outcome(response))
            if self._closing:
                if ended is None:
                    await self.wait(response.close_after_s)
                self._close(ended)
        except asyncio.CancelledError:
            self._end("broken off")
            raise
        except Exception as error:  # noqa: BLE001 - raised where the server is closed
            self._handler.failed(error)
            self.abort()
        finally:
            self.task = None
        self._next()

    def _close(self, end: ConnectionEnd | None) -> None:
        transport = self._transport
        self._closing = True
        if transport is None or self.left:
            return
        if end is ConnectionEnd.RESET:
            sock = transport.get_extra_info("socket")
            # Closing with a linger time of zero makes the kernel send a RST.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        else:
            transport.close()

    def abort(self) -> None:
        """Ends the connection with a RST, and what is going on on it: the server stops, or pretends to crash."""
        if self.task is not None and self.task is not asyncio.current_task(self._loop):
            self.task.cancel()
        self._end("broken off")
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
        """Writes bytes, and waits while the client does not take them."""
        self._write(data)
        if self._transport is not None and self._transport.is_closing() and not self.left:
            # The client has reset the connection, which asyncio tells in the next turn. A transport that is lost never
            # pauses, so all of a long answer would be "written" before.
            await asyncio.sleep(0)
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

    def __init__(self, connection: Connection, entry: Entry, response: ResponsePlan) -> None:
        self._connection = connection
        self._entry = entry
        self._response = response
        self._chunked = response.framing == "chunked"
        self._squeeze = zlib.compressobj(wbits=31) if response.gzip else None
        self._batch: list[Piece] = []
        self._batch_size = 0
        self._due = 0.0

    async def write(self) -> ConnectionEnd | None:
        """Writes all of it; returns how the connection has to be ended, None when the response is whole."""
        response = self._response
        if response.think_s:
            await self._piece(Piece(wait_s=response.think_s, raw=True))
        if response.replaced_by is not None:
            return await self._replaced(response.replaced_by)
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
            self._connection.ends_with_the_next(response)
            await self._connection.send(b"0\r\n\r\n")
        if response.framing == "close":
            response.keep_alive = False
        return None

    async def _replaced(self, data: bytes) -> ConnectionEnd:
        for _, piece in sorted(self._response.head_pieces, key=lambda pair: pair[0]):
            if (end := await self._piece(attrs.evolve(piece, raw=True))) is not None:
                return end
        await self._connection.send(data)
        return ConnectionEnd.CLOSE

    async def _piece(self, piece: Piece) -> ConnectionEnd | None:
        """Writes a piece. What can go out together does, or a fast response would be many small writes."""
        if self._connection.left:
            return ConnectionEnd.CLOSE
        if piece.plain:
            self._batch.append(piece)
            self._batch_size += len(piece.data)
            if self._batch_size >= _BATCH:
                await self._flush()
            return None
        await self._flush()
        connection, sent = self._connection, 0
        connection.stalled = piece.stall
        until = asyncio.get_running_loop().time() + piece.for_s
        while sent < piece.times and not connection.left:
            in_time = await self._pause(piece, until)
            if connection.left or connection.stalled is not piece.stall or not in_time:
                break
            await self._write(piece)
            sent += 1
        connection.stalled = False
        return piece.end

    async def _pause(self, piece: Piece, until: float) -> bool:
        """Waits as long as a piece asks for, but not beyond `until`; returns whether that was in time."""
        now = asyncio.get_running_loop().time()
        if piece.stall:
            await self._connection.wait(min(piece.wait_s, until - now))
            self._due = 0.0
            if now + piece.wait_s >= until:
                return False
        elif piece.wait_s:
            # Due times are added up, so that a late timer does not slow the whole stream down.
            self._due = (self._due or now) + piece.wait_s
            await self._connection.wait(self._due - now)
        if piece.flush or piece.times != 1:
            await asyncio.sleep(0)
        return True

    async def _write(self, piece: Piece) -> None:
        self._entry.count(piece.tokens)
        await self._connection.send(piece.data if piece.raw else self._framed(self._squeezed(piece.data)))

    async def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_size = self._batch, [], 0
            data = b"".join(piece.data for piece in batch)
            self._entry.count(sum(piece.tokens for piece in batch))
            await self._connection.send(self._framed(self._squeezed(data)))

    def _squeezed(self, data: bytes) -> bytes:
        if self._squeeze is None or not data:
            return data
        return self._squeeze.compress(data) + self._squeeze.flush(zlib.Z_SYNC_FLUSH)

    def _framed(self, data: bytes) -> bytes:
        return _chunk(data) if self._chunked and data else data


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _is_simple(response: ResponsePlan) -> bool:
    """Whether a response is bytes that can be written at once."""
    return (
        response.replaced_by is None
        and not response.head_pieces
        and not response.think_s
        and not response.gzip
        and response.keep_alive
        and response.framing != "close"
        and all(piece.plain for piece in response.body)
        and sum(len(piece.data) for piece in response.body) <= _BATCH
    )


def _outcome(response: ResponsePlan) -> Outcome:
    return "refused" if response.status >= 300 else "complete"


def _at_once(response: ResponsePlan) -> bytes:
    body = b"".join(piece.data for piece in response.body)
    if response.framing == "chunked":
        body = (_chunk(body) if body else b"") + b"0\r\n\r\n"
    return response.head() + body


# -------------------------------------------------------------------------------------------------------------- parsing


def _parse(buffer: bytearray, write: Callable[[bytes], None]) -> Incoming | None:
    """Takes one complete request out of the buffer; None when there is none yet.

    Raises:
        MalformedRequestError: What came is none, or is above the caps.
    """
    while buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: ignored before a request line
        del buffer[:2]
    if buffer.startswith(_TLS_HELLO):
        raise MalformedRequestError(400, "got a TLS handshake, expected plain HTTP/1.1; use http:// for this server")
    end = buffer.find(b"\r\n\r\n")
    if end > MAX_HEAD or (end < 0 and len(buffer) > MAX_HEAD):
        raise MalformedRequestError(431, f"a head of more than {MAX_HEAD} bytes")
    if end < 0:
        return None
    line, *fields = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise MalformedRequestError(400, "got no HTTP/1.1 request line; was HTTP/2 spoken to a plain HTTP/1.1 server?")
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
    return Incoming(parts[0], parts[1], headers, body, parts[2])


def _body(buffer: bytearray, start: int, headers: dict[str, str]) -> tuple[bytes | None, int]:
    """The body that begins at `start` and how many bytes it takes; None when it is not all there."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunked_body(buffer, start)
    told = headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]+", told):
        raise MalformedRequestError(400, "the content-length is no number")
    if len(told) > _DIGITS or int(told) > MAX_BODY:
        raise MalformedRequestError(413, f"a body above {MAX_BODY} bytes")
    size = int(told)
    return (bytes(buffer[start : start + size]), size) if len(buffer) >= start + size else (None, 0)


def _chunked_body(buffer: bytearray, start: int) -> tuple[bytes | None, int]:
    pieces: list[bytes] = []
    at = start
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None, 0
        told = bytes(buffer[at:line_end]).partition(b";")[0].strip(b" \t")
        if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", told):
            raise MalformedRequestError(400, "a chunk's size is no hexadecimal number")
        size = int(told, 16)
        at = line_end + 2
        if at + size > start + MAX_BODY:
            raise MalformedRequestError(413, f"a body above {MAX_BODY} bytes")
        if len(buffer) < at + size + 2:
            return None, 0
        pieces.append(bytes(buffer[at : at + size]))
        at += size + 2
        if size == 0:  # trailers are not used by anyone who talks to us
            return b"".join(pieces), at - start
