"""Makes one chunk of many, for a consumer who is slower than the model. Pure.

The merged chunk adds up to the same completion as the chunks it was made of, whatever comes before and after it:
`tests/wire/test_coalesce.py` proves it against the accumulator. A chunk whose delta has keys that this package does not
know can't be merged without loss; it stays a chunk of its own, in its place.
"""

from __future__ import annotations

from typing import Any, Final

from together_async.models import DOCUMENT_FIELDS, ChatCompletionChunk, ChunkChoice, Delta, make, present
from together_async.wire.codec import has_unknown_content
from together_async.wire.parts import ChoiceParts, DocumentFacts
from together_async.wire.tool_calls import MergedToolCalls

_FACTS: Final = ("object", *DOCUMENT_FIELDS)


class _MergedChoice(ChoiceParts[MergedToolCalls]):
    """Deltas of one choice."""

    __slots__ = ()

    def __init__(self, index: int) -> None:
        super().__init__(index, MergedToolCalls())

    def chunk_choice(self) -> ChunkChoice:
        """Returns the deltas as one; a choice without a finish reason has null, as on the wire."""
        delta: dict[str, Any] = {} if self.role is None else {"role": self.role}
        delta.update(self.joined_texts())
        if pieces := self.tool_calls.deltas():
            delta["tool_calls"] = pieces
        if self.function_call is not None:
            delta["function_call"] = self.function_call.function_delta()
        given = present(seed=self.seed, logprobs=self.joined_logprobs())
        return make(
            ChunkChoice, index=self.index, delta=make(Delta, **delta), finish_reason=self.finish_reason, **given
        )


class Coalescer:
    """Takes chunks in their order, returns fewer chunks that add up to the same.

    The work for a chunk does not depend on how many came before, and only the merged chunk's content is kept.

    Attributes:
        count: How many chunks have come since the last `take`.
    """

    __slots__ = ("_choices", "_done", "_facts", "_merging", "_only", "count")

    def __init__(self) -> None:
        self.count = 0
        self._done: list[tuple[int, ChatCompletionChunk]] = []
        self._begin()

    def __repr__(self) -> str:
        return f"<Coalescer of {self.count} chunks>"

    def _begin(self) -> None:
        self._facts = DocumentFacts(_FACTS)
        self._choices: dict[int, _MergedChoice] = {}
        self._merging = 0
        self._only: ChatCompletionChunk | None = None  # the only one so far, which is not merged yet

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Takes the next chunk."""
        self.count += 1
        raw = chunk.raw_json
        if raw is not None and has_unknown_content(raw):
            self._end()
            self._done.append((1, chunk))
            return
        if self._merging == 0:
            self._only = chunk  # a lone chunk is handed on as it came
        else:
            self._merge_only()
            self._merge(chunk)
        self._merging += 1

    def add_text(self, text: str) -> None:
        """Takes a chunk of which only the text of choice 0 is left; for its other facts see `add_facts`."""
        self._merge_only()
        self.count += 1
        self._merging += 1
        self._choice(0).text("content").add(text)

    def _merge_only(self) -> None:
        """Merges the first chunk, when another has come."""
        only, self._only = self._only, None
        if only is not None:
            self._merge(only)

    def _merge(self, chunk: ChatCompletionChunk) -> None:
        self._facts.add(chunk)
        if chunk.usage is not None:
            self._facts.values["usage"] = chunk.usage  # the last one counts
        for choice in chunk.choices:
            self._choice(choice.index or 0).add(choice)

    def add_facts(self, chunk: ChatCompletionChunk) -> None:
        """Takes what a chunk says about the whole completion, and nothing else of it."""
        self._facts.add(chunk)

    def _choice(self, index: int) -> _MergedChoice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _MergedChoice(index)
        return choice

    def _end(self) -> None:
        """Ends the merged chunk under way."""
        if self._only is not None:
            self._done.append((1, self._only))
        elif self._merging:
            choices = tuple(choice.chunk_choice() for choice in self._choices.values())
            self._done.append((self._merging, make(ChatCompletionChunk, **self._facts.values, choices=choices)))
        self._begin()

    def take(self) -> list[tuple[int, ChatCompletionChunk]]:
        """Returns the chunks so far, merged into as few as possible (mostly one), each with how many it stands for."""
        self._end()
        done, self._done = self._done, []
        self.count = 0
        return done
