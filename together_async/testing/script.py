"""Scripts: the replies of the pretended model, within the limits that the request sets.

Pure: the same script, request and seed give the same replies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from together_async.request import ChatCompletionRequest
from together_async.testing.text.patterns import matching
from together_async.testing.text.prose import plausible_length, plausible_text
from together_async.testing.text.schema import instance_of, tool_arguments
from together_async.testing.text.tokens import argument_pieces, tokens_of
from together_async.wire import codec


@attrs.frozen
class FunctionCall:
    """A tool call of the pretended model. `testing.Call` is the short name of this class.

    Args:
        name: The function's name.
        arguments: The arguments, as a mapping or as the JSON text itself, which may be broken on purpose.
        id: The id of the tool call; empty for a generated one.
    """

    name: str
    arguments: str | Mapping[str, Any] = "{}"
    id: str = ""


def _tokens(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(tokens_of(value)) if isinstance(value, str) else tuple(value)


def _tool_calls(value: Iterable[FunctionCall]) -> tuple[FunctionCall, ...]:
    return tuple(value)


@attrs.frozen
class Reply:
    """The reply of the pretended model in one choice.

    Args:
        content: The text, or its tokens as they are streamed; None for a reply that only calls tools.
        reasoning: The reasoning before the text, likewise; None for none. The dialect decides under which key it goes.
        tool_calls: The tool calls after the text.
        finish_reason: The finish reason; None for `stop`, `length` or `tool_calls`, whichever fits.
    """

    content: tuple[str, ...] | None = attrs.field(default=None, converter=_tokens)
    reasoning: tuple[str, ...] | None = attrs.field(default=None, converter=_tokens)
    tool_calls: tuple[FunctionCall, ...] = attrs.field(default=(), converter=_tool_calls)
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """The content as one str."""
        return "".join(self.content or ())


Replies: TypeAlias = str | Reply | Sequence[str | Reply]
"""The result of a script: a text, a reply, or a sequence of them, one for each choice."""
Script: TypeAlias = Replies | Callable[[ChatCompletionRequest], Replies] | None
"""What an emulator takes as `script`; None is the built-in """


@attrs.frozen
class GeneratedCall:
    """A tool call as it is streamed.

    Attributes:
        id: The id of the tool call.
        name: The function's name.
        pieces: The JSON text of the arguments, in pieces of a token each.
    """

    id: str
    name: str
    pieces: tuple[str, ...]


@attrs.frozen
class GeneratedChoice:
    """One choice as it is sent: the reply, cut by the request's `stop` and `max_tokens`.

    Attributes:
        index: The index of the choice.
        content: The tokens of the text; None for a choice that only calls tools.
        reasoning: The tokens of the reasoning.
        calls: The tool calls.
        finish_reason: The finish reason.
        seed: The seed that the server reports, the request's if it has one.
    """

    index: int
    content: tuple[str, ...] | None
    reasoning: tuple[str, ...]
    calls: tuple[GeneratedCall, ...]
    finish_reason: str
    seed: int

    @property
    def tokens(self) -> int:
        """The number of generated tokens: of reasoning, text and arguments."""
        return len(self.content or ()) + len(self.reasoning) + sum(len(call.pieces) for call in self.calls)


class UnsatisfiableError(ValueError):
    """No text fits what the request asks for: its schema or pattern has no solution."""


def generate_choices(
    replies: Replies | None, request: ChatCompletionRequest, *, seed: int | str
) -> tuple[GeneratedChoice, ...]:
    """Returns the choices that answer a request.

    Args:
        replies: A text or reply for every choice, a sequence for the choices in turn, or None for generated text.
        request: The request; its `n`, `stop`, `max_tokens`, `tools`, `tool_choice` and `response_format` are honoured.
        seed: The seed of all randomness.

    Raises:
        TypeError: `replies` is something else.
        UnsatisfiableError: `response_format` or a tool's parameters have no solution.
    """
    choices = []
    for index in range(request.n or 1):
        rng = random.Random(f"{seed}/{index}")  # noqa: S311 - repeatable
        reply = _generated_or_error(request, rng) if replies is None else _reply(replies, index)
        choices.append(_within_limits(reply, request, index, rng))
    return tuple(choices)


def _reply(replies: Replies, index: int) -> Reply:
    if isinstance(replies, Sequence) and not isinstance(replies, str):
        if not replies:
            raise TypeError("the script returned an empty list, expected a reply for each choice")
        replies = replies[index % len(replies)]
    if isinstance(replies, str):
        return Reply(replies)
    if not isinstance(replies, Reply):
        raise TypeError(f"the script returned {type(replies).__name__}, expected a str, a Reply, or a list of them")
    return replies


def _generated_or_error(request: ChatCompletionRequest, rng: random.Random) -> Reply:
    try:
        return _generated(request, rng)
    except ValueError as error:
        raise UnsatisfiableError(str(error)) from error


def _generated(request: ChatCompletionRequest, rng: random.Random) -> Reply:
    """Returns a tool call if the request has tools, JSON or a match if it asks for a format, else prose."""
    tool = _tool_wanted(request)
    if tool is not None:
        return Reply(None, tool_calls=[FunctionCall(tool["name"], tool_arguments(tool.get("parameters"), rng))])
    kind, wanted = _format(request)
    if kind == "json":
        return Reply(codec.encode(instance_of(wanted, rng)).decode())
    if kind == "regex":
        return Reply(matching(wanted, rng))
    length = plausible_length(rng)
    # Text beyond max_tokens would be cut off; one token more makes the finish reason `length`.
    return Reply(plausible_text(rng, min(length, (request.max_tokens or length) + 1)))


def _tool_wanted(request: ChatCompletionRequest) -> Mapping[str, Any] | None:
    """Returns the function to call: the one named, else the first; None if a tool has just answered."""
    functions: list[Mapping[str, Any]] = [
        tool["function"] for tool in request.tools or () if isinstance(tool.get("function"), Mapping)
    ]
    choice = request.tool_choice
    if not functions or choice == "none":
        return None
    if isinstance(choice, Mapping):
        name = _member(choice, "function").get("name")
        return next((function for function in functions if function.get("name") == name), functions[0])
    if choice != "required" and request.messages and request.messages[-1].get("role") == "tool":
        return None
    return functions[0]


def _member(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a member if it is an object, else an empty one."""
    member = value.get(name)
    return member if isinstance(member, Mapping) else {}


def _format(request: ChatCompletionRequest) -> tuple[str, Any]:
    """Returns what `response_format` asks for: `json` and a schema, `regex` and a pattern, or `text` and None."""
    wanted = request.response_format or {}
    match wanted.get("type"):
        case "json_schema":
            return "json", _member(wanted, "json_schema").get("schema") or {}
        case "json" | "json_object":
            return "json", wanted.get("schema") or {}
        case "regex":
            return "regex", wanted.get("pattern")
    return "text", None


# --------------------------------------------------------------------------------------------------------------- limits


def _within_limits(reply: Reply, request: ChatCompletionRequest, index: int, rng: random.Random) -> GeneratedChoice:
    content, stopped = _until_stop(reply.content, request.stop or ())
    calls = () if stopped else tuple(_generated_call(call, rng) for call in reply.tool_calls)
    natural = "stop" if stopped or not calls else "tool_calls"
    whole = GeneratedChoice(
        index=index,
        content=content,
        reasoning=reply.reasoning or (),
        calls=calls,
        finish_reason=reply.finish_reason or natural,
        seed=request.seed if request.seed is not None else rng.getrandbits(64),
    )
    limit = request.max_tokens
    return whole if limit is None or whole.tokens <= limit else _cut_to(whole, limit)


def _until_stop(tokens: tuple[str, ...] | None, stops: Sequence[str]) -> tuple[tuple[str, ...] | None, bool]:
    """Returns the tokens before the first stop text, the last one cut if need be, and whether there was one."""
    text = "".join(tokens or ())
    end = min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=-1)
    if tokens is None or end < 0:
        return tokens, False
    kept: list[str] = []
    for token in tokens:
        if end <= 0:
            break
        kept.append(token[:end])
        end -= len(token)
    return tuple(kept), True


def _generated_call(call: FunctionCall, rng: random.Random) -> GeneratedCall:
    arguments = call.arguments if isinstance(call.arguments, str) else codec.encode(call.arguments).decode()
    identity = call.id or f"call_{rng.getrandbits(96):024x}"
    return GeneratedCall(identity, call.name, tuple(argument_pieces(arguments, rng)))


def _cut_to(choice: GeneratedChoice, limit: int) -> GeneratedChoice:
    """Returns the first `limit` tokens, in the order of generation: reasoning, content, tool calls."""
    reasoning = choice.reasoning[:limit]
    left = limit - len(reasoning)
    content = None if choice.content is None else choice.content[:left]
    left -= len(content or ())
    calls = []
    for call in choice.calls:
        if left <= 0:
            break
        calls.append(attrs.evolve(call, pieces=call.pieces[:left]))
        left -= len(call.pieces)
    return attrs.evolve(choice, reasoning=reasoning, content=content, calls=tuple(calls), finish_reason="length")


def prompt_tokens(request: ChatCompletionRequest) -> int:
    """Returns the tokens of the prompt: those of the messages' texts, and four for each message."""
    return sum(4 + len(tokens_of(text_of(message.get("content")))) for message in request.messages)


def text_of(content: Any) -> str:
    """Returns the text of a message's content; parts without text are left out."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else ()
    return " ".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))
