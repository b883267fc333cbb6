"""Adds up the chunks of a stream to the completion that the whole response would have been. Pure.

The work per chunk does not depend on how many came before, and what is kept is what the completion itself holds.
"""

from __future__ import annotations

from together_async.models import (
    DOCUMENT_FIELDS,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    Usage,
    make,
    present,
)
from together_async.wire.parts import BLOCK, ChoiceParts, DocumentFacts
from together_async.wire.tool_calls import ToolCalls


class _AccumulatedChoice(ChoiceParts[ToolCalls]):
    """One choice under way.

    Attributes:
        content: Its text. Readers of plain chunks append to `content.pieces` themselves.
        pieces: That list.
        counted: How many of the pieces are counted in `ChatCompletionAccumulator.generated` already.
    """

    __slots__ = ("content", "counted", "pieces")

    def __init__(self, index: int) -> None:
        super().__init__(index, ToolCalls())
        self.content = self.text("content")
        self.pieces = self.content.pieces
        self.counted = 0

    def choice(self) -> Choice:
        """Returns the choice so far; one without a finish reason has null, as on the wire."""
        given = present(seed=self.seed, logprobs=self.joined_logprobs())
        return make(Choice, index=self.index, message=self._message(), finish_reason=self.finish_reason, **given)

    def _message(self) -> ChatCompletionMessage:
        texts = self.joined_texts()
        content = texts.pop("content")
        function_call = self.function_call.function() if self.function_call else None
        given = present(**texts, tool_calls=self.tool_calls.tool_calls(), function_call=function_call)
        return make(ChatCompletionMessage, role=self.role or "assistant", content=content, **given)


class ChatCompletionAccumulator:
    """Takes chunks, gives the completion so far.

    `generated` counts chunks with text or a piece of a tool call; chunks with only a role, a finish reason or the usage
    are not counted.
    """

    __slots__ = ("_choices", "_counted", "_facts", "_settled")

    def __init__(self) -> None:
        self._facts = DocumentFacts(DOCUMENT_FIELDS)
        self._choices: dict[int, _AccumulatedChoice] = {}
        self._counted = 0
        self._settled = 0  # what was generated at the last `settle`

    def clear(self) -> None:
        """Forgets everything: another response begins."""
        self._facts = DocumentFacts(DOCUMENT_FIELDS)
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
        """Counts the texts that readers have appended since the last time. It is not done per token."""
        for parts in self._choices.values():
            size = len(parts.content.pieces)
            self._counted += size - parts.counted
            parts.counted = size

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Adds the next chunk of the stream; returns whether it held something generated."""
        self._facts.add(chunk)
        if chunk.usage is not None:
            self._facts.values["usage"] = chunk.usage  # the last one counts
        self._count()
        generated = False
        for choice in chunk.choices:
            parts = self._parts(choice.index or 0)
            generated = parts.add(choice) or generated
            parts.counted = len(parts.content.pieces)
        self._counted += generated
        return generated

    def count(self, chunks: int = 1) -> None:
        """Counts chunks that held something generated but were not added, as those of a raw stream."""
        self._counted += chunks

    def _parts(self, index: int) -> _AccumulatedChoice:
        parts = self._choices.get(index)
        if parts is None:
            parts = self._choices[index] = _AccumulatedChoice(index)
        return parts

    def texts(self, index: int) -> list[str] | None:
        """Returns the list of a choice's content, for readers that append to it themselves.

        None while the choice has not begun, or while a later chunk may bring the completion's id or model.
        """
        if "id" in self._facts.missing or "model" in self._facts.missing:
            return None  # a later chunk may bring them
        parts = self._choices.get(index)
        return None if parts is None else parts.content.pieces

    def has_role(self, index: int) -> bool:
        """Whether the role of a choice has come, which a text reader does not look for."""
        parts = self._choices.get(index)
        return parts is not None and parts.role is not None

    def settle(self) -> bool:
        """Returns whether anything was generated since the last call; joins the pieces of text that have gathered.

        Called between reads of the network, so that the memory in use is that of the text.
        """
        counted = self._counted
        for parts in self._choices.values():
            size = len(parts.pieces)
            counted += size - parts.counted
            parts.counted = size
            if size >= BLOCK and parts.content.compact():
                parts.counted = 0
        progressed = counted != self._settled
        self._counted = self._settled = counted
        return progressed

    @property
    def usage(self) -> Usage | None:
        """The server's count of tokens; None until it has come."""
        usage: Usage | None = self._facts.values.get("usage")
        return usage

    def finished(self, choices: int = 1) -> bool:
        """Returns whether every choice seen, and at least `choices` of them, has a finish reason that is not empty."""
        return len(self._choices) >= choices and all(parts.finish_reason for parts in self._choices.values())

    def completion(self) -> ChatCompletion:
        """Returns the completion so far: the choices by index, `finish_reason` None where none came."""
        choices = tuple(self._choices[index].choice() for index in sorted(self._choices))
        return make(ChatCompletion, object="chat.completion", choices=choices, **self._facts.values)
