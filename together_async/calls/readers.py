"""The ways to read a stream: chunks, batches of chunks, one choice's text, the rest of it, its bytes.

The per-token path is in the `__anext__`s. It has no task, no queue and no timer; a payload is decoded when it is asked
for, and the network is asked when no payload is left. What waits, ends and fails is the stream's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from together_async.errors import StreamError
from together_async.models import ChatCompletionChunk, Delta, set_raw
from together_async.wire.codec import decode_chunk_strictly, decode_text_strictly, encode, knows_all_keys
from together_async.wire.raw_events import RawEventDecoder

if TYPE_CHECKING:
    from together_async.calls.stream import ChatCompletionStream

_BATCH = 64
"""Most chunks of a batch: what its reader does with them is one turn of the event loop."""
_CAREFUL = frozenset({"reasoning", "reasoning_content", "refusal", "function_call"})


class Reader:
    """What both iterators share: they close the connection when they are dropped, if it is theirs.

    Both have a short way for the plain chunk, which nearly every chunk is: one choice, the one whose list of texts is
    at hand, with a text and nothing else. It is written out in each of them, because a call would cost as much as
    all it does; `ChatCompletionStream._take` does the same for every chunk, and the tests hold them together.
    """

    __slots__ = ("_accumulator", "_append", "_careful", "_index", "_owner", "_stream")

    def __init__(self, stream: ChatCompletionStream, index: int, *, owner: bool) -> None:
        self._stream = stream
        self._owner = owner
        self._index = index
        self._accumulator = stream._accumulator
        self._append: Callable[[str], None] | None = None  # of the choice's list of texts, once it has begun
        self._careful = True
        self._begin()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._stream!r}>"

    def __del__(self) -> None:
        if self._owner and not self._stream._over:
            self._stream._leave()

    def _begin(self) -> None:
        """Takes the short way from now on, if the choice has begun; not before a response is the one that stays."""
        texts = self._accumulator.texts(self._index) if self._stream._handed else None
        if texts is not None:
            self._append = texts.append
            self._careful = bool(self._stream._careful)

    def _hands_out(self, chunk: ChatCompletionChunk) -> bool:  # noqa: ARG002 - of a text reader it depends
        """Whether the caller sees something of a chunk."""
        return True

    def _hand_over(self) -> bool:
        """Gives the connection to the iterator of a loop, which dies with the loop even if this one is kept."""
        owner, self._owner = self._owner, False
        return owner

    def _take(self, payload: bytes, chunk: ChatCompletionChunk | None) -> ChatCompletionChunk | None:
        """The full way, for any payload."""
        stream = self._stream
        chunk = stream._take(payload, chunk)
        if chunk is not None and not stream._handed:
            stream._handed = self._hands_out(chunk)
        if chunk is not None and not stream._careful:
            # What costs a tenth of a chunk each, to ask every delta for fields it does not have and to keep the bytes
            # for `to_dict`, is done where a server shows in the first chunk that it is needed: OpenAI's has
            # `"refusal": null` there, a gateway keys of its own.
            stream._careful = any(not _CAREFUL.isdisjoint(vars(choice.delta)) for choice in chunk.choices) or (
                stream._careful is None and not knows_all_keys(payload)
            )
        self._begin()
        return chunk


def _text_only(delta: Delta) -> bool:
    return (
        delta.reasoning is None
        and delta.reasoning_content is None
        and delta.refusal is None
        and delta.function_call is None
    )


class ChunksReader(Reader):
    """The iterator of chunks."""

    __slots__ = ()

    def __aiter__(self) -> ChunksReader:
        return ChunksReader(self._stream, self._index, owner=self._hand_over())

    async def __anext__(self) -> ChatCompletionChunk:
        stream = self._stream
        while True:
            payloads = stream._payloads
            while payloads:
                payload = payloads.pop()
                chunk: ChatCompletionChunk | None = None
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
                        and delta.tool_calls is None
                        and chunk.usage is None
                        and chunk.error is None
                        and chunk.warnings is None
                        and (not self._careful or _text_only(delta))
                    ):
                        append(content)
                        if self._careful:
                            set_raw(chunk, payload)
                        return chunk
                try:
                    chunk = self._take(payload, chunk)
                except StreamError as error:
                    await stream._again(error)
                    chunk = None
                if chunk is not None:
                    stream._given = True
                    return chunk
                await stream._skip()
                payloads = stream._payloads
            if not await stream._more(owner=self._owner):
                raise StopAsyncIteration


class BatchesReader(Reader):
    """The iterator of lists of chunks, each with the bytes it came from."""

    __slots__ = ()

    def __aiter__(self) -> BatchesReader:
        return BatchesReader(self._stream, self._index, owner=self._hand_over())

    async def __anext__(self) -> list[ChatCompletionChunk]:
        stream = self._stream
        batch: list[ChatCompletionChunk] = []
        while True:
            while stream._payloads and len(batch) < _BATCH:
                payload = stream._payloads.pop()
                try:
                    chunk = self._plain(payload) or self._take(payload, None)
                except StreamError as error:
                    if batch:
                        break  # the next read raises it
                    await stream._again(error)
                    continue
                if chunk is not None:
                    batch.append(chunk)
                elif not batch:
                    await stream._skip()
            if batch:
                stream._given = True
                return batch
            if not await stream._more(owner=self._owner):
                raise StopAsyncIteration

    def _plain(self, payload: bytes) -> ChatCompletionChunk | None:
        """The short way of `ChunksReader`; None for what is not plain, and nothing has happened."""
        append = self._append
        if append is None:
            return None
        try:
            chunk = decode_chunk_strictly(payload)
            (choice,) = chunk.choices
        except (ValueError, RecursionError):
            return None
        delta = choice.delta
        content = delta.content
        if (
            not content
            or choice.index != 0
            or choice.finish_reason is not None
            or choice.logprobs is not None
            or delta.tool_calls is not None
            or chunk.usage is not None
            or chunk.error is not None
            or chunk.warnings is not None
            or not _text_only(delta)
        ):
            return None
        append(content)
        set_raw(chunk, payload)
        return chunk


class RawReader(Reader):
    """The iterator of bytes."""

    __slots__ = ()

    def __aiter__(self) -> RawReader:
        return RawReader(self._stream, self._index, owner=self._hand_over())

    async def __anext__(self) -> bytes:
        stream = self._stream
        while True:
            try:
                data = self._looked()
            except StreamError as error:
                data = self._passed() if stream._handed else b""
                if not data:
                    await stream._again(error)
                    continue
            if data:
                stream._handed = stream._given = True
                return data
            if not await stream._more(owner=self._owner, once=True):
                decoder = stream._decoder
                if isinstance(decoder, RawEventDecoder) and (data := decoder.unterminated_done()):
                    return data
                raise StopAsyncIteration

    def _passed(self) -> bytes:
        """The whole events that have come."""
        decoder = self._stream._decoder
        if not isinstance(decoder, RawEventDecoder) or not decoder.passed:
            return b""
        data = b"".join(decoder.passed) if len(decoder.passed) > 1 else decoder.passed[0]
        decoder.passed = []
        return data

    def _looked(self) -> bytes:
        """Looks at the payloads that matter; returns the bytes that have come with them, if they may be passed on.

        Bytes are passed on once something of them is part of an answer: until then it may be asked for again.
        """
        stream = self._stream
        decoder = stream._decoder
        if not isinstance(decoder, RawEventDecoder):
            return b""
        if decoder.events:
            stream._accumulator.count(decoder.events)
            decoder.events = 0
        while stream._payloads:
            chunk = self._take(stream._payloads.pop(), None)
            if chunk is not None and not decoder.passed and not stream._handed:
                # A whole completion in the place of a stream.
                decoder.passed += [b"data: " + encode(chunk.to_dict()) + b"\n\n", b"data: [DONE]\n\n"]
        return self._passed() if stream._handed or stream.complete or stream._accumulator.generated else b""

    def _hands_out(self, chunk: ChatCompletionChunk) -> bool:  # noqa: ARG002 - what is passed on says
        return False


class TextReader(Reader):
    """The iterator of one choice's text."""

    __slots__ = ()

    def __aiter__(self) -> TextReader:
        return TextReader(self._stream, self._index, owner=self._hand_over())

    async def __anext__(self) -> str:
        stream = self._stream
        while True:
            payloads = stream._payloads
            while payloads:
                payload = payloads.pop()
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
                        and choice.index == self._index
                        and choice.finish_reason is None
                        and choice.logprobs is None
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
                        return content
                try:
                    text = self._text_of(self._take(payload, None))
                except StreamError as error:
                    await stream._again(error)
                    text = ""
                if text:
                    return text
                await stream._skip()
                payloads = stream._payloads
            if not await stream._more(owner=self._owner):
                raise StopAsyncIteration

    def _hands_out(self, chunk: ChatCompletionChunk) -> bool:
        return bool(self._text_of(chunk))

    def _text_of(self, chunk: ChatCompletionChunk | None) -> str:
        return "".join(
            text
            for choice in (chunk.choices if chunk is not None else ())
            if (choice.index or 0) == self._index
            and (text := choice.delta.content if "delta" in vars(choice) else choice.text)
        )


class RestReader(TextReader):
    """What `completion()` reads: as a text, which is cheaper; what comes before a token can be asked for again."""

    __slots__ = ()

    def __aiter__(self) -> RestReader:
        return self

    def _hands_out(self, chunk: ChatCompletionChunk) -> bool:  # noqa: ARG002 - the caller sees none of them
        return self._accumulator.generated > 0
