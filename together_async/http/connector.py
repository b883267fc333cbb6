"""`Connector`: the pool of connections, and how a session is closed whose event loop may be gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import aiohttp

from together_async.http.sockets import READ_SIZE, close_without_loop, set_transport_read_size


class DialObserver(Protocol):
    """Observes the new connections that are opened for one request. A pooled connection is not reported.

    Each `begun` is followed by one `ended`. There is more than one pair if a redirect leads to another host, or if a
    stale connection is replaced.
    """

    def begun(self) -> None:
        """A new connection begins to be opened, with the look-up of its host."""

    def ended(self, connected: bool) -> None:
        """It is open, proxy and TLS included, and the request is written next; or it failed, or was given up."""


class Dialler(DialObserver, Protocol):
    """A request that needs a connection.

    Attributes:
        dialled: Whether a new connection was begun for it. Its sender says False before each sending.
        sent_on: The connection that it is sent on, as aiohttp's protocol and asyncio's transport; None before.
    """

    dialled: bool
    sent_on: tuple[Any, asyncio.Transport | None] | None


class Connector(aiohttp.TCPConnector):
    """aiohttp's pool, without connections on which bytes have come that nobody asked for.

    aiohttp would take such bytes for the response to the next request: one caller would get the answer meant for
    another.

    It reports new connections to the request they are opened for. aiohttp's `TraceConfig` would not do: it does not
    report the end of one that fails or is given up, and each request would await its signals, on a pooled connection
    too.

    Args:
        diallers: See below.
        running_loop: The running event loop.
        **options: Those of `aiohttp.TCPConnector`.

    Attributes:
        diallers: The request that each task sends.
    """

    def __init__(
        self,
        diallers: Mapping[asyncio.Task[Any] | None, Dialler],
        running_loop: asyncio.AbstractEventLoop,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.diallers = diallers
        self._running_loop = running_loop  # the look-up takes longer than that of the task

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """Returns a connection on which nothing has come yet."""
        dialler = self.diallers[asyncio.current_task(self._running_loop)]
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None or not protocol.should_close or dialler.dialled:
                dialler.sent_on = protocol, connection.transport
                return connection
            connection.close()

    # Private. If aiohttp renames it, every connection is taken for a pooled one, and tests fail.
    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Any:
        dialler = self.diallers[asyncio.current_task(self._running_loop)]
        connected = False
        dialler.begun()
        try:
            connection = await super()._create_connection(req, traces, timeout)
            # Now, because a whole response mostly comes in one read, and the connection is back in the pool with it.
            set_transport_read_size(connection.transport, READ_SIZE)
            connected = True
        finally:
            dialler.ended(connected)
        return connection


def abort_connections(session: aiohttp.ClientSession) -> None:
    """Closes all connections of a session at once.

    aiohttp would wait until a server that has stopped reading has taken the rest of a large request. And asyncio's TLS
    transports raise AttributeError when they are closed twice, which would leave the others open.
    """
    for protocol in _protocols(session.connector):
        if protocol.transport is not None:
            protocol.transport.abort()


def give_up(session: aiohttp.ClientSession, *, loop_closed: bool) -> None:
    """Closes a session without waiting; also one whose loop is gone, when aiohttp would leave its sockets open."""
    connector = session.connector
    if connector is None:
        return
    if loop_closed:
        for protocol in _protocols(connector):
            if protocol.transport is not None:  # else it is just being opened
                close_without_loop(protocol)
    else:
        abort_connections(session)
    session.detach()
    with contextlib.suppress(RuntimeError):
        connector._close()  # noqa: SLF001 - the part of close() that needs no loop


def _protocols(connector: aiohttp.BaseConnector | None) -> list[Any]:
    """Returns aiohttp's protocols of all connections: those in the pool, and those in use."""
    # Private, so asked for with defaults: without them aiohttp closes the connections in its own time.
    pooled: Mapping[Any, Any] = getattr(connector, "_conns", {})
    acquired: Iterable[Any] = getattr(connector, "_acquired", ())
    return [*(protocol for connections in pooled.values() for protocol, _ in connections), *acquired]
