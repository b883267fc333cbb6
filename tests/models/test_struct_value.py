"""Values laid over a msgspec Struct: attrs classes to everyone who looks, and exact on the way back to JSON."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import sys
import typing
import weakref
from typing import Any

import attrs
import cattrs
import fastapi.encoders
import msgspec
import pytest

from together_async.models import (
    NO_DELTA,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCallDelta,
    Usage,
    make,
)
from together_async.models.struct_value import StructValue, set_source, struct_value
from together_async.wire.codec import decode_chunk

CLASSES = (ChatCompletionChunk, ChunkChoice, Delta)
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
RAW = (
    b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","x_gateway":{"a":[1]},"choices":'
    b'[{"index":0,"text":"a","delta":{"content":"a","annotations":[]},"x":null},{"index":1,"delta":{"content":"b"}},'
    b'{"index":2}],"usage":null}'
)


@each_class
def test_is_an_attrs_class_to_everyone_who_looks(cls: type[Any]) -> None:
    """Fields with their types, dicts, copies that differ, a frozen instance, and matching by position."""
    assert attrs.has(cls)
    names = list(cls.__annotations__)
    assert [field.name for field in attrs.fields(cls)] == names
    assert list(attrs.fields_dict(cls)) == names
    attrs.resolve_types(cls)
    assert {field.name: field.type for field in attrs.fields(cls)} == typing.get_type_hints(cls)
    value = cls()
    assert list(attrs.asdict(value)) == names
    assert attrs.astuple(value, recurse=False) == tuple(getattr(value, name) for name in names)
    assert attrs.evolve(value) == value
    assert attrs.validate(value) is None
    assert cls.__match_args__ == tuple(names)
    for change in (lambda: setattr(value, names[0], "x"), lambda: delattr(value, names[0])):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            change()
    with pytest.raises(AttributeError):
        value.unheard = 1
    with pytest.raises(TypeError):
        cls(unheard=1)


@each_class
def test_is_a_struct_that_the_collector_need_not_look_at(cls: type[Any]) -> None:
    assert issubclass(cls, msgspec.Struct)
    assert not gc.is_tracked(cls())
    with pytest.raises(TypeError, match="weak reference"):
        weakref.ref(cls())


@each_class
@pytest.mark.parametrize("decorate", [lambda cls: cls, attrs.frozen, attrs.define(slots=False)])
def test_has_no_subclasses(cls: type[Any], decorate: Any) -> None:
    """Their fields would be left out of equality, hash and copies; the error says what to do."""
    with pytest.raises(
        TypeError, match="Mine: a class of chunks has no subclasses; hold the chunk in a class of your own"
    ):
        decorate(type("Mine", (cls,), {"__annotations__": {"extra": int}, "extra": 0}))


def test_nothing_leaks_and_nothing_dies_too_early() -> None:
    """The links and the fields hold their objects exactly as long as the value lives."""
    raw, text = bytes(1_000), "".join(["x"] * 1_000)  # made now: a constant may be immortal
    before = sys.getrefcount(raw), sys.getrefcount(text)
    values = [make(Delta, content=text) for _ in range(100)]
    for value in values:
        set_source(value, raw)
        set_source(value, raw)
    assert (sys.getrefcount(raw), sys.getrefcount(text)) == (before[0] + 100, before[1] + 100)
    del values, value
    assert (sys.getrefcount(raw), sys.getrefcount(text)) == before


def test_each_part_gives_what_came_for_it() -> None:
    """Chunk, choices and deltas, also those after the first: unknown keys and nulls are there, and nothing else."""
    chunk, wire = decode_chunk(RAW), json.loads(RAW)
    assert chunk.to_dict() == wire
    for choice, was in zip(chunk.choices, wire["choices"], strict=True):
        assert choice.to_dict() == was
        assert choice.delta.to_dict() == was.get("delta", {})
    assert NO_DELTA.to_dict() == {}
    chunk.to_dict().clear()
    assert chunk.to_dict() == wire


def test_a_dropped_choice_does_not_move_the_others() -> None:
    """A null choice is none; the next one still knows its place in the array."""
    raw = b'{"choices":[null,{"index":1,"delta":{"content":"b","new":1}}],"usage":null}'
    (choice,) = decode_chunk(raw).choices
    assert choice.to_dict() == {"index": 1, "delta": {"content": "b", "new": 1}}
    assert choice.delta.to_dict() == {"content": "b", "new": 1}


def test_a_value_of_the_wrong_type_is_shown_as_it_came() -> None:
    """The lenient reading drops it from the typed value alone."""
    raw = b'{"id":["x"],"choices":[{"index":"0","delta":{"content":"a","token_id":{}}}]}'
    chunk = decode_chunk(raw)
    assert (chunk.id, chunk.choices[0].index, chunk.choices[0].delta.token_id) == (None, 0, None)
    assert chunk.to_dict() == json.loads(raw)
    assert chunk.choices[0].delta.to_dict() == {"content": "a", "token_id": {}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(b'"\xff"', "\ufffd"), (b"1e999", float("inf"))],
    ids=["broken UTF-8", "a number out of range"],
)
def test_a_broken_value_that_no_field_reads(value: bytes, shown: Any) -> None:
    """The typed decoder skips it; the keys around it are still what came."""
    raw = b'{"id":"c","new":%b,"choices":[{"index":0,"delta":{"content":"a","more":null}}]}' % value
    chunk = decode_chunk(raw)
    assert chunk.to_dict()["new"] == shown
    assert chunk.choices[0].delta.to_dict() == {"content": "a", "more": None}


def test_what_was_made_here_shows_what_it_was_made_of() -> None:
    """`make` knows what it was given; a value of the constructor shows all that is not None."""
    assert make(Delta, content=None, role="assistant").to_dict() == {"content": None, "role": "assistant"}
    assert make(ChunkChoice).to_dict() == {}
    delta = Delta(tool_calls=(ToolCallDelta(index=0, function=FunctionDelta(name="f")),))
    assert Delta(content="x").to_dict() == {"content": "x"}
    assert ChunkChoice(delta=Delta(content="x")).to_dict() == {"index": 0, "delta": {"content": "x"}}
    assert ChunkChoice(text="x").to_dict() == {"index": 0, "text": "x"}, "an empty delta would hide the text"
    assert ChunkChoice(finish_reason="stop").to_dict() == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert delta.to_dict()["tool_calls"][0]["function"]["name"] == "f"
    chunk = ChatCompletionChunk(id="c", choices=(ChunkChoice(delta=Delta()),), usage=Usage(total_tokens=3))
    assert chunk.to_dict()["choices"] == [{"index": 0, "delta": {}}]
    assert chunk.raw_json is None


def test_vars_has_the_fields_that_came() -> None:
    """For what looks at objects that way, as FastAPI's encoder does; they are no way to change it."""
    chunk = decode_chunk(RAW)
    assert list(vars(chunk)) == ["id", "object", "created", "model", "choices", "usage"]
    assert vars(chunk)["choices"] is chunk.choices
    assert vars(chunk.choices[2]) == {"index": 2}
    assert vars(Delta(content="x")) == {"content": "x"}
    vars(chunk).clear()
    assert chunk.id == "c"
    assert fastapi.encoders.jsonable_encoder(decode_chunk(b'{"choices":[{"delta":{"content":"a"}}]}')) == {
        "choices": [{"delta": {"content": "a"}}]
    }


COPIES = {
    **{f"pickle {n}": lambda value, n=n: pickle.loads(pickle.dumps(value, n)) for n in range(6)},  # noqa: S301 - made here
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("made", [False, True], ids=["from the wire", "made here"])
def test_copies_are_equal_and_keep_their_links(how: str, made: bool) -> None:
    value = make(ChatCompletionChunk, choices=(ChunkChoice(text=""), make(ChunkChoice, delta=Delta(content="x"))))
    if not made:
        value = decode_chunk(RAW)
    other = COPIES[how](value)
    assert other == value
    assert hash(other) == hash(value)
    assert repr(other) == repr(value)
    assert (other.to_dict(), other.raw_json) == (value.to_dict(), value.raw_json)
    for copied, choice in zip(other.choices, value.choices, strict=True):
        assert copied.to_dict() == choice.to_dict()
        assert copied.delta.to_dict() == choice.delta.to_dict()
        assert (copied.delta is NO_DELTA) == (choice.delta is NO_DELTA)


def test_equality_and_hash_are_by_the_fields() -> None:
    """The bytes, and keys that no field has, make no difference; another class does."""
    wire, made = decode_chunk(RAW).choices[1], ChunkChoice(index=1, delta=Delta(content="b"))
    assert wire == made
    assert hash(wire) == hash(made)
    assert wire != attrs.evolve(made, index=2)
    assert Delta() != ChunkChoice()
    assert len({wire, made, decode_chunk(RAW).choices[1]}) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda value: attrs.evolve(value, id="new"),
        lambda value: msgspec.structs.replace(value, id="new"),
        pytest.param(
            lambda value: copy.replace(value, id="new"),  # type: ignore[attr-defined]  # new in Python 3.13
            marks=pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is new in Python 3.13"),
        ),
    ],
    ids=["attrs.evolve", "msgspec.structs.replace", "copy.replace"],
)
def test_a_changed_copy_has_its_own_json(change: Any) -> None:
    """The changed value is not linked to the old bytes; its choices, which did not change, still are."""
    changed = change(decode_chunk(RAW))
    assert changed.raw_json is None
    assert changed.to_dict()["id"] == "new"
    assert "x_gateway" not in changed.to_dict()
    assert changed.to_dict()["choices"][0]["delta"] == {"content": "a", "annotations": []}


def test_cattrs_reads_and_writes_them() -> None:
    """By the attrs fields, as any attrs class."""
    converter = cattrs.Converter()
    delta = converter.structure({"content": "x", "role": "assistant"}, Delta)
    assert delta == Delta(content="x", role="assistant")
    assert converter.unstructure(delta) == attrs.asdict(delta)
    choice = ChunkChoice(delta=delta, finish_reason="stop")
    assert converter.unstructure(choice)["delta"]["content"] == "x"


def test_fields_keep_what_attrs_was_told_of_them() -> None:
    """Defaults by `attrs.field`, and what is left out of equality, hash and repr."""

    @struct_value
    class Pair(StructValue):
        first: int = 1
        second: list[int] | None = attrs.field(default=None, hash=False, repr=False)

    assert Pair() == Pair(1, None)
    assert hash(Pair(1, [2])) == hash(Pair(1, [3]))
    assert Pair(1, [2]) != Pair(1, [3])
    assert repr(Pair(2, [3])) == "Pair(first=2)"
    assert attrs.fields(Pair).second.default is None


@pytest.mark.parametrize(
    "field",
    [
        attrs.field(),
        attrs.field(factory=list),
        attrs.field(default=0, converter=int),
        attrs.field(default=0, validator=attrs.validators.instance_of(int)),
    ],
    ids=["required", "factory", "converter", "validator"],
)
def test_what_msgspec_would_not_do_is_refused(field: Any) -> None:
    """The constructor is msgspec's: nothing would be converted, checked or made by it."""
    body = {"__annotations__": {"first": "int"}, "first": field, "__module__": __name__}
    with pytest.raises(TypeError, match=r"Pair\.first: expected a plain default"):
        struct_value(type("Pair", (StructValue,), body))
