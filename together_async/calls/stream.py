"""`ChatCompletionStream`: one streamed completion, from the bytes of a response to the caller's loop.

Who closes what: inside `async with stream:` the block's end closes the connection, so a loop may be left and taken up
again. Without `async with` the loop owns the connection: `async for` gets an iterator of its own, which the `for`
statement drops when it is left for whatever reason, and whose end closes the connection at once.

What iterates is in `readers`; what they share, the waiting, the ending and the failing, is here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import attrs

from together_async.calls.readers import BatchesReader, ChunksReader, RawReader, RestReader, TextReader
from together_async.errors import (
    APIConnectionError,
    APITimeoutError,
    IncompleteStreamError,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    TogetherError,
)
from together_async.http.errors import InflationError
from together_async.models import ChatCompletion, ChatCompletionChunk, Retried, record_attempts
from together_async.wire.accumulator import ChatCompletionAccumulator
from together_async.wire.chunks import ChunkDecoder, ProtocolError, ReportedError
from together_async.wire.codec import has_unknown_content
from together_async.wire.error_bodies import request_id
from together_async.wire.raw_events import RawEventDecoder
from together_async.wire.redaction import redact, scrub

if TYPE_CHECKING:
    from together_async.calls.call import Call
    from together_async.http.response import HTTPResponse


_SKIPS_PER_TURN = 256
_MAX_TEXT = 500
"""Characters of an error's text, which may repeat a server's."""


@attrs.frozen
class StreamStats:
    """How a stream has gone so far. Times in seconds; None while there is nothing to tell.

    Attributes:
        chunks: How many chunks held something generated. Servers may put several tokens in one.
        first_token_s: From the call to the first of them.
        largest_gap_s: The longest silence between two of them.
        tokens_per_s: Between the first and the last; by the server's count where `usage` has come, else by chunks.
        elapsed_s: From the call to the last of them.
        total_tokens: What the stream cost, prompt and completion, as the limits were told when it ended; None before.
        estimated: Whether that is what was seen, with an estimate of the prompt: the server's own count did not come.
    """

    chunks: int
    first_token_s: float | None
    largest_gap_s: float | None
    tokens_per_s: float | None
    elapsed_s: float | None
    total_tokens: int | None = None
    estimated: bool = False


class ChatCompletionStream:
    """One stream: an async iterator of `ChatCompletionChunk`, and an async context manager. Made by `client.stream`.

    The request is sent by `async with`, or by the first chunk that is asked for. A stream is read once; two loops over
    it share what comes.

    Raises (from `async with` and while reading):
        APIStatusError: The server refused; the subclass says why.
        APIConnectionError, APITimeoutError: Nothing came back.
        StreamError: It began and broke; `.partial` is what had been delivered, the subclass says why.
    """

    __slots__ = (
        "__weakref__",
        "_accumulator",
        "_call",
        "_careful",
        "_choices",
        "_closed",
        "_decoder",
        "_entered",
        "_error",
        "_exchange",
        "_first",
        "_gap",
        "_given",
        "_handed",
        "_head",
        "_last",
        "_max_event_size",
        "_opening",
        "_over",
        "_passes",
        "_payloads",
        "_secrets",
        "_skipped",
        "_started",
        "_time",
    )

    def __init__(
        self,
        call: Call,
        *,
        choices: int = 1,
        time: Callable[[], float],
        max_event_size: int,
        secrets: Callable[[], list[str]] = list,
    ) -> None:
        self._call = call
        self._choices = choices
        self._time = time
        self._secrets = secrets
        self._given = True  # the reader's caller has had its turn since the last read, if nothing was generated
        self._max_event_size = max_event_size
        self._exchange: HTTPResponse | None = None
        self._head: dict[str, str] | None = None
        self._decoder: ChunkDecoder | None = None
        self._accumulator = ChatCompletionAccumulator()
        self._payloads: list[bytes] = []  # the last is the next
        self._entered = False
        self._opening = False  # the call is on its way to a response
        self._closed = False  # by the caller
        self._handed = False  # something has been handed to the caller, so nothing is asked again
        self._over = False
        self._passes = False  # its bytes are wanted, and not its chunks
        self._skipped = 0  # payloads without a chunk
        self._careful: bool | None = None  # chunks have more than plain text (see Reader._take); None before the first
        self._error: TogetherError | None = None
        self._started = 0.0
        self._first: float | None = None
        self._last = 0.0
        self._gap: float | None = None

    def __repr__(self) -> str:
        state = (
            "broken" if self._error else "closed" if self._over else "not opened" if self._exchange is None else "open"
        )
        request_id = f" request_id={self.request_id!r}" if self.request_id else ""
        return f"<{type(self).__name__} {state} {self._accumulator.generated} chunks{request_id}>"

    # ------------------------------------------------------------------------------------------------- public: reading

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return ChunksReader(self, 0, owner=not self._entered)

    async def __anext__(self) -> ChatCompletionChunk:
        return await ChunksReader(self, 0, owner=False).__anext__()

    def text(self, choice: int = 0) -> AsyncIterator[str]:
        """Returns an iterator of the text deltas of one choice; empty ones are left out.

        It decodes of each chunk just what it needs, so it is the cheapest way to read a stream. The other choices
        and all other fields still go into `completion()`.
        """
        return TextReader(self, choice, owner=not self._entered)

    def batches(self) -> AsyncIterator[list[ChatCompletionChunk]]:
        """Returns an iterator of lists of chunks: those that have come together, at least one and at most 64.

        For who passes them on or shows them, and does it once for all that is there.
        """
        return BatchesReader(self, 0, owner=not self._entered)

    def raw(self) -> AsyncIterator[bytes]:
        """Returns an iterator of the response's bytes, unchanged, whole events at a time; for who passes them on.

        They are not decoded but for the first and the last, so of `completion()` and `stats` just usage, finish reasons
        and the number of events are known. It ends, or raises, as every other way to read a stream does. Nothing else
        may read the same stream.

        Raises:
            RuntimeError: Something of the stream has been read.
        """
        if not self._passes and (self._handed or self._payloads):
            raise RuntimeError("something of this stream has been read already; its bytes are gone")
        if not self._passes:
            self._passes = True
            if self._exchange is not None:  # it is open, and nothing has been read of it
                self._decoder = self._decoder_for(self._exchange)
        return RawReader(self, 0, owner=not self._entered)

    async def completion(self) -> ChatCompletion:
        """Reads the rest of the stream, if any, and returns the completion its chunks add up to.

        Raises:
            IncompleteStreamError: The stream was closed by the caller before its end.
        """
        chunks = RestReader(self, 0, owner=not self._entered)
        async for _ in chunks:
            pass
        completion = self._accumulator.completion()
        record_attempts(completion, self._call.attempts, self._call.retries)
        return completion

    def so_far(self) -> ChatCompletion:
        """Returns the completion that has been read so far; it reads nothing itself."""
        return self._accumulator.completion()

    @property
    def complete(self) -> bool:
        """Whether all of it has been read: `[DONE]` has come, or every choice has a finish reason."""
        return self._over and self._complete

    # ------------------------------------------------------------------------------------------------- public: leaving

    async def __aenter__(self) -> Self:
        self._entered = True
        if self._exchange is None and not self._over:
            await self._begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._closed = True
        self._leave()

    async def aclose(self) -> None:
        """Closes the connection at once, unless the stream is at its end. Twice is fine."""
        self._closed = True
        self._leave()

    def leave(self) -> None:
        """The same as `aclose`, for places that can't await: callbacks, finalizers."""
        self._closed = True
        self._leave()

    async def close(self) -> None:
        """The same as `aclose`, by the name it has in the SDKs."""
        self._closed = True
        self._leave()

    def __del__(self) -> None:
        # A stream that was dropped; `getattr` because __init__ may not have run.
        if not getattr(self, "_over", True):
            self._leave()

    # --------------------------------------------------------------------------------------------------- public: facts

    @property
    def response_headers(self) -> dict[str, str]:
        """The response's headers, names in lower case; empty until it is there."""
        if self._head is None:
            if self._exchange is None:
                return {}
            self._head = self._exchange.headers
        return dict(self._head)

    @property
    def request_id(self) -> str | None:
        """The server's id of this request (`x-request-id`, else `cf-ray`), or None."""
        return request_id(self.response_headers)

    @property
    def stats(self) -> StreamStats:
        """How it went so far."""
        if self._exchange is not None and self._accumulator.settle():
            self._note_arrival(self._exchange.arrived)
        chunks = self._accumulator.generated
        call = self._call
        if self._first is None:
            return StreamStats(chunks, None, None, None, None, call.tokens, call.estimated)
        usage = self._accumulator.usage
        tokens = (usage.completion_tokens if usage else None) or chunks
        elapsed = self._last - self._first
        return StreamStats(
            chunks=chunks,
            first_token_s=self._first - self._started,
            largest_gap_s=self._gap,
            tokens_per_s=(tokens - 1) / elapsed if elapsed > 0 and tokens > 1 else None,
            elapsed_s=self._last - self._started,
            total_tokens=call.tokens,
            estimated=call.estimated,
        )

    @property
    def attempts(self) -> int:
        """How many HTTP requests were made so far."""
        return self._call.attempts

    @property
    def retries(self) -> tuple[Retried, ...]:
        """Why there was more than one: for each attempt that failed its `reason`, and `waited_s` until the next."""
        return self._call.retries

    # --------------------------------------------------------------------------------------------------------- opening

    async def _begin(self, broken: TogetherError | None = None) -> None:
        """Sends the request and looks at the response's head.

        Args:
            broken: What became of an earlier response; the caller has seen nothing of it.
        """
        if self._opening:
            raise RuntimeError("two tasks read one stream at the same time; let one of them read")
        self._opening = True
        call = self._call
        if broken is None:
            self._started = self._time()
        self._over, self._error = False, None
        try:
            exchange = await (call.open() if broken is None else call.again(broken))
        except TogetherError as error:
            if self._over:
                closed = "the stream was closed while its request was being sent"
                raise self._broken(IncompleteStreamError, closed) from error
            self._over = True
            self._error = error
            raise
        except BaseException:
            # Cancelled. A later loop must not take this for a stream that has ended.
            self._broken(IncompleteStreamError, "the stream was given up while its request was being sent")
            raise
        finally:
            self._opening = False
        # By whomever it is closed; without a reference to the stream, which has to end when it is dropped.
        exchange.on_close = functools.partial(_settle_limits, call, self._accumulator)
        if broken is not None:
            self._start_anew()
        if self._over:
            exchange.close()
            raise self._broken(IncompleteStreamError, "the stream was closed while its request was being sent")
        self._exchange = exchange
        try:
            self._decoder = self._decoder_for(exchange)
        except ProtocolError as error:
            scrub(error, self._secrets())
            raise self._broken(StreamProtocolError, str(error)) from error

    def _start_anew(self) -> None:
        """Forgets an earlier response."""
        self._accumulator.clear()
        self._decoder = None
        self._head = None
        self._payloads = []
        self._careful = None
        self._given = True
        self._first = self._gap = None

    async def _again(self, error: TogetherError) -> None:
        """Asks again after a response that broke; raises `error` when something of it was handed out, or may not be."""
        if self._handed or self._closed or self._error is not error:
            raise error
        await self._begin(broken=error)

    def _decoder_for(self, exchange: HTTPResponse) -> ChunkDecoder:
        if exchange.status in (204, 205):
            raise ProtocolError(f"got status {exchange.status} without a body, expected an event stream")
        if self._passes:
            every = self._choices > 1
            return RawEventDecoder(media_type=exchange.media_type, max_event_size=self._max_event_size, every=every)
        return ChunkDecoder(media_type=exchange.media_type, max_event_size=self._max_event_size)

    # --------------------------------------------------------------------------------------------------------- reading

    async def _more(self, *, owner: bool, once: bool = False) -> bool:  # noqa: C901, PLR0912 - the one place that waits
        """Waits for payloads; False at the end of the stream. Leaves `_payloads` with at least one, else.

        With `once` it returns after any bytes.
        """
        while not self._payloads:
            exchange, decoder = self._exchange, self._decoder
            if exchange is None or decoder is None:
                if self._over:
                    return self._ended()
                await self._begin()
                continue
            try:
                try:
                    progressed = self._accumulator.settle()
                    if progressed:
                        self._note_arrival(exchange.arrived)
                    given, self._given = self._given, False
                    reading = exchange.reading(progressed, given=given)
                    try:
                        data = await reading
                    except BaseException as error:  # noqa: BLE001 - rescue raises what it means
                        data = exchange.rescue(error)
                    else:
                        exchange.took(data)
                    if data:
                        payloads = decoder.feed(data)
                        payloads.reverse()
                        self._payloads = payloads
                    else:
                        self._body_ended(decoder)
                    if once:
                        return True
                except APIConnectionError as error:
                    self._connection_failed(error)
                except ProtocolError as error:
                    scrub(error, self._secrets())
                    raise self._broken(StreamProtocolError, str(error)) from error
                except BaseException:
                    # Ours have closed all already. Cancellation leaves a stream in `async with` as it was: no byte is
                    # lost, and the block's end will close it. A second reader is sent away without harm to the first.
                    if owner and not exchange.busy:
                        self._leave()
                    self._given = True  # whoever was interrupted has its turn now; that time is not the server's
                    raise
            except TogetherError as error:
                if self._handed:
                    raise
                await self._again(error)
        return True

    def _ended(self) -> bool:
        """Returns False, which ends a loop, unless it has to end with an error."""
        if self._error is None and not self._complete:
            self._broken(IncompleteStreamError, "the stream was closed by its reader before its end")
        if self._error is not None:
            raise self._error
        return False

    def _take(self, payload: bytes, chunk: ChatCompletionChunk | None = None) -> ChatCompletionChunk | None:
        """Returns the chunk of a payload, None for what is none; at `[DONE]` the stream is over.

        Args:
            payload: What came.
            chunk: What it decodes to, where the reader has done that already.
        """
        decoder = self._decoder
        assert decoder is not None  # noqa: S101 - it made the payload
        try:
            chunk = decoder.decode(payload) if chunk is None else decoder.accept(chunk, payload)
        except ReportedError as error:
            facts = error.facts
            self._call.heard(facts.status, facts.body, self.response_headers)
            raise self._broken(
                StreamAPIError,
                f"the server sent an error in the stream: {facts.message}",
                status_code=facts.status,
                body=facts.body,
            ) from None
        except ProtocolError as error:
            scrub(error, self._secrets())
            raise self._broken(StreamProtocolError, str(error)) from error
        if chunk is not None:
            if not self._accumulator.add(chunk) and has_unknown_content(payload):
                self._accumulator.count()  # something was generated that this package has no name for
        elif decoder.done:
            self._finish()
        return chunk

    async def _skip(self) -> None:
        """Gives others a turn now and then, while payloads come that are nothing for the caller."""
        self._skipped += 1
        if self._skipped % _SKIPS_PER_TURN == 0:
            await asyncio.sleep(0)

    def _note_arrival(self, arrived: float) -> None:
        """Enters the time at which bytes came that held something generated."""
        if self._first is None:
            self._first = arrived
        else:
            gap = arrived - self._last
            if self._gap is None or gap > self._gap:
                self._gap = gap
        self._last = arrived

    # ---------------------------------------------------------------------------------------------------------- ending

    @property
    def _complete(self) -> bool:
        """The rule: `[DONE]`, or every choice that was seen, and as many as were asked for, has a finish reason."""
        return self._error is None and (
            (self._decoder is not None and self._decoder.done) or self._accumulator.finished(self._choices)
        )

    def _finish(self) -> None:
        """The stream has reached its end: the connection goes back to the pool."""
        self._over = True
        self._payloads = []
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._settle(exchange)
            exchange.on_close = None
            exchange.release_soon()
            _settle_limits(self._call, self._accumulator)

    def _settle(self, exchange: HTTPResponse) -> None:
        """Keeps what will be asked for when the response is gone."""
        self._head = exchange.headers
        if self._accumulator.settle():
            self._note_arrival(exchange.arrived)

    def _leave(self) -> None:
        """Closes the connection, whatever was under way."""
        self._over = True
        self._payloads = []
        if self._opening:
            self._call.abort(APIConnectionError("the stream was closed"))
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._settle(exchange)
            exchange.close()

    def _body_ended(self, decoder: ChunkDecoder) -> None:
        self._payloads = decoder.end()
        if self._payloads:
            self._payloads.reverse()
            return
        if self._complete:
            self._finish()
            return
        raise self._broken(
            IncompleteStreamError,
            f"the stream ended after {self._accumulator.generated} chunks, before [DONE] and before every choice had "
            "a finish reason; the answer is cut off (see .partial), ask again",
        )

    def _connection_failed(self, error: APIConnectionError) -> None:
        """The connection is lost or late: the end, if all had come; else the error that says what is missing."""
        if self._decoder is not None and (payloads := self._decoder.kept_payloads()):
            payloads.reverse()
            self._payloads = payloads  # they may say that it is complete; the next read fails in the same way
            return
        if self._accumulator.finished(self._choices):
            self._leave()
            return
        if isinstance(error, InflationError):
            scrub(error, self._secrets())
            raise self._broken(StreamProtocolError, str(error)) from error
        timed_out = isinstance(error, APITimeoutError)
        if timed_out and self._accumulator.generated == 0:
            self._error = error
            error.request_id = self.request_id
            self._leave()
            raise error
        scrub(error, self._secrets())
        if isinstance(error, APITimeoutError):
            raise self._broken(StreamTimeoutError, None, phase=error.phase, seconds=error.seconds) from error
        raise self._broken(
            StreamConnectionError, f"the stream broke after {self._accumulator.generated} chunks: {error}"
        ) from error

    def _broken(self, cls: type[StreamError], message: str | None, **facts: Any) -> StreamError:
        """Closes everything and returns the error to raise; it is raised again by every later read."""
        args = () if message is None else (redact(message, self._secrets())[:_MAX_TEXT],)
        error = cls(*args, partial=self._accumulator.completion(), request_id=self.request_id, **facts)
        error.attempts, error.retries = self._call.attempts, self._call.retries
        self._error = error
        self._leave()
        return error


def _settle_limits(call: Call, accumulator: ChatCompletionAccumulator) -> None:
    """Says what a stream cost, and frees its place."""
    call.ended(accumulator.usage, accumulator.generated)
