"""Validation: the same verdicts as jsonschema."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from together_async.testing.text.keywords import SchemaDocument
from together_async.testing.text.validation import fits

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 1.0, 2, 2.5, -3, 10**30, "", "a", "abc", [], [1], [1, 1.0], [1, True], [None, "a"]),
    *({}, {"a": 1}, {"a": "x", "b": None}, {"abc": 1}),
]
SCHEMAS: list[Any] = [
    *(True, False, {}, {"type": "integer"}, {"type": ["number", "null"]}, {"const": 1}, {"enum": [1, "a", [1, 1]]}),
    *({"minimum": 1}, {"maximum": 2}, {"exclusiveMinimum": 1}, {"exclusiveMaximum": 2}, {"multipleOf": 2}),
    *({"minLength": 1}, {"maxLength": 1}, {"pattern": "b"}, {"minItems": 1}, {"maxItems": 1}, {"uniqueItems": True}),
    *({"uniqueItems": False}, {"required": ["a"]}, {"minProperties": 1}, {"maxProperties": 1}),
    *({"items": {"type": "integer"}}, {"prefixItems": [{"const": 1}], "items": False}),
    *({"properties": {"a": {"type": "integer"}}}, {"properties": {"a": True}, "additionalProperties": False}),
    *({"additionalProperties": {"type": "integer"}}, {"propertyNames": {"maxLength": 1}}),
    *({"allOf": [{"minimum": 1}, {"maximum": 2}]}, {"anyOf": [{"type": "null"}, {"minLength": 3}]}),
    *({"oneOf": [{"type": "number"}, {"type": "integer"}]}, {"not": {"type": "object"}}),
    *({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, {"items": {"$ref": "#"}, "type": ["array", "null"]}),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_what_fits(schema):
    """Keyword by keyword, for values of every type."""
    document, validator = SchemaDocument(schema), Draft202012Validator(schema)
    assert [fits(value, schema, document) for value in VALUES] == [validator.is_valid(value) for value in VALUES]


def test_limits_of_draft_4():
    """There, and in OpenAPI 3.0, `exclusiveMinimum` is a bool next to `minimum`; it is ignored."""
    schema = {"minimum": 1, "exclusiveMinimum": True}
    assert [fits(value, schema, SchemaDocument(schema)) for value in (0, 2)] == [False, True]


def test_a_step_is_met_as_floats_see_it():
    """0.3 is not a multiple of 0.1 to validators, which divide floats."""
    schema = {"multipleOf": 0.1}
    assert [fits(value, schema, SchemaDocument(schema)) for value in (0.3, 0.5)] == [False, True]
