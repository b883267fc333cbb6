"""The one place where JSON is written and read. Pure.

Chunks and completions decode straight into their attrs classes (msgspec, about 0.5 us a chunk). What the strict decoder
refuses is read a second time, leniently: a value that is not of the documented type is dropped from the typed value,
so that a server's new fields never break a response. Only the fields in `_SPINE` must be as documented.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from together_async.errors import APIResponseValidationError
from together_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    ChunkChoice,
    Delta,
    Function,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    Value,
    link,
    make,
    set_raw_json,
)

T = TypeVar("T")
D = TypeVar("D", ChatCompletion, ChatCompletionChunk)

encode: Final = msgspec.json.Encoder().encode
"""JSON text, as bytes, of dicts, lists and numbers."""

decode_chunk_strictly: Final = msgspec.json.Decoder(ChatCompletionChunk).decode
"""The per-token decoder. Raises ValueError (msgspec's errors, broken UTF-8) for what is not a documented chunk."""


class JSONError(ValueError):
    """The text is not JSON."""


class TextDelta(msgspec.Struct, gc=False):
    """The fields of a delta that `text()` looks at. A chunk with anything but content goes to the full decoder."""

    content: str | None = None
    role: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None


class TextChoice(msgspec.Struct, gc=False):
    """One choice of a `TextChunk`."""

    index: int | None = 0
    delta: TextDelta | None = None
    finish_reason: Any = None
    logprobs: Any = None
    seed: Any = None


class TextChunk(msgspec.Struct, gc=False):
    """A chunk as `text()` sees it."""

    choices: list[TextChoice] = []  # msgspec copies an empty default
    usage: Any = None
    error: Any = None
    prompt: Any = None
    warnings: Any = None


decode_text_strictly: Final = msgspec.json.Decoder(TextChunk).decode
"""Decodes the little that `text()` needs, at about two thirds of the cost of a chunk."""

_NOT_JSON: Final = (ValueError, RecursionError)
"""msgspec's errors for text it can't read; RecursionError for JSON that is nested too deeply."""

_decode_completion: Final = msgspec.json.Decoder(ChatCompletion).decode


def decode_json(data: bytes) -> Any:
    """Returns any JSON value.

    Raises:
        JSONError: Not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return msgspec.json.decode(data)
    except _NOT_JSON as error:
        raise JSONError(str(error)) from error


def decode_chunk(data: bytes) -> ChatCompletionChunk:
    """Returns the chunk of an event's data.

    Raises:
        JSONError: Not JSON.
        APIResponseValidationError: JSON, but not a chunk; `.path` says where.
    """
    places = None
    try:
        chunk = decode_chunk_strictly(data)
    except msgspec.ValidationError:
        body = decode_json(data)
        chunk = _read_leniently(body, data, ChatCompletionChunk)
        # As in _fit_items, a null choice is dropped.
        places = [place for place, choice in enumerate(body.get("choices") or ()) if choice is not None]
    except _NOT_JSON as error:
        raise JSONError(str(error)) from error
    link(chunk, data, places)
    return chunk


def decode_completion(data: bytes) -> ChatCompletion:
    """Returns the completion of a response's body.

    Raises:
        JSONError: Not JSON.
        APIResponseValidationError: JSON, but not a completion; `.path` says where.
    """
    try:
        completion = _decode_completion(data)
    except msgspec.ValidationError:
        completion = _read_leniently(decode_json(data), data, ChatCompletion)
    except _NOT_JSON as error:
        raise JSONError(str(error)) from error
    set_raw_json(completion, data)
    return completion


def has_unknown_content(data: bytes) -> bool:
    """Returns whether a delta of a chunk has an unknown key whose value is neither null nor empty."""
    try:
        _decode_known_deltas(data)
    except (ValueError, RecursionError):
        pass  # an unknown key, or an unusual chunk
    else:
        return False
    try:
        choices = decode_json(data).get("choices") or ()
    except JSONError:
        return False
    deltas = [choice.get("delta") for choice in choices if isinstance(choice, dict)]
    return any(
        value and name not in _DELTA_KEYS
        for delta in deltas
        if isinstance(delta, dict)
        for name, value in delta.items()
    )


_DELTA_KEYS: Final = frozenset(Delta.__annotations__)
_known_delta: Any = msgspec.defstruct(
    "KnownDelta", [(name, Any, None) for name in _DELTA_KEYS], forbid_unknown_fields=True
)
_known_choice: Any = msgspec.defstruct("KnownChoice", [("delta", _known_delta | None, None)])
_known_chunk: Any = msgspec.defstruct("KnownChunk", [("choices", list[_known_choice], [])])
_decode_known_deltas: Final = msgspec.json.Decoder(_known_chunk).decode
"""Refuses a chunk with a delta that has an unknown key, in a third of the time that looking for one takes."""


# ---------------------------------------------------------------------------------------------- the lenient reading

_KINDS: Final[Mapping[type, str]] = {
    types.NoneType: "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_MESSAGE: Final = {"content": "a string", "tool_calls": "an array", "function_call": "an object"}
_FUNCTION: Final = {"name": "a string", "arguments": "a string"}
_SPINE: Final[Mapping[type[Value], Mapping[str, str]]] = {
    ChatCompletion: {"choices": "an array"},
    ChatCompletionChunk: {"choices": "an array"},
    Choice: {"message": "an object"},
    ChunkChoice: {"delta": "an object"},
    ChatCompletionMessage: _MESSAGE,
    Delta: _MESSAGE,
    ToolCall: {"function": "an object"},
    ToolCallDelta: {"function": "an object"},
    Function: _FUNCTION,
    FunctionDelta: _FUNCTION,
}
"""Fields that carry the answer: of the wrong type they are an error, or the answer would be lost in silence."""


def _read_leniently(body: Any, data: bytes, cls: type[D]) -> D:
    value = _fit(body, cls, "$")
    if not isinstance(value, cls):
        raise APIResponseValidationError(f"$: got {_kind(body)}, expected an object", body=_text(data))
    return value


def _fit(value: Any, wanted: Any, path: str) -> Any:
    """Returns the value as the wanted type; None where it does not fit."""
    if wanted is Any:
        return value
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        fits = (_fit(value, option, path) for option in typing.get_args(wanted) if option is not type(None))
        return next((fit for fit in fits if fit is not None), None)
    if typing.get_origin(wanted) is tuple:
        return _fit_items(value, typing.get_args(wanted)[0], path)
    if isinstance(wanted, type) and issubclass(wanted, Value):
        return _fit_object(value, wanted, path)
    return _fit_scalar(value, wanted)


def _fit_items(value: Any, wanted: Any, path: str) -> tuple[Any, ...] | None:
    if not isinstance(value, list):
        return None
    fits = (_fit(item, wanted, f"{path}[{i}]") for i, item in enumerate(value))
    # Null among numbers keeps its place (the first token's logprob is null); a null choice is dropped.
    drop_none = isinstance(wanted, type) and issubclass(wanted, Value)
    return tuple(fit for fit in fits if fit is not None or not drop_none)


def _fit_object(value: Any, wanted: type[Value], path: str) -> Value | None:
    if not isinstance(value, Mapping):
        return None
    hints: dict[str, Any] = _hints(wanted)  # type: ignore[arg-type]  # classes hash; mypy asks their instances
    given = {name: value[name] for name in hints if value.get(name) is not None}
    if "arguments" in given and isinstance(given["arguments"], (dict, list)):
        # Some servers send the arguments as an object, and not as JSON text.
        given["arguments"] = encode(given["arguments"]).decode()
    fits = {name: _fit(item, hints[name], f"{path}.{name}") for name, item in given.items()}
    for name, expected in _SPINE.get(wanted, {}).items():
        if name in given:
            _check_spine(given[name], fits[name], f"{path}.{name}", expected)
    return make(wanted, **{name: fit for name, fit in fits.items() if fit is not None})


def _check_spine(value: Any, fit: Any, path: str, expected: str) -> None:
    """Raises if a value did not fit; of a list, also if an item is neither an object nor null."""
    if fit is not None and isinstance(value, list):
        wrong = next((i for i, item in enumerate(value) if not isinstance(item, (dict, types.NoneType))), None)
        if wrong is None:
            return
        value, fit, path, expected = value[wrong], None, f"{path}[{wrong}]", "an object"
    if fit is None:
        raise APIResponseValidationError(f"{path}: got {_kind(value)}, expected {expected}", path=path)


def _fit_scalar(value: Any, wanted: type) -> Any:
    if wanted is float:
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if wanted is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) <= 40:
            return int(value)
    return value if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)) else None


@functools.cache
def _hints(cls: type[Value]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _kind(value: object) -> str:
    """Names a JSON value's kind, never the value, which may be a prompt."""
    return _KINDS.get(type(value), type(value).__name__)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
