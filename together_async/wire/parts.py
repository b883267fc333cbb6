"""Adding up chunks: the parts that the accumulator and the coalescer share. Pure."""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

from together_async.models import NO_DELTA, TEXT_FIELDS, ChatCompletionChunk, ChunkChoice, Delta, Logprobs, make
from together_async.wire.tool_calls import ToolCallParts, ToolCalls

C = TypeVar("C", bound=ToolCalls)

BLOCK: Final = 512
"""Pieces of text that are joined into one block: the str of one token takes ten times the memory of its text."""
_LOGPROB_LISTS: Final = ("tokens", "token_logprobs", "token_ids", "top_logprobs", "content", "refusal")


class Text:
    """A text under way: pieces as they come, and blocks of pieces that were joined once.

    Attributes:
        pieces: The latest pieces, none of them empty. Readers of plain chunks append to this list themselves.
        blocks: The text before them.
        given: Whether a text has come, which may be an empty one; readers that append do not set it.
    """

    __slots__ = ("blocks", "given", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.blocks: list[str] = []
        self.given = False

    def add(self, text: str) -> None:
        """Adds a piece, which may be empty."""
        self.given = True
        if text:
            self.pieces.append(text)

    def compact(self) -> bool:
        """Joins the pieces if they are many; returns whether it did."""
        if len(self.pieces) < BLOCK:
            return False
        self.blocks.append("".join(self.pieces))
        self.pieces.clear()  # readers hold the list itself
        return True

    def joined(self) -> str | None:
        """Returns the whole text; None when none has come, not even an empty one."""
        if not (self.given or self.pieces or self.blocks):
            return None
        return "".join((*self.blocks, *self.pieces))


class DocumentFacts:
    """What the chunks say about the whole completion: of each field the first value that is not empty.

    Args:
        names: The fields.

    Attributes:
        values: The values so far, by field.
        missing: The fields that have not come yet, or came empty.
    """

    __slots__ = ("missing", "values")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.missing = names
        self.values: dict[str, Any] = {}

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Notes what a chunk says about the whole completion, except its usage."""
        values, news = self.values, False
        for name in self.missing:
            value = getattr(chunk, name)
            if value or (value is not None and name not in values):
                values[name] = value
                news = True
        if news:
            self.missing = tuple([name for name in self.missing if not values.get(name)])


class ChoiceParts(Generic[C]):
    """What the pieces of one choice add up to.

    Args:
        index: The choice's.
        tool_calls: An empty one; it decides how pieces of tool calls go together.

    Attributes:
        index: As given.
        texts: The texts that have begun, by their names in `Delta`.
        role: The first role that came; None before.
        finish_reason: The last one that is not empty; None before any came.
        seed: The last seed that came; None before.
        tool_calls: The tool calls so far.
        function_call: The pieces of a `function_call`; None before the first.
        logprobs: The lists of `Logprobs` so far, by name.
    """

    __slots__ = ("finish_reason", "function_call", "index", "logprobs", "role", "seed", "texts", "tool_calls")

    def __init__(self, index: int, tool_calls: C) -> None:
        self.index = index
        self.texts: dict[str, Text] = {}
        self.role: str | None = None
        self.finish_reason: str | None = None
        self.seed: int | float | None = None
        self.tool_calls = tool_calls
        self.function_call: ToolCallParts | None = None
        self.logprobs: dict[str, list[Any]] = {}

    def add(self, choice: ChunkChoice) -> bool:
        """Adds one choice of a chunk; returns whether it held anything generated."""
        delta = choice.delta
        if delta is NO_DELTA and choice.text is not None:
            # Servers of the older shape send `text` alone; next to a delta it repeats the content.
            delta = Delta(content=choice.text)
        self.role = self.role or delta.role
        if choice.seed is not None:
            self.seed = choice.seed
        if choice.finish_reason or (choice.finish_reason is not None and self.finish_reason is None):
            self.finish_reason = choice.finish_reason
        if choice.logprobs is not None:
            _add_logprobs(self.logprobs, choice.logprobs, delta)
        generated = self._add_texts(delta)
        for piece in delta.tool_calls or ():
            self.tool_calls.call_of(piece).add(piece)
            generated = True
        if delta.function_call is not None:
            self.function_call = self.function_call or ToolCallParts(None)
            self.function_call.add_function(delta.function_call)
            generated = True
        return generated

    def _add_texts(self, delta: Delta) -> bool:
        generated = False
        for name in TEXT_FIELDS:
            text = getattr(delta, name)
            if text is not None:
                parts = self.texts.get(name) or self.text(name)
                parts.add(text)
                if name != "content":  # its pieces are counted before they are joined
                    parts.compact()
                generated = generated or bool(text)
        return generated

    def text(self, name: str) -> Text:
        """Returns a text, begun if it is new."""
        text = self.texts.get(name)
        if text is None:
            text = self.texts[name] = Text()
        return text

    def joined_texts(self) -> dict[str, str | None]:
        """Returns the texts so far, by the names of `Delta`."""
        return {name: self.texts[name].joined() for name in TEXT_FIELDS if name in self.texts}

    def joined_logprobs(self) -> Logprobs | None:
        """Returns the log probabilities so far; None when none have come."""
        return (
            make(Logprobs, **{name: tuple(items) for name, items in self.logprobs.items()}) if self.logprobs else None
        )


def _add_logprobs(lists: dict[str, list[Any]], logprobs: float | Logprobs, delta: Delta) -> None:
    """Adds a chunk's log probabilities to lists by the names of `Logprobs`.

    A token's id has its token's place in the lists, also when the tokens before it had no id.
    """
    if isinstance(logprobs, Logprobs):
        given = {name: items for name in _LOGPROB_LISTS if (items := getattr(logprobs, name)) is not None}
    else:  # native: a number per chunk, next to its token
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
