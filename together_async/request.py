"""The values that go to the API: messages and the request, checked when they are made.

Ranges and field names: https://docs.together.ai/reference/chat-completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import attrs

from together_async.models import ChatCompletionMessage, ToolCall, plain
from together_async.validation import NumberRange, described

ContentPart: TypeAlias = Mapping[str, Any]
"""A part of a message's content, as `{"type": "text", "text": ...}` or `{"type": "image_url", "image_url": {...}}`."""

_PART_FIELDS: Mapping[str, str] = {
    "text": "text",
    "image_url": "image_url",
    "video_url": "video_url",
    "audio_url": "audio_url",
    "input_audio": "input_audio",
}
"""The key that each type of content part needs. Other types are newer than this package, and pass."""

_TEXT_ROLES: frozenset[str] = frozenset({"system", "developer", "user", "assistant"})
"""The roles of which a message with a text needs nothing else."""


def _frozen_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen(repr=False)
class Message:
    """One message of a conversation.

    Args:
        role: system, user, assistant or tool; other roles pass.
        content: Text, or a list of parts (`text`, `image_url`, `video_url`, `audio_url`, `input_audio`). None is for an
            assistant's message that only calls tools.
        name: The name of the speaker, for models that tell several users apart; None leaves it out.
        tool_calls: The tool calls of an assistant's message; None leaves them out.
        tool_call_id: The `id` of the tool call that a tool's message answers; required with role tool.
        reasoning: An assistant's reasoning, sent back under the key it came on; None leaves it out.
        reasoning_content: The same, for models that use this key.

    Attributes:
        role: As given.
        content: As given; a list became a tuple.
        name: As given.
        tool_calls: As given; a list became a tuple.
        tool_call_id: As given.
        reasoning: As given.
        reasoning_content: As given.

    Raises:
        ValueError: The role is not text, the content is of another type, or a tool's message has no `tool_call_id`.
    """

    role: str
    content: str | tuple[ContentPart, ...] | None = attrs.field(default=None, hash=False, converter=_frozen_list)
    name: str | None = None
    tool_calls: tuple[Any, ...] | None = attrs.field(default=None, hash=False, converter=_frozen_list)
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    def __attrs_post_init__(self) -> None:
        _check_message(self.to_dict(), "message")

    def to_dict(self) -> dict[str, Any]:
        """Returns the message as it is sent; fields that are None are left out."""
        values = ((field.name, getattr(self, field.name)) for field in attrs.fields(type(self)))
        return {name: plain(value) for name, value in values if value is not None}

    def __repr__(self) -> str:
        # Prompts stay out of logs; the size says enough.
        size = f"<{len(self.content)} chars>" if isinstance(self.content, str) else f"<{len(self.content or ())} parts>"
        return f"{type(self).__name__}(role={self.role!r}, content={size})"

    @classmethod
    def system(cls, content: str) -> Message:
        """Returns a message that tells the model how to behave."""
        return cls("system", content)

    @classmethod
    def user(cls, content: str | Sequence[ContentPart]) -> Message:
        """Returns a user's message, of text or of parts."""
        parts = isinstance(content, Sequence) and not isinstance(content, (str, bytes))
        return cls("user", tuple(content) if parts else content)

    @classmethod
    def assistant(cls, content: str | None = None, *, tool_calls: Sequence[ToolCall] | None = None) -> Message:
        """Returns a message of the model, as a part of the conversation so far."""
        return cls("assistant", content, tool_calls=None if tool_calls is None else tuple(tool_calls))

    @classmethod
    def tool(cls, content: str, *, tool_call_id: str) -> Message:
        """Returns a tool's result; `tool_call_id` is the `id` of the tool call it answers."""
        return cls("tool", content, tool_call_id=tool_call_id)


MessageLike: TypeAlias = Message | ChatCompletionMessage | Mapping[str, Any]
MessagesLike: TypeAlias = str | Sequence[MessageLike]


def _check_message(message: Mapping[str, Any], where: str) -> None:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValueError(f"{where}.role: got {described(role)}, expected system, user, assistant or tool")
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        for i, part in enumerate(content):
            _check_part(part, f"{where}.content[{i}]")
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"{where}.content: got {described(content)}, expected a str, a list of parts, or None")
    elif content is None and role in ("system", "user", "tool"):
        raise ValueError(f"{where}.content: got None, which only an assistant's message may have")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise ValueError(f"{where}.tool_call_id: a tool's message needs the id of the call it answers")


def _check_part(part: object, where: str) -> None:
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: got {described(part)}, expected a dict with a 'type'")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise ValueError(f"{where}.type: got {described(kind)}, expected one of {', '.join(_PART_FIELDS)}")
    needs = _PART_FIELDS.get(kind)
    if needs is not None and part.get(needs) is None:
        raise ValueError(f"{where}.{needs}: missing, and a part of type {kind!r} needs it")


def _message_dict(message: object, where: str) -> dict[str, Any]:
    """Returns a message in the wire's shape, checked."""
    if isinstance(message, Message):
        return message.to_dict()
    if isinstance(message, ChatCompletionMessage):
        # Servers refuse the empty lists and nulls that they sent themselves; only content may be null. Some leave out
        # the role, and no server accepts a message without one.
        given = {name: value for name, value in message.to_dict().items() if value or name == "content"}
        return {"role": "assistant", **given}
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: got {described(message)}, expected a dict or a Message")
    _check_message(message, where)
    return {key: plain(value) for key, value in message.items()}


# Quick path of _message_dict; tests/test_request.py::test_plain_messages_are_sent_as_any_others holds the two together.
def _plain_messages(messages: list[Any]) -> tuple[dict[str, Any], ...]:
    """Returns ordinary messages, dicts of nothing but a role and a text, as they are sent; else an empty tuple."""
    copies: list[dict[str, Any]] = []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return ()
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or type(content) is not str or role not in _TEXT_ROLES:
            return ()
        copies.append(message.copy())
    return tuple(copies)


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    if type(value) is list and (plain_ones := _plain_messages(value)):
        return plain_ones
    if type(value) is not list and (isinstance(value, (Mapping, bytes)) or not isinstance(value, Iterable)):
        raise ValueError(f"messages: got {described(value)}, expected a str, or a sequence of dicts or Messages")
    messages = tuple(_message_dict(message, f"messages[{i}]") for i, message in enumerate(value))
    if not messages:
        raise ValueError("messages: got an empty sequence, expected at least one message")
    return messages


_RANGES: Mapping[str, NumberRange] = {
    "max_tokens": NumberRange(whole=True, low=1),
    "temperature": NumberRange(whole=False, low=0),
    "top_p": NumberRange(whole=False, low=0, high=1),
    "top_k": NumberRange(whole=True),  # some servers read -1 as "off"
    "min_p": NumberRange(whole=False, low=0, high=1),
    "repetition_penalty": NumberRange(whole=False, low=0),
    "presence_penalty": NumberRange(whole=False, low=-2, high=2),
    "frequency_penalty": NumberRange(whole=False, low=-2, high=2),
    "logprobs": NumberRange(whole=True, low=0, high=20),
    "n": NumberRange(whole=True, low=1, high=128),
    "seed": NumberRange(whole=True),
}
"""The ranges of the API page, and the natural range where it has none (a probability, a count)."""


def _of_type(*types: type, expected: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, types):
            raise ValueError(f"{name}: got {described(value)}, expected {expected}")
        return value

    return check


def _stop(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    stops = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for i, item in enumerate(stops):
        if not isinstance(item, str):
            raise ValueError(f"stop[{i}]: got {described(item)}, expected a str")
    return stops


def _logit_bias(value: Any) -> Mapping[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"logit_bias: got {described(value)}, expected a dict of token id to bias")
    bias = NumberRange(whole=False)
    return {str(key): bias.check(f"logit_bias[{key!r}]", item) for key, item in value.items()}


def _tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"tools: got {described(value)}, expected a list of dicts")
    tools = tuple(value)
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("type"), str):
            raise ValueError(f"tools[{i}]: got {described(tool)}, expected a dict with 'type' and 'function'")
        function = tool.get("function")
        if tool["type"] == "function" and not (isinstance(function, Mapping) and function.get("name")):
            raise ValueError(f"tools[{i}].function.name: missing, and a tool of type 'function' needs it")
    return tools


def _tool_choice(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping) and value not in ("auto", "required", "none"):
        raise ValueError(f"{name}: got {described(value)}, expected 'auto', 'required', 'none' or a dict")
    return value


_FORMAT_NEEDS: Mapping[str, str] = {"json_schema": "json_schema", "regex": "pattern"}


def _response_format(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError(f"{name}: got {described(value)}, expected a dict with a 'type'")
    needs = _FORMAT_NEEDS.get(value["type"])
    if needs is not None and value.get(needs) is None:
        raise ValueError(f"{name}.{needs}: missing, and type {value['type']!r} needs it")
    return value


def _model(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: got {described(value)}, expected the name of a model")


def _extra_body(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: got {described(value)}, expected a dict")
    if "stream" in value:
        raise ValueError(f"{name}.stream: call stream() or create(), which set it")
    return value


_flag = _of_type(bool, expected="True or False")
_text = _of_type(str, expected="a str")
_object = _of_type(Mapping, expected="a dict")

_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    **{name: allowed.check for name, allowed in _RANGES.items()},
    "echo": _flag,
    "response_format": _response_format,
    "tool_choice": _tool_choice,
    "safety_model": _text,
    "context_length_exceeded_behavior": _text,
    "reasoning": _object,
    "reasoning_effort": _text,
    "chat_template_kwargs": _object,
    "compliance": _text,
    "stream_options": _object,
    "parallel_tool_calls": _flag,
    "prompt_cache_key": _text,
    "extra_body": _extra_body,
}
"""The check of each optional field, which returns the value to keep; the other four have converters."""


def _unhashed() -> Any:
    return attrs.field(default=None, hash=False)


@attrs.frozen(kw_only=True, repr=False, slots=False)
class ChatCompletionRequest:
    """A chat-completion request: checked when made, reusable, and the same for `stream`, `create` and `map`.

    Every field is the API's own, with the API's meaning. None leaves it out, so that the server's default holds.

    Args:
        messages: A str (one user message), or a sequence of dicts, `Message`s or a completion's messages.
        model: The name of the model or of a dedicated endpoint.
        max_tokens: The most tokens to generate, at least 1.
        stop: Texts that end the output, as many as the server allows; a single str will do.
        temperature: The randomness, at least 0.
        top_p: Nucleus sampling: sample among the likeliest tokens that together have this probability, 0 to 1.
        top_k: Sample among this many of the likeliest tokens; some servers read -1 as no limit.
        min_p: Sample among tokens with at least this probability relative to the likeliest token's, 0 to 1.
        repetition_penalty: At least 0; above 1 discourages repetition.
        presence_penalty: -2 to 2; above 0 encourages new topics.
        frequency_penalty: -2 to 2; above 0 discourages tokens that came often.
        logit_bias: From token id (as str) to the bias that is added to the token's logit.
        logprobs: How many of the likeliest tokens to return with their log probabilities, 0 to 20.
        echo: Whether to return the prompt too, with its log probabilities if `logprobs` is set.
        n: How many choices to generate, 1 to 128.
        response_format: `{"type": "json_schema", "json_schema": {...}}`, `json_object`, `json`, `text` or `regex`.
        tools: The functions the model may call.
        tool_choice: "auto", "required", "none" or `{"type": "function", "function": {"name": ...}}`.
        safety_model: The name of a moderation model.
        seed: An integer for repeatable sampling.
        context_length_exceeded_behavior: "error" or "truncate".
        reasoning: `{"enabled": bool}`.
        reasoning_effort: "low", "medium", "high" or another word the model knows.
        chat_template_kwargs: Keywords of the model's chat template.
        compliance: The service's compliance mode.
        stream_options: `{"include_usage": True}` asks for the usage in a stream's last chunk.
        parallel_tool_calls: Whether the model may call several tools at once.
        prompt_cache_key: Groups requests with a common prefix, for the server's prompt cache.
        extra_body: Keys this package does not know, merged into the body as they are.

    Attributes:
        messages: The messages in the wire's shape, as a tuple of dicts.
        stop: A tuple, also for a single str.
        logit_bias: With every key as str.
        tools: A tuple.

    The other attributes are as given; numbers of other types, such as NumPy's, became int or float.

    Raises:
        ValueError: A value of the wrong type or out of range; the text names field, value and range.
    """

    messages: tuple[dict[str, Any], ...] = attrs.field(converter=_messages, hash=False)
    model: str
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = attrs.field(default=None, converter=_stop)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = attrs.field(default=None, converter=_logit_bias, hash=False)
    logprobs: int | None = None
    echo: bool | None = None
    n: int | None = None
    response_format: Mapping[str, Any] | None = _unhashed()
    tools: tuple[Mapping[str, Any], ...] | None = attrs.field(default=None, converter=_tools, hash=False)
    tool_choice: str | Mapping[str, Any] | None = _unhashed()
    safety_model: str | None = None
    seed: int | None = None
    context_length_exceeded_behavior: str | None = None
    reasoning: Mapping[str, Any] | None = _unhashed()
    reasoning_effort: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = _unhashed()
    compliance: str | None = None
    stream_options: Mapping[str, Any] | None = _unhashed()
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    extra_body: Mapping[str, Any] = attrs.field(factory=dict, hash=False)

    def __attrs_post_init__(self) -> None:
        # One pass over the given fields, at a third of the cost of a validator on each of thirty: a request is made
        # for every call. The class is frozen, but its `__dict__` can be written.
        given = vars(self)
        _model("model", self.model)
        for name, check in _CHECKS.items():
            if (value := given[name]) is not None:
                given[name] = check(name, value)

    def asking(self, messages: MessagesLike) -> ChatCompletionRequest:
        """Returns the same request with other messages; the other fields are not checked again.

        Args:
            messages: As `ChatCompletionRequest` takes them.

        Raises:
            ValueError: The messages are of the wrong type, or there are none.
        """
        other = object.__new__(type(self))
        vars(other).update(vars(self), messages=_messages(messages))
        return other

    def to_dict(self) -> dict[str, Any]:
        """Returns the request's body as it is sent, without `stream`; `extra_body` is merged in and wins."""
        body = {name: value for name, value in vars(self).items() if value is not None}
        extra_body = body.pop("extra_body", None)
        if extra_body:
            body.update(extra_body)
        return body

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> ChatCompletionRequest:
        """Makes a request from a body in the wire's shape.

        Args:
            body: The body. Keys that are no fields here go to `extra_body`; `stream` is dropped.

        Raises:
            ValueError: A value of the wrong type or out of range, or `messages` or `model` is missing.
        """
        if not isinstance(body, Mapping):
            raise ValueError(f"body: got {described(body)}, expected a dict")
        known = {name: body[name] for name in _SENT if body.get(name) is not None}
        extra = {name: value for name, value in body.items() if name not in _SENT and name != "stream"}
        for required in ("messages", "model"):
            if required not in known:
                raise ValueError(f"{required}: missing, and every request needs it")
        return cls(**known, extra_body=extra)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in _SHOWN if getattr(self, name) is not None)
        return f"{type(self).__name__}(messages=<{len(self.messages)} messages>, {given})"


_SENT: tuple[str, ...] = tuple(
    field.name for field in attrs.fields(ChatCompletionRequest) if field.name != "extra_body"
)
_SHOWN: tuple[str, ...] = ("model", *_RANGES)

_LEFT_OUT: dict[str, Any] = dict.fromkeys(_SENT)


def _named(convert: Callable[[Any], Any]) -> Callable[[str, Any], Any]:
    return lambda _name, value: convert(value)


_OPTION_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "stop": _named(_stop),
    "logit_bias": _named(_logit_bias),
    "tools": _named(_tools),
    **_CHECKS,
}
"""In the order of the constructor, so that of several wrong values the same one is named."""
_ORDER: Mapping[str, int] = {name: place for place, name in enumerate(_OPTION_CHECKS)}


# Quick path of ChatCompletionRequest(...); tests/test_request.py::test_request_of_options_is_that_of_the_constructor
# holds the two together.
def request_of(messages: MessagesLike, model: str, options: Mapping[str, Any]) -> ChatCompletionRequest:
    """Returns `ChatCompletionRequest(messages=messages, model=model, **options)`, at half the cost.

    One is made for every call, with few of its thirty fields.

    Args:
        messages: As `ChatCompletionRequest` takes them.
        model: The name of the model.
        options: The other fields by name; no other keys.

    Raises:
        ValueError: As the constructor does.
    """
    if type(model) is not str or not model.strip():
        return ChatCompletionRequest(messages=messages, model=model, **options)
    checked = _messages(messages)
    request = object.__new__(ChatCompletionRequest)
    fields = vars(request)
    fields.update(_LEFT_OUT)
    fields["messages"], fields["model"], fields["extra_body"] = checked, model, {}
    for name in options if len(options) < 2 else sorted(options, key=_ORDER.__getitem__):
        value = options[name]
        fields[name] = value if value is None else _OPTION_CHECKS[name](name, value)
    return request


class RequestOptions(TypedDict, total=False):
    """Keywords of `stream`, `create` and `parse`: the fields of `ChatCompletionRequest` except messages and model."""

    max_tokens: int | None
    stop: str | Sequence[str] | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | None
    logprobs: int | None
    echo: bool | None
    n: int | None
    response_format: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    safety_model: str | None
    seed: int | None
    context_length_exceeded_behavior: str | None
    reasoning: Mapping[str, Any] | None
    reasoning_effort: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    compliance: str | None
    stream_options: Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    prompt_cache_key: str | None
    extra_body: Mapping[str, Any]
