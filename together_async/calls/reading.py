"""`Reading`: one stream while it is read. It waits for the network, and ends the stream or breaks it off.

The stream (`calls.stream`) is the public face of a reading, and the readers (`calls.readers`) are the loops over it;
both hold the reading and read its state. A reading is in one of five states:

| state | `response` | `payloads` | `error` | what a read does |
|---|---|---|---|---|
| NEW | None | empty | None | opens the stream |
| OPENING | None | empty | None | a reader of one choice's text waits (see below); any other raises RuntimeError |
| LEAVING | None | empty | any | raises the error; the task that is opening the stream finds out and ends it |
| OPEN | set | any | None | returns the next payload, or waits for it |
| ENDED | None | empty | any | ends the loop if the answer is complete, else raises the error |

and changes it like this, whatever comes from the server, the caller or the garbage collector:

| from | to | by |
|---|---|---|
| NEW | OPENING | `open` |
| NEW | ENDED | `leave` |
| OPENING | OPEN | the head of a response |
| OPENING | ENDED | an error, or a cancellation |
| OPENING | NEW | a cancellation while another reader waits |
| OPENING | LEAVING | `leave`, which gives the call up |
| LEAVING | ENDED | the call, which is given up |
| OPEN | ENDED | `finish` at the end of the answer, `leave`, `break_off` with an error |
| ENDED | OPENING | `retry`, as long as nothing was delivered |

One reader at a time is at the network: it opens the stream, or waits for bytes. Meanwhile readers of other choices'
texts wait. When it is back, they go on with what was kept for them (`kept`), with the payloads that are left, or at the
network themselves. A reader of whole chunks is refused meanwhile; and while one is at the network, so is any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from together_async.calls.claims import ClaimingIterator, Claims, KeptTexts
from together_async.calls.stats import ArrivalTimes
from together_async.calls.tracebacks import let_go
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
from together_async.models import ChatCompletionChunk
from together_async.tasks import BusyError, handed_over
from together_async.wire.accumulator import ChatCompletionAccumulator
from together_async.wire.chunks import ChunkDecoder, ProtocolError, ReportedError
from together_async.wire.codec import has_unknown_content
from together_async.wire.error_bodies import request_id
from together_async.wire.header_values import by_lower_name
from together_async.wire.raw_events import RawEventDecoder
from together_async.wire.redaction import redact, scrub

if TYPE_CHECKING:
    from together_async.calls.call import Call
    from together_async.http.response import HTTPResponse

_SKIPS_PER_TURN: Final = 256
"""Payloads without a chunk that are skipped before other tasks get a turn."""
_MAX_TEXT: Final = 500
"""Characters of an error's text, which may repeat a server's."""
_TWO_READERS: Final = "two tasks read one stream at the same time; let one of them read"
_CLOSED_WHILE_OPENING: Final = "the stream was closed while its request was being sent"


class State(enum.Enum):
    """The states of a `Reading`; the table above says what they mean."""

    NEW = enum.auto()
    OPENING = enum.auto()
    LEAVING = enum.auto()
    OPEN = enum.auto()
    ENDED = enum.auto()


class Reading:
    """One stream while it is read.

    The attributes are one thing: whatever a read can change when it waits, ends or fails.

    Args:
        call: The call that the stream answers.
        choices: How many choices were asked for.
        time: The event loop's clock, in seconds.
        max_event_size: The most bytes of one event.

    Attributes:
        state: See the table at the head of this module.
        response: The HTTP response that is being read.
        decoder: Its decoder; kept when the response has ended.
        payloads: Payloads that have come and are not decoded yet; the next is the last of the list.
        accumulator: What has been delivered, added up.
        error: Why the stream broke; every later read raises it again.
        times: When something generated arrived.
        delivered: Whether the caller has got something of the answer. From then on there is no retry.
        caller_ran: Whether the caller had a turn since the last wait for the network. Then the time between is the
            caller's, and not the server's silence.
        closed: Whether the caller has closed the stream.
        raw: Whether the bytes of the response are read, and not its chunks.
        claims: Those of the plain loops that are under way.
        kept: Texts of choices that a loop over another choice's text came across, for their own readers; None if there
            are none, as readers look it up for every token.
    """

    __slots__ = (
        "_at_network",
        "_call",
        "_choices",
        "_headers",
        "_max_event_size",
        "_network_free",
        "_raw_headers",
        "_skipped",
        "_time",
        "accumulator",
        "caller_ran",
        "claims",
        "closed",
        "decoder",
        "delivered",
        "error",
        "kept",
        "payloads",
        "raw",
        "response",
        "state",
        "times",
    )

    def __init__(self, call: Call, *, choices: int, time: Callable[[], float], max_event_size: int) -> None:
        self._call = call
        self._choices = choices
        self._time = time
        self._max_event_size = max_event_size
        self._headers: dict[str, str] | None = None  # made when they are asked for
        self._raw_headers: Mapping[str, str] | None = None  # of the response that has gone
        self._skipped = 0  # payloads without a chunk
        self._at_network: ClaimingIterator | None = None  # the reader that is at the network
        self._network_free: asyncio.Event | None = None  # readers of other choices' texts wait for it
        self.state = State.NEW
        self.response: HTTPResponse | None = None
        self.decoder: ChunkDecoder | None = None
        self.payloads: list[bytes] = []
        self.accumulator = ChatCompletionAccumulator()
        self.error: TogetherError | None = None
        self.times = ArrivalTimes()
        self.delivered = False
        self.caller_ran = True
        self.closed = False
        self.raw = False
        self.claims = Claims()
        self.kept: KeptTexts | None = None

    def __repr__(self) -> str:
        return f"<Reading {self.describe()}>"

    def __del__(self) -> None:
        # Neither a stream nor a reader holds it any more. `getattr`, because __init__ may not have run.
        if getattr(self, "state", State.ENDED) is not State.ENDED:
            self.leave()

    def describe(self) -> str:
        """Returns state, chunks and request id in a few words."""
        if self.error is not None:
            state = "broken"
        elif self.state in (State.LEAVING, State.ENDED):
            state = "closed"
        else:
            state = "open" if self.state is State.OPEN else "not opened"
        request_id = f" request_id={self.request_id!r}" if self.request_id else ""
        return f"{state} {self.accumulator.generated} chunks{request_id}"

    # ----------------------------------------------------------------------------------------------------------- facts

    @property
    def complete(self) -> bool:
        """The rule of a whole answer: `[DONE]`, or a finish reason for every choice, those asked for included."""
        return self.error is None and (
            (self.decoder is not None and self.decoder.done) or self.accumulator.finished(self._choices)
        )

    @property
    def over(self) -> bool:
        """Whether nothing more is read: the answer has ended, broken off, or was left."""
        return self.state is State.ENDED or self.state is State.LEAVING

    @property
    def response_headers(self) -> dict[str, str]:
        """The headers of the latest response, names in lower case; empty until there is one."""
        if self._headers is None:
            raw_headers = self._raw_headers if self.response is None else self.response.raw_headers
            if raw_headers is None:
                return {}
            self._headers = by_lower_name(raw_headers)
        return self._headers

    @property
    def request_id(self) -> str | None:
        """The server's id of the request; None if it has sent none."""
        return request_id(self.response_headers)

    def settle_times(self) -> None:
        """Brings `times` up to date with what the readers have added to the accumulator by themselves."""
        if self.response is not None and self.accumulator.settle():
            self.times.note(self.response.arrived)

    # --------------------------------------------------------------------------------------------------------- opening

    async def open(self, reader: ClaimingIterator | None = None, *, broken: TogetherError | None = None) -> None:
        """Sends the request, and looks at the head of the response.

        Args:
            reader: The reader that opens it; None for none.
            broken: How an earlier response broke, of which the caller has seen nothing.

        Raises:
            BusyError: Another task is opening the stream.
            TogetherError: There is no answer, or it is not an event stream.
        """
        if self.state is State.OPENING or self.state is State.LEAVING:
            raise BusyError(_TWO_READERS)
        if broken is None:
            self.times.started = self._time()
        self.state, self.error = State.OPENING, None
        self._at_network = reader
        try:
            response = await self._response_of_call(reader, broken)
            # Called when the response is closed. It holds no reference to this reading, which has to end when dropped.
            response.on_close = functools.partial(_settle_limits, self._call, self.accumulator)
            if broken is not None:
                self._start_anew()
            if self._is_leaving():
                response.close()
                self.state = State.ENDED
                raise self.break_off(IncompleteStreamError, _CLOSED_WHILE_OPENING)
            self.state, self.response = State.OPEN, response
            try:
                self.decoder = self._decoder_for(response)
            except ProtocolError as error:
                raise self.break_off_as_foreign(error) from error
        finally:
            self._leave_network()

    async def _response_of_call(self, reader: ClaimingIterator | None, broken: TogetherError | None) -> HTTPResponse:
        try:
            return await (self._call.open() if broken is None else self._call.again(broken))
        except TogetherError as error:
            was_left, self.state = self._is_leaving(), State.ENDED
            if was_left:
                raise self.break_off(IncompleteStreamError, _CLOSED_WHILE_OPENING) from error
            self.error = error
            let_go(error)
            raise
        except BaseException:
            # Cancelled. A later loop must not take this for a stream that has ended.
            if self._network_free is not None and not self._is_leaving():
                self._start_anew()
                self.state = State.NEW  # a reader that waits sends the request again
                if reader is not None:
                    reader.give_up()
                raise
            self.state = State.ENDED
            self.break_off(IncompleteStreamError, "the stream was given up while its request was being sent")
            raise

    def _is_leaving(self) -> bool:
        return self.state is State.LEAVING

    def _start_anew(self) -> None:
        """Forgets an earlier response."""
        self.accumulator.clear()
        self.kept = None
        self.decoder = None
        self.payloads = []
        self.caller_ran = True
        self.times.clear()
        self._headers = self._raw_headers = None

    async def retry(self, error: TogetherError, reader: ClaimingIterator) -> None:
        """Sends the request again after a response that broke; raises `error` if that is not possible any more."""
        if self.delivered or self.closed or self.error is not error:
            raise error
        await self.open(reader, broken=error)

    def read_raw(self) -> None:
        """Switches to reading the bytes of the response.

        Raises:
            RuntimeError: Some of it has been read as chunks, or is just being read.
        """
        if self.raw:
            return
        self.claims.check(None)
        if self._is_busy():
            raise BusyError(_TWO_READERS)
        if self.delivered or self.payloads:
            raise RuntimeError("something of this stream has been read already; its bytes are gone")
        self.raw = True
        if self.response is not None:  # it is open, and nothing of it has been read
            self.decoder = self._decoder_for(self.response)

    def _decoder_for(self, response: HTTPResponse) -> ChunkDecoder:
        if response.status in (204, 205):
            raise ProtocolError(f"got status {response.status} without a body, expected an event stream")
        if self.raw:
            return RawEventDecoder(
                media_type=response.media_type, max_event_size=self._max_event_size, every=self._choices > 1
            )
        return ChunkDecoder(media_type=response.media_type, max_event_size=self._max_event_size)

    # --------------------------------------------------------------------------------------------------------- reading

    def _is_busy(self) -> bool:
        """Whether a reader is at the network, or the stream is being opened."""
        return self._at_network is not None or self.state is State.OPENING

    async def _wait_for_network(self, reader: ClaimingIterator) -> None:
        """Waits until the reader that is at the network has come back.

        Raises:
            BusyError: One of the two reads more than the text of a choice.
        """
        if reader.must_claim:
            self.claims.check(reader.choice)
        if self._at_network is None or self._at_network.choice is None or reader.choice is None:
            raise BusyError(_TWO_READERS)
        if reader.must_claim:
            reader.claim()
        if self._network_free is None:
            self._network_free = asyncio.Event()
        try:
            await self._network_free.wait()
        except BaseException:
            reader.give_up()
            raise

    def _leave_network(self) -> None:
        self._at_network = None
        ended, self._network_free = self._network_free, None
        if ended is not None and not handed_over(self._call.loop, ended.set):
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                ended.set()

    async def wait(self, reader: ClaimingIterator, once: bool = False) -> bool:  # noqa: C901, PLR0912, PLR0915 - the one place that waits
        """Waits for payloads. Returns False at the end of the stream, else True.

        There is a payload then, unless another reader was at the network meanwhile: it may have left none.

        Args:
            reader: The reader that waits. If it is cancelled, it gives up its claim; the last claim closes the stream.
            once: Return after any bytes, even if they hold no payload.

        Raises:
            TogetherError: The stream broke, or could not be opened.
            BusyError: Another reader is at the network; nothing happens to it.
        """
        while not self.payloads:
            response, decoder = self.response, self.decoder
            if response is None or decoder is None or self._at_network is not None:
                if self._is_busy():
                    await self._wait_for_network(reader)
                    return True
                if self.over:
                    return self._end_of_loop()
                if reader.must_claim:
                    reader.claim()
                await self.open(reader)
                continue
            if reader.must_claim:
                reader.claim()
            self._at_network = reader
            try:
                try:
                    progressed = self.accumulator.settle()
                    if progressed:
                        self.times.note(response.arrived)
                    data_to_come = response.start_read(progressed, self.caller_ran)
                    self.caller_ran = False
                    try:
                        data = await data_to_come
                    except BaseException as error:  # noqa: BLE001 - salvage_buffered raises it, or returns data
                        data = response.salvage_buffered(error)
                    else:
                        response.note_read(data)
                    if data:
                        self.payloads = payloads = decoder.feed(data)
                        payloads.reverse()
                    else:
                        self._end_of_body(decoder)
                    if once:
                        return True
                except APIConnectionError as error:
                    self._connection_failed(error)
                except ProtocolError as error:
                    raise self.break_off_as_foreign(error) from error
                except BaseException:
                    # Errors of ours have closed everything already. A cancellation leaves a stream in `async with`, or
                    # with another loop, as it was: no byte is lost.
                    reader.give_up()
                    self.caller_ran = True  # the interrupted caller has its turn now; that time is not the server's
                    raise
            except TogetherError as error:
                if self.delivered:
                    raise
                await self.retry(error, reader)
            finally:
                self._at_network = None
                if self._network_free is not None:
                    self._leave_network()
        return True

    def _end_of_loop(self) -> bool:
        """Returns False, which ends a loop, unless the loop has to end with an error."""
        if self.error is None and not self.complete:
            self.break_off(IncompleteStreamError, "the stream was closed by its reader before its end")
        if self.error is not None:
            let_go(self.error)
            raise self.error.with_traceback(None)  # without the frames of earlier reads
        return False

    def accept(self, payload: bytes, chunk: ChatCompletionChunk | None = None) -> ChatCompletionChunk | None:
        """Returns the chunk of a payload, None if it has none; at `[DONE]` it ends the stream.

        Args:
            payload: The next payload.
            chunk: What it decodes to, if the reader has decoded it already.

        Raises:
            StreamAPIError: The payload is an error object.
            StreamProtocolError: The payload is not of the protocol.
        """
        decoder = self.decoder
        assert decoder is not None  # noqa: S101 - it made the payload
        try:
            chunk = decoder.decode(payload) if chunk is None else decoder.accept(chunk, payload)
        except ReportedError as error:
            facts = error.facts
            self._call.record_error_in_body(facts.status, facts.body, self.response_headers)
            raise self.break_off(
                StreamAPIError,
                f"the server sent an error in the stream: {facts.message}",
                status_code=facts.status,
                body=facts.body,
            ) from None
        except ProtocolError as error:
            raise self.break_off_as_foreign(error) from error
        if chunk is not None:
            if not self.accumulator.add(chunk) and has_unknown_content(payload):
                self.accumulator.count()  # something was generated that this package has no name for
        elif decoder.done:
            self.finish()
        return chunk

    async def skip(self, reader: ClaimingIterator) -> None:
        """Counts a payload that holds nothing for the caller; gives other tasks a turn now and then.

        Args:
            reader: Who skips it. If it is cancelled, it gives up its claim, as in `wait`.
        """
        self._skipped += 1
        if self._skipped % _SKIPS_PER_TURN == 0:
            try:
                await asyncio.sleep(0)
            except BaseException:
                reader.give_up()
                raise

    # ---------------------------------------------------------------------------------------------------------- ending

    def finish(self) -> None:
        """Ends the stream at the end of its answer: the connection goes back to the pool."""
        response = self._detach()
        if response is not None:
            response.on_close = None
            response.release_soon()
            _settle_limits(self._call, self.accumulator)

    def leave(self) -> None:
        """Closes the connection, whatever is under way. Twice is fine."""
        if handed_over(self._call.loop, self.leave):
            return
        if self.state is State.OPENING or self.state is State.LEAVING:
            self.state = State.LEAVING
            self._call.abort(APIConnectionError("the stream was closed"))
            return
        response = self._detach()
        if response is not None:
            response.close()

    def _detach(self) -> HTTPResponse | None:
        """Ends the reading; returns the response, if it had one, and keeps its headers."""
        self.state = State.ENDED
        self.payloads = []
        response, self.response = self.response, None
        if response is not None:
            self._raw_headers = response.raw_headers
            if self.accumulator.settle():
                self.times.note(response.arrived)
        return response

    def _end_of_body(self, decoder: ChunkDecoder) -> None:
        self.payloads = decoder.end()
        if self.payloads:
            self.payloads.reverse()
        elif self.complete:
            self.finish()
        else:
            raise self.break_off(
                IncompleteStreamError,
                f"the stream ended after {self.accumulator.generated} chunks, before [DONE] and before every choice "
                "had a finish reason; the answer is cut off (see .partial), ask again",
            )

    def _connection_failed(self, error: APIConnectionError) -> None:
        """Ends a stream whose connection is lost or too slow; with an error unless the answer is complete."""
        if self.decoder is not None and (payloads := self.decoder.kept_payloads()):
            payloads.reverse()
            self.payloads = payloads  # they may complete the answer; if not, the next read fails in the same way
            return
        if self.accumulator.finished(self._choices):
            self.leave()
            return
        if isinstance(error, InflationError):
            raise self.break_off_as_foreign(error) from error
        if isinstance(error, APITimeoutError) and self.accumulator.generated == 0:
            self.error = error
            let_go(error)
            error.request_id = self.request_id
            self.leave()
            raise error
        scrub(error, self._call.secrets())
        if isinstance(error, APITimeoutError):
            raise self.break_off(StreamTimeoutError, None, phase=error.phase, seconds=error.seconds) from error
        raise self.break_off(
            StreamConnectionError, f"the stream broke after {self.accumulator.generated} chunks: {error}"
        ) from error

    def break_off_as_foreign(self, error: Exception) -> StreamError:
        """Breaks the stream off for something that is not of the protocol; returns the error to raise."""
        scrub(error, self._call.secrets())
        return self.break_off(StreamProtocolError, str(error))

    def break_off(self, cls: type[StreamError], message: str | None, **facts: Any) -> StreamError:
        """Closes everything and returns the error to raise; every later read raises it again."""
        args = () if message is None else (redact(message, self._call.secrets())[:_MAX_TEXT],)
        error = cls(*args, partial=self.accumulator.completion(), request_id=self.request_id, **facts)
        error.attempts, error.retries = self._call.attempts, self._call.retries
        self.error = error
        let_go(error)
        self.leave()
        return error


def _settle_limits(call: Call, accumulator: ChatCompletionAccumulator) -> None:
    """Reports what a stream cost, and frees its place."""
    call.settle(accumulator.usage, accumulator.generated)
