"""Chunks: what an event of a stream holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from together_async.models.base import make, unhashed
from together_async.models.completion import FunctionDelta, Logprobs, PromptPart, ToolCallDelta, Usage
from together_async.models.struct_value import StructValue, set_source, struct_value


@struct_value
class Delta(StructValue):
    """What a chunk adds to a choice's message. Most chunks have a single field of it.

    Attributes:
        content: A piece of the text, mostly one token; None or empty for no piece.
        role: `assistant`, in the first chunk of a choice or in each; else None.
        token_id: The id of the token in the model's vocabulary, at servers that send it.
        tool_calls: Pieces of tool calls; None or empty without any.
        reasoning: A piece of the reasoning, at models that send it here.
        reasoning_content: The same, at models that send it under this name.
        function_call: A piece of a function call in the older shape that `tool_calls` replaced.
        refusal: A piece of the refusal.
    """

    content: str | None = None
    role: str | None = None
    token_id: int | None = None
    tool_calls: tuple[ToolCallDelta, ...] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    function_call: FunctionDelta | None = None
    refusal: str | None = None

    @staticmethod
    def _part_of(document: Any, place: int) -> Any:
        return document["choices"][place]["delta"]

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (
            "NO_DELTA" if self is NO_DELTA else StructValue.__reduce__(self)
        )  # `super()` would be that of the class that `struct_value` replaces


NO_DELTA: Final = make(Delta)
"""The delta of every choice that came, or was made, without one: it is told by its identity."""


@struct_value
class ChunkChoice(StructValue):
    """One choice's part of a chunk.

    Attributes:
        index: The choice's position, from 0. With `n` above 1 the chunks of the choices alternate.
        delta: What the chunk adds to the choice's message.
        finish_reason: As `Choice.finish_reason`, in the last chunk of the choice; None before.
        logprobs: The log probability of the chunk's token as a number (Together's own shape), or an object with those
            of its tokens; None if the request did not ask for `logprobs`.
        seed: The seed that was sampled with, at servers that send it.
        text: `delta.content` once more, at Together. Use one of the two, never both.
    """

    index: int = 0
    delta: Delta = NO_DELTA
    finish_reason: str | None = None
    logprobs: float | Logprobs | None = None
    seed: int | float | None = None
    text: str | None = attrs.field(default=None, repr=False)

    @staticmethod
    def _part_of(document: Any, place: int) -> Any:
        return document["choices"][place]

    def _made_of(self) -> dict[str, Any]:
        made_of = StructValue._made_of(self)  # noqa: SLF001 - as in `Delta.__reduce__`
        if self.delta is NO_DELTA and self.text is not None:
            del made_of["delta"]  # next to an empty delta, the text would not count
        return made_of


@struct_value
class ChatCompletionChunk(StructValue):
    """One event of a stream.

    `to_dict` returns what the server sent, and so does that of a choice or a delta. They are equal if their fields are;
    a pickled or copied one keeps its bytes. `attrs.evolve` makes a new value of the fields alone.

    Attributes:
        id: The server's id of the completion, the same in all its chunks.
        object: `chat.completion.chunk`.
        created: When the completion was begun, in seconds since 1970 UTC.
        model: The model that answers.
        choices: The choices that the chunk adds to, mostly one; empty in a chunk that only carries `usage`.
        usage: The tokens of the whole completion, in the last chunk or in the one with the finish reason; else None.
        prompt: The prompt as the server read it, for a request with `echo`, mostly in the first chunk; else None.
        warnings: What the server remarks about the request, as objects with a `message`.
        system_fingerprint: Identifies the server's configuration, at servers that send it.
        service_tier: The tier that serves the request, at servers that have tiers.
        error: Always None or empty in a chunk that a stream returns: an error raises StreamAPIError.
    """

    id: str | None = None
    object: str | None = "chat.completion.chunk"
    created: int | float | None = None
    model: str | None = None
    choices: tuple[ChunkChoice, ...] = ()
    usage: Usage | None = None
    prompt: tuple[PromptPart, ...] | None = attrs.field(default=None, hash=False, repr=False)
    warnings: tuple[Any, ...] | None = unhashed()
    system_fingerprint: str | None = None
    service_tier: str | None = None
    error: Any = attrs.field(default=None, hash=False, repr=False)

    @property
    def raw_json(self) -> bytes | None:
        """The bytes it was decoded from, with whatever blanks they have; None for a chunk that was made here."""
        raw: bytes | None = getattr(self, "_source", None)
        return raw

    @staticmethod
    def _part_of(document: Any, place: int) -> Any:  # noqa: ARG004 - the place is that of a choice
        return document


def link(chunk: ChatCompletionChunk, raw: bytes, places: Sequence[int] | None = None) -> None:
    """Links a chunk, its choices and their deltas to the bytes they came from.

    Args:
        chunk: The chunk.
        raw: Its JSON.
        places: For each of its choices the place in the JSON array; None if they are all there, in order.
    """
    set_source(chunk, raw)
    for number, choice in enumerate(chunk.choices):
        place = number if places is None else places[number]
        source = (raw, place) if place else raw
        set_source(choice, source)
        if choice.delta is not NO_DELTA:
            set_source(choice.delta, source)


def text_of(choice: ChunkChoice) -> str:
    """Returns the text that a chunk adds to a choice, in either shape; empty when it adds none."""
    return (choice.text if choice.delta is NO_DELTA else choice.delta.content) or ""


TEXT_FIELDS: Final = ("content", "reasoning", "reasoning_content", "refusal")
"""Fields of a `Delta` which are pieces of a text, and of a `ChatCompletionMessage`, which has the whole text."""
GENERATED_FIELDS: Final = (*TEXT_FIELDS, "tool_calls", "function_call")
"""Fields of a `Delta` with what the model generates; the others describe it."""
DOCUMENT_FIELDS: Final = ("id", "created", "model", "prompt", "warnings", "system_fingerprint", "service_tier")
"""Fields of a chunk and a completion which describe the whole completion; servers repeat most of them in each chunk."""
