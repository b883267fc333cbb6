"""`EventSourceResponse`: a stream as a plain ASGI response, for Starlette, FastAPI, Litestar and every ASGI framework.

It imports no framework. Where Starlette is loaded, it is one of Starlette's responses, because FastAPI takes no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from together_async.relay.browser_errors import ServerShutdownError, error_for_browser, headers_of, status_of
from together_async.relay.events import HEADERS, Format, error_event
from together_async.relay.feed import Relayed, feed_of
from together_async.relay.respond import respond
from together_async.relay.session import DEFAULT_HEARTBEAT, OnEnd, RelaySession, check_times
from together_async.relay.shutdown import DEFAULT_GRACE
from together_async.wire.codec import encode

if TYPE_CHECKING:
    from starlette.responses import Response
else:
    Response = object  # see `response_class`

T = TypeVar("T")
_STREAM_HEADERS: Final = frozenset((*HEADERS, "content-length", "retry-after"))
"""Headers that describe the stream or its refusal; all others are the app's, and go with both."""
CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for a client that left early. No client gets it; it shows in logs."""
_SHUTDOWN_EVENT_S: Final = 0.5
"""Seconds for the last event of a cancelled response: a client that does not read must not hold up its server."""
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class EventSourceResponse(Response):
    """An ASGI response that sends a stream as server-sent events. The stream is not yet open when it is made.

    ```python
    @app.post("/chat")
    async def chat(question: Question) -> EventSourceResponse:
        return EventSourceResponse(client.stream(question.text, model=MODEL))
    ```

    When the client leaves, the stream is closed at once, also while nothing is being sent. An error before the first
    event becomes a status with a JSON body; after it, a last event of type `error`. A client that comes back (its
    request has a `Last-Event-ID`) gets a 204, which ends its attempts, unless the stream can be resumed (see `Hub`): it
    would be asked for, and paid for, again.

    Args:
        stream: The result of `client.stream(...)`, or of `Hub`, `Broadcast`, `buffered`, `passthrough`.
        format: "chunks" as the API sends them; "text", the texts of choice 0; or a function of a chunk, which returns a
            str, bytes, a value that becomes JSON, a `ServerSentEvent`, or None for no event.
        ids: Whether events have ids: the position of their chunk, from 1.
        heartbeat: Seconds of silence after which a comment is sent, above 0. None sends no comments; the head is then
            sent with the first event.
        grace: Seconds it may go on after the server was told to stop, from 0.
        on_end: Called with an `End` in every case, once the stream is closed; it may be async.
        status_code: The status of an answer that has begun.
        headers: Added headers, or replacements of the usual ones. Added ones also go with the status of an error.
        background: Starlette's background task: awaited after `on_end`.

    Raises:
        TypeError: `stream` is not a stream, or `format` is an async function.
        ValueError: There is no such format, or `heartbeat` or `grace` is out of range.
        Exception (when it is called): An exception of your own function, once the client has got its `error` event.
    """

    media_type = "text/event-stream"  # read from the class by FastAPI, for an app's documentation

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG004 - for __init__
        """Makes one of Starlette's responses, even where Starlette was loaded later than this module."""
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
        merged = {**HEADERS, **{name.lower(): value for name, value in (headers or {}).items()}}
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in merged.items()]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._feed!r}>"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> dict[str, str]:
        """Accepts any value, so that FastAPI takes the annotation where Starlette was loaded later."""
        return {"type": "any"}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request.

        Raises:
            RuntimeError: It is called a second time, or for something other than an HTTP request.
        """
        if self._sent:
            raise RuntimeError("this response has been sent already; make one for each request")
        self._sent = True
        if scope["type"] != "http":
            raise RuntimeError(f"an event stream answers HTTP requests, and not one of {scope['type']!r}")
        last = next((value for name, value in scope["headers"] if name.lower() == b"last-event-id"), b"")
        await respond(
            self._feed,
            _ASGIResponder(receive, send, self.status_code, self.raw_headers),
            method=scope["method"],
            last_event_id=last.decode("utf-8", "replace"),
            heartbeat=self._heartbeat,
            grace=self._grace,
            on_end=self._on_end,
        )
        if self.background is not None:
            await self.background()


class _ASGIResponder:
    """One response by ASGI's `receive` and `send`."""

    def __init__(self, receive: Receive, send: Send, status_code: int, raw_headers: list[tuple[bytes, bytes]]) -> None:
        self._receive = receive
        self._send = send
        self._status_code = status_code
        self._raw_headers = raw_headers
        self._begun = False
        self._ended = False

    async def answer_head(self) -> None:
        """Sends the head of the stream, and no body."""
        await self.start()
        await self.finish()

    async def refuse(self, error: BaseException) -> None:
        """Sends a status with the app's own headers: without those for CORS, no page may read why it was refused."""
        self._begun = self._ended = True
        refusal = Refusal(error)
        refusal.raw_headers += [
            (name, value) for name, value in self._raw_headers if name.decode("latin-1") not in _STREAM_HEADERS
        ]
        await refusal.answer(self._send)

    async def start(self) -> None:
        """Sends the head of the stream."""
        self._begun = True
        await self._send({"type": "http.response.start", "status": self._status_code, "headers": self._raw_headers})

    def write(self, data: bytes) -> Awaitable[None]:
        """Sends events, once awaited."""
        return self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """Ends the response."""
        self._ended = True
        await self._send({"type": "http.response.body", "body": b""})

    async def wait_gone(self) -> None:
        """Returns when the client has gone. The request's body comes first, if it is unread."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def is_gone(self) -> bool:
        """ASGI has no other sign of it than what `receive` returns."""
        return False

    async def answer_gone_client(self) -> None:
        """Sends a response into the void, for middleware that waits for one (Starlette's BaseHTTPMiddleware)."""
        if self._begun:
            return
        with contextlib.suppress(Exception):
            await self._send({"type": "http.response.start", "status": CLIENT_CLOSED_REQUEST, "headers": []})
            await self._send({"type": "http.response.body", "body": b""})

    async def send_shutdown_event(self, session: RelaySession) -> bool:
        """Tells the client why its answer ends: the server has cancelled it. Returns whether that could be sent.

        Some servers (Hypercorn) give no other notice that they stop, and wait only so long.
        """
        error = session.error = ServerShutdownError("the server stopped the response")
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_SHUTDOWN_EVENT_S):
                if not self._begun:
                    await self.refuse(error)
                elif not self._ended:
                    await self.write(error_event(error_for_browser(error), session.end_id()))
                    await self.finish()
            return True
        return False


class Refusal(Response):
    """A status and a JSON body in the shape of the API's errors, as a plain ASGI response.

    Args:
        error: The error that the client gets as much of as it may (see `error_for_browser`).
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG004 - for __init__
        """Makes one of Starlette's responses where Starlette is loaded."""
        return object.__new__(_for_starlette(Refusal) if cls is Refusal else cls)  # type: ignore[return-value]  # a subclass

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

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:  # noqa: ARG002 - by ASGI's signature
        """Answers one request."""
        await self.answer(send)

    async def answer(self, send: Send) -> None:
        """Sends it; it depends on nothing in the request."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


async def refuse(_request: Any, error: Exception) -> Refusal:
    """Answers a request with the status that an error of this package means: an exception handler for a whole app.

    ```python
    app = FastAPI(exception_handlers={TogetherError: refuse})  # Starlette too
    ```
    """
    return Refusal(error)


def response_class() -> type[EventSourceResponse]:
    """Returns the class itself, or, where Starlette is loaded, one that is also a `starlette.responses.Response`."""
    return _for_starlette(EventSourceResponse)


def _for_starlette(cls: type[T]) -> type[T]:
    starlette = sys.modules.get("starlette.responses")
    untyped: Any = cls
    fitting: type[T] = untyped if starlette is None else _with_base(untyped, starlette.Response)
    return fitting


@functools.cache
def _with_base(cls: Any, base: type) -> Any:
    return type(cls.__name__, (cls, base), {"__doc__": cls.__doc__, "__module__": cls.__module__})
