"""`ChatCompletionStream`: one streamed completion, as its user sees it.

Who closes the connection: inside `async with stream:` the end of the block does, so a loop may be left and taken up
again. Without `async with` the loop owns the connection: `async for` gets an iterator of its own, which the `for`
statement drops when it is left for whatever reason, and the end of that iterator closes the connection at once. Such a
loop claims the stream (see `calls.claims`).

How a stream is read and how it ends is in `calls.reading`; the loops are in `calls.readers`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from together_async.calls.readers import BatchesReader, ChunksReader, RawReader, RestReader, TextReader
from together_async.calls.reading import Reading, State
from together_async.calls.stats import StreamStats
from together_async.calls.tracebacks import let_go
from together_async.errors import TogetherError
from together_async.models import ChatCompletion, ChatCompletionChunk, Retried, record_attempts

if TYPE_CHECKING:
    from together_async.calls.call import Call


class ChatCompletionStream:
    """One stream: an async iterator of `ChatCompletionChunk`, and an async context manager. Made by `client.stream`.

    The request is sent by `async with`, or by the first chunk that is asked for. A stream is read once. Outside of
    `async with` one loop reads it, and another loop at the same time is refused (RuntimeError) while the first goes on;
    inside, loops share the chunks. `tee(stream)` and `Broadcast(stream)` give each chunk to several consumers. Loops
    over the texts of different choices go together everywhere (see `text`).

    It has many methods and is one thing: they are the ways of reading and closing, and what is known about the answer;
    all state is in `Reading`.

    Raises (from `async with` and while reading):
        APIStatusError: The server refused; the subclass says why.
        APIConnectionError, APITimeoutError: Nothing came back.
        StreamError: It began and broke; `.partial` is what had been delivered, the subclass says why.
        RuntimeError: Another loop or task reads it; nothing happens to that one.
    """

    __slots__ = ("__weakref__", "_call", "_entered", "_next", "_reading")

    def __init__(self, call: Call, *, choices: int = 1, time: Callable[[], float], max_event_size: int) -> None:
        self._call = call
        self._entered = False
        self._next: ChunksReader | None = None
        self._reading = Reading(call, choices=choices, time=time, max_event_size=max_event_size)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._reading.describe()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a stream holds a connection and can't be pickled; pickle what `completion()` returns")

    # ------------------------------------------------------------------------------------------------- public: reading

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return ChunksReader(self._reading, 0, plain=not self._entered)

    async def __anext__(self) -> ChatCompletionChunk:
        if self._next is None:
            self._next = ChunksReader(self._reading, 0, plain=False)
        return await self._next.__anext__()

    def text(self, choice: int = 0) -> AsyncIterator[str]:
        """Returns an iterator of the text deltas of one choice; empty ones are left out.

        It decodes only what it needs of each chunk, so it is the cheapest way to read a stream. The other choices and
        all other fields still go into `completion()`.

        Of a stream with several choices, one iterator for each may be read, in several tasks at once or one after the
        other: each gives the whole text of its choice. What one comes across of another's text is kept for that one,
        and given to it as one piece; that is never more than the answer, which the stream holds anyway. If all loops
        over texts are outside of `async with`, the last one that is left closes the connection. What a loop over
        chunks, or `completion()`, has read of a text does not come again.

        Args:
            choice: The index of the choice, from 0.
        """
        return TextReader(self._reading, choice, plain=not self._entered)

    def batches(self) -> AsyncIterator[list[ChatCompletionChunk]]:
        """Returns an iterator of lists of chunks: those that have arrived together, at least 1 and at most 64.

        For code that passes chunks on or shows them, and does it once for all that are there.
        """
        return BatchesReader(self._reading, 0, plain=not self._entered)

    def raw(self) -> AsyncIterator[bytes]:
        """Returns an iterator of the bytes of the response, unchanged, in whole events; for code that passes them on.

        Only the first and the last events are decoded, so `completion()` and `stats` know no more than usage, finish
        reasons and the number of events. It ends, or raises, like every other way to read a stream. Nothing else may
        read the same stream.

        Raises:
            RuntimeError: Some of the stream has been read already, or another loop or task reads it.
        """
        self._reading.read_raw()
        return RawReader(self._reading, 0, plain=not self._entered)

    async def completion(self) -> ChatCompletion:
        """Reads the rest of the stream, if any, and returns the completion that its chunks add up to.

        In the body of a loop it takes the rest from that loop.

        Raises:
            IncompleteStreamError: The stream was closed by the caller before its end.
        """
        try:
            async for _ in RestReader(self._reading, 0, plain=not self._entered):
                pass
        except TogetherError as error:
            let_go(error)
            raise
        completion = self._reading.accumulator.completion()
        record_attempts(completion, self._call.attempts, self._call.retries)
        return completion

    def so_far(self) -> ChatCompletion:
        """Returns the completion that has been read so far. It reads nothing itself."""
        return self._reading.accumulator.completion()

    @property
    def complete(self) -> bool:
        """Whether the whole answer has been read: `[DONE]` has come, or every choice has a finish reason."""
        return self._reading.over and self._reading.complete

    # ------------------------------------------------------------------------------------------------- public: leaving

    async def open(self) -> None:
        """Sends the request now instead of when the first chunk is read. Twice is fine.

        Unlike `async with` it leaves the connection to the loop that reads the stream.

        Raises:
            TogetherError: There is no answer; see the class.
            RuntimeError: Another task is opening the stream.
        """
        try:
            if self._reading.state in (State.NEW, State.OPENING):
                await self._reading.open()
        except TogetherError as error:
            let_go(error)
            raise

    async def __aenter__(self) -> Self:
        self._entered = True
        try:
            await self.open()
        except TogetherError as error:
            let_go(error)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if isinstance(exc, TogetherError):
            let_go(exc)
        self.leave()

    async def aclose(self) -> None:
        """Closes the connection at once, unless the stream has reached its end. Twice is fine."""
        self.leave()

    def leave(self) -> None:
        """The same as `aclose`, for code that can't await: callbacks, finalizers."""
        self._reading.closed = True
        self._reading.leave()

    async def close(self) -> None:
        """The same as `aclose`, by the name it has in the SDKs."""
        self.leave()

    # --------------------------------------------------------------------------------------------------- public: facts

    @property
    def response_headers(self) -> dict[str, str]:
        """The headers of the response, names in lower case; empty until they have come."""
        return dict(self._reading.response_headers)

    @property
    def request_id(self) -> str | None:
        """The server's id of this request (`x-request-id`, else `cf-ray`); None if it has sent none."""
        return self._reading.request_id

    @property
    def stats(self) -> StreamStats:
        """How the stream has gone so far."""
        reading = self._reading
        reading.settle_times()
        usage = reading.accumulator.usage
        return reading.times.stats(
            chunks=reading.accumulator.generated,
            completion_tokens=usage.completion_tokens if usage is not None else None,
            total_tokens=self._call.tokens,
            estimated=self._call.estimated,
        )

    @property
    def attempts(self) -> int:
        """How many HTTP requests have been made so far, from 0."""
        return self._call.attempts

    @property
    def retries(self) -> tuple[Retried, ...]:
        """Why there was more than one attempt: for each that failed its `reason`, and `waited_s` until the next."""
        return self._call.retries
