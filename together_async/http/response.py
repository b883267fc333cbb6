"""One HTTP response on its way in: its head, its bytes, its deadlines, its end.

A response that is being read has one timer for all its tokens: when it fires, it compares the time of the last token
with the limits, and sets itself anew. A limit that has passed gets a second look (see `http.deadlines`).
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import aiohttp

from together_async.errors import APIConnectionError, APIResponseValidationError, APITimeoutError
from together_async.http.deadlines import PatientTimer
from together_async.http.errors import InflationError
from together_async.http.sockets import BULK_READ_SIZE, READ_SIZE, close_without_loop, set_read_size
from together_async.tasks import BusyError, handed_over
from together_async.timeouts import Due, Timeouts, due, earliest
from together_async.wire.header_values import by_lower_name

MAX_BODY_SIZE: Final = 64 * 1024 * 1024
"""Most bytes of a whole response."""
MAX_ERROR_BODY_SIZE: Final = 256 * 1024
ERROR_BODY_SECONDS: Final = 5.0
"""How long the body of an error may take. Its status is known, so the part that has come by then is enough."""
DRAIN_SECONDS: Final = 1.0
"""How long a stream may take from `[DONE]` to the end of its body before its connection is closed and not reused."""
_CLOCK_RESOLUTION_S: Final = 0.001
"""How early a timer may fire, on the loop's own clock."""
_LEAST_LOOK_S: Final = 1.0
"""A shorter `idle` gets a timer of its own after the first token: looking that often before it would cost more."""
_INFLATE_FREE: Final = 4 * 1024 * 1024
_INFLATE_RATIO: Final = 100
"""A body that inflates beyond `_INFLATE_FREE` bytes may have this many times its compressed size. JSON reaches 20
times, bombs 1,000."""
_BYTES_PER_TURN: Final = 65_536
"""Inflated bytes that a reader may take before the event loop gets a turn. aiohttp inflates for as long as somebody
reads, so bytes without content (pings) would keep all other tasks waiting."""


class HTTPResponse:
    """One HTTP response on its way in.

    Reading and deadlines are one thing, with all these attributes: which deadline holds depends on whether somebody
    waits for bytes, and since when. Failures are `APITimeoutError` and `APIConnectionError`; what they mean for a
    stream is the stream's business.

    Args:
        response: aiohttp's response, with its head read.
        timeouts: The limits of the call.
        started: When the call began, on the event loop's clock.
        sent: When this attempt was sent; None if that is `started`.
        live: The responses that are open; this one is in it until it is closed.
        loop: The running event loop; None looks it up.

    Attributes:
        status: The HTTP status.
        raw_headers: The headers as they came. Names are found in any case; of a repeated one the first counts.
        arrived: When bytes last came, or whatever else ended a read, on the event loop's clock.
        reader: The `id` of the task that read it last; 0 before the first read. None if nobody needs it: asking for the
            task costs each token a fiftieth.
        attempts: HTTP requests that the call has made so far, for the errors that are raised here.
        on_close: Called once, when the connection is closed, whoever closes it; None for no call.
    """

    __slots__ = (
        "__weakref__",
        "_body_read",
        "_bulk",
        "_compressed",
        "_content",
        "_failure",
        "_has_token",
        "_inflated_this_turn",
        "_live",
        "_looked_at",
        "_loop",
        "_response",
        "_silent_since",
        "_time",
        "_timeouts",
        "_timer",
        "_timer_covers_silence",
        "_total_due",
        "_waiting",
        "arrived",
        "attempts",
        "on_close",
        "raw_headers",
        "reader",
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
        self.raw_headers: Mapping[str, str] = response.headers
        self._compressed = "Content-Encoding" in response.headers
        self._timeouts = timeouts
        self._total_due = None if timeouts.total is None else due("total", timeouts.total, started)
        # When the silence began, counting only the time in which somebody waited.
        self._silent_since = started if sent is None else sent
        self.arrived = self._time()
        self._has_token = False
        self._inflated_this_turn = 0  # bytes; aiohttp goes on inflating without giving the event loop a turn
        self._bulk = False  # every read is full
        self._waiting = False
        self._body_read = False  # in one go, with the head
        self._timer_covers_silence = False  # not just the deadline of the whole call
        self._looked_at = -math.inf  # when the latest second look began
        self._failure: APIConnectionError | None = None
        self._timer: asyncio.TimerHandle | PatientTimer | None = None
        self._live = live
        self.reader: int | None = None
        self.attempts = 1
        self.on_close: Callable[[], None] | None = None
        live.add(self)
        if self._total_due is not None:
            self._watch()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "waiting" if self._waiting else "open"
        return f"<HTTPResponse {self.status} {state}>"

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, names in lower case; the values of a repeated one are joined by commas."""
        return by_lower_name(self._response.headers)

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
        """Whether a task is waiting for bytes."""
        return self._waiting

    # ------------------------------------------------------------------------------------------------------- deadlines

    def _due(self) -> Due | None:
        """Returns the deadline that comes first. Silence counts while somebody waits, `Timeouts.total` always."""
        if not self._waiting:
            return self._total_due
        if not self._has_token:
            return earliest(due("first_token", self._timeouts.first_token, self._silent_since), self._total_due)
        return earliest(due("idle", self._timeouts.idle, self._silent_since), self._total_due)

    def _watch(self, *, looked_again: bool = False) -> None:
        """Sets the timer for the next deadline. It stays set while chunks come; when it fires, it looks again.

        Args:
            looked_again: Whether a second look has just ended. Then a deadline that has passed is the end.
        """
        self._drop_timer()
        self._timer_covers_silence = self._waiting
        late = self._due()
        if late is None:
            return
        total, passed_until = self._total_due, self._loop.time() + _CLOCK_RESOLUTION_S
        if late.at > passed_until:
            self._timer = self._loop.call_at(self._look_at(late), self._watch)
        elif looked_again:
            self.abort(APITimeoutError(phase=late.phase, seconds=late.seconds))
        elif total is not None and total.at <= passed_until:
            self.abort(APITimeoutError(phase=total.phase, seconds=total.seconds))
        else:
            self._look_again(late)

    def _look_at(self, late: Due) -> float:
        """Returns when the timer fires: soon enough for a silence that begins later, too.

        So the first token needs no other timer. (The loop keeps one that was dropped until its time, with its context.)
        """
        idle = self._timeouts.idle
        if self._has_token or idle is None or idle < _LEAST_LOOK_S:
            return late.at
        return min(late.at, self._loop.time() + idle)

    def _covers_idle(self, now: float) -> bool:
        """Whether the timer that is set fires soon enough for a silence that begins now, after the first token."""
        if self._timer is None or isinstance(self._timer, PatientTimer):
            return False
        idle = self._timeouts.idle
        return idle is None or self._timer.when() <= now + idle

    def _look_again(self, late: Due) -> None:
        """Lets the loop read before a silence is taken for too long; as long as the timer was late, once per silence.

        Another look at the same silence is for bytes that came while the caller kept the reader: it waits for nothing.
        """
        now = self._loop.time()
        since = late.at if self._looked_at < self._silent_since else now
        self._looked_at = now
        latest = math.inf if self._total_due is None else self._total_due.at
        self._timer = PatientTimer(self._loop, since, functools.partial(self._watch, looked_again=True), latest=latest)

    # --------------------------------------------------------------------------------------------------------- reading

    async def read(self, *, progressed: bool) -> bytes:
        """Returns the next bytes of the body, at least one; empty at its end.

        Args:
            progressed: Whether something was generated since the last read. If not, the silence goes on, however many
                bytes came.

        Raises:
            APITimeoutError: A deadline has passed; `.phase` says which. The connection is closed.
            APIConnectionError: The connection is lost, or the client was closed.
            BusyError: Another task is reading; nothing happens to it.
        """
        data_to_come = self.start_read(progressed, caller_ran=False)
        try:
            data = await data_to_come
        except BaseException as error:  # noqa: BLE001 - cancellation is raised again
            return self.salvage_buffered(error)
        return self.note_read(data)

    # The parts of `read`, for streams, which save a coroutine per token: `start_read`, then `note_read`, or
    # `salvage_buffered` for whatever was raised.

    def start_read(self, progressed: bool, caller_ran: bool) -> Coroutine[Any, Any, bytes]:
        """Begins a read; returns what to await at once.

        Args:
            progressed: As for `read`.
            caller_ran: Whether the caller of the reader had a turn since the last read. Then that time is not the
                server's silence. Otherwise it was spent here, on a server that sends nothing but pings.
        """
        if self._failure is not None:
            raise self._failure
        if self._waiting:
            raise BusyError("two tasks read one stream at the same time; let one of them read")
        now = self._time()
        if progressed:
            # The silence begins now, and after the first token it has another limit.
            self._silent_since = now
            if not self._has_token:
                self._has_token = True
                self._timer_covers_silence = self._timer_covers_silence and self._covers_idle(now)
        elif caller_ran:
            self._silent_since += now - self.arrived
        if not self._timer_covers_silence and self._loop.is_closed():
            raise APIConnectionError("the event loop of this response is closed, and its connection with it")
        self._waiting = True
        if self.reader is not None:
            self.reader = id(asyncio.current_task(self._loop))
        if not self._timer_covers_silence:
            # With a steady flow of pings nobody waits whenever the timer fires, so the verdict is passed here.
            self._watch(looked_again=not caller_ran and self._looked_at >= self._silent_since)
        return self._inflate() if self._compressed else self._content.readany()

    def note_read(self, data: bytes) -> bytes:
        """Ends a read that brought data, and returns the data."""
        self._waiting = False
        self.arrived = self._time()
        if (len(data) >= READ_SIZE) is not self._bulk:
            self._bulk = not self._bulk
            set_read_size(self._response, BULK_READ_SIZE if self._bulk else READ_SIZE)
        if self._compressed and data:
            self._inflated_this_turn += len(data)
            self._check_inflation(self._content.total_bytes, self._content.total_compressed_bytes or 0)
        return data

    async def _inflate(self) -> bytes:
        if self._inflated_this_turn > _BYTES_PER_TURN:
            self._inflated_this_turn = 0
            await asyncio.sleep(0)
        return await self._content.read(_BYTES_PER_TURN)

    def salvage_buffered(self, error: BaseException) -> bytes:
        """Ends a read that raised; returns the data that had arrived before, which aiohttp would drop.

        Raises:
            APITimeoutError, APIConnectionError: No data had arrived; this is what `error` means.
            BaseException: `error` itself if it is a cancellation; nothing is lost then.
        """
        self._waiting = False
        self.arrived = self._time()
        if not isinstance(error, Exception):
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and the frame holds the connection
        failure = self._failure
        if failure is None:
            failure = self._failure = _connection_error(error, self._response)
            failure.attempts = self.attempts
        content = self._response.content
        # Private, so asked for with a default: without it the bytes are lost, but the error is still right.
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
            APIResponseValidationError: It is longer than `limit`, or inflates beyond reason.
            APITimeoutError, APIConnectionError: As `read` does.
        """
        if self._content.is_eof() and not self._compressed and self._failure is None and not self._waiting:
            return self._read_at_hand(limit)
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

    def _read_at_hand(self, limit: int) -> bytes:
        """Returns a body that came with its head, as most short ones do: no wait, no timer."""
        try:
            data = self._content.read_nowait(-1)
        except Exception as error:  # noqa: BLE001 - salvage_buffered raises it, or returns data
            return self.salvage_buffered(error)
        self.arrived = self._time()
        self._body_read = True
        self._check_size(len(data), limit)
        return data

    def _check_size(self, size: int, limit: int) -> None:
        if size > limit:
            self.close()
            raise APIResponseValidationError(
                f"got a body of more than {size} bytes, expected at most {limit}; stream it unless it is an attack"
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
        """Returns as much of an error's body as comes: no failure of the body may hide the status."""
        pieces: list[bytes] = []
        size = 0
        late = APIConnectionError(f"the body of an error took more than {ERROR_BODY_SECONDS} s")
        timer = PatientTimer(self._loop, self._time() + ERROR_BODY_SECONDS, functools.partial(self.abort, late))
        try:
            while size < MAX_ERROR_BODY_SIZE and (data := await self.read(progressed=size > 0)):
                pieces.append(data)
                size += len(data)
        except APIConnectionError:
            pass  # also what ended it: the client, a limit of the call
        finally:
            timer.cancel()
        self.close()
        return b"".join(pieces)[:MAX_ERROR_BODY_SIZE]

    # --------------------------------------------------------------------------------------------------------- leaving

    def release_soon(self) -> None:
        """Ends the reading after the last useful byte of the body, without waiting for the end of the body.

        The end is usually here already, or a moment away, and aiohttp then puts the connection back into the pool. A
        timer closes the connection if the end does not come.
        """
        if self.closed:
            self.close()
            return
        self._drop_timer()
        self._response.content.on_eof(self._detach)
        self._timer = PatientTimer(self._loop, self._time() + DRAIN_SECONDS, self.close)

    def abort(self, failure: APIConnectionError) -> None:
        """Closes the connection; the read that waits now, and every later one, raises `failure`."""
        if self._failure is None:
            self._failure = failure
            failure.attempts = self.attempts
        # This wakes the reader; closing alone would leave it waiting for ever.
        self._response.content.set_exception(failure)
        self.close()

    def close(self) -> None:
        """Closes the connection at once, unless it is back in the pool because the body has ended. Twice is fine."""
        if handed_over(self._loop, self.close):
            return
        self._detach()
        # A body that came with the head has ended: aiohttp has put the connection back, and there is nothing to close.
        if not self._body_read or not self._response.closed:
            connection = self._response.connection
            if connection is not None and self._loop.is_closed():
                close_without_loop(connection.protocol)
                connection.close()
            elif connection is not None and connection.transport is not None:
                connection.transport.abort()  # closing would wait for the TLS peer's close_notify
            self._response.close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def _detach(self) -> None:
        self._drop_timer()
        self._timer_covers_silence = False
        self._live.discard(self)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _connection_error(error: Exception, response: aiohttp.ClientResponse) -> APIConnectionError:
    return APIConnectionError(f"connection to {response.url.origin()} lost: {describe(error)}")


def describe(error: Exception) -> str:
    """Returns an exception's name and text in one line of at most 300 characters.

    aiohttp's text about broken HTTP ends with the broken bytes, after an empty line or as a bytes literal. They are cut
    off: they may be anybody's text.
    """
    text = " ".join(re.split(r"\n\s*\n|\\n\\n|\bb['\"]", str(error))[0].split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
