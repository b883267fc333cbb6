"""Makes one chunk of many, for a consumer who is slower than the model.

What a merged chunk holds adds up to the same completion as the chunks it was made of, whatever came before and comes
after it: `tests/test_coalesce.py` proves it against the accumulator. What can't be merged without a loss, a delta with
keys that this package does not know, stays a chunk of its own, in its place.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from together_async.models import (
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    FunctionDelta,
    Logprobs,
    ToolCallDelta,
    Value,
    make,
)
from together_async.wire.accumulator import add_logprobs
from together_async.wire.codec import says_more

V = TypeVar("V", bound=Value)

_FIRST: Final = ("id", "object", "created", "model", "prompt", "warnings", "system_fingerprint", "service_tier")
"""Facts of a chunk of which the first that is not empty counts."""
_TEXTS: Final = ("content", "reasoning", "reasoning_content", "refusal")


class _Call:
    """Pieces of one tool call."""

    __slots__ = ("arguments", "id", "index", "name", "type")

    def __init__(self, piece: ToolCallDelta) -> None:
        self.index = piece.index
        self.id = piece.id
        self.type = piece.type
        self.name: str | None = None
        self.arguments: list[str] | None = None
        self.add(piece.function)

    def add(self, function: FunctionDelta | None) -> None:
        if function is not None:
            self.name = self.name or function.name
            if function.arguments is not None:
                self.arguments = self.arguments or []
                self.arguments.append(function.arguments)

    def takes(self, piece: ToolCallDelta) -> bool:
        """Whether a piece is certainly of this call, so that the two can be one.

        Without an index a name or an id may begin a new call, which depends on what came before; such a piece is left
        as it is.
        """
        if piece.index != self.index:
            return False
        if piece.index is not None:
            return not piece.id or piece.id == self.id
        return not piece.id and not (piece.function is not None and piece.function.name)

    def merged(self) -> ToolCallDelta:
        function = _made(FunctionDelta, name=self.name, arguments=_joined(self.arguments))
        given: dict[str, Any] = {"index": self.index, "id": self.id, "type": self.type}
        if vars(function):
            given["function"] = function
        return _made(ToolCallDelta, **given)


class _Choice:
    """Deltas of one choice."""

    __slots__ = ("calls", "finish_reason", "function", "index", "logprobs", "role", "seed", "texts", "unnumbered")

    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: dict[str, list[str]] = {}
        self.role: str | None = None
        self.finish_reason: str | None = None
        self.seed: int | float | None = None
        self.calls: list[_Call] = []
        self.function: _Call | None = None
        self.logprobs: dict[str, list[Any]] = {}
        self.unnumbered = False  # a piece of a call without an index has come, which goes to whichever call is the last

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if "delta" not in vars(choice) and choice.text is not None:
            delta = Delta(content=choice.text)  # the older shape
        self.role = self.role or delta.role
        if choice.seed is not None:
            self.seed = choice.seed
        if choice.finish_reason or (choice.finish_reason is not None and self.finish_reason is None):
            self.finish_reason = choice.finish_reason
        if choice.logprobs is not None:
            add_logprobs(self.logprobs, choice.logprobs, delta)
        for name in _TEXTS:
            text = getattr(delta, name)
            if text is not None:
                self.texts.setdefault(name, []).append(text)
        for piece in delta.tool_calls or ():
            self._add_piece(piece)
        if delta.function_call is not None:
            if self.function is None:
                self.function = _Call(ToolCallDelta())
            self.function.add(delta.function_call)

    def _add_piece(self, piece: ToolCallDelta) -> None:
        calls = self.calls
        last = calls[-1] if calls else None
        if piece.index is not None and not self.unnumbered:
            last = next((call for call in reversed(calls) if call.index == piece.index), None)
        self.unnumbered = self.unnumbered or piece.index is None
        if last is not None and last.takes(piece):
            last.type = last.type or piece.type
            last.add(piece.function)
        else:
            calls.append(_Call(piece))

    def merged(self) -> ChunkChoice:
        delta: dict[str, Any] = {"role": self.role}
        delta.update((name, _joined(texts)) for name, texts in self.texts.items())
        delta["tool_calls"] = tuple(call.merged() for call in self.calls) or None
        if self.function is not None:
            delta["function_call"] = _made(
                FunctionDelta, name=self.function.name, arguments=_joined(self.function.arguments)
            )
        logprobs = make(Logprobs, **{name: tuple(items) for name, items in self.logprobs.items()})
        return make(
            ChunkChoice,
            index=self.index,
            delta=_made(Delta, **delta),
            # On the wire a choice without one says null.
            finish_reason=self.finish_reason,
            **({} if self.seed is None else {"seed": self.seed}),
            **({"logprobs": logprobs} if self.logprobs else {}),
        )


class Coalescer:
    """Takes chunks in their order, gives back fewer that say the same.

    The work for a chunk does not depend on how many came before, and what is kept is what the merged chunk holds.

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
        self._facts: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._merging = 0
        self._only: ChatCompletionChunk | None = None  # the first of those that are merged

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Takes the next chunk."""
        self.count += 1
        raw: bytes | None = getattr(chunk, "_raw", None)
        if raw is not None and says_more(raw):
            self._end()
            self._done.append((1, chunk))
            return
        self._only = chunk if self._merging == 0 else None
        self._merging += 1
        self.say(chunk)
        if chunk.usage is not None:
            self._facts["usage"] = chunk.usage
        for choice in chunk.choices:
            self._choice(choice.index or 0).add(choice)

    def add_text(self, text: str) -> None:
        """Takes a chunk of which just the text is left, that of choice 0 (see `say`)."""
        self.count += 1
        self._only = None
        self._merging += 1
        self._choice(0).texts.setdefault("content", []).append(text)

    def say(self, chunk: ChatCompletionChunk) -> None:
        """Takes what a chunk says about the whole and others repeat, and nothing else of it."""
        given, facts = vars(chunk), self._facts
        for name in _FIRST:
            value = given.get(name)
            if value is not None and not facts.get(name) and (value or name not in facts):
                facts[name] = value

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(index)
        return choice

    def _end(self) -> None:
        """Ends the merged chunk under way."""
        if self._only is not None:
            self._done.append((1, self._only))
        elif self._merging:
            choices = tuple(choice.merged() for choice in self._choices.values())
            self._done.append((self._merging, make(ChatCompletionChunk, **{**self._facts, "choices": choices})))
        self._begin()

    def take(self) -> list[tuple[int, ChatCompletionChunk]]:
        """Returns what has come as few chunks, each with the number of those it stands for; mostly it is one."""
        self._end()
        done, self._done = self._done, []
        self.count = 0
        return done


def _joined(texts: list[str] | None) -> str | None:
    return None if texts is None else "".join(texts)


def _made(cls: type[V], **given: Any) -> V:
    """Returns a value with the fields that are not None."""
    return make(cls, **{name: value for name, value in given.items() if value is not None})
