"""The chunks of one stream so far, for readers who come late, fall behind or come back.

Positions count chunks from 1; position 0 is before the first. The last chunks are kept as they came, so that those who
keep up get exactly those; of an older chunk of plain text just the text is kept, which costs 60 bytes instead of 1,500.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from typing import Final

from together_async.models import ChatCompletionChunk
from together_async.wire.coalesce import Coalescer
from together_async.wire.codec import has_unknown_content

_CHOICE_KEYS: Final = frozenset({"delta", "seed", "text"})
_DELTA_KEYS: Final = frozenset({"content", "role", "token_id"})
_PLACE: Final = 8
"""Bytes of a place in a list."""
_OBJECT: Final = 1_500
"""Bytes of a chunk's objects, without its texts."""


class ChunkLog:
    """Chunks by position.

    Args:
        window: How many of the last chunks are kept as they came.

    Attributes:
        last: The position of the newest chunk; 0 when there is none.
        size: Bytes that are kept, by estimate.
    """

    __slots__ = ("_facts", "_latest", "_older", "_role", "_seed", "_window", "last", "size")

    def __init__(self, window: int) -> None:
        self.last = 0
        self.size = 0
        self._window = window
        self._latest: deque[ChatCompletionChunk] = deque()
        self._older: list[str | ChatCompletionChunk] = []
        self._facts: ChatCompletionChunk | None = None  # the first chunk: what it says about the whole holds for texts
        self._seed: int | float | None = None  # of choice 0, as last told by a chunk that is kept as it came
        self._role: str | None = None

    def __repr__(self) -> str:
        return f"<ChunkLog of {self.last} chunks, {self.size} bytes>"

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Takes the next chunk."""
        self.last += 1
        self._latest.append(chunk)
        self.size += _size_of(chunk)
        if len(self._latest) > self._window:
            self._shrink(self._latest.popleft())

    def close(self) -> None:
        """Says that no chunk will come: what can be kept as text is."""
        while self._latest:
            self._shrink(self._latest.popleft())

    def _shrink(self, chunk: ChatCompletionChunk) -> None:
        if self._facts is None:
            self._facts = chunk
        elif (text := self._text_of(chunk)) is not None:
            self._older.append(text)
            self.size += sys.getsizeof(text) + _PLACE - _size_of(chunk)
            return
        self._older.append(chunk)
        for choice in chunk.choices:
            if not choice.index:
                self._role = self._role or choice.delta.role
                self._seed = choice.seed if choice.seed is not None else self._seed

    def _text_of(self, chunk: ChatCompletionChunk) -> str | None:
        """Returns the text of a chunk that says nothing else, or nothing that has not been said before."""
        raw: bytes | None = getattr(chunk, "raw_json", None)
        if len(chunk.choices) != 1 or chunk.usage is not None or (raw is not None and has_unknown_content(raw)):
            return None
        choice, first = chunk.choices[0], vars(self._facts)
        given = {name for name, value in vars(choice).items() if value}
        said = {name for name, value in vars(choice.delta).items() if value}
        if (
            not given <= _CHOICE_KEYS
            or "delta" not in given
            or not said <= _DELTA_KEYS
            or (choice.seed is not None and choice.seed != self._seed)
            or (choice.delta.role and choice.delta.role != self._role)
            or choice.logprobs is not None
            or choice.finish_reason is not None
            or any(
                name != "choices" and value is not None and (first.get(name) is None or (value and not first[name]))
                for name, value in vars(chunk).items()
            )
        ):
            return None
        return choice.delta.content

    def since(self, position: int, *, merged: bool = False) -> list[tuple[int, ChatCompletionChunk]]:
        """Returns what came after a position, each chunk with its own.

        As it came where that is kept in full; otherwise, or where `merged` is wanted, as few chunks as can say it,
        mostly one.

        Raises:
            ValueError: The position is none of this log.
        """
        if not 0 <= position <= self.last:
            raise ValueError(f"position: got {position}, expected one from 0 to {self.last}")
        kept = self.last - len(self._latest)
        if position >= kept and not merged:
            return [(kept + 1 + i, self._latest[i]) for i in range(position - kept, len(self._latest))]
        coalescer = Coalescer()
        if position and self._facts is not None:
            coalescer.add_facts(self._facts)
        for one in itertools.islice(self._older, position, None):
            if isinstance(one, str):
                coalescer.add_text(one)
            else:
                coalescer.add(one)
        for chunk in itertools.islice(self._latest, max(0, position - kept), None):
            coalescer.add(chunk)
        pieces = []
        for count, chunk in coalescer.take():
            position += count
            pieces.append((position, chunk))
        return pieces


def _size_of(chunk: ChatCompletionChunk) -> int:
    """Bytes of a chunk, by estimate: its objects, its texts, and what it came from."""
    raw: bytes | None = getattr(chunk, "raw_json", None)
    if raw is not None:
        return _OBJECT + 2 * len(raw)
    return _OBJECT + sum(len(repr(choice.delta)) for choice in chunk.choices)
