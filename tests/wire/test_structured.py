"""Answers as values: schemas out, values in, and errors that say where."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import linecache
import weakref
from typing import TypedDict

import attrs
import pydantic
import pytest

from support.servers import KEY, MODEL, ScriptedServer, answers, response, whole
from together_async import APIResponseValidationError, AsyncTogether
from together_async.wire.codec import decode_completion, encode
from together_async.wire.structured import MOST_CLASSES, Structurer, parse, response_format, schema


@attrs.frozen
class Line:
    name: str
    amount: float


@attrs.frozen
class AttrsInvoice:
    number: int
    lines: list[Line]


@dataclasses.dataclass
class DataInvoice:
    number: int
    lines: list[Line]


class DictInvoice(TypedDict):
    number: int
    lines: list[Line]


class PydanticLine(pydantic.BaseModel):
    name: str
    amount: float


class PydanticInvoice(pydantic.BaseModel):
    number: int
    lines: list[PydanticLine]


@attrs.frozen
class Tree:
    left: Tree | None = None


KINDS = (AttrsInvoice, DataInvoice, DictInvoice, PydanticInvoice)
TEXT = '{"number": 7, "lines": [{"name": "pen", "amount": 1.5}]}'


def completion(text: str, finish: str = "stop"):
    body = whole(text)
    body["choices"][0]["finish_reason"] = finish
    return decode_completion(encode(body))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_has_the_class_at_the_top(kind: type) -> None:
    """An object with the class's fields, and its parts under $defs."""
    wanted = schema(kind)
    assert wanted["type"] == "object"
    assert set(wanted["properties"]) == {"number", "lines"}
    assert len(wanted["$defs"]) == 1
    assert response_format(kind)["json_schema"]["name"] == kind.__name__


def test_a_class_within_itself_keeps_its_definition() -> None:
    """What the schema points to is there."""
    wanted = schema(Tree)
    assert "Tree" in wanted["$defs"]
    assert "#/$defs/Tree" in json.dumps(wanted["properties"])


def test_what_has_no_schema_is_refused() -> None:
    """Before anything is sent, naming the class."""
    with pytest.raises(TypeError, match=r"response_type: .*object.* has no JSON schema"):
        schema(type("object_", (), {"__init__": lambda self, x: None}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_becomes_a_value(kind: type) -> None:
    """Of the class that was asked for, nested classes too."""
    value = parse(completion(TEXT), kind)
    number, lines = (value["number"], value["lines"]) if isinstance(value, dict) else (value.number, value.lines)
    assert (number, lines[0].name, lines[0].amount) == (7, "pen", 1.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "finish", "path"),
    [
        ('{"number": "x", "lines": []}', "stop", ".number"),
        ('{"number": 7}', "stop", ""),
        ("no JSON", "stop", ""),
        ("", "stop", ""),
        (TEXT, "length", ""),
    ],
)
def test_what_does_not_fit_says_where(kind: type, text: str, finish: str, path: str) -> None:
    """One error of ours with the path, and nothing of the answer in its text."""
    with pytest.raises(APIResponseValidationError) as caught:
        parse(completion(text, finish), kind)
    assert caught.value.path.startswith("$.choices[0].message.content" + path)
    assert "no JSON" not in str(caught.value)


async def test_parse_sends_the_schema_and_returns_the_value() -> None:
    """One call; a response_format of one's own is left alone."""
    async with (
        ScriptedServer(answers(response(whole(TEXT)))) as server,
        AsyncTogether(KEY, base_url=server.base_url) as client,
    ):
        answer = await client.parse("Hi", model=MODEL, response_type=AttrsInvoice)
        assert answer.parsed == AttrsInvoice(7, [Line("pen", 1.5)])
        assert answer.completion.text == TEXT
        own = {"type": "json_object"}
        await client.parse("Hi", model=MODEL, response_type=AttrsInvoice, response_format=own)
        sent = [call.json["response_format"] for call in server.calls]
        assert sent == [response_format(AttrsInvoice), own]


# --------------------------------------------------------------------------------------------- classes made per call

TEXT_OF_LOCAL = '{"number": 1, "inner": {"amount": 1.5}}'


def made_of_attrs(name: str) -> type:
    inner = attrs.make_class(f"Inner{name}", {"amount": attrs.field(type=float)})
    return attrs.make_class(f"Outer{name}", {"number": attrs.field(type=int), "inner": attrs.field(type=inner)})


def made_of_dataclasses(name: str) -> type:
    inner = dataclasses.make_dataclass(f"Inner{name}", [("amount", float)])
    return dataclasses.make_dataclass(f"Outer{name}", [("number", int), ("inner", inner)])


def made_of_typed_dicts(name: str) -> type:
    inner = TypedDict(f"Inner{name}", {"amount": float})  # type: ignore[misc]  # noqa: UP013 - a name of its own
    return TypedDict(f"Outer{name}", {"number": int, "inner": inner})  # type: ignore[misc]  # the same


def made_of_pydantic(name: str) -> type:
    inner = pydantic.create_model(f"Inner{name}", amount=float)
    return pydantic.create_model(f"Outer{name}", number=int, inner=inner)


@pytest.mark.parametrize(
    "make_class", [made_of_attrs, made_of_dataclasses, made_of_typed_dicts, made_of_pydantic], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("fits", [True, False])
def test_classes_made_for_each_call_are_forgotten(make_class, fits):
    """However many there are, no more than a bounded number is alive, with its generated code and its schema."""
    answer = decode_completion(encode(whole(TEXT_OF_LOCAL if fits else "{}")))

    def call(number):
        cls = make_class(str(number) if number % 2 else "")  # with a name of its own, and with the same one
        response_format(cls)
        with contextlib.nullcontext() if fits else pytest.raises(APIResponseValidationError):
            parse(answer, cls)
        return weakref.ref(cls)

    classes = [call(number) for number in range(3 * MOST_CLASSES)]
    sources = len([name for name in linecache.cache if name.startswith("<cattrs generated structure")])
    classes += [call(number) for number in range(3 * MOST_CLASSES, 6 * MOST_CLASSES)]
    gc.collect()
    assert sum(cls() is not None for cls in classes) <= MOST_CLASSES
    after = len([name for name in linecache.cache if name.startswith("<cattrs generated structure")])
    assert after <= sources + 2 * MOST_CLASSES


def test_a_class_that_is_used_again_and_again_is_looked_at_once():
    """Generated code is kept as long as there are few classes, whatever else is parsed in between."""
    structurer, value = Structurer(), {"number": 7, "lines": [{"name": "pen", "amount": 1.5}]}
    structurer.structure(value, AttrsInvoice)
    converter = structurer._converter
    for number in range(MOST_CLASSES - 1):
        structurer.structure({"number": 1, "inner": {"amount": 1.5}}, made_of_attrs(str(number)))
        assert structurer.structure(value, AttrsInvoice) == AttrsInvoice(7, [Line("pen", 1.5)])
    assert structurer._converter is converter
    assert repr(structurer) == f"<Structurer of {MOST_CLASSES} classes>"
    structurer.structure({"number": 1, "inner": {"amount": 1.5}}, made_of_attrs("last"))
    assert structurer._converter is not converter
    assert structurer.structure(value, AttrsInvoice) == AttrsInvoice(7, [Line("pen", 1.5)])
