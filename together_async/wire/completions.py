"""Whole responses: the completion of a body, and a whole completion as a stream's only chunk. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from together_async.errors import APIResponseValidationError
from together_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    make,
)
from together_async.wire import codec
from together_async.wire.error_bodies import error_facts, request_id, status_error


def chunk_of(completion: ChatCompletion) -> ChatCompletionChunk:
    """Returns a whole completion as a stream's only chunk, which adds up to the same completion."""
    choices = tuple(_chunk_choice(choice, position) for position, choice in enumerate(completion.choices))
    given = {name: value for name, value in vars(completion).items() if name not in ("object", "choices")}
    return make(ChatCompletionChunk, object="chat.completion.chunk", choices=choices, **given)


def _chunk_choice(choice: Choice, position: int) -> ChunkChoice:
    # vars() holds only the fields that came. A choice without an index gets its position, not the class's 0.
    given = {name: value for name, value in vars(choice).items() if name not in ("message", "text")}
    if given.get("index") is None:
        given["index"] = position
    return make(ChunkChoice, **given, delta=_delta_of(choice.message))


def _delta_of(message: ChatCompletionMessage) -> Delta:
    given = dict(vars(message))
    if given.get("tool_calls"):
        given["tool_calls"] = tuple(_call_delta(call, i) for i, call in enumerate(given["tool_calls"]))
    if given.get("function_call"):
        given["function_call"] = make(FunctionDelta, **vars(given["function_call"]))
    return make(Delta, **given)


def _call_delta(call: ToolCall, position: int) -> ToolCallDelta:
    given = {name: value for name, value in vars(call).items() if value is not None}
    if "function" in given:
        given["function"] = make(FunctionDelta, **vars(given["function"]))
    return make(ToolCallDelta, **{"index": position, **given})


# Quick path of completion_of; tests/wire/test_completions.py::test_quick_and_full_path_agree holds the two together.
def plain_completion(body: bytes) -> ChatCompletion | None:
    """Returns the completion of an ordinary body; None for anything else, which `completion_of` reads."""
    try:
        completion = codec.decode_completion(body)
    except (codec.JSONError, APIResponseValidationError):
        return None
    return completion if completion.choices and not completion.error else None


def completion_of(
    body: bytes, *, status: int, headers: Mapping[str, str], secrets: Iterable[str] = ()
) -> ChatCompletion:
    """Returns the completion of a whole response.

    Args:
        body: The body, decompressed.
        status: The HTTP status, 2xx.
        headers: The response's headers, names in lower case.
        secrets: Texts which must not appear in an error's message: the key, the prompt's parts.

    Raises:
        APIStatusError: The body is an error object in spite of its status; of the class for the code it carries.
        APIResponseValidationError: The body is empty, not JSON, or not a completion.
    """
    if not body.strip():
        raise APIResponseValidationError(
            f"got an empty body with status {status}, expected a completion", body="", request_id=request_id(headers)
        )
    try:
        completion = codec.decode_completion(body)
    except codec.JSONError as error:
        kind = "an HTML page" if body.lstrip()[:1] == b"<" else "a body that is not JSON"
        raise APIResponseValidationError(
            f"got {kind} ({len(body)} bytes: {error}), expected a completion",
            body=body.decode("utf-8", "replace"),
            request_id=request_id(headers),
        ) from error
    except APIResponseValidationError as error:
        error.request_id = request_id(headers)
        error.body = body.decode("utf-8", "replace")
        raise
    if completion.choices and not completion.error:
        return completion
    return _without_choices(completion, body, status=status, headers=headers, secrets=secrets)


def _without_choices(
    completion: ChatCompletion, body: bytes, *, status: int, headers: Mapping[str, str], secrets: Iterable[str]
) -> ChatCompletion:
    decoded = codec.decode_json(body)
    facts = error_facts(decoded)
    if facts is not None:
        raise status_error(facts.status or status, headers, body, secrets=secrets)
    if "choices" not in decoded:
        raise APIResponseValidationError(
            "$.choices: missing, expected a list", path="$.choices", body=decoded, request_id=request_id(headers)
        )
    return completion
