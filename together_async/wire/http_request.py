"""The HTTP request of a chat-completion request. Pure."""

from __future__ import annotations

from typing import Final

import attrs

from together_async.request import ChatCompletionRequest
from together_async.wire import codec

PATH: Final = "chat/completions"


@attrs.frozen
class HTTPRequest:
    """An HTTP request to the API.

    Attributes:
        path: Below the base URL.
        body: JSON; empty for a GET.
        stream: Whether the response is to be a stream.
        method: The HTTP method.
    """

    path: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    stream: bool
    method: str = "POST"


MODELS_REQUEST: Final = HTTPRequest("models", b"", stream=False, method="GET")
"""The request for the list of models and their prices: https://docs.together.ai/reference/models-1."""


def build_request(request: ChatCompletionRequest, *, stream: bool) -> HTTPRequest:
    """Returns the HTTP request of a chat-completion request.

    Args:
        request: The request; its `extra_body` may hold values of any type.
        stream: Whether to ask for a stream.

    Raises:
        ValueError: A value has no JSON form; the text names the JSON library's error.
    """
    body = request.to_dict()
    if stream:
        body["stream"] = True
    try:
        return HTTPRequest(PATH, codec.encode(body), stream)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # The JSON library's message may quote the value, which may be a prompt: only the error's type is kept.
        raise ValueError(f"request: has no JSON form ({type(error).__name__}); expected plain JSON values") from None
