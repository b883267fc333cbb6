"""The values that come from the API: completions, chunks, messages of the model, usage.

All are frozen attrs classes which decode straight from JSON. Every field may be absent or null, and keys
they do not know are kept in `to_dict()` of the whole chunk or completion.
Field names and meanings: https://docs.together.ai/reference/chat-completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import attrs
import msgspec

V = TypeVar("V", bound="Value")


def _or_none(value: Any) -> Any:
    """Equality key of fields that servers send empty, null or not at all, meaning the same."""
    return value or None


def _loose() -> Any:
    """A field for which empty, null and absent are equal."""
    return attrs.field(default=None, eq=_or_none, hash=False)


def _unhashed() -> Any:
    """A field that may hold JSON objects or arrays: compared, not hashed."""
    return attrs.field(default=None, hash=False)


class Retried(NamedTuple):
    """One attempt that failed and was followed by another.

    Attributes:
        reason: Why: a status, or what became of the connection.
        waited_s: Seconds until the next attempt was sent, the wait for its turn included.
    """

    reason: str
    waited_s: float


class Value:
    """What every value from the API can do: become the wire's own shape.

    The subclasses are frozen attrs classes with a `__dict__`, and their defaults stand on the class as well. That is
    for the decoder: it asks `hasattr` for each field the JSON left out, which costs 20 ns when the class has the
    default, and 230 ns when it must find an empty slot; a chunk leaves out nine. It also means that a decoded
    value's `__dict__` holds just what came.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the value as the JSON object it came as: nulls are None, what was absent stays absent.

        A whole chunk or completion also gives back the keys that this package does not know.
        """
        return {name: plain(value) for name, value in vars(self).items()}

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{field.name}={value!r}"
            for field in attrs.fields(type(self))  # type: ignore[arg-type]  # every subclass is an attrs class
            if field.repr and (value := getattr(self, field.name)) is not None
        )
        return f"{type(self).__name__}({shown})"


class Document(Value):
    """A value that keeps the bytes it was decoded from, so that `to_dict` is exact."""

    __slots__ = ("raw_json",)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object it came as, to the last key.

        Of a stream's chunks of plain text, keys that this package does not know are there if the stream's first chunk
        had such keys.
        """
        raw: bytes | None = getattr(self, "raw_json", None)
        if raw is None:
            return super().to_dict()
        try:
            decoded: dict[str, Any] = msgspec.json.decode(raw)
        except ValueError:  # broken text in a value that no field here reads
            return super().to_dict()
        return decoded

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle would restore the slot through setattr, which a frozen class refuses.
        return _restore, (type(self), vars(self), getattr(self, "raw_json", None))


def _restore(cls: type[Document], fields: dict[str, Any], raw: bytes | None) -> Document:
    document = make(cls, **fields)
    if raw is not None:
        set_raw(document, raw)
    return document


set_raw: Callable[[Document, bytes], None] = vars(Document)["raw_json"].__set__
"""Gives a frozen chunk or completion the bytes it came from: the slot's own setter, the cheapest way there is."""


def defaults_on_class(cls: type[V]) -> type[V]:
    """Puts each field's default on the class too, where msgspec's `hasattr` finds it (see `Value`)."""
    for field in attrs.fields(cls):  # type: ignore[arg-type]  # an attrs class
        setattr(cls, field.name, field.default)
    return cls


def make(cls: type[V], **given: Any) -> V:
    """Returns a value with just the given fields present, as if decoded: its `to_dict` leaves the others out."""
    value = cls.__new__(cls)
    vars(value).update(given)
    return value


def present(**given: Any) -> dict[str, Any]:
    """Returns the given fields which are not None, for `make`."""
    return {name: value for name, value in given.items() if value is not None}


def plain(value: Any) -> Any:
    """Returns a value as JSON's own types: values become dicts, tuples lists."""
    if isinstance(value, str):
        return value
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class PromptTokensDetails(Value):
    """Part of `Usage`: how many of the prompt's tokens came from a cache."""

    cached_tokens: int | None = None
    audio_tokens: int | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class CompletionTokensDetails(Value):
    """Part of `Usage`: what the completion's tokens were spent on."""

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Usage(Value):
    """Tokens counted by the server."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @property
    def cached_prompt_tokens(self) -> int | None:
        """Cached tokens of the prompt, from whichever of the two shapes the server uses; None when not told."""
        if self.cached_tokens is not None:
            return self.cached_tokens
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None

    @property
    def reasoning_tokens(self) -> int | None:
        """Tokens of the completion spent on reasoning; None when not told."""
        return self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Logprobs(Value):
    """Log probabilities in either shape: native lists side by side, or OpenAI's `content` of objects."""

    tokens: tuple[str | None, ...] | None = attrs.field(default=None, repr=False)
    token_logprobs: tuple[float | None, ...] | None = None
    token_ids: tuple[int | None, ...] | None = None
    top_logprobs: tuple[Any, ...] | None = attrs.field(default=None, hash=False, repr=False)
    content: tuple[Any, ...] | None = attrs.field(default=None, hash=False, repr=False)
    refusal: tuple[Any, ...] | None = attrs.field(default=None, hash=False, repr=False)


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Function(Value):
    """The function of a tool call: its name, and its arguments as JSON text."""

    name: str = ""
    arguments: str = ""


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ToolCall(Value):
    """A call the model asks for. Answer it with `Message.tool(result, tool_call_id=call.id)`."""

    id: str = ""
    type: str | None = None
    function: Function = make(Function)  # noqa: RUF009 - frozen
    index: int | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class FunctionDelta(Value):
    """A piece of a tool call's function: the name comes once, the arguments in pieces."""

    name: str | None = None
    arguments: str | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ToolCallDelta(Value):
    """A piece of a tool call; pieces of one call have one `index`."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChatCompletionMessage(Value):
    """A message of the model. It can be put into the `messages` of the next request as it is."""

    role: str | None = "assistant"
    content: str | None = _loose()
    tool_calls: tuple[ToolCall, ...] | None = _loose()
    reasoning: str | None = _loose()
    reasoning_content: str | None = _loose()
    function_call: Function | None = None
    refusal: str | None = _loose()


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class PromptPart(Value):
    """The prompt as the server read it, when `echo` was asked for."""

    text: str | None = attrs.field(default=None, repr=False)
    logprobs: Logprobs | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Choice(Value):
    """One of the `n` answers of a completion.

    `finish_reason` is an open set: stop, eos, length, tool_calls, function_call and what servers add. It is None
    when the server gave none.
    """

    index: int = 0
    message: ChatCompletionMessage = make(ChatCompletionMessage)  # noqa: RUF009 - frozen
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    seed: int | float | None = None
    text: str | None = attrs.field(default=None, eq=False, repr=False)


class ResponseDocument(Document):
    """A document that knows the attempts of the call that returned it."""

    __slots__ = ("_history",)

    @property
    def attempts(self) -> int:
        """How many HTTP requests the call made, from 1."""
        history: tuple[int, tuple[Retried, ...]] = getattr(self, "_history", (1, ()))
        return history[0]

    @property
    def retries(self) -> tuple[Retried, ...]:
        """The attempts that failed before the last one, in order; empty when the first one succeeded."""
        history: tuple[int, tuple[Retried, ...]] = getattr(self, "_history", (1, ()))
        return history[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_response, (super().__reduce__(), self.attempts, self.retries)


def _restore_response(document: tuple[Any, ...], attempts: int, retries: tuple[Retried, ...]) -> Any:
    restore, arguments = document
    response = restore(*arguments)
    record_attempts(response, attempts, retries)
    return response


_set_history: Callable[[ResponseDocument, tuple[int, tuple[Retried, ...]]], None]
_set_history = vars(ResponseDocument)["_history"].__set__


def record_attempts(response: ResponseDocument, attempts: int, retries: tuple[Retried, ...]) -> None:
    """Gives a frozen completion the attempts of its call: how many there were, and those that failed."""
    if attempts != 1 or retries:
        _set_history(response, (attempts, retries))


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChatCompletion(ResponseDocument):
    """A whole response, or what a stream's chunks add up to."""

    id: str | None = None
    object: str | None = "chat.completion"
    created: int | float | None = None
    model: str | None = None
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    prompt: tuple[PromptPart, ...] | None = attrs.field(default=None, eq=_or_none, hash=False, repr=False)
    warnings: tuple[Any, ...] | None = _loose()
    system_fingerprint: str | None = None
    service_tier: str | None = None
    error: Any = attrs.field(default=None, hash=False, repr=False)

    @property
    def text(self) -> str:
        """The content of choice 0, or of the first there is; the empty string when it has none."""
        choice = next((choice for choice in self.choices if choice.index == 0), None) or next(iter(self.choices), None)
        return (choice.message.content or "") if choice is not None else ""


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Delta(Value):
    """What a chunk adds to a choice's message."""

    content: str | None = None
    role: str | None = None
    token_id: int | None = None
    tool_calls: tuple[ToolCallDelta, ...] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    function_call: FunctionDelta | None = None
    refusal: str | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChunkChoice(Value):
    """One choice's part of a chunk. Together repeats `delta.content` as `text`: use one of them, never both."""

    index: int = 0
    delta: Delta = make(Delta)  # noqa: RUF009 - frozen
    finish_reason: str | None = None
    logprobs: float | Logprobs | None = None
    seed: int | float | None = None
    text: str | None = attrs.field(default=None, repr=False)


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChatCompletionChunk(Document):
    """One event of a stream. `choices` is empty in a chunk that only carries `usage`."""

    id: str | None = None
    object: str | None = "chat.completion.chunk"
    created: int | float | None = None
    model: str | None = None
    choices: tuple[ChunkChoice, ...] = ()
    usage: Usage | None = None
    prompt: tuple[PromptPart, ...] | None = attrs.field(default=None, hash=False, repr=False)
    warnings: tuple[Any, ...] | None = _unhashed()
    system_fingerprint: str | None = None
    service_tier: str | None = None
    error: Any = attrs.field(default=None, hash=False, repr=False)


def text_of(choice: ChunkChoice) -> str:
    """Returns the text that a chunk adds to a choice, in either shape; empty when it adds none."""
    return (choice.delta.content if "delta" in vars(choice) else choice.text) or ""


TEXT_FIELDS: Final = ("content", "reasoning", "reasoning_content", "refusal")
"""Fields of a `Delta` which are pieces of a text, and of a `ChatCompletionMessage`, which has the whole text."""
GENERATED_FIELDS: Final = (*TEXT_FIELDS, "tool_calls", "function_call")
"""Fields of a `Delta` with what the model generates; the others describe it."""
DOCUMENT_FIELDS: Final = ("id", "created", "model", "prompt", "warnings", "system_fingerprint", "service_tier")
"""Fields of a chunk and a completion which describe the whole completion; servers repeat most of them in each chunk."""
