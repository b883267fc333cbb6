"""The HTTP request of a chat-completion request."""

import json

from together_async.request import ChatCompletionRequest
from together_async.wire.http_request import build_request


def test_build_request():
    """Path, JSON body, and `stream` where one is asked for; the repr shows no body."""
    request = ChatCompletionRequest(messages="my prompt", model="m", max_tokens=5)
    whole, stream = build_request(request, stream=False), build_request(request, stream=True)
    assert (whole.path, whole.stream, stream.stream) == ("chat/completions", False, True)
    assert json.loads(whole.body) == {
        "messages": [{"role": "user", "content": "my prompt"}],
        "model": "m",
        "max_tokens": 5,
    }
    assert json.loads(stream.body) == {**json.loads(whole.body), "stream": True}
    assert "my prompt" not in repr(stream)
