"""Dialects: how servers of this protocol write the same answer, in chunks, completions and errors.

`TOGETHER` is the service's native shape, for Llama and similar models; the other dialects follow what is known of
gpt-oss models there, and of OpenAI, vLLM, llama.cpp and `transformers serve`. Pure: choices in, JSON values out.
Shapes: https://docs.together.ai/reference/chat-completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs

from together_async.testing.script import GeneratedCall, GeneratedChoice
from together_async.testing.text.tokens import token_id
from together_async.wire import codec
from together_async.wire.sse import encode_event

DONE = b"data: [DONE]\n\n"


@attrs.frozen(kw_only=True)
class Dialect:
    """The habits of one kind of server.

    Args:
        name: The name in command lines and messages.
        usage: The place of a stream's usage: in the chunk with the finish reason (`finish`), in a last chunk without
            choices (`last`), or nowhere (`none`). A request with `stream_options.include_usage` always gets the last
            chunk.
        reasoning: The key of the reasoning.
        logprobs: Parallel lists, in a chunk a number (`native`), or OpenAI's list of objects (`openai`).
        native: Whether there are `text` next to `delta.content`, a `token_id`, and the seed in the last chunk.
        opening: The first chunk of each choice, before any token: with the role and empty content (`role`), with null
            content (`null`), or no such chunk (`none`).
        finish_beside_text: Whether the finish reason comes with the last token instead of in a chunk of its own.
        tokens_per_chunk: The most tokens in a delta, at least 1.
        double_tool_finish: Whether the finish reason `tool_calls` comes twice.
        last_choice_first: Whether choices are sent from the last to the first.
        finish_reasons: Whether choices have finish reasons at all.
        done: Whether a stream ends with `data: [DONE]`.
        closes: Whether the connection is closed after every stream, in spite of keep-alive.
        extra: Further keys of every chunk and completion.
    """

    name: str
    usage: Literal["finish", "last", "none"] = "finish"
    reasoning: Literal["reasoning", "reasoning_content"] = "reasoning"
    logprobs: Literal["native", "openai"] = "openai"
    native: bool = False
    opening: Literal["role", "null", "none"] = "role"
    finish_beside_text: bool = False
    tokens_per_chunk: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    double_tool_finish: bool = False
    last_choice_first: bool = False
    finish_reasons: bool = True
    done: bool = True
    closes: bool = False
    extra: Mapping[str, Any] = attrs.field(factory=dict)


TOGETHER = Dialect(name="together", native=True, logprobs="native", opening="none", double_tool_finish=True)
GPT_OSS = Dialect(name="gpt-oss", usage="last")
DEEPSEEK = Dialect(name="deepseek", native=True, logprobs="native", opening="none", reasoning="reasoning_content")
OPENAI = Dialect(name="openai", usage="none", extra={"service_tier": "default", "system_fingerprint": "fp_emulator"})
VLLM = Dialect(name="vllm", usage="none", reasoning="reasoning_content", tokens_per_chunk=3, finish_beside_text=True)
LLAMA_CPP = Dialect(name="llama.cpp", opening="null", last_choice_first=True, closes=True)
TRANSFORMERS = Dialect(name="transformers", usage="none", done=False, extra={"system_fingerprint": ""})

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect for dialect in (TOGETHER, GPT_OSS, DEEPSEEK, OPENAI, VLLM, LLAMA_CPP, TRANSFORMERS)
}


@attrs.frozen(kw_only=True)
class Generation:
    """The content of the answer to one request, before a dialect gives it a shape.

    Args:
        id: The completion's id, which Together also sends as `x-request-id`.
        created: Seconds since 1970.
        model: The model's name.
        choices: The generated choices.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: The number of them that came from a cache.
        logprobs: The number of alternatives with log probabilities for each token; 0 for no log probabilities.
        echo: The prompt's text, if the request asks for it; else None.
        include_usage: The request's `stream_options.include_usage`.
    """

    id: str
    created: int
    model: str
    choices: tuple[GeneratedChoice, ...]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    logprobs: int = 0
    echo: str | None = None
    include_usage: bool = False

    @property
    def tokens(self) -> int:
        """The number of generated tokens, over all choices."""
        return sum(choice.tokens for choice in self.choices)


def usage_of(dialect: Dialect, generation: Generation) -> dict[str, Any]:
    """Returns the usage; cached tokens are flat in a native dialect, nested in others."""
    reasoning = sum(len(choice.reasoning) for choice in generation.choices)
    usage: dict[str, Any] = {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.tokens,
        "total_tokens": generation.prompt_tokens + generation.tokens,
    }
    if dialect.native:
        return {**usage, "cached_tokens": generation.cached_tokens}
    return {
        **usage,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


# --------------------------------------------------------------------------------------------------------------- whole


def completion(dialect: Dialect, generation: Generation) -> dict[str, Any]:
    """Returns the whole response's body."""
    body: dict[str, Any] = {
        "id": generation.id,
        "object": "chat.completion",
        "created": generation.created,
        "model": generation.model,
        "choices": [_choice(dialect, generation, choice) for choice in generation.choices],
        "usage": usage_of(dialect, generation),
        **dialect.extra,
    }
    if dialect.native or generation.echo is not None:
        body["prompt"] = _prompt(generation)
    return body


def _prompt(generation: Generation) -> list[dict[str, Any]]:
    if generation.echo is None:
        return []
    return [{"text": generation.echo, "logprobs": None}]


def _choice(dialect: Dialect, generation: Generation, choice: GeneratedChoice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.content is None else "".join(choice.content),
        "tool_calls": [_whole_call(call, index) for index, call in enumerate(choice.calls)],
    }
    if choice.reasoning:
        message[dialect.reasoning] = "".join(choice.reasoning)
    body: dict[str, Any] = {
        "index": choice.index,
        "message": message,
        "finish_reason": choice.finish_reason if dialect.finish_reasons else None,
        "logprobs": _whole_logprobs(dialect, generation.logprobs, choice.content or ())
        if generation.logprobs
        else None,
    }
    if dialect.native:
        body["seed"] = choice.seed
    return body


def _whole_call(call: GeneratedCall, index: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": "".join(call.pieces)}
    return {"index": index, "id": call.id, "type": "function", "function": function}


def logprob_of(token: str) -> float:
    """Returns a made-up log probability, always the same for a token."""
    return -(token_id(token) % 4001) / 1000


def _whole_logprobs(dialect: Dialect, top: int, tokens: Sequence[str]) -> dict[str, Any]:
    if dialect.logprobs == "openai":
        return {"content": [_openai_logprob(token, top) for token in tokens]}
    return {
        "tokens": list(tokens),
        "token_logprobs": [logprob_of(token) for token in tokens],
        "token_ids": [token_id(token) for token in tokens],
    }


def _openai_logprob(token: str, top: int) -> dict[str, Any]:
    def entry(text: str) -> dict[str, Any]:
        return {"token": text, "logprob": logprob_of(text), "bytes": list(text.encode())}

    others = [f" {other}" for other in range(top - 1)]
    return {**entry(token), "top_logprobs": [entry(text) for text in (token, *others)]}


# -------------------------------------------------------------------------------------------------------------- stream


@attrs.frozen
class Event:
    """One event of a stream.

    Attributes:
        data: The bytes of the event, as sent.
        tokens: The number of tokens in its delta.
    """

    data: bytes
    tokens: int = 0


def events(dialect: Dialect, generation: Generation) -> list[Event]:
    """Returns the stream's events in order, `[DONE]` included; the choices alternate."""
    choices = generation.choices[::-1] if dialect.last_choice_first else generation.choices
    shape = _ChunkShape(dialect, generation)
    found = [shape.opening(choice) for choice in choices] if dialect.opening != "none" else []
    found += _in_turn([_ChoiceEvents(shape, choice).each() for choice in choices], shape)
    if generation.include_usage or dialect.usage == "last":
        found.append(Event(shape.chunk([], usage=usage_of(dialect, generation))))
    if dialect.done:
        found.append(Event(DONE))
    return found


def _in_turn(sequences: Sequence[Iterator[dict[str, Any]]], shape: _ChunkShape) -> list[Event]:
    """Returns one chunk of each choice after the other; the usage goes into the very last."""
    rounds: list[dict[str, Any]] = []
    waiting = list(sequences)
    while waiting:
        for sequence in tuple(waiting):
            fields = next(sequence, None)
            if fields is None:
                waiting.remove(sequence)
            else:
                rounds.append(fields)
    usage = shape.usage_with_finish()
    last = len(rounds) - 1
    return [
        Event(shape.chunk([fields], usage=usage if position == last else None), tokens)
        for position, fields in enumerate(rounds)
        for tokens in (fields.pop("tokens", 0),)
    ]


class _ChunkShape:
    """The parts that all chunks of one stream have in common."""

    def __init__(self, dialect: Dialect, generation: Generation) -> None:
        self.dialect = dialect
        self.generation = generation
        self._echo = [] if generation.echo is None else _prompt(generation)

    def usage_with_finish(self) -> dict[str, Any] | None:
        if self.dialect.usage != "finish" or self.generation.include_usage:
            return None
        return usage_of(self.dialect, self.generation)

    def chunk(self, choices: list[dict[str, Any]], *, usage: dict[str, Any] | None = None) -> bytes:
        generation = self.generation
        body: dict[str, Any] = {
            "id": generation.id,
            "object": "chat.completion.chunk",
            "created": generation.created,
            "choices": choices,
            "model": generation.model,
            "usage": usage,
            **self.dialect.extra,
        }
        if self._echo:  # once, in the first chunk
            body["prompt"], self._echo = self._echo, []
        return b"data: " + codec.encode(body) + b"\n\n"

    def opening(self, choice: GeneratedChoice) -> Event:
        content = "" if self.dialect.opening == "role" else None
        delta = {"role": "assistant", "content": content}
        return Event(self.chunk([{"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}]))


class _ChoiceEvents:
    """The chunks of one choice: `choices[0]` of each, with the number of tokens under the key `tokens`."""

    def __init__(self, shape: _ChunkShape, choice: GeneratedChoice) -> None:
        self._dialect = shape.dialect
        self._top = shape.generation.logprobs
        self._choice = choice

    def each(self) -> Iterator[dict[str, Any]]:
        """Yields the chunks in order: reasoning, content, tool calls, and the finish reason, which some send twice."""
        held: dict[str, Any] | None = None
        for fields in self._deltas():
            if held is not None:
                yield held
            held = fields
        choice, dialect = self._choice, self._dialect
        reason = choice.finish_reason if dialect.finish_reasons else None
        if held is not None and dialect.finish_beside_text:
            yield {**held, "finish_reason": reason}
            return
        if held is not None:
            yield held
        last = self._fields({}, text="", finish_reason=reason)
        if dialect.native:
            last["seed"] = choice.seed
        if choice.calls and dialect.double_tool_finish and reason == "tool_calls":
            yield self._fields({}, text="", finish_reason=reason)
        yield last

    def _deltas(self) -> Iterator[dict[str, Any]]:
        size = self._dialect.tokens_per_chunk
        choice = self._choice
        for start in range(0, len(choice.reasoning), size):
            tokens = choice.reasoning[start : start + size]
            yield self._fields({self._dialect.reasoning: "".join(tokens)}, text="", tokens=len(tokens))
        content = choice.content or ()
        for start in range(0, len(content), size):
            tokens = content[start : start + size]
            text = "".join(tokens)
            yield self._fields({"content": text}, text=text, tokens=len(tokens), with_logprobs=tokens)
        for index, call in enumerate(choice.calls):
            yield from self._call(index, call)

    def _call(self, index: int, call: GeneratedCall) -> Iterator[dict[str, Any]]:
        first = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield self._fields({"tool_calls": [first]}, text="")
        for piece in call.pieces:
            later = {"index": index, "function": {"arguments": piece}}
            yield self._fields({"tool_calls": [later]}, text="", tokens=1)

    def _fields(
        self,
        delta: dict[str, Any],
        *,
        text: str,
        tokens: int = 0,
        with_logprobs: Sequence[str] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """Returns `choices[0]` of a chunk."""
        fields: dict[str, Any] = {"index": self._choice.index}
        if self._dialect.native:
            native = {"token_id": token_id(text) if text else None, "role": "assistant", "content": text}
            fields["text"] = text
            delta = {**native, "tool_calls": None, **delta}
        fields["delta"] = delta
        fields["logprobs"] = self._logprobs(with_logprobs)
        fields["finish_reason"] = finish_reason
        fields["tokens"] = tokens
        return fields

    def _logprobs(self, tokens: Sequence[str]) -> Any:
        if not self._top or not tokens:
            return None
        if self._dialect.logprobs == "native":
            return logprob_of(tokens[0])
        return {"content": [_openai_logprob(token, self._top) for token in tokens]}


# -------------------------------------------------------------------------------------------------------------- errors

_ERRORS: Mapping[int, tuple[str, str, str | None]] = {
    400: ("The request is malformed.", "invalid_request_error", None),
    401: ("Invalid API key provided.", "invalid_request_error", "invalid_api_key"),
    402: ("The account has reached its spending limit.", "payment_required", None),
    403: ("The prompt and max_tokens exceed the model's context length.", "invalid_request_error", None),
    404: ("The model does not exist, or you have no access to it.", "invalid_request_error", "model_not_available"),
    408: ("The request timed out.", "timeout", None),
    409: ("The request conflicts with another.", "invalid_request_error", None),
    422: ("A parameter has the wrong type.", "invalid_request_error", None),
    429: ("Request was rejected due to request rate limiting.", "dynamic_request_limited", None),
    500: ("The server had an error while processing the request.", "server_error", None),
    502: ("Bad gateway.", "server_error", None),
    503: ("The service is overloaded, or not ready yet.", "service_unavailable", None),
    504: ("Gateway timeout.", "server_error", None),
    529: ("The service is overloaded.", "server_error", None),
}


def error_body(
    status: int, message: str | None = None, *, type: str | None = None, param: str | None = None, id: str = ""
) -> dict[str, Any]:
    """Returns the body that Together sends with an HTTP status.

    Args:
        status: The status; an unknown one gets a general text.
        message: The error's message; None for the usual text.
        type: The error's type; None for the usual one.
        param: The wrong field; None for none.
        id: The request's id, which the service repeats; empty leaves it out.
    """
    general = "invalid_request_error" if 400 <= status < 500 else "server_error"
    text, kind, code = _ERRORS.get(status, (f"HTTP status {status}.", general, None))
    error = {"message": message or text, "type": type or kind, "param": param, "code": code}
    return {"id": id, "error": error} if id else {"error": error}


ErrorShape = Literal["object", "text", "flat", "detail", "named", "named_text", "beside"]
"""How servers write an error in a stream: `{"error": {...}}`; `{"error": "text"}`; `{"object": "error", ...}`;
`{"detail": ...}`; an event named `error` with an object or with plain text; an error next to choices."""


def error_event(shape: ErrorShape, message: str, *, code: int | str | None = None) -> bytes:
    """Returns the event of an error inside a stream, as bytes."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    name = "error" if shape.startswith("named") else None
    shapes: Mapping[ErrorShape, Any] = {
        "object": {"error": error},
        "text": {"error": message, "code": code},
        "flat": {"object": "error", **error},
        "detail": {"detail": message},
        "named": {"message": message, "code": code},
        "beside": {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}], "error": error},
    }
    data = message.encode() if shape == "named_text" else codec.encode(shapes[shape])
    return encode_event(data, event=name)
