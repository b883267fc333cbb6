"""`Transport`: sends an `HTTPRequest` and returns the head of its response, whatever happens on the way.

Connections, deadlines, redirects and stale connections are handled here, and every exception of aiohttp becomes one of
this package. The body of a response is the business of `http.response`.

This module is imported on the first request, because aiohttp takes 100 ms to import.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import ssl as ssl_module
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from together_async.errors import APIConnectionError, APITimeoutError, unsent
from together_async.http.connector import Connector, Dialler, DialObserver, abort_connections, give_up
from together_async.http.deadlines import Deadline, Deadlines
from together_async.http.errors import NO_DESCRIPTOR, ClientClosedError, DescriptorsExhaustedError, is_exhaustion
from together_async.http.headers import merged
from together_async.http.proxies import proxy_options
from together_async.http.response import HTTPResponse, describe
from together_async.http.sockets import READ_SIZE, close_without_loop, make_socket, set_read_size
from together_async.tasks import drop_hold, handed_over, hold
from together_async.timeouts import Due, Timeouts, due, earliest
from together_async.wire.http_request import HTTPRequest
from together_async.wire.redaction import redact

BUFFER_SIZE: Final = 65_536
"""Bytes of a body that aiohttp keeps for a slow reader; at twice that it stops reading the socket."""
STALE_SECONDS: Final = 1.0
"""A connection was stale only if its request failed within this many seconds."""
CLOSE_SECONDS: Final = 2.0
"""How long a session may take to close: its connections are aborted before, so it waits for nobody."""
KEEPALIVE_SECONDS: Final = 30.0
"""How long an idle connection stays in the pool."""
MAX_HEADER_SIZE: Final = 65_536
_MAX_AT_ONCE: Final = 1_048_576
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 307, 308})
"""The redirects that are followed. 303 asks for a GET, which can't answer a chat request, so it stays a status."""
_KEEP_AFTER_REDIRECT: Final = frozenset({"accept", "accept-encoding", "content-type", "user-agent"})


def _always() -> bool:
    return True


class Abortable(Protocol):
    """Something under way that can be ended from outside."""

    def abort(self, failure: APIConnectionError) -> None:
        """Makes the coroutine that waits for it raise `failure`."""


class Opening(Deadline):
    """A request that is being sent: a deadline for the task that sends it, like `asyncio.timeout_at` at less cost.

    Args:
        deadlines: The deadlines of the running loop; the request's own is added by whoever makes it.
        at: When the head must have come, on the loop's clock; infinity for never.
        latest: When the whole call must have ended.
        loop: The running event loop; None looks it up.
        connect_s: Seconds for each new connection; None for no limit.
        dial: Observes them; None for nobody.

    Attributes:
        expired: Whether the task was cancelled from here.
        failure: Why, if it was not the deadline.
        attempts: HTTP requests made so far.
        task: The task that sends it.
        dialled: Whether a new connection was begun for the last of them.
        sent_on: The connection of the last of them, in a session of ours, as aiohttp's protocol and asyncio's
            transport; None before it has one.
    """

    __slots__ = (
        "_cancelling",
        "_connect_s",
        "_connecting",
        "_deadlines",
        "_dial",
        "_open",
        "attempts",
        "dialled",
        "expired",
        "failure",
        "sent_on",
        "task",
    )

    def __init__(
        self,
        deadlines: Deadlines,
        at: float,
        latest: float = math.inf,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        connect_s: float | None = None,
        dial: DialObserver | None = None,
    ) -> None:
        super().__init__(at, latest)
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - in a coroutine
        self.task = task
        self._cancelling = task.cancelling()
        self._open = True
        self.expired = False
        self.failure: APIConnectionError | None = None
        self.attempts = 0
        self.dialled = False
        self.sent_on: tuple[Any, asyncio.Transport | None] | None = None
        self._deadlines = deadlines
        self._connect_s = connect_s
        self._connecting: Connecting | None = None
        self._dial = dial

    def begun(self) -> None:
        """A new connection begins to be opened."""
        self.dialled = True
        if self._connect_s is not None:
            self._connecting = Connecting(self, self._connect_s, self._deadlines.time())
            self._deadlines.add(self._connecting)
        if self._dial is not None:
            self._dial.begun()

    def ended(self, connected: bool) -> None:
        """It is open, or has failed."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            self._deadlines.discard(connecting)
        if self._dial is not None:
            self._dial.ended(connected)

    def abort(self, failure: APIConnectionError) -> None:
        """Makes the waiting call raise `failure`."""
        if self._open and not self.expired:
            self.failure = failure
            self.expire()

    def expire(self) -> None:
        """Cancels the task, unless it has its response, or was cancelled from here already."""
        if self._open and not self.expired:  # the client may be closed in the very turn of the loop
            self.expired = True
            self.task.cancel()

    def drop_connection(self, loop: asyncio.AbstractEventLoop) -> None:
        """Closes its connection, which aiohttp would do once all of a large request is sent: perhaps never."""
        if self.sent_on is None:
            return
        protocol, transport = self.sent_on
        if loop.is_closed():
            close_without_loop(protocol, transport)
        elif transport is not None:
            transport.abort()

    def end(self, error: BaseException | None) -> bool:
        """Ends the wait; returns whether `error` is the cancellation from here, and not somebody else's."""
        was_open, self._open = self._open, False
        if not was_open or not self.expired:
            return False
        return self.task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)


class Connecting(Deadline):
    """A new connection that is being opened for a request: `Timeouts.connect`, from the look-up of the host to TLS.

    aiohttp's own limit would take no second look, and its options would differ from call to call.
    """

    __slots__ = ("_opening", "_seconds")

    def __init__(self, opening: Opening, seconds: float, now: float) -> None:
        super().__init__(now + seconds, opening.latest)
        self._opening = opening
        self._seconds = seconds

    def expire(self) -> None:
        """Ends the request."""
        self._opening.abort(APITimeoutError(phase="connect", seconds=self._seconds))


class Transport:
    """The connections of one client in one event loop.

    Args:
        base_url: The API's root, without a slash at its end.
        headers: Sent with every request; the key is one of them.
        session: The caller's own session, which is used as it is and never closed; None opens one.
        ssl: TLS settings for a session of ours; None verifies as usual.
        proxy: The proxy for a session of ours; None follows HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
        secret: The key, which must not appear in any text.

    Attributes:
        loop: The event loop.
        responses: The responses that are open.
        openings: The requests, and the calls, that have no response yet.
        closed: Whether nothing more is sent.
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
        self._diallers: dict[asyncio.Task[Any] | None, Dialler] = {}
        self._deadlines = Deadlines(self.loop)
        self._options: dict[str, Any] = {}
        self._urls: dict[str, URL] = {}
        self.responses: set[HTTPResponse] = set()
        self.openings: set[Abortable] = set()
        self.closed = False
        # aiohttp's own finalizers close what they find open, wherever the garbage collector runs.
        hold(self.loop, self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.responses)} responses open, {len(self.openings)} opening"
        return f"<Transport {self._base.host} {state}>"

    # --------------------------------------------------------------------------------------------------------- opening

    async def open(
        self,
        request: HTTPRequest,
        *,
        headers: Mapping[str, str] | None,
        timeouts: Timeouts,
        started: float,
        sent: float | None = None,
        may_replace: Callable[[], bool] = _always,
        on_opening: Callable[[Opening], None] | None = None,
        dial: DialObserver | None = None,
    ) -> HTTPResponse:
        """Sends a request and returns its response as soon as the head is there, whatever its status.

        Args:
            request: What to send.
            headers: Added to, or in place of, the client's.
            timeouts: The call's limits.
            started: When the call began, on the event loop's clock.
            sent: When this attempt began; None for the same.
            may_replace: Asked when a pooled connection turns out to be stale: whether the request is sent on another.
            on_opening: Called with what can end the wait for the response, once there is such a wait.
            dial: Observes the new connections that are opened for the request; None, and a session of the caller's,
                report nothing.

        Raises:
            APITimeoutError: `connect`, `first_token` or `total` ran out.
            DescriptorsExhaustedError: No connection could be opened for want of a file descriptor; not an attempt.
            APIConnectionError: Refused, reset, TLS failure, too many redirects, client closed.
        """
        if self.closed:
            raise unsent(ClientClosedError("the client is closed; make a new one"))
        sent = started if sent is None else sent
        first_token_at = math.inf if timeouts.first_token is None else sent + timeouts.first_token
        total_at = math.inf if timeouts.total is None else started + timeouts.total
        opening = Opening(
            self._deadlines,
            min(first_token_at, total_at),
            total_at,
            loop=self.loop,
            connect_s=timeouts.connect,
            dial=dial,
        )
        self._deadlines.add(opening)
        self.openings.add(opening)
        if on_opening is not None:
            on_opening(opening)
        self._diallers[opening.task] = opening
        try:
            url, fields = self._url(request.path), self._headers if not headers else merged(self._headers, headers)
            response = await self._dispatch(request, url, fields, timeouts, opening, may_replace=may_replace)
            if response.status in _REDIRECTS:
                response = await self._follow(response, request, fields, timeouts, opening, may_replace=may_replace)
            opening.end(None)
            self._check_still_open(response)
        except BaseException as error:
            opening.drop_connection(self.loop)
            if self.loop.is_closed():
                raise GeneratorExit from error  # it is destroyed; asyncio's complaints about the loop interest nobody
            caught = TimeoutError() if opening.end(error) else error
            if not isinstance(caught, Exception):
                raise  # cancelled by somebody else
            failure = self._open_error(caught, opening, timeouts, started=started, sent=sent)
            raise failure from (None if failure is caught else caught)
        finally:
            self.openings.discard(opening)
            self._deadlines.discard(opening)
            del self._diallers[opening.task]
        set_read_size(response, READ_SIZE)
        opened = HTTPResponse(
            response, timeouts=timeouts, started=started, sent=sent, live=self.responses, loop=self.loop
        )
        opened.attempts = opening.attempts
        return opened

    def _check_still_open(self, response: aiohttp.ClientResponse) -> None:
        """The client may have been closed in the very turn in which the head came."""
        if self.closed:
            response.close()
            raise ClientClosedError("the client was closed while this was under way")

    def _open_error(
        self, error: Exception, opening: Opening, timeouts: Timeouts, *, started: float, sent: float
    ) -> APIConnectionError:
        """Returns the error of this package for a request without a response."""
        failure: APIConnectionError
        deadline: Due | None = None  # the one that has passed
        if opening.expired:
            deadline = earliest(due("first_token", timeouts.first_token, sent), due("total", timeouts.total, started))
        if opening.failure is not None:
            failure = opening.failure
        elif isinstance(error, TimeoutError) and deadline is not None:
            failure = APITimeoutError(phase=deadline.phase, seconds=deadline.seconds)
        elif isinstance(error, TimeoutError) and timeouts.connect is not None:
            # aiohttp's, in a session of the caller's.
            failure = APITimeoutError(phase="connect", seconds=timeouts.connect)
        elif isinstance(error, APIConnectionError):
            failure = error
        else:
            exhausted = isinstance(error, aiohttp.ClientConnectorError) and is_exhaustion(error)
            remedy = f"; {NO_DESCRIPTOR}" if exhausted else ""
            cls = DescriptorsExhaustedError if exhausted else APIConnectionError
            failure = cls(redact(f"no response from {self._base.origin()}: {describe(error)}{remedy}", (self._secret,)))
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            failure.transient = False
        failure.attempts = opening.attempts
        if isinstance(failure, DescriptorsExhaustedError):
            failure.attempts -= 1  # there was no connection to send this one on
        return failure

    async def _follow(
        self,
        response: aiohttp.ClientResponse,
        request: HTTPRequest,
        sent: CIMultiDict[str],
        timeouts: Timeouts,
        opening: Opening,
        *,
        may_replace: Callable[[], bool],
    ) -> aiohttp.ClientResponse:
        """Follows redirects. The key, and all that the caller's headers hold, goes to no other origin."""
        url = self._url(request.path)
        followed = 0
        while (location := response.headers.get("Location")) and response.status in _REDIRECTS:
            try:
                target = url.join(URL(location))
            except ValueError:
                response.close()
                raise _permanent("redirected to something that is not a URL; check base_url") from None
            if target.scheme not in ("http", "https") or not target.host:
                response.close()
                raise _permanent(f"redirected to {target.scheme or 'no'} scheme, expected http or https")
            if target.origin() != url.origin():
                if not self._may_leave_for(target, url):
                    return response
                sent = CIMultiDict((k, v) for k, v in sent.items() if k.lower() in _KEEP_AFTER_REDIRECT)
            response.close()
            if followed == _MAX_REDIRECTS:
                raise _permanent(f"redirected more than {_MAX_REDIRECTS} times; check base_url")
            url, followed = target.with_user(None), followed + 1
            response = await self._dispatch(request, url, sent, timeouts, opening, may_replace=may_replace)
        return response

    def _may_leave_for(self, target: URL, url: URL) -> bool:
        """Whether a redirect to another origin is followed; if not, its status is the answer.

        It is not followed from https to http, where anybody could read the prompt, nor with a session of the caller's
        that adds headers or credentials of its own to every request.
        """
        if target.scheme != "https" and url.scheme == "https":
            return False
        session = self._session
        return self._owned or session is None or not (session.headers or session.auth)

    async def _dispatch(
        self,
        request: HTTPRequest,
        url: URL,
        headers: CIMultiDict[str],
        timeouts: Timeouts,
        opening: Opening,
        *,
        may_replace: Callable[[], bool],
    ) -> aiohttp.ClientResponse:
        """Sends, and sends again at once when a pooled connection turns out to have been closed by the server."""
        session, options = self._open_session(timeouts.connect)
        if "proxy_headers" in options and url.scheme == "http":
            # aiohttp sends these with CONNECT alone; without TLS the proxy reads the request itself.
            headers = merged(headers, options["proxy_headers"])
        posts = request.method == "POST"
        opening.attempts += 1
        opening.dialled = False
        sent_at = self.loop.time()
        try:
            if posts:
                return await session.post(url, data=_sendable(request.body), headers=headers, **options)
            return await session.get(url, headers=headers, **options)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            # A connector error is a connection that was never made; a message is a response that had begun.
            # Our own sessions know whether the connection came from the pool; for others it has to be assumed.
            # (A reset in the middle of a head looks like one of a stale connection: aiohttp drops what came.)
            if (
                isinstance(error, aiohttp.ClientConnectorError)
                or (isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str))
                or opening.dialled
                # A stale connection fails with the first packet that goes there and back. Later than that the
                # server was at work, and might do and bill the same work twice.
                or self.loop.time() - sent_at > STALE_SECONDS
                or not may_replace()
            ):
                raise
        opening.attempts += 1
        session = self._fresh_session() if self._owned else session
        return await session.request(request.method, url, data=_sendable(request.body), headers=headers, **options)

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = self._base.joinpath(*path.split("/")).with_query(self._base.query)
        return url

    # -------------------------------------------------------------------------------------------------------- sessions

    def _open_session(self, connect_s: float | None) -> tuple[aiohttp.ClientSession, dict[str, Any]]:
        """Returns the session, opened on first use, and the options of its requests."""
        if self._session is None:
            self._session = self._make_session(force_close=False)
        options = self._options = self._options or self._make_options()
        if not self._owned and connect_s is not None:
            # `sock_connect`, because `connect` includes the wait for the session's pool.
            return self._session, {**options, "timeout": aiohttp.ClientTimeout(total=None, sock_connect=connect_s)}
        return self._session, options

    def _make_options(self) -> dict[str, Any]:
        # aiohttp gets no timeouts: its `total` kills long streams, its `sock_read` counts pings, and `Connecting` does
        # what its `connect` would.
        options: dict[str, Any] = {
            "timeout": aiohttp.ClientTimeout(total=None),
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
            options |= proxy_options(self._proxy, self._base)
        return options

    def _fresh_session(self) -> aiohttp.ClientSession:
        """Returns a session that never reuses a connection, for a request whose pooled connection was stale."""
        if self._fresh is None:
            self._fresh = self._make_session(force_close=True)
        return self._fresh

    def _make_session(self, *, force_close: bool) -> aiohttp.ClientSession:
        connector = Connector(
            self._diallers,
            self.loop,
            limit=0,  # the limiter decides how much runs at once; a limit of the pool would be a silent queue
            force_close=force_close,
            ssl=self._ssl if self._ssl is not None else True,
            socket_factory=make_socket,
            # aiohttp takes a keepalive_timeout of None, and only that, together with force_close.
            keepalive_timeout=None if force_close else KEEPALIVE_SECONDS,
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)
        )

    # --------------------------------------------------------------------------------------------------------- closing

    def abort_all(self) -> None:
        """Ends everything under way with a typed error."""
        self.closed = True
        self._deadlines.close()
        under_way: tuple[Abortable, ...] = (*self.openings, *self.responses)
        for waiting in under_way:
            waiting.abort(ClientClosedError("the client was closed while this was under way"))

    async def aclose(self) -> None:
        """Ends everything under way and closes the sessions that are ours. Twice is fine."""
        self.abort_all()
        drop_hold(self.loop, self)
        # Closing a session does not wake the readers of its responses, so the responses are closed first.
        sessions = tuple(self._own_sessions())
        try:
            for session in sessions:
                abort_connections(session)
                with contextlib.suppress(Exception):  # asyncio's TLS transports raise when they are closed twice
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await session.close()
            # asyncio closes the socket of a transport two turns later (TLS: one for each half). If the loop ended right
            # after this, the socket would be left to the garbage collector, with a warning.
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            for session in sessions:
                if not session.closed:  # cancelled before its turn came
                    give_up(session, loop_closed=False)
            self._session = self._fresh = None

    def discard(self) -> None:
        """Closes everything without waiting: the event loop is gone, or the client was never closed."""
        if handed_over(self.loop, self.discard):
            return
        self.closed = True
        self._deadlines.close()
        drop_hold(self.loop, self)
        for response in tuple(self.responses):
            response.close()
        for session in self._own_sessions():
            give_up(session, loop_closed=self.loop.is_closed())
        self._session = self._fresh = None

    def _own_sessions(self) -> Iterator[aiohttp.ClientSession]:
        return (s for s in ((self._session if self._owned else None), self._fresh) if s is not None)

    @property
    def holds_resources(self) -> bool:
        """Whether a session of ours is open, and somebody has to close it."""
        return not self.closed and any(not session.closed for session in self._own_sessions())


def _permanent(message: str) -> APIConnectionError:
    """Returns an error that another attempt would meet again."""
    error = APIConnectionError(message)
    error.transient = False
    return error


def _sendable(body: bytes) -> bytes | io.BytesIO:
    """Returns a body as aiohttp wants it: a large one as a file, which it sends in pieces; bytes would make it warn."""
    return body if len(body) <= _MAX_AT_ONCE else io.BytesIO(body)
