"""Whole responses: the completion of a body, and a completion in a stream's place."""

import json

import pytest

from support.paths import SAMPLES
from together_async.errors import (
    APIResponseValidationError,
    APIStatusError,
    AuthenticationError,
    InternalServerError,
    RateLimitError,
    TogetherError,
)
from together_async.wire.codec import decode_completion, encode
from together_async.wire.completions import chunk_of, completion_of, plain_completion


@pytest.mark.parametrize(
    "sample",
    [path for path in sorted(SAMPLES.glob("*.json")) if not path.stem.startswith("error_")],
    ids=lambda path: path.stem,
)
def test_completion_of_whole_responses(sample):
    """Every whole response decodes, with its JSON."""
    body = sample.read_bytes()
    assert completion_of(body, status=200, headers={}).to_dict() == json.loads(body)


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        (b"", "$", "got an empty body with status 200"),
        (b" \r\n", "$", "got an empty body with status 200"),
        (b"OK", "$", "got a body that is not JSON (2 bytes"),
        (b"<html>oops</html>", "$", "got an HTML page (17 bytes"),
        (b"\xff\xfe", "$", "not JSON"),
        (b"[" * 100_000, "$", "not JSON"),
        (b"[]", "$", "$: got an array, expected an object"),
        (b"null", "$", "$: got null, expected an object"),
        (b"{}", "$.choices", "$.choices: missing"),
        (b'{"id":"x"}', "$.choices", "$.choices: missing"),
        (b'{"choices":5}', "$.choices", "$.choices: got a number, expected an array"),
        (b'{"choices":["my prompt"]}', "$.choices[0]", "got a string"),
    ],
)
def test_completion_of_odd_bodies(body, path, text):
    """The error names what came and where; body and request id are attributes."""
    with pytest.raises(APIResponseValidationError) as caught:
        completion_of(body, status=200, headers={"x-request-id": "r"})
    assert text in str(caught.value)
    assert (caught.value.path, caught.value.request_id) == (path, "r")
    assert caught.value.body is not None
    assert "my prompt" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "cls", "text"),
    [
        (b'{"error":{"message":"m","code":503}}', InternalServerError, "503: m"),
        (b'{"error":{"message":"m","code":"401"},"choices":[]}', AuthenticationError, "401: m"),
        (b'{"error":"m"}', APIStatusError, "200: m"),
        (b'{"choices":[{"message":{"content":"x"}}],"error":{"message":"m","code":429}}', RateLimitError, "429: m"),
        (b'{"detail":"m"}', APIStatusError, "200: m"),
    ],
)
def test_an_error_object_under_status_200(body, cls, text):
    """It raises the class for the code that the object carries."""
    with pytest.raises(APIStatusError) as caught:
        completion_of(body, status=200, headers={})
    assert (type(caught.value), str(caught.value)) == (cls, text)


def test_an_empty_list_of_choices_is_a_completion():
    """The server sent no choice, which is not an error."""
    assert completion_of(b'{"choices":[]}', status=200, headers={}).choices == ()


def test_chunk_of_says_the_same():
    """A completion as one chunk: calls and choices without an index get that of their place; nothing is added."""
    body = {
        "id": "x",
        "choices": [
            {
                "message": {
                    "content": "a",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}, {"id": "2"}],
                }
            },
            {"message": {"content": "b"}, "finish_reason": "stop", "seed": 5, "text": "echo"},
            {"message": None},
        ],
        "usage": {"total_tokens": 3},
    }
    chunk = chunk_of(decode_completion(encode(body)))
    assert chunk.to_dict() == {
        "id": "x",
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "delta": {
                    "content": "a",
                    "tool_calls": [
                        {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}},
                        {"index": 1, "id": "2"},
                    ],
                },
            },
            {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop", "seed": 5},
            {"index": 2, "delta": {}},
        ],
        "usage": {"total_tokens": 3},
    }


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_quick_and_full_path_agree(sample):
    """`plain_completion` returns what `completion_of` returns, and None for each body that is an error there."""
    body = sample.read_bytes()
    try:
        expected = completion_of(body, status=200, headers={})
    except TogetherError:
        expected = None
    assert plain_completion(body) == expected
