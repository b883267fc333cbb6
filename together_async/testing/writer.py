"""Writing a planned response, byte by byte as planned: its waits, repetitions, compression, framing and end."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

import attrs

from together_async.testing.journal import Entry
from together_async.testing.response import ConnectionEnd, Piece, ResponsePlan

if TYPE_CHECKING:
    from together_async.testing.connection import Connection

BATCH = 65_536
"""Bytes of plain pieces that are collected before they are written."""


class PlanWriter:
    """Carries out the plan of one response on one connection."""

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
        """Writes the response; returns how to end the connection, or None when the response is complete."""
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
            self._connection.record_end(response)
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
        """Writes a piece. Plain pieces are collected, or a fast response would be many small writes."""
        if self._connection.left:
            return ConnectionEnd.CLOSE
        if piece.plain:
            self._batch.append(piece)
            self._batch_size += len(piece.data)
            if self._batch_size >= BATCH:
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
        """Waits as long as a piece asks for, but not beyond `until`; returns whether the wait was complete by then."""
        now = asyncio.get_running_loop().time()
        if piece.stall:
            await self._connection.wait(min(piece.wait_s, until - now))
            self._due = 0.0
            if now + piece.wait_s >= until:
                return False
        elif piece.wait_s:
            # Due times are added up, so that a late timer does not delay the rest of the stream.
            self._due = (self._due or now) + piece.wait_s
            await self._connection.wait(self._due - now)
        if piece.flush or piece.times != 1:
            await asyncio.sleep(0)
        return True

    async def _write(self, piece: Piece) -> None:
        self._entry.record_tokens(piece.tokens)
        await self._connection.send(piece.data if piece.raw else self._framed(self._squeezed(piece.data)))

    async def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_size = self._batch, [], 0
            data = b"".join(piece.data for piece in batch)
            self._entry.record_tokens(sum(piece.tokens for piece in batch))
            await self._connection.send(self._framed(self._squeezed(data)))

    def _squeezed(self, data: bytes) -> bytes:
        if self._squeeze is None or not data:
            return data
        return self._squeeze.compress(data) + self._squeeze.flush(zlib.Z_SYNC_FLUSH)

    def _framed(self, data: bytes) -> bytes:
        return http_chunk(data) if self._chunked and data else data


def http_chunk(data: bytes) -> bytes:
    """Returns bytes as a chunk of chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
