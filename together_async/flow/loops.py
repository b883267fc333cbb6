"""`Loopable`: gives a source that is read in batches the iterators that a stream has."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Awaitable
from typing import Self

from together_async.calls.claims import ClaimingIterator, Claims, KeptTexts
from together_async.flow.buffer import MAX_BATCH
from together_async.models import ChatCompletion, ChatCompletionChunk, text_of
from together_async.tasks import BusyError


class Loopable(abc.ABC):
    """Something that is read in batches, and looped over chunk by chunk, or text by text, as a stream is.

    Outside of `async with`, leaving the loop calls `leave`, and a second loop at the same time is refused. Inside,
    loops share the chunks; a loop over the text of one choice keeps those of the others for loops over them.

    Attributes:
        claims: That of the plain loop that is under way.
        kept: Texts of choices that a loop over another choice's text came across.
    """

    __slots__ = ("_entered", "claims", "kept")

    def __init__(self) -> None:
        self._entered = False
        self.claims = Claims()
        self.kept = KeptTexts()

    @abc.abstractmethod
    async def read(self, most: int = MAX_BATCH) -> list[ChatCompletionChunk]:
        """Returns the chunks that wait, from 1 to `most`; waits for the first. An empty list is the end."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Ends it without waiting."""

    @abc.abstractmethod
    def so_far(self) -> ChatCompletion:
        """Returns the completion of the chunks that have come; it reads nothing itself."""

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return _ChunkLoop(self, plain=not self._entered)

    async def __anext__(self) -> ChatCompletionChunk:
        for chunk in await self.read(1):
            return chunk
        raise StopAsyncIteration

    def text(self, choice: int = 0) -> AsyncIterator[str]:
        """Returns an iterator of the texts of one choice; empty ones are left out.

        It keeps the texts of the other choices that it comes across: an iterator over such a one, in the same `async
        with` or afterwards, begins with them. They are never more than the answer.
        """
        return TextLoop(self, choice, plain=not self._entered)

    async def completion(self) -> ChatCompletion:
        """Reads to the end, and returns the completion of all chunks."""
        async for _ in self:
            pass
        return self.so_far()


class _Loop(ClaimingIterator):
    """The iterator of one loop; if it is the owner, it leaves what it reads when the loop is left."""

    __slots__ = ("_source",)

    def __init__(self, source: Loopable, *, plain: bool) -> None:
        super().__init__(source.claims, None, plain=plain)
        self._source = source

    def __aiter__(self) -> Self:
        return self

    def _close(self) -> None:
        self._source.leave()

    def _read(self) -> Awaitable[list[ChatCompletionChunk]]:
        """Reads a chunk, to be awaited at once."""
        return self._first_read() if self.must_claim else self._source.read(1)

    async def _first_read(self) -> list[ChatCompletionChunk]:
        self.claim()
        try:
            return await self._source.read(1)
        except BusyError:  # a task reads or opens it without a loop; nothing may happen to that one
            self.withdraw()
            raise

    def _note_failure(self, error: BaseException) -> None:
        """Ends an owner that is cancelled, or whose coroutine is destroyed, in its read.

        It is not dropped then as long as the error is kept: the traceback holds the frame, which holds the iterator.
        """
        if not isinstance(error, Exception):
            self.give_up()


class _ChunkLoop(_Loop):
    """The iterator of chunks. It reads one at a time: what the loop has not asked for counts as waiting."""

    __slots__ = ()

    async def __anext__(self) -> ChatCompletionChunk:
        try:
            for chunk in await self._read():
                return chunk
        except BaseException as error:
            self._note_failure(error)
            raise
        self.give_up()
        raise StopAsyncIteration


class TextLoop(_Loop):
    """The iterator of one choice's texts."""

    __slots__ = ("_choice",)

    def __init__(self, source: Loopable, choice: int, *, plain: bool) -> None:
        super().__init__(source, plain=plain)
        self._choice = choice

    async def __anext__(self) -> str:
        kept = self._source.kept
        while True:
            if kept and (text := self._kept_text()):
                return text
            try:
                chunks = await self._read()
            except BaseException as error:
                self._note_failure(error)
                raise
            if not chunks:
                self.give_up()
                raise StopAsyncIteration
            if text := self._text_of(chunks[0]):
                return text

    def _kept_text(self) -> str:
        if self.must_claim and self._choice in self._source.kept:
            self.claim()
        return self._source.kept.take(self._choice)

    def _text_of(self, chunk: ChatCompletionChunk) -> str:
        """Returns the text of this choice; keeps those of the others."""
        own = ""
        for choice in chunk.choices:
            text = text_of(choice)
            if text and (choice.index or 0) == self._choice:
                own += text
            elif text:
                self._source.kept.add(choice.index or 0, text)
        return own
