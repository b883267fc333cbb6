"""`aiohttp_response`: a stream as the response of an aiohttp.web handler."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from together_async.errors import TogetherError
from together_async.relay.browser_errors import error_for_browser, headers_of, status_of
from together_async.relay.events import HEADERS, Format
from together_async.relay.feed import Relayed, feed_of
from together_async.relay.respond import respond
from together_async.relay.session import DEFAULT_HEARTBEAT, OnEnd, RelaySession, check_times
from together_async.relay.shutdown import DEFAULT_GRACE

if TYPE_CHECKING:
    from aiohttp import web

_POLL_S: Final = 0.025


async def aiohttp_response(
    request: web.Request,
    stream: Relayed,
    *,
    format: Format = "chunks",
    ids: bool = True,
    heartbeat: float | None = DEFAULT_HEARTBEAT,
    grace: float = DEFAULT_GRACE,
    on_end: OnEnd | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Sends a stream as server-sent events, and returns the response once all is sent.

    ```python
    async def chat(request: web.Request) -> web.StreamResponse:
        return await aiohttp_response(request, client.stream(await request.text(), model=MODEL))
    ```

    When the client leaves, the stream is closed at once, also while nothing is being sent, and whether or not the
    server cancels its handlers. Statuses, events and arguments are those of `EventSourceResponse`.

    Args:
        request: The request that a handler got.
        stream: The result of `client.stream(...)`, or of `Hub`, `Broadcast`, `buffered`, `passthrough`.
        format: "chunks", "text", or a function of a chunk.
        ids: Whether events have ids.
        heartbeat: Seconds of silence after which a comment is sent, above 0; None sends no comments.
        grace: Seconds it may go on after the server was told to stop, from 0.
        on_end: Called with an `End` in every case, once the stream is closed; it may be async.
        headers: Added headers, or replacements of the usual ones.

    Returns:
        The response for the handler to return.

    Raises:
        TypeError: `stream` is not a stream, or `format` is an async function.
        ValueError: There is no such format, or `heartbeat` or `grace` is out of range.
        Exception: An exception of your own function, once the client has got its `error` event.
    """
    from aiohttp import web  # noqa: PLC0415 - the server's half of aiohttp, which only this needs

    check_times(heartbeat, grace)
    feed = feed_of(stream, format, ids=ids)
    response = web.StreamResponse(headers={**HEADERS, **{name.lower(): v for name, v in (headers or {}).items()}})
    responder = _AiohttpResponder(request, response)
    await respond(
        feed,
        responder,
        method=request.method,
        last_event_id=request.headers.get("Last-Event-ID", ""),
        heartbeat=heartbeat,
        grace=grace,
        on_end=on_end,
    )
    return response if responder.refusal is None else responder.refusal


class _AiohttpResponder:
    """One response of an aiohttp.web handler.

    Attributes:
        refusal: The response to return in place of the stream; None if the stream, or its head alone, is the answer.
    """

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self.refusal: web.Response | None = None
        self.write = response.write
        self.finish = response.write_eof
        self._request = request
        self._response = response
        self._own_headers = {name: value for name, value in response.headers.items() if name.lower() not in HEADERS}

    async def answer_head(self) -> None:
        """Leaves it to aiohttp, which sends the head of what the handler returns."""

    async def refuse(self, error: TogetherError) -> None:
        """Makes a refusal with the app's own headers: without those for CORS, no page may read why it was refused."""
        from aiohttp import web  # noqa: PLC0415 - the server's half of aiohttp, which only this needs

        status = status_of(error)
        if status == 204:
            self.refusal = web.Response(status=204, headers=self._own_headers)
        else:
            self.refusal = web.json_response(
                {"error": error_for_browser(error)},
                status=status,
                headers={**self._own_headers, "cache-control": "no-store", **headers_of(error)},
            )

    async def start(self) -> None:
        """Sends the head of the stream."""
        await self._response.prepare(self._request)

    async def wait_gone(self) -> None:
        """Returns when the client has gone."""
        try:
            # While a request's body is unread, aiohttp stops reading, and does not see that the client has left.
            while not self._request.content.at_eof():
                await self._request.content.readany()
        except Exception:  # noqa: BLE001 - if the body can't be read, its sender has gone
            return
        loop = asyncio.get_running_loop()
        watch = _watches.get(loop)
        if watch is None:
            watch = _watches[loop] = _ConnectionWatch()
        await watch.wait_gone(self._request)

    def is_gone(self) -> bool:
        """Whether the connection is closed or closing."""
        return _is_gone(self._request)

    async def answer_gone_client(self) -> None:
        """Sends nothing: aiohttp lets a handler return what can't be sent any more."""

    async def send_shutdown_event(self, session: RelaySession) -> bool:  # noqa: ARG002 - by the protocol's signature
        """Sends nothing, and returns whether the client is still there."""
        return not _is_gone(self._request)


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


class _ConnectionWatch:
    """Polls the connections of all relays in an event loop.

    aiohttp.web (3.14) does not tell a handler that the client has left, except by cancelling it, which is an option of
    the server. A poll costs 0.1 us for each connection.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], web.Request] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait_gone(self, request: web.Request) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = request
        if self._timer is None:
            self._poll()
        try:
            await waiter
        finally:
            del self._waiting[waiter]
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _poll(self) -> None:
        for waiter, request in self._waiting.items():
            if _is_gone(request) and not waiter.done():
                waiter.set_result(None)
        self._timer = asyncio.get_running_loop().call_later(_POLL_S, self._poll)


_watches: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _ConnectionWatch]] = weakref.WeakKeyDictionary()
