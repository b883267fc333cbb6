"""aiohttp in, `HTTPRequest` out: connections, timeouts, redirects, and every foreign exception mapped to ours.

This module is imported on the first request, because aiohttp takes 100 ms to import.

Timers: a call that is being opened runs under one `asyncio.timeout_at`; a response that is being read has one timer,
which looks at a stamp when it fires and sets itself anew. There is none per token.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl as ssl_module
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from together_async._version import __version__
from together_async.errors import APIConnectionError, APIResponseValidationError, APITimeoutError
from together_async.protocol import HTTPRequest, InflationError, redact
from together_async.secret import Secret
from together_async.timeouts import Due, Timeouts, due, earliest

READ_SIZE: Final = 65_536
"""Bytes per read of a socket. asyncio's own 262,144 is above malloc's mmap threshold: a system call, a page fault and
another system call for every token that arrives alone, a fifth of all its cost."""
BULK_READ_SIZE: Final = 262_144
"""The same while every read is full: then fewer reads are worth more."""
BUFFER_SIZE: Final = 262_144
"""Bytes of a body that aiohttp keeps for a reader who is slow, before it stops reading the socket (at twice that)."""
TLS_READ_SIZE: Final = 32_768
"""The same for TLS, where asyncio keeps a buffer of that size for every connection; a TLS record has 16 KiB."""
KEEPALIVE_SECONDS: Final = 30.0
"""How long an idle connection stays in the pool."""
MAX_HEADER_SIZE: Final = 65_536
MAX_BODY_SIZE: Final = 64 * 1024 * 1024
"""Most bytes of a whole response."""
MAX_ERROR_BODY_SIZE: Final = 256 * 1024
ERROR_BODY_SECONDS: Final = 5.0
"""How long an error's body may take; its status is known, so what came by then has to do."""
DRAIN_SECONDS: Final = 1.0
"""How long a stream that said `[DONE]` may take to end its body before its connection is closed instead of reused."""
_INFLATE_FREE: Final = 4 * 1024 * 1024
_INFLATE_RATIO: Final = 100
"""A compressed body may be this many times its size once it is above `_INFLATE_FREE`. JSON reaches 20, bombs 1,000."""
_BYTES_PER_TURN: Final = 65_536
"""Bytes which a reader may take before the event loop gets its turn: aiohttp inflates a body, and has it ready, for as
long as somebody reads, so that bytes without content (pings) would keep everybody else waiting."""
_MAX_REDIRECTS: Final = 5
_KEEP_AFTER_REDIRECT: Final = frozenset({"accept", "accept-encoding", "content-type", "user-agent"})

_dialled: ContextVar[list[bool] | None] = ContextVar("_dialled", default=None)
"""Set while a request is being sent: the socket factory appends when that request opens a connection of its own."""


class ClientClosedError(APIConnectionError):
    """The client was closed; make a new one, or close it later."""


class Exchange:
    """One HTTP response on its way in: its head, its bytes, its deadlines.

    `read` raises `APITimeoutError` or `APIConnectionError`; what they mean for a stream is the stream's business.
    """

    __slots__ = (
        "__weakref__",
        "_armed",
        "_bulk",
        "_failure",
        "_left",
        "_live",
        "_loop",
        "_plain",
        "_progress",
        "_response",
        "_since",
        "_taken",
        "_timeouts",
        "_timer",
        "_total",
        "_waiting",
        "attempts",
    )

    def __init__(
        self, response: aiohttp.ClientResponse, *, timeouts: Timeouts, started: float, live: set[Exchange]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._response = response
        self._timeouts = timeouts
        self._total = due("total", timeouts.total, started)
        self._since = started  # when the silence began, had the reader been waiting ever since
        self._left = self._loop.time()  # when the reader last went away
        self._progress = 0
        self._taken = 0  # inflated bytes since the event loop's last turn; aiohttp inflates on without one
        self._plain = "Content-Encoding" not in response.headers
        self._bulk = False  # bytes come faster than they are read
        self._waiting = False
        self._armed = False  # the timer is set for a silence, not just for the whole call
        self._failure: APIConnectionError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._live = live
        self.attempts = 1
        live.add(self)
        self._watch()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "waiting" if self._waiting else "open"
        return f"<Exchange {self.status} {state}>"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, names in lower case; of a repeated one the values joined by a comma."""
        headers: dict[str, str] = {}
        for name, value in self._response.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        return headers

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; empty when the response names none."""
        value: str = self._response.headers.get("Content-Type", "")
        return value.partition(";")[0].strip().lower()

    @property
    def closed(self) -> bool:
        """Whether nothing more can be read."""
        return self._response.closed

    # ------------------------------------------------------------------------------------------------------- deadlines

    def _due(self) -> Due | None:
        """What is late first. Silence counts while somebody waits; the whole call's deadline counts always."""
        if not self._waiting:
            return self._total
        if self._progress == 0:
            return earliest(due("first_token", self._timeouts.first_token, self._since), self._total)
        return earliest(due("idle", self._timeouts.idle, self._since), self._total)

    def _watch(self) -> None:
        """Sets the timer for what is late first. It stays set while chunks come, and then looks again."""
        self._drop_timer()
        self._armed = self._waiting
        late = self._due()
        if late is None:
            return
        # The loop's clock may fire a timer up to its resolution early.
        if late.at <= self._loop.time() + 0.001:
            self.abort(APITimeoutError(phase=late.phase, seconds=late.seconds))
        else:
            self._timer = self._loop.call_at(late.at, self._watch)

    # --------------------------------------------------------------------------------------------------------- reading

    async def read(self, progress: int) -> bytes:
        """Returns the next bytes of the body, at least one; empty at its end.

        Args:
            progress: A count that grows with what was generated. Unless it grew since the last call, the silence
                goes on, however many bytes came.

        Raises:
            APITimeoutError: Late; `.phase` says for what. The connection is closed.
            APIConnectionError: Lost, or the client was closed.
            RuntimeError: Somebody else is reading; nothing happens to them.
        """
        if self._taken > _BYTES_PER_TURN:
            self._taken = 0
            await asyncio.sleep(0)
        if self._failure is not None:
            raise self._failure
        if self._waiting:
            raise RuntimeError("two tasks read one stream at the same time; let one of them read")
        now = self._loop.time()
        if progress != self._progress:
            # Something was generated: the silence begins now, and after the first token it has another limit.
            self._armed = self._armed and self._progress > 0
            self._progress = progress
            self._since = now
        else:
            self._since += now - self._left  # the reader's own time is not the server's silence
        self._waiting = True
        content = self._response.content
        try:
            if not self._armed:
                self._watch()
            data = await (content.readany() if self._plain else content.read(_BYTES_PER_TURN))
        except Exception as error:  # noqa: BLE001 - whatever aiohttp raises here, the connection is gone
            return self._rescue(error)
        finally:
            self._waiting = False
            self._left = self._loop.time()
        if (len(data) >= READ_SIZE) is not self._bulk:
            self._bulk = not self._bulk
            _set_read_size(self._response, BULK_READ_SIZE if self._bulk else READ_SIZE)
        if not self._plain and data and content.total_compressed_bytes is not None:
            self._taken += len(data)
            self._check_inflation(content.total_bytes, content.total_compressed_bytes)
        return data

    def _rescue(self, error: Exception) -> bytes:
        """Returns what had arrived before the connection broke; aiohttp raises first and would drop it."""
        failure = self._failure
        if failure is None:
            failure = self._failure = _connection_error(error, self._response)
            failure.attempts = self.attempts
        content = self._response.content
        # Private, so asked for with a default: without it the bytes are lost, and the error still tells the truth.
        buffered = getattr(content, "_buffer", None)
        if buffered:
            offset = getattr(content, "_buffer_offset", 0)
            data = b"".join(buffered)[offset:]
            buffered.clear()
            if data:
                return data
        raise failure from (None if failure is error else error)

    async def read_all(self, limit: int = MAX_BODY_SIZE) -> bytes:
        """Returns the whole body.

        Raises:
            APIResponseValidationError: Longer than `limit`, or inflating beyond reason.
            APITimeoutError, APIConnectionError: As `read` does.
        """
        pieces: list[bytes] = []
        size = 0
        try:
            while data := await self.read(size):
                pieces.append(data)
                size += len(data)
                if size > limit:
                    self.close()
                    raise APIResponseValidationError(
                        f"got a body of more than {size} bytes, expected at most {limit}; if it is no attack, stream it"
                    )
        except InflationError as error:
            raise APIResponseValidationError(str(error)) from error
        return b"".join(pieces)

    def _check_inflation(self, size: int, compressed: int) -> None:
        limit = max(_INFLATE_FREE, _INFLATE_RATIO * compressed)
        if size > limit:
            failure = InflationError(
                f"got {size} bytes out of {compressed} compressed ones, expected at most {limit}; likely an attack"
            )
            self.abort(failure)
            raise failure

    async def read_error_body(self) -> bytes:
        """Returns what can be had of an error's body: its status counts, so no failure of the body may hide it."""
        pieces: list[bytes] = []
        size = 0
        with contextlib.suppress(APIConnectionError, TimeoutError):
            async with asyncio.timeout(ERROR_BODY_SECONDS):
                while size < MAX_ERROR_BODY_SIZE and (data := await self.read(size)):
                    pieces.append(data)
                    size += len(data)
        self.close()
        return b"".join(pieces)[:MAX_ERROR_BODY_SIZE]

    # --------------------------------------------------------------------------------------------------------- leaving

    def release_soon(self) -> None:
        """Ends reading after the body's last useful byte, without waiting for its end.

        The end of the body is usually here already or a moment away, and a connection whose body has ended goes back
        to the pool. aiohttp does that by itself when the end arrives; a timer closes the connection when it does not.
        """
        if self.closed:
            self.close()
            return
        self._drop_timer()
        self._response.content.on_eof(self._forget)
        self._timer = self._loop.call_later(DRAIN_SECONDS, self.close)

    def abort(self, failure: APIConnectionError) -> None:
        """Closes the connection; a `read` that waits now, and every later one, raises `failure`."""
        if self._failure is None:
            self._failure = failure
            failure.attempts = self.attempts
        # Wakes the reader; closing alone leaves it waiting for ever.
        self._response.content.set_exception(failure)
        self.close()

    def close(self) -> None:
        """Closes the connection at once, unless the body has ended and it is back in the pool. Twice is fine."""
        self._forget()
        connection = self._response.connection
        if connection is not None and self._loop.is_closed():
            _bury(connection.protocol)
            connection.close()
        elif connection is not None and connection.transport is not None:
            connection.transport.abort()  # closing alone waits for the farewell of a TLS peer
        self._response.close()

    def _forget(self) -> None:
        self._drop_timer()
        self._armed = False
        self._live.discard(self)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Connector(aiohttp.TCPConnector):
    """Gives no pooled connection on which bytes have come that nobody asked for.

    aiohttp would take them for the response to the next request: one caller would get the answer meant for another.
    """

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if _dialled.get() or protocol is None or not protocol.should_close:
                return connection
            connection.close()


class Opening:
    """A request being sent, as `Transport.aclose` sees it."""

    __slots__ = ("_scope", "failure")

    def __init__(self, scope: asyncio.Timeout) -> None:
        self._scope = scope
        self.failure: APIConnectionError | None = None

    def abort(self, failure: APIConnectionError) -> None:
        """Makes the waiting call raise `failure`."""
        self.failure = failure
        with contextlib.suppress(RuntimeError):  # it has expired or ended already
            self._scope.reschedule(asyncio.get_running_loop().time())


class Transport:
    """Connections of one client in one event loop.

    Args:
        base_url: The API's root, without a slash at its end.
        headers: Sent with every request; the key is one of them.
        session: The caller's own session, which is used as it is and never closed; None opens one.
        ssl: TLS settings for a session of ours; None verifies as usual.
        proxy: Proxy for a session of ours; None follows HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
        secret: What must not appear in a text.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        session: aiohttp.ClientSession | None = None,
        ssl: ssl_module.SSLContext | None = None,
        proxy: str | None = None,
        secret: str = "",
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._base = URL(base_url)
        self._headers: CIMultiDict[str] = CIMultiDict(headers)
        self._session = session
        self._owned = session is None
        self._ssl = ssl
        self._proxy = proxy
        self._secret = secret
        self._fresh: aiohttp.ClientSession | None = None
        self._options: dict[str, Any] = {}
        self._urls: dict[str, URL] = {}
        self._client_timeouts: dict[float | None, aiohttp.ClientTimeout] = {}
        self.exchanges: set[Exchange] = set()
        self.openings: set[Opening] = set()
        self.closed = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.exchanges)} responses open, {len(self.openings)} opening"
        return f"<Transport {self._base.host} {state}>"

    # --------------------------------------------------------------------------------------------------------- opening

    async def open(
        self, request: HTTPRequest, *, headers: Mapping[str, str] | None, timeouts: Timeouts, started: float
    ) -> Exchange:
        """Sends a request and returns its response as soon as the head is there, whatever its status.

        Args:
            request: What to send.
            headers: Added to, or in place of, the client's.
            timeouts: The call's limits.
            started: When the call began, on the event loop's clock.

        Raises:
            APITimeoutError: `connect`, `first_token` or `total` ran out.
            APIConnectionError: Refused, reset, TLS failure, too many redirects, client closed.
        """
        if self.closed:
            closed = ClientClosedError("the client is closed; make a new one")
            closed.attempts = 0
            raise closed
        late = earliest(due("first_token", timeouts.first_token, started), due("total", timeouts.total, started))
        attempts = [0]
        scope = asyncio.timeout_at(None if late is None else late.at)
        opening = Opening(scope)
        self.openings.add(opening)
        try:
            async with scope:
                response = await self._send(request, headers, timeouts, attempts)
        except Exception as error:  # noqa: BLE001 - every foreign exception becomes one of ours
            failure = self._open_error(error, opening, late if scope.expired() else None, timeouts, attempts[0])
            raise failure from (None if failure is error else error)
        finally:
            self.openings.discard(opening)
        exchange = Exchange(response, timeouts=timeouts, started=started, live=self.exchanges)
        exchange.attempts = attempts[0]
        _set_read_size(response, READ_SIZE)
        return exchange

    def _open_error(
        self, error: Exception, opening: Opening, late: Due | None, timeouts: Timeouts, attempts: int
    ) -> APIConnectionError:
        failure: APIConnectionError
        if opening.failure is not None:
            failure = opening.failure
        elif isinstance(error, TimeoutError) and late is not None:
            failure = APITimeoutError(phase=late.phase, seconds=late.seconds)
        elif isinstance(error, TimeoutError) and timeouts.connect is not None:
            failure = APITimeoutError(phase="connect", seconds=timeouts.connect)
        elif isinstance(error, APIConnectionError):
            failure = error
        else:
            failure = APIConnectionError(
                redact(f"no response from {self._base.origin()}: {_said(error)}", (self._secret,))
            )
        failure.attempts = attempts
        return failure

    async def _send(
        self, request: HTTPRequest, headers: Mapping[str, str] | None, timeouts: Timeouts, attempts: list[int]
    ) -> aiohttp.ClientResponse:
        """Follows redirects. The key, and whatever else the caller's headers hold, stays at the origin it is for."""
        url = self._url(request.path)
        sent = self._headers if not headers else _merged(self._headers, headers)
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._post(url, request.body, sent, timeouts, attempts)
            location = response.headers.get("Location")
            # 303 asks for a GET, which is no answer to a chat request: it is left to the caller as a status.
            if response.status not in (301, 302, 307, 308) or not location:
                return response
            target = url.join(URL(location))
            if target.scheme not in ("http", "https") or not target.host:
                response.close()
                raise APIConnectionError(f"redirected to {target.scheme or 'no'} scheme, expected http or https")
            if target.origin() != url.origin():
                if not self._may_leave_for(target, url):
                    return response
                sent = CIMultiDict((k, v) for k, v in sent.items() if k.lower() in _KEEP_AFTER_REDIRECT)
            response.close()
            url = target.with_user(None)
        raise APIConnectionError(f"redirected more than {_MAX_REDIRECTS} times; check base_url")

    def _may_leave_for(self, target: URL, url: URL) -> bool:
        """Whether a redirect to another origin is followed; if not, its status is the answer.

        Not from https to http, where everybody could read the prompt, and not with a session of the caller's that
        adds headers or credentials of its own to every request.
        """
        if target.scheme != "https" and url.scheme == "https":
            return False
        session = self._session
        return self._owned or session is None or not (session.headers or session.auth)

    async def _post(
        self, url: URL, body: bytes, headers: CIMultiDict[str], timeouts: Timeouts, attempts: list[int]
    ) -> aiohttp.ClientResponse:
        """Sends, and sends again at once when a pooled connection turns out to have been closed by the server."""
        session = self._open_session()
        if url.scheme == "http" and (credentials := self._options.get("proxy_headers")):
            # aiohttp sends these with CONNECT alone; without TLS the proxy reads the request itself.
            headers = _merged(headers, credentials)
        dialled: list[bool] = []
        token = _dialled.set(dialled)
        attempts[0] += 1
        try:
            return await session.post(
                url, data=body, headers=headers, timeout=self._client_timeout(timeouts), **self._options
            )
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            # A connector error is a connection that was never made; a message is a response that had begun.
            # Our own sessions know whether the connection was a pooled one; of others it has to be assumed.
            # (A reset in the middle of a head can't be told from a stale connection's: aiohttp drops what had come.)
            if (
                isinstance(error, aiohttp.ClientConnectorError)
                or (isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str))
                or (self._owned and dialled)
            ):
                raise
        finally:
            _dialled.reset(token)
        attempts[0] += 1
        session = self._fresh_session() if self._owned else session
        return await session.post(
            url, data=body, headers=headers, timeout=self._client_timeout(timeouts), **self._options
        )

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = self._base.joinpath(*path.split("/")).with_query(self._base.query)
        return url

    def _client_timeout(self, timeouts: Timeouts) -> aiohttp.ClientTimeout:
        """Leaves aiohttp the connect timeout alone: its `total` kills long streams, its `sock_read` counts pings."""
        value = self._client_timeouts.get(timeouts.connect)
        if value is None:
            value = aiohttp.ClientTimeout(total=None, connect=timeouts.connect)
            self._client_timeouts[timeouts.connect] = value
        return value

    # -------------------------------------------------------------------------------------------------------- sessions

    def _open_session(self) -> aiohttp.ClientSession:
        if not self._options:
            self._options = {
                "allow_redirects": False,
                "raise_for_status": False,
                "auto_decompress": True,
                "read_bufsize": BUFFER_SIZE,
                "max_line_size": MAX_HEADER_SIZE,
                "max_field_size": MAX_HEADER_SIZE,
            }
            if self._owned:
                # trust_env would ask for proxies and .netrc in a worker thread before every request, and let .netrc
                # put another Authorization in place of the key's.
                self._options |= proxy_options(self._proxy, self._base)
        if self._session is None:
            self._session = self._make_session(force_close=False)
        return self._session

    def _fresh_session(self) -> aiohttp.ClientSession:
        """A session that never reuses a connection, for the request whose pooled one was stale."""
        if self._fresh is None:
            self._fresh = self._make_session(force_close=True)
        return self._fresh

    def _make_session(self, *, force_close: bool) -> aiohttp.ClientSession:
        connector = _Connector(
            limit=0,  # the caller decides how much runs at once; a pool's limit below that would be a silent queue
            force_close=force_close,
            ssl=self._ssl if self._ssl is not None else True,
            socket_factory=_make_socket,
            # aiohttp takes a keepalive_timeout of None, and only that, beside force_close.
            keepalive_timeout=None if force_close else KEEPALIVE_SECONDS,
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)
        )

    # --------------------------------------------------------------------------------------------------------- closing

    def abort_all(self) -> None:
        """Ends everything under way with a typed error."""
        self.closed = True
        under_way: tuple[Exchange | Opening, ...] = (*self.exchanges, *self.openings)
        for one in under_way:
            one.abort(ClientClosedError("the client was closed while this was under way"))

    async def aclose(self) -> None:
        """Ends everything under way and closes the sessions that are ours. Twice is fine."""
        self.abort_all()
        # Closing a session does not wake those who read from it, so the responses come first.
        for session in self._own_sessions():
            await session.close()
        # A closed transport lets go of its socket two turns later (TLS: one for each of its halves). Whoever ends the
        # loop right after this would leave that to the garbage collector, and a warning.
        for _ in range(3):
            await asyncio.sleep(0)
        self._session = self._fresh = None

    def discard(self) -> None:
        """Gives everything up without waiting: the event loop is gone, or the client was never closed."""
        self.closed = True
        for exchange in tuple(self.exchanges):
            exchange.close()
        for session in self._own_sessions():
            connector = session.connector
            session.detach()
            if connector is not None:
                _close_sockets(connector, loop_closed=self.loop.is_closed())
        self._session = self._fresh = None

    def _own_sessions(self) -> Iterator[aiohttp.ClientSession]:
        return (s for s in ((self._session if self._owned else None), self._fresh) if s is not None)

    @property
    def holds_resources(self) -> bool:
        """Whether a session of ours is open, which somebody has to close."""
        return not self.closed and any(not session.closed for session in self._own_sessions())


def default_headers(*, api_key: str, extra: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers of every request."""
    headers = {
        "Authorization": Secret(f"Bearer {api_key}"),
        "Content-Type": "application/json",
        # Compression would hold tokens back in the server's and the proxies' compressors.
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"together-async/{__version__}",
    }
    if not api_key:
        del headers["Authorization"]
    return dict(_merged(CIMultiDict(headers), extra))


def _merged(base: Mapping[str, str], extra: Mapping[str, str]) -> CIMultiDict[str]:
    merged = CIMultiDict(base)
    for name, value in extra.items():
        merged[name] = value
    return merged


def proxy_options(proxy: str | None, base: URL) -> dict[str, Any]:
    """Returns aiohttp's arguments for the proxy to use for `base`: the given one, or the environment's."""
    if proxy is None:
        if base.host is None or urllib.request.proxy_bypass(f"{base.host}:{base.port}"):
            return {}
        proxies = urllib.request.getproxies()
        proxy = proxies.get(base.scheme) or proxies.get("all")
    if not proxy:
        return {}
    url = URL(proxy if "://" in proxy else f"http://{proxy}")
    options: dict[str, Any] = {"proxy": url.with_user(None)}
    if url.user is not None:
        credentials = Secret(aiohttp.encode_basic_auth(url.user, url.password or ""))
        options["proxy_headers"] = CIMultiDict({"Proxy-Authorization": credentials})
    return options


def _make_socket(addr_info: Any) -> socket.socket:
    """A socket with TCP keep-alive, which finds out in a minute that a silent peer is dead; also notes the dialling."""
    dialled = _dialled.get()
    if dialled is not None:
        dialled.append(True)
    family, kind, protocol, _, _ = addr_info
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _set_read_size(response: aiohttp.ClientResponse, size: int) -> None:
    """Makes asyncio read this connection in pieces of `size` (see READ_SIZE), or of TLS_READ_SIZE when it is TLS.

    Private attributes of asyncio, so set where they are as expected and left alone elsewhere (uvloop has none).
    """
    connection = response.connection
    transport = None if connection is None else connection.transport
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
        # Between two reads nobody holds the view: asyncio fills it and empties it in one go.
        buffer = bytearray(TLS_READ_SIZE)
        protocol.max_size = TLS_READ_SIZE
        protocol._ssl_buffer = buffer
        protocol._ssl_buffer_view = memoryview(buffer)
        inner = getattr(protocol, "_transport", None)
        if getattr(inner, "max_size", 0) > READ_SIZE:
            inner.max_size = READ_SIZE  # type: ignore[union-attr]  # has the attribute, as just seen


def _close_sockets(connector: aiohttp.BaseConnector, *, loop_closed: bool) -> None:
    """Closes a connector whose loop may be gone: aiohttp would leave the sockets to the garbage collector then."""
    pooled: Mapping[Any, Any] = getattr(connector, "_conns", {})
    protocols = [protocol for connections in pooled.values() for protocol, _ in connections]
    for protocol in protocols:
        if loop_closed:
            _bury(protocol)
        elif protocol.transport is not None:
            protocol.transport.abort()
    with contextlib.suppress(RuntimeError):
        connector._close()  # the part of close() that needs no loop


def _bury(protocol: Any) -> None:
    """Closes a connection whose event loop is closed, by asyncio's own last step, which it would leave undone.

    That step is private, so it is taken where it is there: without it the socket is left to the garbage collector, and
    a warning. Nothing of uvloop's may be touched once its loop is closed; it has closed the socket with the loop.
    """
    transport = getattr(protocol, "transport", None)
    plain = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    with contextlib.suppress(RuntimeError):  # whoever waited for this connection ended with the loop
        end = getattr(plain, "_call_connection_lost", None)
        if end is not None and type(plain).__module__.startswith("asyncio."):
            end(None)
        elif protocol is not None:
            protocol.connection_lost(None)


def _connection_error(error: Exception, response: aiohttp.ClientResponse) -> APIConnectionError:
    return APIConnectionError(f"connection to {response.url.origin()} lost: {_said(error)}")


def _said(error: Exception) -> str:
    """An exception's name and text in one line, at most 300 characters.

    What aiohttp says about broken HTTP ends, after an empty line, with the bytes; they may be anybody's text.
    """
    text = " ".join(re.split(r"\n\s*\n|\\n\\n", str(error))[0].split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
