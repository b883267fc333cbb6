"""`EventSourceResponse`: a stream as a plain ASGI response, for Starlette, FastAPI, Litestar and whoever speaks ASGI.

It imports none of them. Where Starlette is loaded, it is one of Starlette's responses, because FastAPI takes no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from together_async.errors import TogetherError
from together_async.relay.browser_errors import (
    CANNOT_RESUME,
    AllReadError,
    ServerShutdownError,
    error_for_browser,
    headers_of,
    status_of,
)
from together_async.relay.events import HEADERS, Format, error_event
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
from together_async.wire.codec import encode

if TYPE_CHECKING:
    from starlette.responses import Response
else:
    Response = object  # see `response_class`

T = TypeVar("T")
_HEADS: Final = frozenset((*HEADERS, "content-length", "retry-after"))
"""Headers that are of the stream, or of its refusal."""
CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for it; nobody gets it, but logs do."""
_FAREWELL_S: Final = 0.5
"""Seconds for the last event of a response that is cancelled: a client who does not read must not hold its server."""
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class EventSourceResponse(Response):
    """A response that sends a stream as server-sent events. It is made with a stream that is not yet open.

    ```python
    @app.post("/chat")
    async def chat(question: Question) -> EventSourceResponse:
        return EventSourceResponse(client.stream(question.text, model=MODEL))
    ```

    The client's leaving closes the stream at once, also while nothing is being sent. What goes wrong before the first
    event is a status with a JSON body; afterwards it is a last event of type `error`. A request that says by
    `Last-Event-ID` that it comes back is answered with 204, which ends its attempts, unless the stream can be resumed
    (see `Hub`): it would be asked, and paid, again.

    Args:
        stream: What `client.stream(...)` returns; or of `Hub`, `Broadcast`, `buffered`, `passthrough`.
        format: "chunks" as the API sends them; "text", the texts of choice 0; or a function of a chunk, which returns a
            str, bytes, something that becomes JSON, a `ServerSentEvent`, or None for no event.
        ids: Whether events have ids: the position of their chunk, from 1.
        heartbeat: Seconds of silence after which a comment is sent; None sends none (the head comes
            with the first event then).
        grace: Seconds it may go on when the server is told to stop.
        on_end: Called with an `End` at the end, whatever it is; it may be async.
        status_code: That of an answer that has begun.
        headers: More headers, or others in place of the usual ones; those are the stream's alone, the others also of
            the status that tells of an error.
        background: Starlette's background tasks: awaited when all is over.

    Raises:
        TypeError, ValueError: No stream; no such format.
        Exception (when it is called): What a function of yours raises, once the client has been told that something
            went wrong.
    """

    media_type = "text/event-stream"  # FastAPI's documentation of an app asks the class

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG004 - __init__'s
        """Makes the one that fits where Starlette was loaded later than this module."""
        return object.__new__(response_class() if cls is EventSourceResponse else cls)  # type: ignore[return-value]  # a subclass

    def __init__(
        self,
        stream: Relayed,
        *,
        format: Format = "chunks",
        ids: bool = True,
        heartbeat: float | None = DEFAULT_HEARTBEAT,
        grace: float = DEFAULT_GRACE,
        on_end: OnEnd | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        check_times(heartbeat, grace)
        self._feed = feed_of(stream, format, ids=ids)
        self._heartbeat = heartbeat
        self._grace = grace
        self._on_end = on_end
        self._sent = False
        self.status_code = status_code
        self.body = b""
        self.background: Any = background
        given = {**HEADERS, **{name.lower(): value for name, value in (headers or {}).items()}}
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._feed!r}>"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> dict[str, str]:
        """Any value: so that FastAPI takes it as a return annotation too where Starlette was loaded later."""
        return {"type": "any"}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request.

        Raises:
            RuntimeError: It is none of HTTP, or the second one.
        """
        if self._sent:
            raise RuntimeError("this response has been sent already; make one for each request")
        self._sent = True
        if scope["type"] != "http":
            raise RuntimeError(f"an event stream answers HTTP requests, and not one of {scope['type']!r}")
        if not await self._answered_without(scope, send):
            await self._relay(receive, send)
        if self.background is not None:
            await self.background()

    async def _answered_without(self, scope: MutableMapping[str, Any], send: Send) -> bool:
        """Answers what needs no stream; returns whether it did."""
        if scope["method"] == "HEAD":
            await self._start(send)
            await send({"type": "http.response.body", "body": b""})
            await finish_unsent(self._feed, self._on_end)
            return True
        last = next((value for name, value in scope["headers"] if name.lower() == b"last-event-id"), b"")
        if not last:
            return False
        if self._feed.resumable:
            self._feed.resume(last.decode("utf-8", "replace"))
            return False
        error = AllReadError(CANNOT_RESUME)
        await self._refusal(error).answer(send)
        await finish_unsent(self._feed, self._on_end, error)
        return True

    async def _relay(self, receive: Receive, send: Send) -> None:
        relaying = RelaySession(self._feed, heartbeat=self._heartbeat, grace=self._grace)
        left: bool | None = None
        sent = _Sent()
        try:
            left = await run(relaying, self._pump(relaying, send, sent), _gone(receive))
            if left and not sent.begun:
                await _nobody(send)
        except asyncio.CancelledError:
            left = relaying.gone or not await self._send_shutdown_event(relaying, send, sent)
            raise
        finally:
            await relaying.end(self._on_end, left=relaying.gone if left is None else left)
        relaying.raise_what_is_not_ours()

    async def _pump(self, relaying: RelaySession, send: Send, sent: _Sent) -> None:
        try:
            data = await relaying.first()
        except TogetherError as error:
            sent.begun = sent.ended = True
            await self._refusal(error).answer(send)
            return
        sent.begun = True
        await self._start(send)
        while data:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await relaying.next()
        sent.ended = True
        await send({"type": "http.response.body", "body": b""})

    async def _send_shutdown_event(self, relaying: RelaySession, send: Send, sent: _Sent) -> bool:
        """Tells a client that is still there why its answer ends: the server cancels what it has to stop.

        Returns whether it could be told. Some servers tell their workers nothing before they do (Hypercorn), and wait
        only so long.
        """
        error = relaying.error = ServerShutdownError("the server stopped the response")
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_FAREWELL_S):
                if not sent.begun:
                    await self._refusal(error).answer(send)
                elif not sent.ended:
                    last = error_event(error_for_browser(error), relaying.end_id())
                    await send({"type": "http.response.body", "body": last, "more_body": True})
                    await send({"type": "http.response.body", "body": b""})
            return True
        return False

    def _refusal(self, error: BaseException) -> Refusal:
        """With the app's own headers: without those of CORS, say, no page may read why it was refused."""
        refusal = Refusal(error)
        refusal.raw_headers += [
            (name, value) for name, value in self.raw_headers if name.decode("latin-1") not in _HEADS
        ]
        return refusal

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


class _Sent:
    """How far a response is."""

    __slots__ = ("begun", "ended")

    def __init__(self) -> None:
        self.begun = self.ended = False


async def _nobody(send: Send) -> None:
    """Answers a client that has gone, for those in between who wait for a response (Starlette's BaseHTTPMiddleware)."""
    with contextlib.suppress(Exception):
        await send({"type": "http.response.start", "status": CLIENT_CLOSED_REQUEST, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Refusal(Response):
    """A status and a JSON body in the shape of the API's errors, as a plain ASGI response.

    Args:
        error: What went wrong (see `problems`: what a browser is told, and what it is not).
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG004 - __init__'s
        """Makes the one that fits (see `response_class`)."""
        return object.__new__(_fitting(Refusal) if cls is Refusal else cls)  # type: ignore[return-value]  # a subclass

    def __init__(self, error: BaseException) -> None:
        self.status_code = status_of(error)
        self.body = b"" if self.status_code == 204 else encode({"error": error_for_browser(error)})
        self.background = None
        headers = {**headers_of(error), "cache-control": "no-store"}
        if self.body:
            headers |= {"content-type": "application/json", "content-length": str(len(self.body))}
        self.raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.status_code}>"

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Answers one request."""
        await self.answer(send)

    async def answer(self, send: Send) -> None:
        """Sends it; there is nothing in the request that it depends on."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


async def refuse(_request: Any, error: Exception) -> Refusal:
    """Answers a request with what an error of this package means: an exception handler for a whole app.

    ```python
    app = FastAPI(exception_handlers={TogetherError: refuse})  # Starlette too
    ```
    """
    return Refusal(error)


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone. The request's body, if nobody has read it, comes first."""
    while (await receive())["type"] != "http.disconnect":
        pass


def response_class() -> type[EventSourceResponse]:
    """Returns the class itself, or, where Starlette is loaded, one that is also a `starlette.responses.Response`."""
    return _fitting(EventSourceResponse)


def _fitting(cls: type[T]) -> type[T]:
    starlette = sys.modules.get("starlette.responses")
    found: Any = cls
    fitting: type[T] = found if starlette is None else _with_base(found, starlette.Response)
    return fitting


@functools.cache
def _with_base(cls: Any, base: type) -> Any:
    return type(cls.__name__, (cls, base), {"__doc__": cls.__doc__, "__module__": cls.__module__})
