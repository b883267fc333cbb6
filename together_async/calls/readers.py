"""The loops over a stream: its chunks, batches of chunks, the text of one choice, the rest of it, its bytes.

The per-token path is in the `__anext__` methods. It has no task, no queue and no timer: a payload is decoded when the
caller wants it, and the network is read when no payload is left. Waiting, ending and failing are in `calls.reading`.

A plain loop claims the stream with its first step (see `calls.claims`), in `_decode` or `Reading.wait`: no reader takes
the quick path before its first chunk, so that a token costs nothing for it.

Nearly every chunk is plain: one choice, the one that is being read, with a text and nothing else. Such chunks take a
quick path, which adds the text to the accumulator's own list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, Self

from together_async.calls.claims import ClaimingIterator, KeptTexts
from together_async.calls.reading import Reading
from together_async.errors import StreamError
from together_async.models import ChatCompletionChunk, set_source, text_of
from together_async.tasks import BusyError
from together_async.wire.codec import decode_chunk_strictly, decode_text_strictly, encode
from together_async.wire.raw_events import RawEventDecoder

_BATCH: Final = 64
"""Most chunks of a batch: what its reader does with them is one turn of the event loop."""


class Reader(ClaimingIterator):
    """Base of all iterators over a stream.

    Args:
        reading: The stream that is read.
        index: The index of the choice whose text is read; 0 for readers of whole chunks.
        plain: Whether it is made outside of `async with`: then it claims the stream, and closes it when it is dropped.
    """

    __slots__ = ("_accumulator", "_append", "_has_role", "_index", "_reading")

    ONE_CHOICE: ClassVar = False
    """Whether only the text of one choice is read, and loops over the others may read beside it."""

    def __init__(self, reading: Reading, index: int, *, plain: bool) -> None:
        super().__init__(reading.claims, index if self.ONE_CHOICE else None, plain=plain)
        self._reading = reading
        self._index = index
        self._accumulator = reading.accumulator
        self._append: Callable[[str], None] | None = None  # adds to the texts of the choice, once it has begun
        self._has_role = False  # whether the choice's role has come
        if not plain:
            self._begin()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._reading!r}>"

    def __aiter__(self) -> Self:
        # The iterator of a loop owns the connection: it dies with the loop, even if this one is kept.
        loop = type(self)(self._reading, self._index, plain=self._is_plain)
        loop.take_over(self)
        return loop

    def _close(self) -> None:
        if not self._reading.over:
            self._reading.leave()

    def _unclaim(self) -> None:
        super()._unclaim()
        self._append = None  # the quick path claims nothing

    def _begin(self) -> None:
        """Takes the quick path from now on if the choice has begun, and no retry can replace the response."""
        texts = self._accumulator.texts(self._index) if self._reading.delivered else None
        if texts is not None:
            self._append = texts.append
            self._has_role = self._accumulator.has_role(self._index)

    def _delivers(self, chunk: ChatCompletionChunk) -> bool:  # noqa: ARG002 - a text reader looks at it
        """Whether the caller sees something of a chunk."""
        return True

    def _decode(self, payload: bytes, chunk: ChatCompletionChunk | None) -> ChatCompletionChunk | None:
        """Returns the chunk of any payload, None if it is not one; decoded already if `chunk` is given."""
        reading = self._reading
        if self.must_claim:
            try:
                self.claim()
            except BusyError:
                reading.payloads.append(payload)  # the other loop has not had it
                raise
        chunk = reading.accept(payload, chunk)
        if chunk is not None and not reading.delivered:
            reading.delivered = self._delivers(chunk)
        self._begin()
        return chunk


class ChunksReader(Reader):
    """The iterator of chunks."""

    __slots__ = ()

    async def __anext__(self) -> ChatCompletionChunk:
        reading = self._reading
        while True:
            payloads = reading.payloads
            while payloads:
                payload = payloads.pop()
                chunk: ChatCompletionChunk | None = None
                # Quick path of Reader._decode; tests/calls/test_reading.py::test_the_quick_paths_are_the_full_one holds
                # the two together. It is that of BatchesReader too, written out: a call for each chunk costs 4 %.
                try:
                    chunk = decode_chunk_strictly(payload)
                    (choice,) = chunk.choices
                except (ValueError, RecursionError):  # not a chunk, or not of one choice
                    pass
                else:
                    delta = choice.delta
                    if (
                        (append := self._append) is not None
                        and (content := delta.content)
                        and choice.index == 0
                        and choice.finish_reason is None
                        and choice.logprobs is None
                        and choice.seed is None
                        and (self._has_role or delta.role is None)
                        and delta.tool_calls is None
                        and delta.reasoning is None
                        and delta.reasoning_content is None
                        and delta.refusal is None
                        and delta.function_call is None
                        and chunk.usage is None
                        and chunk.error is None
                        and chunk.prompt is None
                        and chunk.warnings is None
                    ):
                        append(content)
                        set_source(chunk, payload)
                        set_source(choice, payload)
                        set_source(delta, payload)
                        return chunk
                try:
                    chunk = self._decode(payload, chunk)
                except StreamError as error:
                    await reading.retry(error, self)
                    chunk = None
                if chunk is not None:
                    reading.caller_ran = True
                    return chunk
                await reading.skip(self)
                payloads = reading.payloads
            if not await reading.wait(self):
                raise StopAsyncIteration


class BatchesReader(Reader):
    """The iterator of lists of chunks, each with the bytes it came from."""

    __slots__ = ()

    async def __anext__(self) -> list[ChatCompletionChunk]:
        reading = self._reading
        batch: list[ChatCompletionChunk] = []
        while True:
            while reading.payloads and len(batch) < _BATCH:
                payload = reading.payloads.pop()
                try:
                    chunk = self._plain(payload) or self._decode(payload, None)
                except StreamError as error:
                    if batch:
                        break  # the next read raises it
                    await reading.retry(error, self)
                    continue
                if chunk is not None:
                    batch.append(chunk)
                elif not batch:
                    await reading.skip(self)
            if batch:
                reading.caller_ran = True
                return batch
            if not await reading.wait(self):
                raise StopAsyncIteration

    def _plain(self, payload: bytes) -> ChatCompletionChunk | None:
        """Returns the chunk of a plain payload, with its text added up. For any other payload it does nothing: None."""
        # Quick path of Reader._decode; tests/calls/test_reading.py::test_the_quick_paths_are_the_full_one holds the two
        # together.
        append = self._append
        if append is None:
            return None
        try:
            chunk = decode_chunk_strictly(payload)
            (choice,) = chunk.choices
        except (ValueError, RecursionError):
            return None
        delta = choice.delta
        if (
            not (content := delta.content)
            or choice.index != 0
            or choice.finish_reason is not None
            or choice.logprobs is not None
            or choice.seed is not None
            or not (self._has_role or delta.role is None)
            or delta.tool_calls is not None
            or delta.reasoning is not None
            or delta.reasoning_content is not None
            or delta.refusal is not None
            or delta.function_call is not None
            or chunk.usage is not None
            or chunk.error is not None
            or chunk.prompt is not None
            or chunk.warnings is not None
        ):
            return None
        append(content)
        set_source(chunk, payload)
        set_source(choice, payload)
        set_source(delta, payload)
        return chunk


class RawReader(Reader):
    """The iterator of bytes."""

    __slots__ = ()

    async def __anext__(self) -> bytes:
        reading = self._reading
        while True:
            try:
                data = self._next_data()
            except StreamError as error:
                data = self._whole_events() if reading.delivered else b""
                if not data:
                    await reading.retry(error, self)
                    continue
            if data:
                reading.delivered = reading.caller_ran = True
                return data
            if not await reading.wait(self, once=True):
                decoder = reading.decoder
                if isinstance(decoder, RawEventDecoder) and (data := decoder.unterminated_done()):
                    return data
                raise StopAsyncIteration

    def _whole_events(self) -> bytes:
        """Returns the bytes of the whole events that have come."""
        decoder = self._reading.decoder
        if not isinstance(decoder, RawEventDecoder) or not decoder.passed:
            return b""
        data = b"".join(decoder.passed) if len(decoder.passed) > 1 else decoder.passed[0]
        decoder.passed = []
        return data

    def _next_data(self) -> bytes:
        """Decodes the payloads that matter; returns the bytes that came with them.

        Bytes are returned once they hold something of an answer: until then the call may be retried.
        """
        reading = self._reading
        decoder = reading.decoder
        if not isinstance(decoder, RawEventDecoder):
            return b""
        if decoder.events:
            reading.accumulator.count(decoder.events)
            decoder.events = 0
        while reading.payloads:
            chunk = self._decode(reading.payloads.pop(), None)
            if chunk is not None and not decoder.passed and not reading.delivered:
                # A whole completion in place of a stream.
                decoder.passed += [b"data: " + encode(chunk.to_dict()) + b"\n\n", b"data: [DONE]\n\n"]
        ended = reading.over and reading.complete
        return self._whole_events() if reading.delivered or ended or reading.accumulator.generated else b""

    def _delivers(self, chunk: ChatCompletionChunk) -> bool:  # noqa: ARG002 - the bytes are delivered, not the chunk
        return False


class TextReader(Reader):
    """The iterator of one choice's text. It keeps the texts of the other choices for their readers."""

    __slots__ = ()
    ONE_CHOICE = True

    async def __anext__(self) -> str:  # noqa: C901 - the quick path costs no call
        reading = self._reading
        while True:
            if reading.kept is not None and (text := self._kept_text()):
                return text
            payloads = reading.payloads
            if payloads:
                payload = payloads.pop()
                # Quick path of Reader._decode; tests/calls/test_reading.py::test_the_quick_paths_are_the_full_one holds
                # the two together.
                try:
                    chunk = decode_text_strictly(payload)
                    (choice,) = chunk.choices
                except (ValueError, RecursionError):
                    pass
                else:
                    delta = choice.delta
                    if (
                        delta is not None
                        and (append := self._append) is not None
                        and (content := delta.content)
                        and choice.finish_reason is None
                        and choice.logprobs is None
                        and choice.seed is None
                        and delta.tool_calls is None
                        and delta.reasoning is None
                        and delta.reasoning_content is None
                        and delta.refusal is None
                        and delta.function_call is None
                        and chunk.usage is None
                        and chunk.error is None
                        and chunk.prompt is None
                        and chunk.warnings is None
                    ):
                        if choice.index == self._index:
                            if self._has_role or delta.role is None:
                                append(content)
                                return content
                        elif self._pass_by(choice.index, delta.role, content):
                            await reading.skip(self)
                            continue
                try:
                    text = self._text_of(self._decode(payload, None))
                except StreamError as error:
                    await reading.retry(error, self)
                    text = ""
                if text:
                    return text
                await reading.skip(self)
            elif not await reading.wait(self):
                raise StopAsyncIteration

    def _delivers(self, chunk: ChatCompletionChunk) -> bool:
        return any((choice.index or 0) == self._index and text_of(choice) for choice in chunk.choices)

    def _pass_by(self, index: int | None, role: object, text: str) -> bool:
        """Keeps a piece of another choice's text; returns False, and does nothing, if its role comes with it."""
        if index is None or (role is not None and not self._accumulator.has_role(index)):
            return False
        texts = self._accumulator.texts(index)
        if texts is None:
            return False
        texts.append(text)
        self._keep(index, text)
        return True

    def _text_of(self, chunk: ChatCompletionChunk | None) -> str:
        """Returns the text of this reader's choice; keeps those of the others."""
        own = ""
        for choice in chunk.choices if chunk is not None else ():
            if text := text_of(choice):
                index = choice.index or 0
                if index == self._index:
                    own += text
                else:
                    self._keep(index, text)
        return own

    def _keep(self, index: int, text: str) -> None:
        reading = self._reading
        if reading.kept is None:
            reading.kept = KeptTexts()
        reading.kept.add(index, text)

    def _kept_text(self) -> str:
        """Returns what readers of other choices have kept for this one; empty if there is nothing."""
        reading = self._reading
        kept = reading.kept
        if kept is None or self._index not in kept:
            return ""
        if self.must_claim:
            self.claim()  # also at the end of the stream: it may be kept for a loop that is in its body
        reading.delivered = reading.caller_ran = True
        text = kept.take(self._index)
        if not kept:
            reading.kept = None
        return text


class RestReader(TextReader):
    """Reads for `completion()`: as text, which is cheaper. Before the first token the call may be retried.

    It is no loop: in the body of a plain loop it takes the rest from that one, as `anext(stream)` takes a chunk.
    """

    __slots__ = ()
    ONE_CHOICE = False

    def __aiter__(self) -> Self:
        return self

    def claim(self) -> None:
        """Takes the claim if no loop has one, and needs none otherwise."""
        if self._claims:
            self.must_claim = False
        else:
            super().claim()

    def _delivers(self, chunk: ChatCompletionChunk) -> bool:  # noqa: ARG002 - the caller sees no chunk
        return self._accumulator.generated > 0

    def _keep(self, index: int, text: str) -> None:
        """Does nothing: the whole text is in the completion."""

    def _kept_text(self) -> str:
        return ""
