"""Requests checked, and answers planned: a whole response, a stream with its pace, an error."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import attrs

from together_async.request import ChatCompletionRequest
from together_async.testing import dialect as shapes
from together_async.testing.dialect import Dialect, Generation
from together_async.testing.response import Piece, ResponsePlan
from together_async.wire import codec


class RefusedError(Exception):
    """The request is answered with an error status.

    Args:
        status: The HTTP status.
        message: The error's message; None for the usual one of the status.
        param: The wrong field; None for none.
        body: The whole JSON body in place of the above; None to make it from them.
        headers: Further headers; None for none.
    """

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        param: str | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.param = param
        self.body = body
        self.headers = headers or {}
        self.message = message
        super().__init__(message)


def read_body(data: bytes) -> Any:
    """Returns a request's body as a dict if it is a JSON object, else as bytes."""
    try:
        value = codec.decode_json(data)
    except codec.JSONError:
        return data
    return value if isinstance(value, dict) else data


def read_request(body: Any) -> ChatCompletionRequest:
    """Returns the checked request of a body.

    Raises:
        RefusedError: Not a request; the status is 400.
    """
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is no JSON object")
    try:
        if not isinstance(body.get("stream"), (bool, type(None))):
            raise ValueError(f"stream: got {body['stream']!r}, expected true or false")
        return ChatCompletionRequest.from_dict(body)
    except ValueError as error:
        raise RefusedError(400, str(error), param=str(error).partition(":")[0]) from error


def fingerprint(request: ChatCompletionRequest) -> str:
    """Returns a text that is equal for equal questions, streamed or not."""
    body = {name: value for name, value in request.to_dict().items() if name != "stream_options"}
    return hashlib.blake2b(codec.encode(body), digest_size=16).hexdigest()


@attrs.frozen
class Pace:
    """The speed of a model.

    Attributes:
        first_token_s: Seconds to the first token.
        gap_s: Seconds from one token of a choice to its next; 0 for no wait.
        jitter: By how much each gap differs at random, as a fraction of it, 0 to 1.
    """

    first_token_s: float
    gap_s: float
    jitter: float


def plan_whole(response: ResponsePlan, dialect: Dialect, generation: Generation, pace: Pace) -> None:
    """Makes the plan a whole completion, sent when all of it would have been generated."""
    body = codec.encode(shapes.completion(dialect, generation))
    response.body = [Piece(body, tokens=generation.tokens)]
    response.think_s = pace.first_token_s + pace.gap_s * max(choice.tokens for choice in generation.choices)


def plan_stream(
    response: ResponsePlan, dialect: Dialect, generation: Generation, pace: Pace, rng: random.Random
) -> None:
    """Makes the plan a stream of events, each sent when its tokens would have been generated."""
    response.headers["content-type"] = "text/event-stream;charset=utf-8"
    response.framing = "chunked"
    response.keep_alive = response.announce_close = not dialect.closes
    events = shapes.events(dialect, generation)
    response.body = [Piece(event.data, event.tokens) for event in events]
    gap_s = pace.gap_s / len(generation.choices)  # the choices are generated side by side
    timed = [piece for piece in response.body if piece.tokens] or response.body[:1]
    for piece in timed if gap_s else timed[:1]:
        spread = 1 + pace.jitter * rng.uniform(-1, 1) if pace.jitter else 1
        piece.wait_s = gap_s * piece.tokens * spread
    if timed:
        timed[0].wait_s = pace.first_token_s


def plan_refusal(response: ResponsePlan, refusal: RefusedError, request_id: str) -> None:
    """Makes the plan an error response, sent without any wait."""
    response.status = refusal.status
    response.think_s = 0.0
    body = refusal.body or shapes.error_body(refusal.status, refusal.message, param=refusal.param, id=request_id)
    response.replace_body(codec.encode(body), "application/json")
    response.headers.update(refusal.headers)
