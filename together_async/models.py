"""The values that come from the API: completions, chunks, messages of the model, usage.

All are frozen attrs classes which decode straight from JSON. A field is None when the server left it out or sent null,
unless its class says otherwise. Keys that these classes do not know are kept: `to_dict()` of a whole chunk or
completion returns them.

Field names and meanings: https://docs.together.ai/reference/chat-completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import attrs
import msgspec

V = TypeVar("V", bound="Value")


def _or_none(value: Any) -> Any:
    """Equality key of fields for which servers send empty, null or nothing, and mean the same."""
    return value or None


def _loose() -> Any:
    """A field for which empty, null and absent are equal."""
    return attrs.field(default=None, eq=_or_none, hash=False)


def _unhashed() -> Any:
    """A field that may hold JSON objects or arrays, which can be compared and not hashed."""
    return attrs.field(default=None, hash=False)


class Retried(NamedTuple):
    """An attempt that failed and was followed by another.

    Attributes:
        reason: Why it failed: an HTTP status, as `429`, or what became of the connection.
        waited_s: Seconds from the failure until the next attempt was sent, the wait for its turn included.
    """

    reason: str
    waited_s: float


class Value:
    """Base of every value from the API; it converts back to the JSON that was received.

    The subclasses are frozen attrs classes with a `__dict__`, and their defaults are class attributes as well. That is
    for the decoder: it asks `hasattr` for each field the JSON left out, which costs 20 ns when the class has the
    default, and 230 ns when it must find an empty slot; a chunk leaves out nine. It also means that a decoded value's
    `__dict__` holds only the fields that came.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the value as the JSON object it came as: nulls are None, absent fields stay absent.

        A whole chunk or completion also returns the keys that this package does not know.
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
    """A chunk or a completion, which keeps the bytes it was decoded from, so that `to_dict` is exact.

    Attributes:
        raw_json: Those bytes. Not set on a document that was made otherwise, and on most plain chunks of a stream: read
            it with `getattr(document, "raw_json", None)`.
    """

    __slots__ = ("raw_json",)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object as it came, unknown keys included.

        A stream's chunks of plain text have unknown keys only if the stream's first chunk had some.
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
    """Makes each field's default a class attribute too, where msgspec's `hasattr` finds it (see `Value`)."""
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
    """Part of `Usage`: details of the prompt's tokens.

    Attributes:
        cached_tokens: Tokens that were read from a prompt cache; often cheaper.
        audio_tokens: Tokens of audio input.
    """

    cached_tokens: int | None = None
    audio_tokens: int | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class CompletionTokensDetails(Value):
    """Part of `Usage`: what the completion's tokens were spent on.

    Attributes:
        reasoning_tokens: Tokens of reasoning, which are billed as tokens of the completion.
        audio_tokens: Tokens of audio output.
        accepted_prediction_tokens: Tokens of a predicted output that were used.
        rejected_prediction_tokens: Tokens of a predicted output that were not used, but are billed.
    """

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Usage(Value):
    """Tokens as counted by the server. Each count is None when the server did not send it.

    Attributes:
        prompt_tokens: Tokens of the messages, as the model read them.
        completion_tokens: Generated tokens, of all choices together and with reasoning.
        total_tokens: The sum of both.
        cached_tokens: Tokens of the prompt that were read from a cache, at servers that send the count here; see
            `cached_prompt_tokens`.
        prompt_tokens_details: Details of `prompt_tokens`, at servers that send them.
        completion_tokens_details: Details of `completion_tokens`, at servers that send them.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @property
    def cached_prompt_tokens(self) -> int | None:
        """Tokens of the prompt that were read from a cache, in either of the two shapes; None when not sent."""
        if self.cached_tokens is not None:
            return self.cached_tokens
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None

    @property
    def reasoning_tokens(self) -> int | None:
        """Tokens of the completion that were spent on reasoning; None when the server did not send them."""
        return self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Logprobs(Value):
    """Log probabilities of tokens, natural logarithms, in one of two shapes.

    Together's own shape is parallel lists: `tokens`, `token_logprobs`, `token_ids`, `top_logprobs`. OpenAI's is
    `content` (and `refusal`), lists of objects. The lists of the other shape are None.

    Attributes:
        tokens: The text of each token.
        token_logprobs: The log probability of each token, at most 0; None for a token that has none, as an echoed
            prompt's first.
        token_ids: The id of each token in the model's vocabulary; None for a token whose id the server did not send.
        top_logprobs: For each token the likeliest alternatives, an object of text to log probability.
        content: For each token of the content an object with `token`, `logprob`, `bytes` and `top_logprobs`.
        refusal: The same for the tokens of a refusal.
    """

    tokens: tuple[str | None, ...] | None = attrs.field(default=None, repr=False)
    token_logprobs: tuple[float | None, ...] | None = None
    token_ids: tuple[int | None, ...] | None = None
    top_logprobs: tuple[Any, ...] | None = attrs.field(default=None, hash=False, repr=False)
    content: tuple[Any, ...] | None = attrs.field(default=None, hash=False, repr=False)
    refusal: tuple[Any, ...] | None = attrs.field(default=None, hash=False, repr=False)


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Function(Value):
    """The function of a tool call.

    Attributes:
        name: The name of one of the request's `tools`; empty when the server sent none.
        arguments: The arguments as JSON text. The model wrote it, so it may be invalid: parse and check it.
    """

    name: str = ""
    arguments: str = ""


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ToolCall(Value):
    """A tool call the model asks for. Answer it with `Message.tool(result, tool_call_id=call.id)`.

    Attributes:
        id: Identifies the call in the answer; empty when the server sent none.
        type: `function`; None when the server did not send it.
        function: The function to call, with its arguments.
        index: The position among the message's calls, from 0; None when the server did not send it.
    """

    id: str = ""
    type: str | None = None
    function: Function = make(Function)  # noqa: RUF009 - a frozen default may be shared
    index: int | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class FunctionDelta(Value):
    """A piece of a tool call's function.

    Attributes:
        name: The function's name, in the first piece; None in most others.
        arguments: A piece of the arguments' JSON text, to be appended to those before it; None for no piece.
    """

    name: str | None = None
    arguments: str | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ToolCallDelta(Value):
    """A piece of a tool call. The pieces of one call have the same `index`.

    Attributes:
        index: The call's position among the message's calls, from 0; None at servers that do not number them.
        id: The call's id, in its first piece; None in most others.
        type: `function`, in the first piece; None in most others.
        function: A piece of the function; None for no piece.
    """

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChatCompletionMessage(Value):
    """A message of the model. It can be put into the `messages` of the next request as it is.

    Attributes:
        role: `assistant`.
        content: The text; None when the model only called tools, or only reasoned.
        tool_calls: The tool calls the model asks for, by `index`; None or empty without any.
        reasoning: The text of a reasoning model's reasoning, at models that send it here; else None.
        reasoning_content: The same, at models that send it under this name.
        function_call: The function to call, in the older shape that `tool_calls` replaced; else None.
        refusal: Why the model refuses to answer, at servers that send it apart from the content; else None.
    """

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
    """The prompt as the server read it, when the request asked for `echo`.

    Attributes:
        text: The prompt with the model's chat template applied.
        logprobs: The log probabilities of its tokens, if the request asked for `logprobs`.
    """

    text: str | None = attrs.field(default=None, repr=False)
    logprobs: Logprobs | None = None


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Choice(Value):
    """One of the `n` choices of a completion.

    Attributes:
        index: The position among the choices, from 0.
        message: The model's message.
        finish_reason: Why the model stopped: `stop` or `eos` (it was done), `length` (`max_tokens` or the context is
            used up), `tool_calls`, `function_call`, or a reason the server added later. None when the server gave none:
            the choice may be cut off.
        logprobs: The log probabilities of its tokens, if the request asked for them.
        seed: The seed that was sampled with, at servers that send it. It may exceed 64 bits.
        text: The content once more, at servers that send it; use `message.content`. Not part of equality.
    """

    index: int = 0
    message: ChatCompletionMessage = make(ChatCompletionMessage)  # noqa: RUF009 - a frozen default may be shared
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
    """A whole response, or what a stream's chunks add up to.

    Attributes:
        id: The server's id of the completion.
        object: `chat.completion`.
        created: When it was made, in seconds since 1970 UTC.
        model: The model that answered, which may be more exact than the model that was asked for.
        choices: The `n` choices that the request asked for, mostly one.
        usage: The tokens, as the server counted them. None when it did not say: streams of some servers do so only with
            `stream_options={"include_usage": True}`.
        prompt: The prompt as the server read it, for a request with `echo`; else None.
        warnings: What the server remarks about the request, as objects with a `message`; None or empty without any.
        system_fingerprint: Identifies the server's configuration, at servers that send it.
        service_tier: The tier that served the request, at servers that have tiers.
        error: None or empty; the client raises an error that comes under status 200.
        attempts: How many HTTP requests the call made, from 1.
        retries: The attempts that failed before the last one, in order; empty when the first one succeeded.
    """

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
        """The content of choice 0, or of the first choice there is; empty when it has none."""
        choice = next((choice for choice in self.choices if choice.index == 0), None) or next(iter(self.choices), None)
        return (choice.message.content or "") if choice is not None else ""


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class Delta(Value):
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


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChunkChoice(Value):
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
    delta: Delta = make(Delta)  # noqa: RUF009 - a frozen default may be shared
    finish_reason: str | None = None
    logprobs: float | Logprobs | None = None
    seed: int | float | None = None
    text: str | None = attrs.field(default=None, repr=False)


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChatCompletionChunk(Document):
    """One event of a stream.

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
