"""Adds up the chunks of a stream to the completion that the whole response would have been.

The work per chunk does not depend on how many came before, and what is kept is what the completion itself holds.
"""

from __future__ import annotations

from typing import Any

from together_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    ChunkChoice,
    Delta,
    Function,
    FunctionDelta,
    Logprobs,
    ToolCall,
    ToolCallDelta,
    Usage,
    make,
)

_BLOCK = 512
"""Pieces of text that are joined to one block: a str object of one token is ten times its text."""

_DOCUMENT_FIELDS: tuple[str, ...] = (
    "id",
    "created",
    "model",
    "prompt",
    "warnings",
    "system_fingerprint",
    "service_tier",
)
_LOGPROB_LISTS = ("tokens", "token_logprobs", "token_ids", "top_logprobs", "content", "refusal")


class _Text:
    """A text under way: pieces as they come, and blocks of pieces joined once and never again."""

    __slots__ = ("blocks", "given", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.blocks: list[str] = []
        self.given = False  # an empty text has come, which is not null

    def add(self, text: str) -> None:
        self.given = True
        if text:
            self.pieces.append(text)

    def compact(self) -> bool:
        """Joins the pieces if they are many; returns whether it did."""
        if len(self.pieces) < _BLOCK:
            return False
        self.blocks.append("".join(self.pieces))
        self.pieces.clear()  # readers hold the list itself
        return True

    def joined(self) -> str | None:
        if not (self.given or self.pieces or self.blocks):
            return None
        return "".join((*self.blocks, *self.pieces))


class _ToolCallParts:
    """One tool call under way."""

    __slots__ = ("arguments", "id", "index", "name", "type")

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id: str | None = None
        self.type: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []

    def add(self, delta: ToolCallDelta) -> None:
        self.id = self.id or delta.id
        self.type = self.type or delta.type
        if delta.function is not None:
            self.add_function(delta.function)

    def is_not(self, delta: ToolCallDelta) -> bool:
        """Whether a piece names another call. Servers that repeat id and name in each piece do not."""
        if delta.id and self.id:
            return delta.id != self.id
        name = delta.function.name if delta.function is not None else None
        return bool(delta.index is None and name and self.name and self.arguments)

    def add_function(self, function: FunctionDelta) -> None:
        self.name = self.name or function.name
        if function.arguments:
            self.arguments.append(function.arguments)

    def function(self) -> Function:
        return Function(name=self.name or "", arguments="".join(self.arguments))

    def call(self) -> ToolCall:
        given = {"id": self.id, "type": self.type, "function": self.function(), "index": self.index}
        return make(ToolCall, **{name: value for name, value in given.items() if value is not None})


class _ChoiceParts:
    """One choice under way. `content` is the list that readers of plain chunks append to by themselves."""

    __slots__ = (
        "content",
        "counted",
        "finish_reason",
        "function_call",
        "index",
        "logprobs",
        "pieces",
        "reasoning",
        "reasoning_content",
        "refusal",
        "role",
        "seed",
        "tool_calls",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.content = _Text()
        self.pieces = self.content.pieces
        self.counted = 0  # pieces of `content` that `generated` has heard of
        self.reasoning = _Text()
        self.reasoning_content = _Text()
        self.refusal = _Text()
        self.role: str | None = None
        self.finish_reason: str | None = None
        self.seed: int | float | None = None
        self.tool_calls: list[_ToolCallParts] = []
        self.function_call: _ToolCallParts | None = None
        self.logprobs: dict[str, list[Any]] = {}

    def add(self, choice: ChunkChoice) -> bool:
        """Adds one choice of a chunk; returns whether it held anything generated."""
        delta = choice.delta
        if "delta" not in vars(choice) and choice.text is not None:
            # Servers of the older shape send `text` alone; beside a delta it repeats the content.
            delta = Delta(content=choice.text)
        self.role = self.role or delta.role
        if choice.seed is not None:
            self.seed = choice.seed
        if choice.finish_reason or (choice.finish_reason is not None and self.finish_reason is None):
            self.finish_reason = choice.finish_reason
        if choice.logprobs is not None:
            add_logprobs(self.logprobs, choice.logprobs, delta)
        generated = self._add_text(delta)
        for call in delta.tool_calls or ():
            self._tool_call(call).add(call)
            generated = True
        if delta.function_call is not None:
            self.function_call = self.function_call or _ToolCallParts(None)
            self.function_call.add_function(delta.function_call)
            generated = True
        return generated

    def _add_text(self, delta: Delta) -> bool:
        generated = False
        for parts, text in (
            (self.content, delta.content),
            (self.reasoning, delta.reasoning),
            (self.reasoning_content, delta.reasoning_content),
            (self.refusal, delta.refusal),
        ):
            if text is not None:
                parts.add(text)
                if parts is not self.content:
                    parts.compact()
                generated = generated or bool(text)
        return generated

    def _tool_call(self, delta: ToolCallDelta) -> _ToolCallParts:
        """The call a piece belongs to: by index, else the last; another id, or a second name, begins a new call."""
        calls = self.tool_calls
        if delta.index is not None:
            found = next((call for call in reversed(calls) if call.index == delta.index), None)
        else:
            found = calls[-1] if calls else None
        if found is None or found.is_not(delta):
            found = _ToolCallParts(delta.index)
            calls.append(found)
        return found

    def choice(self) -> Choice:
        given: dict[str, Any] = {
            "index": self.index,
            "message": self._message(),
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "logprobs": make(Logprobs, **{k: tuple(v) for k, v in self.logprobs.items()}) if self.logprobs else None,
        }
        # A choice without a finish reason says so: null, as on the wire, not absent.
        return make(Choice, **{k: v for k, v in given.items() if v is not None or k == "finish_reason"})

    def _tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls by index, as a whole response has them; in order of arrival where one has none."""
        calls = self.tool_calls
        if all(call.index is not None for call in calls):
            calls = sorted(calls, key=lambda call: call.index or 0)
        return tuple(call.call() for call in calls)

    def _message(self) -> ChatCompletionMessage:
        given: dict[str, Any] = {
            "role": self.role or "assistant",
            "content": self.content.joined(),
            "reasoning": self.reasoning.joined(),
            "reasoning_content": self.reasoning_content.joined(),
            "refusal": self.refusal.joined(),
            "tool_calls": self._tool_calls() or None,
            "function_call": self.function_call.function() if self.function_call else None,
        }
        return make(ChatCompletionMessage, **{k: v for k, v in given.items() if v is not None or k == "content"})


def add_logprobs(lists: dict[str, list[Any]], logprobs: float | Logprobs, delta: Delta) -> None:
    """Adds a chunk's log probabilities to lists by the names of `Logprobs`.

    A token's id stands beside its token, also when those before it had none.
    """
    if isinstance(logprobs, Logprobs):
        given = {name: items for name in _LOGPROB_LISTS if (items := getattr(logprobs, name)) is not None}
    else:  # native: a number per chunk, its token beside it
        given = {"tokens": (delta.content,), "token_logprobs": (logprobs,)}
        if delta.token_id is not None:
            given["token_ids"] = (delta.token_id,)
    if "token_ids" in given or "token_ids" in lists:
        lists.setdefault("token_ids", [])
        _pad_ids(lists)
    for name, items in given.items():
        lists.setdefault(name, []).extend(items)
    if "token_ids" in lists:
        _pad_ids(lists)


def _pad_ids(lists: dict[str, list[Any]]) -> None:
    """Gives each token that has no id a None in its place."""
    ids = lists["token_ids"]
    ids.extend([None] * (len(lists.get("tokens", ())) - len(ids)))


class ChatCompletionAccumulator:
    """Takes chunks, gives the completion so far.

    `generated` counts chunks with text or a piece of a call; those with just a role, a finish reason or the usage are
    not counted.
    """

    __slots__ = ("_choices", "_counted", "_document", "_missing", "_settled")

    def __init__(self) -> None:
        self._document: dict[str, Any] = {}
        self._missing = _DOCUMENT_FIELDS  # those that have not come yet, or came empty
        self._choices: dict[int, _ChoiceParts] = {}
        self._counted = 0
        self._settled = 0  # what `settle` has heard of

    def clear(self) -> None:
        """Forgets everything: another response begins."""
        self._document = {}
        self._missing = _DOCUMENT_FIELDS
        self._choices = {}
        self._counted = self._settled = 0

    def __repr__(self) -> str:
        return f"<ChatCompletionAccumulator {len(self._choices)} choices, {self.generated} chunks with content>"

    @property
    def generated(self) -> int:
        """How many chunks held something generated."""
        self._count()
        return self._counted

    def _count(self) -> None:
        """Counts the texts that readers have appended since the last time; nothing else is counted per token."""
        for parts in self._choices.values():
            size = len(parts.content.pieces)
            self._counted += size - parts.counted
            parts.counted = size

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Adds the next chunk of the stream; returns whether it held something generated."""
        self._add_facts(chunk)
        self._count()
        generated = False
        for choice in chunk.choices:
            parts = self._parts(choice.index or 0)
            generated = parts.add(choice) or generated
            parts.counted = len(parts.content.pieces)
        self._counted += generated
        return generated

    def count(self, chunks: int = 1) -> None:
        """Counts chunks that held something generated, though nothing that could be added."""
        self._counted += chunks

    def _add_facts(self, chunk: ChatCompletionChunk) -> None:
        """Takes what a chunk says about the whole: the first that is not empty of each, of `usage` the last."""
        document = self._document
        if chunk.usage is not None:
            document["usage"] = chunk.usage
        news = [
            name
            for name in self._missing
            if (value := getattr(chunk, name)) or (value is not None and name not in document)
        ]
        if news:
            document.update((name, getattr(chunk, name)) for name in news)
            self._missing = tuple(name for name in self._missing if not document.get(name))

    def _parts(self, index: int) -> _ChoiceParts:
        parts = self._choices.get(index)
        if parts is None:
            parts = self._choices[index] = _ChoiceParts(index)
        return parts

    def texts(self, index: int) -> list[str] | None:
        """The list that takes the content of a choice that has begun, for readers who add by themselves; else None."""
        if "id" in self._missing or "model" in self._missing:
            return None  # a later chunk may bring them
        parts = self._choices.get(index)
        return None if parts is None else parts.content.pieces

    def settle(self) -> bool:
        """Returns whether anything was generated since the last call; joins the pieces of text that have gathered.

        Called between reads, so that memory stays that of the text.
        """
        for parts in self._choices.values():
            size = len(parts.pieces)
            if size != parts.counted:
                self._counted += size - parts.counted
                parts.counted = size
            if size >= _BLOCK and parts.content.compact():
                parts.counted = 0
        progressed = self._counted != self._settled
        self._settled = self._counted
        return progressed

    @property
    def usage(self) -> Usage | None:
        """The server's count, once it has come."""
        usage: Usage | None = self._document.get("usage")
        return usage

    def finished(self, choices: int = 1) -> bool:
        """Returns whether every choice seen, and at least so many, has a finish reason (an empty one is none)."""
        return len(self._choices) >= choices and all(parts.finish_reason for parts in self._choices.values())

    def completion(self) -> ChatCompletion:
        """Returns the completion so far: the choices by index, `finish_reason` None where none came."""
        choices = tuple(self._choices[index].choice() for index in sorted(self._choices))
        return make(ChatCompletion, object="chat.completion", choices=choices, **self._document)
