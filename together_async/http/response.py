"""One HTTP response on its way in: its bytes, its deadlines, its end.

A response that is being read has one timer, which looks at a stamp when it fires and sets itself anew; there is none
per token. The private attributes of asyncio and aiohttp that this package touches are touched here, each with a
fallback.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import aiohttp

from together_async.errors import APIConnectionError, APIResponseValidationError, APITimeoutError
from together_async.http.errors import InflationError
from together_async.timeouts import Due, Timeouts, due, earliest

READ_SIZE: Final = 65_536
"""Bytes per read of a socket. asyncio's own 262,144 is above malloc's mmap threshold: a system call, a page fault and
another system call for every token that arrives alone, a fifth of all its cost."""
BULK_READ_SIZE: Final = 262_144
"""The same while every read is full: then fewer reads are worth more."""
TLS_READ_SIZE: Final = 32_768
"""The same for TLS, where asyncio keeps a buffer of that size for every connection; a TLS record has 16 KiB."""
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


class HTTPResponse:
    """One HTTP response on its way in: its head, its bytes, its deadlines.

    `read` raises `APITimeoutError` or `APIConnectionError`; what they mean for a stream is the stream's business.
    """

    __slots__ = (
        "__weakref__",
        "_armed",
        "_bulk",
        "_compressed",
        "_content",
        "_failure",
        "_generating",
        "_inflated",
        "_live",
        "_loop",
        "_response",
        "_since",
        "_spent",
        "_time",
        "_timeouts",
        "_timer",
        "_total",
        "_waiting",
        "arrived",
        "attempts",
        "on_close",
        "raw_headers",
        "status",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        timeouts: Timeouts,
        started: float,
        sent: float | None = None,
        live: set[HTTPResponse],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._time = self._loop.time
        self._response = response
        self._content = response.content
        self.status = response.status
        # As they came; names are asked for in any case, of a repeated one the first counts.
        self.raw_headers: Mapping[str, str] = response.headers
        self._compressed = "Content-Encoding" in response.headers
        self._timeouts = timeouts
        self._total = None if timeouts.total is None else due("total", timeouts.total, started)
        # When the silence began, had the reader been waiting ever since.
        self._since = started if sent is None else sent
        self.arrived = self._time()  # when bytes last came, or whatever else ended a read
        self._generating = False  # the first token has come
        self._inflated = 0  # bytes since the event loop's last turn; aiohttp inflates on without one
        self._bulk = False  # bytes come faster than they are read
        self._waiting = False
        self._spent = False  # all of the body has been read at once
        self._armed = False  # the timer is set for a silence, not just for the whole call
        self._failure: APIConnectionError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._live = live
        self.attempts = 1
        self.on_close: Callable[[], None] | None = None  # hears of it once the connection is closed, by whomever
        live.add(self)
        if self._total is not None:
            self._watch()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "waiting" if self._waiting else "open"
        return f"<HTTPResponse {self.status} {state}>"

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

    @property
    def busy(self) -> bool:
        """Whether somebody is waiting for bytes."""
        return self._waiting

    # ------------------------------------------------------------------------------------------------------- deadlines

    def _due(self) -> Due | None:
        """What is late first. Silence counts while somebody waits; the whole call's deadline counts always."""
        if not self._waiting:
            return self._total
        if not self._generating:
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

    async def read(self, *, progressed: bool) -> bytes:
        """Returns the next bytes of the body, at least one; empty at its end.

        Args:
            progressed: Something was generated since the last call. Unless it was, the silence goes on, however many
                bytes came.

        Raises:
            APITimeoutError: Late; `.phase` says for what. The connection is closed.
            APIConnectionError: Lost, or the client was closed.
            RuntimeError: Somebody else is reading; nothing happens to them.
        """
        reading = self.reading(progressed, given=False)
        try:
            data = await reading
        except BaseException as error:  # noqa: BLE001 - cancellation is raised again
            return self.rescue(error)
        return self.took(data)

    # `read` in its parts, for the stream, which awaits a token in one coroutine less: `reading`, then `took`, or for
    # whatever was raised `rescue`.

    def reading(self, progressed: bool, *, given: bool = True) -> Coroutine[Any, Any, bytes]:
        """Enters a reader; returns what it has to await at once.

        `given` is whether the caller of the reader had its turn since the last read: then that time is not the
        server's silence. Otherwise it is ours, which a server that sends nothing but pings keeps busy.
        """
        if self._failure is not None:
            raise self._failure
        if self._waiting:
            raise RuntimeError("two tasks read one stream at the same time; let one of them read")
        now = self._time()
        if progressed:
            # The silence begins now, and after the first token it has another limit.
            self._since = now
            if not self._generating:
                self._generating, self._armed = True, False
        elif given:
            self._since += now - self.arrived
        if not self._armed and self._loop.is_closed():
            raise APIConnectionError("the event loop of this response is closed, and its connection with it")
        self._waiting = True
        if not self._armed:
            self._watch()
        return self._inflate() if self._compressed else self._content.readany()

    def took(self, data: bytes) -> bytes:
        """Returns what was read, once it has been looked at."""
        self._waiting = False
        self.arrived = self._time()
        if (len(data) >= READ_SIZE) is not self._bulk:
            self._bulk = not self._bulk
            set_read_size(self._response, BULK_READ_SIZE if self._bulk else READ_SIZE)
        if self._compressed and data:
            self._inflated += len(data)
            self._check_inflation(self._content.total_bytes, self._content.total_compressed_bytes or 0)
        return data

    async def _inflate(self) -> bytes:
        if self._inflated > _BYTES_PER_TURN:
            self._inflated = 0
            await asyncio.sleep(0)
        return await self._content.read(_BYTES_PER_TURN)

    def rescue(self, error: BaseException) -> bytes:
        """Returns what had arrived before the connection broke; aiohttp raises first and would drop it.

        Raises:
            APITimeoutError, APIConnectionError: There was nothing; this is what it means.
            BaseException: The error itself if it is none of aiohttp's, as cancellation: nothing is lost then.
        """
        self._waiting = False
        self.arrived = self._time()
        if not isinstance(error, Exception):
            try:
                raise error
            finally:
                del error  # else it holds its traceback, and that this frame, with the connection and all
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
        if self._content.is_eof() and not self._compressed and self._failure is None and not self._waiting:
            return self._all_at_hand(limit)
        pieces: list[bytes] = []
        size = 0
        progressed = False
        try:
            while data := await self.read(progressed=progressed):
                pieces.append(data)
                size += len(data)
                progressed = not data.isspace()  # gateways keep a long wait alive with blanks
                self._check_size(size, limit)
        except InflationError as error:
            raise APIResponseValidationError(str(error)) from error
        return b"".join(pieces)

    def _all_at_hand(self, limit: int) -> bytes:
        """A body that came with its head, as most short ones do: there is nothing to wait for, and no timer to set."""
        try:
            data = self._content.read_nowait(-1)
        except Exception as error:  # noqa: BLE001 - rescue raises what it means
            return self.rescue(error)
        self.arrived = self._time()
        self._spent = True
        self._check_size(len(data), limit)
        return data

    def _check_size(self, size: int, limit: int) -> None:
        if size > limit:
            self.close()
            raise APIResponseValidationError(
                f"got a body of more than {size} bytes, expected at most {limit}; if it is no attack, stream it"
            )

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
                while size < MAX_ERROR_BODY_SIZE and (data := await self.read(progressed=size > 0)):
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
        # A body that was there has ended: aiohttp has put its connection back, and there is nothing to close.
        if not self._spent or not self._response.closed:
            connection = self._response.connection
            if connection is not None and self._loop.is_closed():
                bury(connection.protocol)
                connection.close()
            elif connection is not None and connection.transport is not None:
                connection.transport.abort()  # closing alone waits for the farewell of a TLS peer
            self._response.close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def _forget(self) -> None:
        self._drop_timer()
        self._armed = False
        self._live.discard(self)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def set_read_size(response: aiohttp.ClientResponse, size: int) -> None:
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


def bury(protocol: Any) -> None:
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
    return APIConnectionError(f"connection to {response.url.origin()} lost: {said(error)}")


def said(error: Exception) -> str:
    """An exception's name and text in one line, at most 300 characters.

    What aiohttp says about broken HTTP ends, after an empty line or as a bytes literal, with the bytes; they may be
    anybody's text.
    """
    text = " ".join(re.split(r"\n\s*\n|\\n\\n|\bb['\"]", str(error))[0].split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
