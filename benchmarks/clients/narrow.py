"""What the loops by hand decode into: narrow attrs classes with slots, which have the fields on the wire and no others.

They are what a user writes who needs speed and knows the server. Unknown keys are dropped, and nothing is checked but
the types.
"""

from typing import Any

import attrs


@attrs.frozen
class NarrowUsage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0


@attrs.frozen
class NarrowDelta:
    token_id: int | None = None
    role: str | None = None
    content: str | None = None
    tool_calls: list[Any] | None = None


@attrs.frozen
class NarrowChunkChoice:
    index: int
    delta: NarrowDelta
    text: str | None = None
    logprobs: Any = None
    finish_reason: str | None = None
    seed: int | None = None


@attrs.frozen
class NarrowChunk:
    id: str
    object: str
    created: int
    model: str
    choices: list[NarrowChunkChoice]
    usage: NarrowUsage | None = None


@attrs.frozen
class NarrowMessage:
    role: str
    content: str | None = None
    tool_calls: list[Any] | None = None


@attrs.frozen
class NarrowChoice:
    index: int
    message: NarrowMessage
    finish_reason: str | None = None
    seed: int | None = None
    logprobs: Any = None


@attrs.frozen
class NarrowCompletion:
    id: str
    object: str
    created: int
    model: str
    choices: list[NarrowChoice]
    prompt: list[Any] | None = None
    usage: NarrowUsage | None = None
