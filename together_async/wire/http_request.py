"""The HTTP request of a chat-completion request. Pure."""

from __future__ import annotations

from typing import Final

import attrs

from together_async.request import ChatCompletionRequest
from together_async.wire import codec

PATH: Final = "chat/completions"


@attrs.frozen
class HTTPRequest:
    """What goes out: the path below the base URL, the body, whether a stream is asked for, and the method."""

    path: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    stream: bool
    method: str = "POST"


MODELS_REQUEST: Final = HTTPRequest("models", b"", stream=False, method="GET")
"""Asks for the list of models and their prices: https://docs.together.ai/reference/models-1."""


def build_request(request: ChatCompletionRequest, *, stream: bool) -> HTTPRequest:
    """Returns the HTTP request of a chat-completion request.

    Raises:
        ValueError: Something in it has no JSON form; the text names its type.
    """
    body = request.to_dict()
    if stream:
        body["stream"] = True
    try:
        return HTTPRequest(PATH, codec.encode(body), stream)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # The JSON library's text may hold what it failed on, so its own words stay in __cause__... as a type only.
        raise ValueError(f"request: has no JSON form ({type(error).__name__}); expected plain JSON values") from None
