"""Whole responses: the completion of a body, and a completion in a stream's place. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from together_async.errors import (
    APIResponseValidationError,
)
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
from together_async.wire.error_bodies import (
    error_facts,
    request_id,
    status_error,
)


def chunk_of(completion: ChatCompletion) -> ChatCompletionChunk:
    """Returns a whole completion as the one chunk of a stream that says the same."""
    choices = tuple(_chunk_choice(choice, position) for position, choice in enumerate(completion.choices))
    given = {name: value for name, value in vars(completion).items() if name not in ("object", "choices")}
    return make(ChatCompletionChunk, object="chat.completion.chunk", choices=choices, **given)


def _chunk_choice(choice: Choice, position: int) -> ChunkChoice:
    # vars() holds what the server sent: a choice without an index has that of its place, not the class's 0.
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


def plain_completion(body: bytes) -> ChatCompletion | None:
    """Returns the completion of a whole response if it is one; None for what `completion_of` has to look at."""
    try:
        completion = codec.decode_completion(body)
    except (codec.JSONError, APIResponseValidationError):
        return None
    return completion if completion.choices and not completion.error else None


def completion_of(
    body: bytes, *, status: int, headers: Mapping[str, str], secrets: Iterable[str] = ()
) -> ChatCompletion:
    """Returns the completion of a whole response.

    Raises:
        APIStatusError: The body is an error object in spite of its status; of the class of the code it carries.
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
