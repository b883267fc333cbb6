"""The sockets below HTTP: how they are made, how much asyncio reads at once, how they are closed without a loop.

The private attributes of asyncio are touched here and nowhere else, each with a fallback.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final

import aiohttp

READ_SIZE: Final = 65_536
"""Bytes per read of a socket. asyncio's own 262,144 is above malloc's mmap threshold: a system call, a page fault and
another system call for every token that arrives alone, a fifth of all its cost."""
BULK_READ_SIZE: Final = 262_144
"""The same while every read is full: then fewer reads are worth the cost."""
TLS_READ_SIZE: Final = 32_768
"""The same for TLS, where asyncio keeps a buffer of that size for every connection; a TLS record has 16 KiB."""


def set_read_size(response: aiohttp.ClientResponse, size: int) -> None:
    """Makes asyncio read the connection of a response in pieces of `size`, unless the body has ended."""
    connection = response.connection
    if connection is not None:
        set_transport_read_size(connection.transport, size)


def set_transport_read_size(transport: asyncio.BaseTransport | None, size: int) -> None:
    """Makes asyncio read this connection in pieces of `size` (see READ_SIZE), or of TLS_READ_SIZE if it is TLS.

    The attributes are private to asyncio: they are set where they are as expected, and left alone elsewhere (uvloop has
    none of them).
    """
    if transport is None:
        return
    protocol = getattr(transport, "_ssl_protocol", None)
    if protocol is None:
        if hasattr(transport, "max_size"):
            transport.max_size = size  # pyright: ignore[reportAttributeAccessIssue] - asyncio's selector transport
        return
    if getattr(protocol, "max_size", 0) > TLS_READ_SIZE and isinstance(
        getattr(protocol, "_ssl_buffer", None), bytearray
    ):
        # Nobody holds the view between two reads: asyncio fills it and empties it in one go.
        buffer = bytearray(TLS_READ_SIZE)
        protocol.max_size = TLS_READ_SIZE
        protocol._ssl_buffer = buffer  # noqa: SLF001 - asyncio has no public way
        protocol._ssl_buffer_view = memoryview(buffer)  # noqa: SLF001 - asyncio has no public way
        inner = getattr(protocol, "_transport", None)
        if getattr(inner, "max_size", 0) > READ_SIZE:
            inner.max_size = READ_SIZE  # type: ignore[union-attr]  # has the attribute, as just seen


def close_without_loop(protocol: Any, transport: Any = None) -> None:
    """Closes a connection whose event loop is closed, by asyncio's own last step, which nobody else would take.

    The step is private to asyncio, so it is taken only where it exists; without it the socket is left to the garbage
    collector, with a warning. Nothing of uvloop may be touched once its loop is closed; it has closed the socket with
    the loop.

    Args:
        protocol: aiohttp's protocol of the connection.
        transport: asyncio's transport of it; None for the one that the protocol knows, until aiohttp closes it.
    """
    if transport is None:
        transport = getattr(protocol, "transport", None)
    plain = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    with contextlib.suppress(RuntimeError, AttributeError):  # its waiters ended with the loop; it was closed before
        end = getattr(plain, "_call_connection_lost", None)
        if end is not None and type(plain).__module__.startswith("asyncio."):
            end(None)
        elif protocol is not None:
            protocol.connection_lost(None)
    if protocol is not None:
        protocol.transport = None  # it has no loop any more, and would fail if it were closed once more


def make_socket(addr_info: Any) -> socket.socket:
    """Returns a socket with TCP keep-alive, which finds out within a minute that a silent peer is dead."""
    family, kind, protocol, _, _ = addr_info
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock
