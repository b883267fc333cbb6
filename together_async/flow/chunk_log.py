"""The chunks of one stream so far, for readers that come late, fall behind or come back.

Positions count chunks from 1; position 0 is before the first. The last chunks are kept as they came, so that readers
that keep up get exactly those. Of an older chunk with nothing but text, only the text is kept: 60 bytes, not 1,200.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from typing import Final

from together_async.models import GENERATED_FIELDS, ChatCompletionChunk
from together_async.wire.coalesce import Coalescer
from together_async.wire.codec import has_unknown_content

_OTHER_THAN_TEXT: Final = tuple(name for name in GENERATED_FIELDS if name != "content")
_FACTS: Final = tuple(name for name in ChatCompletionChunk.__annotations__ if name != "choices")
_LIST_ITEM_SIZE: Final = 8
"""Bytes of a reference in a list."""
_CHUNK_SIZE: Final = 600
"""Bytes of a chunk's objects, without its texts."""


class ChunkLog:
    """Chunks by position.

    Args:
        window: How many of the last chunks are kept as they came, from 0.

    Attributes:
        last: The position of the newest chunk; 0 if there is none.
        size: How many bytes are kept, by estimate.
    """

    __slots__ = ("_facts", "_latest", "_older", "_role", "_seed", "_window", "last", "size")

    def __init__(self, window: int) -> None:
        self.last = 0
        self.size = 0
        self._window = window
        self._latest: deque[ChatCompletionChunk] = deque()
        self._older: list[str | ChatCompletionChunk] = []
        self._facts: ChatCompletionChunk | None = None  # the first chunk: its id, model, ... are those of all texts
        self._seed: int | float | None = None  # of choice 0, from the last older chunk that is kept as it came
        self._role: str | None = None

    def __repr__(self) -> str:
        return f"<ChunkLog of {self.last} chunks, {self.size} bytes>"

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Appends the next chunk."""
        self.last += 1
        self._latest.append(chunk)
        self.size += _size_of(chunk)
        if len(self._latest) > self._window:
            self._shrink(self._latest.popleft())

    def close(self) -> None:
        """Ends the log: no chunk will come, and all that can be kept as text alone is."""
        while self._latest:
            self._shrink(self._latest.popleft())

    def _shrink(self, chunk: ChatCompletionChunk) -> None:
        if self._facts is None:
            self._facts = chunk
        elif (text := self._text_of(chunk)) is not None:
            self._older.append(text)
            self.size += sys.getsizeof(text) + _LIST_ITEM_SIZE - _size_of(chunk)
            return
        self._older.append(chunk)
        for choice in chunk.choices:
            if not choice.index:
                self._role = self._role or choice.delta.role
                self._seed = choice.seed if choice.seed is not None else self._seed

    def _text_of(self, chunk: ChatCompletionChunk) -> str | None:
        """Returns the text of a chunk that holds nothing else that is new; None for any other chunk."""
        raw = chunk.raw_json
        if len(chunk.choices) != 1 or chunk.usage is not None or (raw is not None and has_unknown_content(raw)):
            return None
        choice = chunk.choices[0]
        delta = choice.delta
        if (
            choice.index
            or any(getattr(delta, name) for name in _OTHER_THAN_TEXT)
            or (choice.seed is not None and choice.seed != self._seed)
            or (delta.role and delta.role != self._role)
            or choice.logprobs is not None
            or choice.finish_reason is not None
            or any(self._has_news(name, getattr(chunk, name)) for name in _FACTS)
        ):
            return None
        return delta.content

    def _has_news(self, name: str, value: object) -> bool:
        """Whether the first chunk did not say what this value does about the completion."""
        if value is None:
            return False
        first = getattr(self._facts, name)
        return first is None or (bool(value) and not first)

    def since(self, position: int, *, merged: bool = False) -> list[tuple[int, ChatCompletionChunk]]:
        """Returns the chunks after a position, each with its own position.

        They are the chunks that came where all of them are kept; otherwise they are merged into as few as possible,
        mostly one, each with the position of the last chunk in it.

        Args:
            position: The last chunk that the reader has, from 0 to `last`.
            merged: Whether they are merged in any case.

        Raises:
            ValueError: The position is not one of this log.
        """
        if not 0 <= position <= self.last:
            raise ValueError(f"position: got {position}, expected one from 0 to {self.last}")
        kept = self.last - len(self._latest)
        if position >= kept and not merged:
            return [(kept + 1 + i, self._latest[i]) for i in range(position - kept, len(self._latest))]
        coalescer = Coalescer()
        if position and self._facts is not None:
            coalescer.add_facts(self._facts)
        for older in itertools.islice(self._older, position, None):
            if isinstance(older, str):
                coalescer.add_text(older)
            else:
                coalescer.add(older)
        for chunk in itertools.islice(self._latest, max(0, position - kept), None):
            coalescer.add(chunk)
        pieces = []
        for count, chunk in coalescer.take():
            position += count
            pieces.append((position, chunk))
        return pieces


def _size_of(chunk: ChatCompletionChunk) -> int:
    """Returns the bytes of a chunk, by estimate: its objects, its texts, and the payload it was decoded from."""
    raw = chunk.raw_json
    if raw is not None:
        return _CHUNK_SIZE + 2 * len(raw)
    return _CHUNK_SIZE + sum(len(repr(choice.delta)) for choice in chunk.choices)
