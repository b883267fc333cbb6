"""JSON values that fit a schema, schemas that no value is found for, and the arguments of tool calls."""

from __future__ import annotations

import enum
import json
import time
from random import Random
from typing import Annotated, Any, Literal, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing.exceptions import Unresolvable

from together_async.testing.text.formats import FORMATS
from together_async.testing.text.schema import instance_of, tool_arguments

SEEDS = range(25)


def check(schema: dict[str, Any] | bool, seeds: range = SEEDS) -> list[Any]:
    """One instance for each seed, each of which jsonschema accepts, formats and all."""
    found = [instance_of(schema, Random(seed)) for seed in seeds]
    for value in found:
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)
    return found


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@attrs.frozen
class Node:
    name: str
    children: list[Node] = attrs.Factory(list)
    parent: Node | None = None


@attrs.frozen
class Invoice:
    number: Annotated[int, msgspec.Meta(ge=1000, lt=2000, multiple_of=5)]
    lines: Annotated[list[tuple[str, float]], msgspec.Meta(min_length=2)]
    colour: Colour
    extra: dict[str, int]
    tags: set[Literal["a", "b", "c"]]
    data: bytes
    note: Annotated[str, msgspec.Meta(pattern="^[a-z]+$", min_length=12)] | None = None


class Shipment(TypedDict, total=False):
    weight: Annotated[float, msgspec.Meta(gt=0, le=0.004)]
    invoice: Invoice


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=1, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    friends: list[Cat | Dog] = []


class Owner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    id: pydantic.UUID4
    mail: str = pydantic.Field(json_schema_extra={"format": "email"})
    pet: Cat | Dog = pydantic.Field(discriminator="kind")
    born: pydantic.AwareDatetime
    address: pydantic.IPvAnyAddress | None
    site: pydantic.HttpUrl
    pair: tuple[int, str]
    scores: dict[Literal["x", "y"], pydantic.PositiveInt]
    code: str = pydantic.Field(pattern=r"^[A-Z]{2}\d{3}$", max_length=5)
    boss: Owner | None = None


@pytest.mark.parametrize("kind", [Node, Invoice, Shipment, list[Invoice], dict[str, Node]], ids=str)
def test_schemas_of_msgspec(kind):
    """The value fits msgspec's schema of a class, and msgspec decodes it into that class."""
    for value in check(msgspec.json.schema(kind)):
        msgspec.json.decode(json.dumps(value), type=kind)


@pytest.mark.parametrize("kind", [Cat, Dog, Owner])
def test_schemas_of_pydantic(kind):
    """The value fits pydantic's schema of a model, and pydantic makes the model from it."""
    for value in check(kind.model_json_schema()):
        kind.model_validate_json(json.dumps(value))


SCHEMAS: list[dict[str, Any]] = [
    {"type": ["integer", "null", "string"]},
    {"type": "integer", "minimum": 3, "maximum": 3},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "integer", "multipleOf": 0.5, "minimum": 0.2},
    {"type": "integer", "maximum": -1000},
    {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
    {"type": "number", "multipleOf": 0.1},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-9},
    {"type": "number", "minimum": 1.5, "maximum": 1.5},
    {"minimum": 1e300},
    {"type": "string", "minLength": 40, "maxLength": 45},
    {"type": "string", "maxLength": 1},
    {"type": "string", "maxLength": 0},
    {"type": "string", "minLength": 3000},
    {"type": "string", "pattern": "^[0-9a-f]+$", "minLength": 40, "maxLength": 64},
    {"type": "string", "pattern": "^a"},
    *({"type": "string", "format": name} for name in FORMATS),
    {"type": "string", "format": "unheard-of"},
    {"enum": ["a", 1, None, {"b": [1]}]},
    {"enum": ["a", 1, None], "type": ["integer", "null"]},
    {"const": {"a": [1, {"b": None}]}},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
    {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 4},
    {"type": "array", "items": False},
    {"type": "array", "maxItems": 0},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "string"}], "items": {"type": "null"}, "minItems": 4},
    {"prefixItems": [{"type": "null"}], "items": False, "minItems": 1},
    {"type": "object"},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": False}, "additionalProperties": False},
    {"required": ["x", "y"], "properties": {"x": {"const": 1}}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 5},
    {
        "type": "object",
        "properties": {name: {"type": "null"} for name in "abcd"},
        "minProperties": 3,
        "maxProperties": 3,
    },
    {"type": "object", "minProperties": 2, "propertyNames": {"pattern": "^[a-z]{3}$"}},
    {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 1},
    {"anyOf": [{"type": "string"}, {"type": "integer"}, False]},
    {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object", "properties": {"a": {"const": 1}}},
    {"anyOf": [{"type": "string"}, {"minimum": 5}], "type": "number"},
    {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    {"oneOf": [{"minimum": 5}, {"maximum": 7}], "type": "integer"},
    {"not": {"maximum": 50}, "type": "integer"},
    {"allOf": [{"minimum": 3}, {"maximum": 4}], "type": "integer"},
    {"allOf": [{"type": "number"}, {"type": ["integer", "string"]}]},
    {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}, {"minimum": 3}]},
    {
        "allOf": [
            {"properties": {"a": {"minimum": 5}}, "required": ["a"]},
            {"properties": {"a": {"type": "integer", "maximum": 6}}, "required": ["b"]},
        ],
        "type": "object",
    },
    {"allOf": [{"$ref": "#/$defs/a~1b%20c"}], "$defs": {"a/b c": {"type": "null"}}},
    {"items": {"$ref": "#/prefixItems/0"}, "prefixItems": [{"type": "null"}], "minItems": 3},
    {"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "integer"}}},
    {"type": "array", "items": {"$ref": "#"}},
    {"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    {
        "$defs": {
            "Expr": {"anyOf": [{"$ref": "#/$defs/Add"}, {"$ref": "#/$defs/Call"}, {"$ref": "#/$defs/Number"}]},
            "Add": {"properties": {side: {"$ref": "#/$defs/Expr"} for side in "lr"}, "required": ["l", "r"]},
            "Call": {"properties": {"of": {"items": {"$ref": "#/$defs/Expr"}, "minItems": 1}}, "required": ["of"]},
            "Number": {"properties": {"n": {"type": "number"}}, "required": ["n"]},
        },
        "$ref": "#/$defs/Expr",
    },
    {"type": "object", "properties": {"$ref": {"type": "null"}}, "required": ["$ref"]},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_instances(schema):
    """Keyword by keyword, jsonschema accepts the values."""
    check(schema)


SHALLOW = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "number", "object", "array", "boolean", "null"]),
        "minimum": st.integers(-5, 5) | st.floats(-5, 5),
        "exclusiveMaximum": st.integers(-5, 5),
        "multipleOf": st.sampled_from([1, 2, 3, 0.25]),
        "minLength": st.integers(0, 4),
        "maxLength": st.integers(0, 4),
        "enum": st.lists(st.none() | st.booleans() | st.integers(-2, 2) | st.just("a"), min_size=1, unique_by=repr),
        "minItems": st.integers(0, 3),
        "uniqueItems": st.booleans(),
        "required": st.lists(st.sampled_from("abc"), unique=True),
        "minProperties": st.integers(0, 3),
        "$ref": st.sampled_from(["#", "#/properties/a", "#/anyOf/0"]),
    },
)
ANY_SCHEMA = st.recursive(
    SHALLOW | st.booleans(),
    lambda parts: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "integer"]),
            "properties": st.dictionaries(st.sampled_from("abcd"), parts, max_size=3),
            "required": st.lists(st.sampled_from("abc"), unique=True),
            "additionalProperties": parts,
            "items": parts,
            "prefixItems": st.lists(parts, min_size=1, max_size=2),
            "minItems": st.integers(0, 3),
            **{word: st.lists(parts, min_size=1, max_size=3) for word in ("anyOf", "oneOf", "allOf")},
            "not": SHALLOW,
        },
    ),
    max_leaves=6,
)


def accepts(schema, value):
    """Whether jsonschema accepts a value; True where it trips over a reference to nothing or to itself."""
    try:
        return Draft202012Validator(schema).is_valid(value)
    except (RecursionError, Unresolvable):
        return True
    except BaseException as error:
        # A recursion that ends inside of its Rust code is a panic there, which is not an Exception.
        if type(error).__name__ == "PanicException":
            return True
        raise


@settings(max_examples=150)
@given(ANY_SCHEMA, st.integers(0, 99))
def test_any_schema(schema, seed):
    """Any schema soon gives a value that jsonschema accepts, or a `ValueError` that says where.

    Where jsonschema itself trips, over a reference to nothing or to itself, any value is as good as another.
    """
    before = time.process_time()
    try:
        made = instance_of(schema, Random(seed))
    except ValueError as error:
        assert str(error).startswith("$")  # noqa: PT017 - either is right
    else:
        assert accepts(schema, made)
    assert time.process_time() - before < 5


@pytest.mark.parametrize("schema", [{}, True])
def test_no_schema(schema):
    """Without a schema there is an object with a sentence."""
    (answer,) = instance_of(schema, Random(1)).items()
    assert answer[0] == "answer"
    assert answer[1].endswith(".")


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        (False, r"^\$: "),
        ({"properties": {"x": False}, "required": ["x"]}, r"^\$\.properties\.x: "),
        ({"items": {"enum": []}, "minItems": 1}, r"^\$\.items: no value is left of enum"),
        ({"prefixItems": [{"type": "integer", "minimum": 2, "maximum": 1}]}, r"^\$\.prefixItems\[0\]: no whole number"),
        ({"type": "number", "minimum": 2, "maximum": 1}, r"^\$: no number is left"),
        ({"type": "integer", "multipleOf": 0}, r"^\$: got multipleOf 0, expected a number above 0"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, r"^\$: got minLength 3, expected at most 2"),
        ({"type": "string", "pattern": "("}, r"^\$: pattern '\(': not a regular expression"),
        ({"type": "string", "pattern": "^a{3}$", "maxLength": 2}, r"^\$: pattern .*: none of"),
        ({"type": "string", "const": 5}, r"^\$: found no value that satisfies all of type, const"),
        ({"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2}, r"^\$: found no value"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, r"^\$: no type is left"),
        ({"type": "thing"}, r"^\$: got type 'thing', expected one of \['array'"),
        ({"anyOf": []}, r"^\$: nothing to choose from"),
        ({"items": {"$ref": "#/$defs/no"}, "minItems": 1}, r"^\$\.items: \$ref '#/\$defs/no' points to nothing"),
        ({"$ref": "https://example.com/a.json"}, r"^\$: \$ref .* points to nothing in this schema"),
        ({"$ref": "#/$defs", "$defs": 5}, r"^\$: \$ref '#/\$defs' points to a int, expected a schema"),
        ({"$ref": "#"}, r"^\$: its references never end"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, r"^\$: not a JSON Schema .*RecursionError"),  # by its 9.4.1
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, r"^\$(\.properties\.a){4,}: its required parts"),
        ({"items": {"$ref": "#"}, "minItems": 1, "type": "array"}, r"^\$(\.items){4,}: its required parts never end"),
        ({"type": "array", "minItems": 100_000_000}, r"^\$.*: more than 5000 values"),
        ({"type": 5}, r"^\$: not a JSON Schema that can be followed \(TypeError"),
        ({"properties": 5}, r"^\$: not a JSON Schema that can be followed"),
    ],
    ids=str,
)
def test_no_instance(schema, where):
    """A schema without a value, or without one that ends, is an error that says where in the schema."""
    before = time.process_time()
    with pytest.raises(ValueError, match=where):
        instance_of(schema, Random(1))
    assert time.process_time() - before < 2


def test_a_schema_nested_too_deeply():
    """A thousand levels are an error, no crash."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(1000):
        schema = {"type": "array", "items": schema, "minItems": 1}
    with pytest.raises(ValueError, match="RecursionError"):
        instance_of(schema, Random(1))


def test_choices_that_never_work_end_soon():
    """A search among nested choices, none of which fits, ends after a number of values that depth does not raise."""
    schema: dict[str, Any] = {"type": "string", "const": 1}
    for _ in range(12):
        schema = {"anyOf": [{"properties": {"a": schema}, "required": ["a"]}] * 2}
    before = time.process_time()
    with pytest.raises(ValueError, match=r"^\$\.properties"):
        instance_of(schema, Random(1))
    assert time.process_time() - before < 3


def test_examples_are_the_last_resort():
    """`examples` and `default` are taken where nothing made up fits, and only if they do."""
    unusual = {"type": "string", "pattern": r"^(?!.)$|^(?=x)y|\bq\Bzz$", "minLength": 3}
    assert instance_of({**unusual, "examples": ["no", "qzz"]}, Random(1)) == "qzz"
    assert instance_of({**unusual, "default": "qzz"}, Random(1)) == "qzz"
    assert instance_of({"type": "null", "default": 5}, Random(1)) is None


def test_instances_are_their_own():
    """Changing a value made from `const` or `enum` does not change the schema."""
    schema = {"enum": [{"a": []}]}
    instance_of(schema, Random(1))["a"].append(1)
    assert schema == {"enum": [{"a": []}]}


def test_instances_vary():
    """Optional properties come and go, branches and values change."""
    schema = Owner.model_json_schema()
    found = check(schema)
    assert len({json.dumps(value) for value in found}) == len(found)
    assert {value.get("boss") is None for value in found} == {True, False}
    assert {value["pet"]["kind"] for value in found} == {"cat", "dog"}


def test_properties_keep_their_order():
    """Models write an object's properties in the schema's order."""
    schema = {"properties": {name: {"type": "null"} for name in "qwertz"}, "required": list("tzrewq")}
    assert list(instance_of(schema, Random(1))) == list("qwertz")


# --- Tool calls -------------------------------------------------------------------------------------------------------


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "días": {"type": "integer"},
    },
    "required": ["city", "días"],
}


@pytest.mark.parametrize("seed", SEEDS)
def test_tool_arguments(seed):
    """The arguments are JSON text that the parameters allow, written as models do."""
    text = tool_arguments(WEATHER, Random(seed))
    Draft202012Validator(WEATHER).validate(json.loads(text))
    assert text.startswith('{"city": "')
    assert '"días": ' in text


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_tool_without_parameters(parameters):
    """No parameters, no arguments."""
    assert tool_arguments(parameters, Random(1)) == "{}"


def test_parameters_without_a_type():
    """Parameters without a type describe an object, `$ref` included; any other type is refused."""
    assert tool_arguments({"$ref": "#/$defs/A", "$defs": {"A": {"required": ["a"]}}}, Random(1)).startswith('{"a": ')
    with pytest.raises(ValueError, match=r"got parameters of type 'null', expected 'object'"):
        tool_arguments({"type": "null"}, Random(1))
