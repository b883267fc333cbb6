"""`aiohttp_response`: a stream as the response of an aiohttp.web handler."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from together_async.errors import TogetherError
from together_async.relay.browser_errors import CANNOT_RESUME, AllReadError, error_for_browser, headers_of, status_of
from together_async.relay.events import HEADERS, Format
from together_async.relay.session import (
    DEFAULT_HEARTBEAT,
    OnEnd,
    Relayed,
    RelaySession,
    check_times,
    feed_of,
    finish_unsent,
    run,
)
from together_async.relay.shutdown import DEFAULT_GRACE

if TYPE_CHECKING:
    from aiohttp import web

_LOOK_S: Final = 0.025


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
    """Sends a stream as server-sent events, and returns the response when all is sent.

    ```python
    async def chat(request: web.Request) -> web.StreamResponse:
        return await aiohttp_response(request, client.stream(await request.text(), model=MODEL))
    ```

    The client's leaving closes the stream, also while nothing is being sent, and whether or not the server cancels its
    handlers.
    Statuses, events and arguments are those of `EventSourceResponse`.

    Raises:
        TypeError, ValueError: No stream; no such format.
        Exception: What a function of yours raises, once the client has been told that something went wrong.
    """
    from aiohttp import web  # noqa: PLC0415 - the server's half of aiohttp, which only this needs

    check_times(heartbeat, grace)
    feed = feed_of(stream, format, ids=ids)
    response = web.StreamResponse(headers={**HEADERS, **{name.lower(): v for name, v in (headers or {}).items()}})
    if request.method == "HEAD":
        await finish_unsent(feed, on_end)
        return response
    own = {name: value for name, value in response.headers.items() if name.lower() not in HEADERS}
    last = request.headers.get("Last-Event-ID", "")
    if last and not feed.resumable:
        await finish_unsent(feed, on_end, AllReadError(CANNOT_RESUME))
        return web.Response(status=204, headers=own)
    if last:
        feed.resume(last)
    relaying = RelaySession(feed, heartbeat=heartbeat, grace=grace)
    refused: list[web.Response] = []

    async def pump() -> None:
        try:
            data = await relaying.first()
        except TogetherError as error:
            refused.append(
                web.Response(status=204, headers=own)
                if status_of(error) == 204
                else web.json_response(
                    {"error": error_for_browser(error)},
                    status=status_of(error),
                    headers={**own, "cache-control": "no-store", **headers_of(error)},
                )
            )
            return
        await response.prepare(request)
        while data:
            await response.write(data)
            data = await relaying.next()
        await response.write_eof()

    left: bool | None = None
    try:
        left = await run(relaying, pump(), _gone(request))
    finally:
        await relaying.end(on_end, left=relaying.gone or _is_gone(request) if left is None else left)
    relaying.raise_what_is_not_ours()
    return refused[0] if refused else response


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


class _Watch:
    """Looks at the connections of all relays of an event loop.

    aiohttp.web has no word for "tell me when the client leaves" (3.14), but for the cancellation of all handlers, which
    is the server's choice. A look costs 0.1 us for each.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], web.Request] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def gone(self, request: web.Request) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = request
        if self._timer is None:
            self._look()
        try:
            await waiter
        finally:
            del self._waiting[waiter]
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self) -> None:
        for waiter, request in self._waiting.items():
            if _is_gone(request) and not waiter.done():
                waiter.set_result(None)
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)


_watches: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch]] = weakref.WeakKeyDictionary()


async def _gone(request: web.Request) -> None:
    try:
        # A body that nobody has read stops aiohttp's reading, and with it the sight of the client's end.
        while not request.content.at_eof():
            await request.content.readany()
    except Exception:  # noqa: BLE001 - whatever became of the body, its sender is no more
        return
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = _Watch()
    await watch.gone(request)
