"""Keywords: the types a schema is about, schemas merged into one, references, and heights."""

from __future__ import annotations

import math
from typing import Any

import pytest

from together_async.testing.text.keywords import SchemaDocument, all_differ, items_of, merged, same, types_of


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "null"}, ["null"]),
        ({"type": ["null", "string"]}, ["null", "string"]),
        ({"minItems": 1}, ["array"]),
        ({"title": "T", "required": ["a"]}, ["object"]),
        ({"multipleOf": 2}, ["number"]),
        ({}, ["string"]),
    ],
)
def test_types(schema, types):
    """The types that are named; else the type that the first telling keyword is about; else text."""
    assert types_of(schema) == types


@pytest.mark.parametrize(
    ("schema", "other", "both"),
    [
        ({"minimum": 1}, {"minimum": 2}, {"minimum": 2}),
        ({"maxLength": 1}, {"maxLength": 2, "minLength": 0}, {"maxLength": 1, "minLength": 0}),
        ({"type": "number"}, {"type": ["integer", "null"]}, {"type": ["integer"]}),
        ({"enum": [1, 2, True]}, {"enum": [2.0, True]}, {"enum": [2, True]}),
        ({"enum": [1, "a", None]}, {"type": ["string", "null"]}, {"enum": ["a", None], "type": ["string", "null"]}),
        ({"required": ["a"]}, {"required": ["b"]}, {"required": ["a", "b"]}),
        ({"items": {"minimum": 1}}, {"items": True}, {"items": {"allOf": [{"minimum": 1}, True]}}),
        ({"properties": {"a": 1}}, {"properties": {"b": 2}}, {"properties": {"a": 1, "b": 2}}),
        ({"uniqueItems": False}, {"uniqueItems": True}, {"uniqueItems": True}),
    ],
)
def test_merged(schema, other, both):
    """The stricter limit, the common values, or `allOf` of the two."""
    assert merged(schema, other) == both


@pytest.mark.parametrize(
    ("value", "other", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        ([1, {"a": 0}], [1.0, {"a": 0}], True),
        ([0], [False], False),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
    ],
)
def test_same(value, other, equal):
    """As JSON Schema compares: numbers by value, booleans apart from numbers, at every depth."""
    assert same(value, other) is same(other, value) is equal
    assert all_differ([value, other]) is not equal


def test_items():
    """Of draft 2020-12 and of those before it."""
    assert items_of({"prefixItems": [True], "items": False}) == ([True], False)
    assert items_of({"items": [True], "additionalItems": False}) == ([True], False)
    assert items_of({}) == ((), True)


def test_resolve():
    """By JSON pointer, with its escapes; a reference out of the schema, or to something else, is an error."""
    document = SchemaDocument({"$defs": {"a/b c": {"type": "null"}, "list": [True]}, "title": "T"})
    assert document.resolve("#/$defs/a~1b%20c") == {"type": "null"}
    assert document.resolve("#/$defs/list/0") is True
    for reference in ("#/$defs/none", "other.json#/a", "#/$defs/list/x", "#/title"):
        with pytest.raises(ValueError, match=r"^\$\.x: \$ref .* points to "):
            document.resolve(reference, "$.x")


@pytest.mark.parametrize(
    ("schema", "height"),
    [
        (True, 0),
        (False, math.inf),
        ({"enum": [[[1]]]}, 0),
        ({"required": ["a"], "properties": {"a": {"minItems": 1}}}, 2),
        ({"anyOf": [False, {"minItems": 1}]}, 1),
        ({"anyOf": []}, math.inf),
        ({"required": ["a"], "properties": {"a": {"$ref": "#"}}}, math.inf),
        ({"properties": {"a": {"$ref": "#"}}}, 0),
    ],
    ids=str,
)
def test_heights(schema: Any, height: float):
    """The number of values that must be inside one another; infinite without an end, or without any value."""
    assert SchemaDocument(schema).height(schema) == height
