"""JSON in: whatever a server adds or sends as null decodes; what would lose an answer is an error with its path."""

import copy
import json
import math
import typing

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.paths import SAMPLES
from together_async.errors import APIResponseValidationError
from together_async.models import ChatCompletion, ChatCompletionChunk, Value
from together_async.wire import codec
from together_async.wire.codec import JSONError, decode_chunk, decode_completion, decode_json
from together_async.wire.sse import EventStreamParser

COMPLETIONS = [
    json.loads(path.read_bytes()) for path in sorted(SAMPLES.glob("*.json")) if not path.stem.startswith("error_")
]
CHUNKS = [
    json.loads(event.data)
    for path in sorted(SAMPLES.glob("*.sse"))
    for event in EventStreamParser().feed(path.read_bytes())
    if b'"choices"' in event.data
]
DECODERS = {decode_chunk: CHUNKS, decode_completion: COMPLETIONS}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**63, 2**130)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=5)
    | st.sampled_from(["9" * 5000, "-1", "²", "1.0", "assistant", 1.0, 1e300])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)


def spots(value, path=()):
    """Every place of a JSON value, the value itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from spots(item, (*path, key))


def put(value, path, item):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = item


def typed_parts(value):
    """All values inside a value."""
    if isinstance(value, Value):
        yield value
        for field in attrs.fields(type(value)):
            yield from typed_parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from typed_parts(item)


def texts_of(document):
    """What the model said, as the wire has it."""
    for choice in filter(None, document.get("choices") or ()):
        message = choice.get("delta") or choice.get("message") or {}
        yield message.get("content")
        for call in filter(None, message.get("tool_calls") or ()):
            yield (call.get("function") or {}).get("arguments")


def texts_read(value):
    for choice in value.choices:
        message = choice.delta if isinstance(value, ChatCompletionChunk) else choice.message
        yield message.content if message else None
        for call in (message.tool_calls if message else None) or ():
            yield call.function.arguments if call.function else None


@given(st.data())
def test_anything_anywhere_decodes_or_says_where(data):
    """A value of any kind in any place: a chunk, or our error with a path into the body; never another exception.

    What decodes gives back exactly what came, its types are the documented ones, and no text was lost.
    """
    decode = data.draw(st.sampled_from(list(DECODERS)))
    document = copy.deepcopy(data.draw(st.sampled_from(DECODERS[decode])))
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(spots(document))
        if not places:
            break
        put(document, data.draw(st.sampled_from(places)), data.draw(anything))
    wire = json.dumps(document).encode()
    try:
        value = decode(wire)
    except APIResponseValidationError as error:
        assert error.path.startswith("$.choices")  # noqa: PT017 - it may also not raise
        assert error.path in str(error)  # noqa: PT017 - it may also not raise
        return
    assert value.to_dict() == json.loads(wire)
    hash(value)
    repr(value)
    for part in typed_parts(value):
        hints = typing.get_type_hints(type(part))
        for field in attrs.fields(type(part)):
            msgspec.convert(getattr(part, field.name), hints[field.name] | None, from_attributes=True)
    texts = [text for text in texts_of(document) if isinstance(text, str)]
    assert [text for text in texts_read(value) if text is not None and text in texts] == texts


@given(st.data())
def test_null_or_absent_anywhere_decodes(data):
    """Every field may be null, and every field may be absent."""
    decode = data.draw(st.sampled_from(list(DECODERS)))
    document = copy.deepcopy(data.draw(st.sampled_from(DECODERS[decode])))
    place = data.draw(st.sampled_from(list(spots(document))))
    if data.draw(st.booleans()) and isinstance(place[-1], str):
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        del parent[place[-1]]
    else:
        put(document, place, None)
    assert decode(json.dumps(document).encode()).to_dict() == document


@given(st.data(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), anything)
def test_unknown_keys_anywhere_are_kept_and_change_nothing(data, key, item):
    """A key we don't know, in any object, is in `to_dict` and nowhere else."""
    decode = data.draw(st.sampled_from(list(DECODERS)))
    document = copy.deepcopy(data.draw(st.sampled_from(DECODERS[decode])))
    expected = decode(json.dumps(document).encode())
    objects = [document, *(choice for choice in document["choices"])]
    chosen = data.draw(st.sampled_from(objects))
    chosen["x-" + key] = item
    value = decode(json.dumps(document).encode())
    assert value == expected
    assert value.to_dict() == document


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_that_are_no_json_are_a_json_error(data):
    """Any bytes: a value, a JSONError, or a wrong shape; a ValueError of ours, never msgspec's own."""
    for decode in (decode_json, decode_chunk, decode_completion):
        try:
            decode(data)
        except (JSONError, APIResponseValidationError) as error:
            assert type(error) in (JSONError, APIResponseValidationError)  # noqa: PT017 - it may also not raise


@pytest.mark.parametrize("decode", [decode_json, decode_chunk, decode_completion])
@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_endless_nesting_is_a_json_error(decode, data):
    """Nesting beyond the interpreter's stack is broken JSON, not a RecursionError."""
    with pytest.raises(JSONError):
        decode(data)


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        ({"choices": {}}, "$.choices", "got an object, expected an array"),
        ({"choices": ["x"]}, "$.choices[0]", "got a string, expected an object"),
        ({"choices": [{}, 5]}, "$.choices[1]", "got a number, expected an object"),
        ({"choices": [{"message": "hi"}]}, "$.choices[0].message", "got a string, expected an object"),
        (
            {"choices": [{"message": {"content": ["hi"]}}]},
            "$.choices[0].message.content",
            "got an array, expected a string",
        ),
        ({"choices": [{"message": {"content": 5}}]}, "$.choices[0].message.content", "got a number, expected a string"),
        (
            {"choices": [{"message": {"tool_calls": "x"}}]},
            "$.choices[0].message.tool_calls",
            "got a string, expected an array",
        ),
        ({"choices": [{"message": {"tool_calls": [True]}}]}, "$.choices[0].message.tool_calls[0]", "got a boolean"),
        (
            {"choices": [{"message": {"tool_calls": [{"function": {"arguments": 1}}]}}]},
            "$.choices[0].message.tool_calls[0].function.arguments",
            "got a number, expected a string",
        ),
        ([], "$", "got an array, expected an object"),
        (None, "$", "got null, expected an object"),
    ],
)
def test_what_would_lose_an_answer_is_an_error_with_its_path(body, path, text):
    """The spine of a response must be as documented: a typed view without it would be an answer lost in silence."""
    with pytest.raises(APIResponseValidationError) as caught:
        decode_completion(json.dumps(body).encode())
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: {text}")


def test_the_same_spine_holds_for_chunks():
    """A delta's content and tool calls are not dropped either."""
    for delta, path in (
        ({"content": {"text": "x"}}, "content"),
        ({"tool_calls": {"0": {}}}, "tool_calls"),
        ({"function_call": "f"}, "function_call"),
    ):
        with pytest.raises(APIResponseValidationError) as caught:
            decode_chunk(json.dumps({"choices": [{"delta": delta}]}).encode())
        assert caught.value.path == f"$.choices[0].delta.{path}"


def test_novelties_beside_the_spine_are_dropped_from_the_typed_view():
    """Values of an unknown type give None where they stand, the answer stays, and `to_dict` has all."""
    document = {
        "id": 5,
        "created": "2026-11-23",
        "choices": [
            {
                "index": "1",
                "delta": {"content": "x", "role": {"name": "assistant"}, "token_id": [1], "reasoning": {"text": "r"}},
                "finish_reason": {"type": "stop"},
                "logprobs": {"content": "none", "tokens": ["a", 5], "token_logprobs": [None, "b"]},
            }
        ],
        "usage": {"prompt_tokens": 5.0, "completion_tokens": "7", "total_tokens": 1.5, "prompt_tokens_details": []},
        "warnings": "none",
    }
    chunk = decode_chunk(json.dumps(document).encode())
    (choice,) = chunk.choices
    assert (chunk.id, chunk.created, chunk.warnings) == (None, None, None)
    assert (choice.index, choice.delta.content, choice.delta.role, choice.finish_reason) == (1, "x", None, None)
    assert choice.logprobs.token_logprobs == (None, None)
    assert (chunk.usage.prompt_tokens, chunk.usage.completion_tokens, chunk.usage.total_tokens) == (5, 7, None)
    assert chunk.to_dict() == document


def test_arguments_sent_as_an_object_become_their_text():
    """Some servers send a tool call's arguments as an object; it becomes JSON text."""
    body = {"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"city": "Oslo"}}}]}}]}
    call = decode_completion(json.dumps(body).encode()).choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


def test_a_choice_that_is_null_is_none():
    """A null in the list of choices is dropped."""
    assert decode_completion(b'{"choices":[null,{"index":1,"created":"x","message":{"content":"x"}}]}').text == "x"


def test_error_messages_never_repeat_values():
    """A value of the wrong type may be somebody's text."""
    with pytest.raises(APIResponseValidationError) as caught:
        decode_completion(b'{"choices":[{"message":{"content":["my secret"]}}]}')
    assert "secret" not in str(caught.value)
    with pytest.raises(JSONError) as broken:
        decode_json(b'{"secret')
    assert "secret" not in str(broken.value)


@given(anything)
def test_encode_and_decode_are_inverse(value):
    """What is encoded is read back, by us and by the standard library."""
    text = codec.encode(value)
    assert decode_json(text) == value
    assert json.loads(text) == value


def test_the_text_decoder_sees_what_the_chunk_decoder_sees():
    """The fields that `text()` decides by are those of the chunk, for every chunk of the samples it reads."""
    for document in CHUNKS:
        data = json.dumps(document).encode()
        try:
            short = codec.decode_text_strictly(data)
        except ValueError:
            continue
        chunk = decode_chunk(data)
        assert [choice.index for choice in short.choices] == [choice.index for choice in chunk.choices]
        for choice, full_choice in zip(short.choices, chunk.choices, strict=True):
            assert (choice.delta and choice.delta.content) == (full_choice.delta and full_choice.delta.content)
            assert choice.finish_reason == full_choice.finish_reason
        assert (short.usage is None) == (chunk.usage is None)


def test_big_and_odd_numbers():
    """Integers of any size stay exact; a float out of range or a NaN is no JSON."""
    assert decode_json(b"9" * 40) == int("9" * 40)
    for text in (b"NaN", b"-Infinity", b"1e999", b"9" * 5000):
        with pytest.raises(JSONError):
            decode_json(text)
    assert math.isclose(decode_chunk(b'{"choices":[{"logprobs":-1e-7,"delta":{}}]}').choices[0].logprobs, -1e-7)

    assert isinstance(decode_completion(b"{}"), ChatCompletion)
