"""What the pretended model says: a script makes replies, the request's own limits shape them.

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
    """A tool call of the pretended model.

    Args:
        name: The function's name.
        arguments: Its arguments, as a mapping or as the JSON text itself (which may be broken on purpose).
        id: The call's id; empty lets the emulator make one.
    """

    name: str
    arguments: str | Mapping[str, Any] = "{}"
    id: str = ""


def _tokens(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(tokens_of(value)) if isinstance(value, str) else tuple(value)


def _calls(value: Iterable[FunctionCall]) -> tuple[FunctionCall, ...]:
    return tuple(value)


@attrs.frozen
class Reply:
    """What the pretended model says in one choice.

    Args:
        content: The text, or the tokens it is streamed in; None when it only calls tools.
        reasoning: What it thinks before, likewise; under which key it goes is the dialect's business.
        tool_calls: What it calls after the text.
        finish_reason: None for `stop`, `length` or `tool_calls`, as the reply comes out.
    """

    content: tuple[str, ...] | None = attrs.field(default=None, converter=_tokens)
    reasoning: tuple[str, ...] | None = attrs.field(default=None, converter=_tokens)
    tool_calls: tuple[FunctionCall, ...] = attrs.field(default=(), converter=_calls)
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """The content as one str."""
        return "".join(self.content or ())


Replies: TypeAlias = str | Reply | Sequence[str | Reply]
"""What a script returns: a text, a reply, or several of them, one for each choice."""
Script: TypeAlias = Replies | Callable[[ChatCompletionRequest], Replies] | None
"""What an emulator takes as `script`; None is the built-in """


@attrs.frozen
class GeneratedCall:
    """A tool call as it is streamed: its arguments in pieces."""

    id: str
    name: str
    pieces: tuple[str, ...]


@attrs.frozen
class GeneratedChoice:
    """One choice as it comes out: the reply within the request's `stop` and `max_tokens`.

    Each piece of text and of arguments is a token.
    """

    index: int
    content: tuple[str, ...] | None
    reasoning: tuple[str, ...]
    calls: tuple[GeneratedCall, ...]
    finish_reason: str
    seed: int

    @property
    def tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.content or ()) + len(self.reasoning) + sum(len(call.pieces) for call in self.calls)


class UnsatisfiableError(ValueError):
    """The generator can't make what the request asks for: a schema or a pattern without a solution."""


def generate_choices(
    said: Replies | None, request: ChatCompletionRequest, *, seed: int | str
) -> tuple[GeneratedChoice, ...]:
    """Returns what the model says to a request, a choice each.

    Args:
        said: A text or reply for every choice, several for the choices in turn, or None for generated text.
        request: Its `n`, `stop`, `max_tokens`, `tools`, `tool_choice` and `response_format` are honoured.
        seed: Of all that is chance.

    Raises:
        TypeError: The script returned something else.
        UnsatisfiableError: `response_format` or a tool's parameters have no solution.
    """
    count = request.n or 1
    spoken = []
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")  # noqa: S311 - no secret
        reply = _solved(request, rng) if said is None else _reply(said, index)
        spoken.append(_within_limits(reply, request, index, rng))
    return tuple(spoken)


def _reply(said: Replies, index: int) -> Reply:
    if isinstance(said, Sequence) and not isinstance(said, str):
        if not said:
            raise TypeError("the script returned an empty list, expected a reply for each choice")
        said = said[index % len(said)]
    if isinstance(said, str):
        return Reply(said)
    if not isinstance(said, Reply):
        raise TypeError(f"the script returned {type(said).__name__}, expected a str, a Reply, or a list of them")
    return said


def _solved(request: ChatCompletionRequest, rng: random.Random) -> Reply:
    try:
        return _generated(request, rng)
    except ValueError as error:
        raise UnsatisfiableError(str(error)) from error


def _generated(request: ChatCompletionRequest, rng: random.Random) -> Reply:
    """What nobody wrote: a call if tools ask for one, JSON or a match if a format asks for it, else prose."""
    tool = _tool_wanted(request)
    if tool is not None:
        return Reply(None, tool_calls=[FunctionCall(tool["name"], tool_arguments(tool.get("parameters"), rng))])
    kind, wanted = _format(request)
    if kind == "json":
        return Reply(codec.encode(instance_of(wanted, rng)).decode())
    if kind == "regex":
        return Reply(matching(wanted, rng))
    length = plausible_length(rng)
    # Text beyond max_tokens would be thrown away; one token more shows that it was cut.
    return Reply(plausible_text(rng, min(length, (request.max_tokens or length) + 1)))


def _tool_wanted(request: ChatCompletionRequest) -> Mapping[str, Any] | None:
    """The function a model would call: the one named, else the first, unless a tool has just answered."""
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
    """A member that ought to be an object, the empty one if it is none."""
    member = value.get(name)
    return member if isinstance(member, Mapping) else {}


def _format(request: ChatCompletionRequest) -> tuple[str, Any]:
    """What `response_format` asks for: `json` with a schema, `regex` with a pattern, or `text`."""
    wanted = request.response_format or {}
    match wanted.get("type"):
        case "json_schema":
            return "json", _member(wanted, "json_schema").get("schema") or {}
        case "json" | "json_object":
            return "json", wanted.get("schema") or {}
        case "regex":
            return "regex", wanted.get("pattern")
    return "text", None


# ----------------------------------------------------------------------------------------------------- what is honoured


def _within_limits(reply: Reply, request: ChatCompletionRequest, index: int, rng: random.Random) -> GeneratedChoice:
    content, stopped = _until_stop(reply.content, request.stop or ())
    calls = () if stopped else tuple(_spoken_call(call, rng) for call in reply.tool_calls)
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
    """The tokens before the first of the stop texts; the last may be cut."""
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


def _spoken_call(call: FunctionCall, rng: random.Random) -> GeneratedCall:
    arguments = call.arguments if isinstance(call.arguments, str) else codec.encode(call.arguments).decode()
    identity = call.id or f"call_{rng.getrandbits(96):024x}"
    return GeneratedCall(identity, call.name, tuple(argument_pieces(arguments, rng)))


def _cut_to(spoken: GeneratedChoice, limit: int) -> GeneratedChoice:
    """The first `limit` tokens, in the order of generation: reasoning, content, calls."""
    reasoning = spoken.reasoning[:limit]
    left = limit - len(reasoning)
    content = None if spoken.content is None else spoken.content[:left]
    left -= len(content or ())
    calls = []
    for call in spoken.calls:
        if left <= 0:
            break
        calls.append(attrs.evolve(call, pieces=call.pieces[:left]))
        left -= len(call.pieces)
    return attrs.evolve(spoken, reasoning=reasoning, content=content, calls=tuple(calls), finish_reason="length")


def prompt_tokens(request: ChatCompletionRequest) -> int:
    """How many tokens the pretended model reads: those of the messages' texts, and four a message for its frame."""
    return sum(4 + len(tokens_of(text_of(message.get("content")))) for message in request.messages)


def text_of(content: Any) -> str:
    """The text of a message's content; parts that are no text count as nothing."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else ()
    return " ".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))
