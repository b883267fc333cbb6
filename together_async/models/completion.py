"""Completions: what a whole response holds, and what a stream adds up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import attrs

from together_async.models.base import Value, decode_tolerantly, defaults_on_class, loose, make, or_none


class Retried(NamedTuple):
    """An attempt that failed and was followed by another.

    Attributes:
        reason: Why it failed: an HTTP status, as `429`, or what became of the connection.
        waited_s: Seconds from the failure until the next attempt was sent, the wait for its turn included.
    """

    reason: str
    waited_s: float


History: TypeAlias = tuple[int, tuple[Retried, ...]]
"""A call's attempts, from 1, and those of them that failed."""


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
    content: str | None = loose()
    tool_calls: tuple[ToolCall, ...] | None = loose()
    reasoning: str | None = loose()
    reasoning_content: str | None = loose()
    function_call: Function | None = None
    refusal: str | None = loose()


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


class Document(Value):
    """A completion, with the bytes it was decoded from, so that `to_dict` is exact, and the attempts of its call."""

    __slots__ = ("_history", "_raw_json")

    @property
    def raw_json(self) -> bytes | None:
        """The bytes it was decoded from; None for a completion that was made here."""
        raw: bytes | None = getattr(self, "_raw_json", None)
        return raw

    @property
    def attempts(self) -> int:
        """How many HTTP requests the call made, from 1."""
        history: History = getattr(self, "_history", (1, ()))
        return history[0]

    @property
    def retries(self) -> tuple[Retried, ...]:
        """The attempts that failed before the last one, in order; empty when the first one succeeded."""
        history: History = getattr(self, "_history", (1, ()))
        return history[1]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object as it came, unknown keys included."""
        raw = self.raw_json
        decoded = None if raw is None else decode_tolerantly(raw)
        return decoded if isinstance(decoded, dict) else super().to_dict()

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle would restore the slots through setattr, which a frozen class refuses.
        return _restore, (type(self), vars(self), self.raw_json, self.attempts, self.retries)


def _restore(
    cls: type[Document], fields: dict[str, Any], raw: bytes | None, attempts: int, retries: tuple[Retried, ...]
) -> Document:
    document = make(cls, **fields)
    if raw is not None:
        set_raw_json(document, raw)
    record_attempts(document, attempts, retries)
    return document


set_raw_json: Callable[[Document, bytes], None] = vars(Document)["_raw_json"].__set__
"""Gives a frozen completion the bytes it came from: the slot's own setter, the cheapest way there is."""
_set_history: Callable[[Document, History], None] = vars(Document)["_history"].__set__


def record_attempts(response: Document, attempts: int, retries: tuple[Retried, ...]) -> None:
    """Gives a frozen completion the attempts of its call: how many there were, and those that failed."""
    if attempts != 1 or retries:
        _set_history(response, (attempts, retries))


@defaults_on_class
@attrs.frozen(slots=False, repr=False)
class ChatCompletion(Document):
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
    prompt: tuple[PromptPart, ...] | None = attrs.field(default=None, eq=or_none, hash=False, repr=False)
    warnings: tuple[Any, ...] | None = loose()
    system_fingerprint: str | None = None
    service_tier: str | None = None
    error: Any = attrs.field(default=None, hash=False, repr=False)

    @property
    def text(self) -> str:
        """The content of choice 0, or of the first choice there is; empty when it has none."""
        choice = next((choice for choice in self.choices if choice.index == 0), None) or next(iter(self.choices), None)
        return (choice.message.content or "") if choice is not None else ""
