"""`Loopable`: gives a source that is read in batches the iterators that a stream has."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator
from typing import Self

from together_async.flow.buffer import MAX_BATCH
from together_async.models import ChatCompletion, ChatCompletionChunk, text_of
from together_async.tasks import OwningIterator


class Loopable(abc.ABC):
    """Something that is read in batches, and looped over chunk by chunk, or text by text, as a stream is.

    Outside of `async with`, leaving the loop calls `leave`.
    """

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered = False

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
        return _ChunkLoop(self, owner=not self._entered)

    async def __anext__(self) -> ChatCompletionChunk:
        for chunk in await self.read(1):
            return chunk
        raise StopAsyncIteration

    def text(self, choice: int = 0) -> AsyncIterator[str]:
        """Returns an iterator of the texts of one choice; empty ones are left out."""
        return TextLoop(self, choice, owner=not self._entered)

    async def completion(self) -> ChatCompletion:
        """Reads to the end, and returns the completion of all chunks."""
        async for _ in self:
            pass
        return self.so_far()


class _Loop(OwningIterator):
    """The iterator of one loop; if it is the owner, it leaves what it reads when the loop is left."""

    __slots__ = ("_source",)

    def __init__(self, source: Loopable, *, owner: bool) -> None:
        super().__init__(owner=owner)
        self._source = source

    def __aiter__(self) -> Self:
        return self

    def _drop(self) -> None:
        self._source.leave()


class _ChunkLoop(_Loop):
    """The iterator of chunks. It reads one at a time: what the loop has not asked for counts as waiting."""

    __slots__ = ()

    async def __anext__(self) -> ChatCompletionChunk:
        for chunk in await self._source.read(1):
            return chunk
        raise StopAsyncIteration


class TextLoop(_Loop):
    """The iterator of one choice's texts."""

    __slots__ = ("_choice",)

    def __init__(self, source: Loopable, choice: int, *, owner: bool) -> None:
        super().__init__(source, owner=owner)
        self._choice = choice

    async def __anext__(self) -> str:
        while chunks := await self._source.read(1):
            text = "".join([text_of(choice) for choice in chunks[0].choices if (choice.index or 0) == self._choice])
            if text:
                return text
        raise StopAsyncIteration
