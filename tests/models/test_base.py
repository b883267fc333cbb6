"""Values from the API: exact on the way back to JSON, equal by meaning, hashable, picklable, quiet about prompts."""

import copy
import json
import pickle

import attrs
import pytest
import rich.pretty

from support.paths import SAMPLES
from together_async import models
from together_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    Function,
    Logprobs,
    ToolCall,
    Usage,
    Value,
    make,
    plain,
)
from together_async.wire.codec import decode_chunk, decode_completion
from together_async.wire.sse import EventStreamParser

WHOLE = sorted(path for path in SAMPLES.glob("*.json") if not path.stem.startswith("error_"))


def payloads(name: str) -> list[bytes]:
    events = EventStreamParser().feed((SAMPLES / f"{name}.sse").read_bytes())
    return [event.data for event in events if b'"choices"' in event.data]


DOCUMENTS = [(path.stem, decode_completion, path.read_bytes()) for path in WHOLE] + [
    (f"{path.stem}-{i}", decode_chunk, payload)
    for path in sorted(SAMPLES.glob("*.sse"))
    for i, payload in enumerate(payloads(path.stem))
]
each_document = pytest.mark.parametrize(
    ("decode", "data"), [document[1:] for document in DOCUMENTS], ids=[document[0] for document in DOCUMENTS]
)
VALUE_CLASSES = [
    cls for cls in vars(models).values() if isinstance(cls, type) and issubclass(cls, Value) and attrs.has(cls)
]


@each_document
def test_to_dict_is_what_came(decode, data):
    """Nulls are None, what was absent stays absent, unknown keys are there, and numbers keep every digit."""
    value = decode(data)
    assert value.to_dict() == json.loads(data)
    assert json.dumps(value.to_dict()) == json.dumps(json.loads(data))
    value.to_dict().clear()
    assert value.to_dict() == json.loads(data)


@each_document
def test_documents_survive_pickle_and_copies(decode, data):
    """Every protocol of pickle, copy and deepcopy give an equal value with the same JSON."""
    value = decode(data)
    copies = [pickle.loads(pickle.dumps(value, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301 - made here
    for other in (*copies, copy.copy(value), copy.deepcopy(value)):
        assert other == value
        assert hash(other) == hash(value)
        assert repr(other) == repr(value)
        assert other.to_dict() == value.to_dict()


@each_document
def test_documents_are_hashable_and_equal_by_content(decode, data):
    """Two readings of the same bytes are equal and of one hash, a changed one is not equal."""
    value, same = decode(data), decode(data)
    assert value == same
    assert len({value, same}) == 1
    assert attrs.evolve(value, id="another") != value


def test_nested_values_give_what_came_too():
    """A part of a document gives its own nulls and leaves out what was absent."""
    completion = decode_completion(b'{"choices":[{"message":{"content":null,"tool_calls":[]},"logprobs":null}]}')
    assert completion.choices[0].to_dict() == {"message": {"content": None, "tool_calls": []}, "logprobs": None}


@pytest.mark.parametrize("cls", VALUE_CLASSES, ids=lambda cls: cls.__name__)
def test_every_value_is_frozen_and_can_be_made_empty(cls):
    """No field can be set, every field may be absent, and an absent one reads as its default."""
    value = make(cls)
    assert value.to_dict() == {}
    assert value == cls()
    assert hash(value) == hash(cls())
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value  # noqa: S301 - made here
    for field in attrs.fields(cls):
        assert getattr(value, field.name) == field.default
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field.name, None)


def test_seed_beyond_64_bits():
    """Seeds are numbers of any size, in chunks and completions, and keep every digit."""
    for seed in (15924764223251450000, 2**64, 2**200, -(2**63) - 1):
        data = json.dumps({"choices": [{"seed": seed, "delta": {"content": "x"}}]}).encode()
        for decode in (decode_chunk, decode_completion):
            value = decode(data)
            assert value.choices[0].seed == seed
            assert value.to_dict() == json.loads(data)


def test_repr_shows_what_matters_and_no_prompt():
    """The repr leaves out None and what may repeat the prompt: `prompt`, tokens of logprobs, echoed text, errors."""
    completion = decode_completion((SAMPLES / "echo.json").read_bytes())
    assert "prompt itself" not in repr(completion)
    part = completion.prompt[0]
    assert "prompt" not in repr(part).replace("PromptPart", "")
    assert repr(Usage(total_tokens=3)) == "Usage(total_tokens=3)"
    chunk = decode_chunk(
        b'{"choices":[{"index":0,"text":"secret","delta":{"content":"x"}}],"error":{"message":"secret"}}'
    )
    assert "secret" not in repr(chunk)
    assert "content='x'" in repr(chunk)
    for value in (chunk, completion):
        shown = rich.pretty.pretty_repr(value, max_width=1000)
        assert "secret" not in shown
        assert "prompt itself" not in shown
        assert shown == repr(value)


def test_values_of_ones_own_are_json_too():
    """`plain` turns values, tuples and mappings at any depth into JSON's own types."""
    call = ToolCall(id="a", type="function", function=make(Function, name="f", arguments="{}"))
    assert plain({"calls": (call,), "n": 1}) == {
        "calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": None}],
        "n": 1,
    }
    made = make(ChatCompletion, id="x", choices=(make(Choice, message=make(ChatCompletionMessage, content="y")),))
    assert made.to_dict() == {"id": "x", "choices": [{"message": {"content": "y"}}]}
    assert made == decode_completion(b'{"id":"x","choices":[{"message":{"content":"y"}}]}')


def test_an_evolved_document_does_not_give_the_old_bytes():
    """`attrs.evolve` makes a new value, whose JSON is its own."""
    chunk = decode_chunk(b'{"id":"old","choices":[],"new_key":1}')
    evolved = attrs.evolve(chunk, id="new")
    assert evolved.to_dict()["id"] == "new"
    assert isinstance(evolved, ChatCompletionChunk)
    assert Logprobs() == attrs.evolve(Logprobs(tokens=("a",)), tokens=None)
