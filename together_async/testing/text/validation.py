"""Whether a JSON value fits a JSON Schema, as far as the schema's keywords are known here."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from together_async.testing.text.keywords import IS_TYPE, Schema, SchemaDocument, all_differ, items_of, same, types_of
from together_async.testing.text.patterns import compiled


def fits(value: Any, schema: Schema, document: SchemaDocument) -> bool:
    """Whether a schema allows a value; `document` is the whole schema, to resolve references in."""
    if isinstance(schema, bool):
        return schema
    return all(check(value, schema, document) for keyword, check in _CHECKS.items() if keyword in schema) and all(
        check(value, schema[keyword])
        for keyword, (types, check) in _LIMITS.items()
        if keyword in schema and isinstance(value, types) and not isinstance(value, bool)
    )


def _members_fit(value: Any, schema: Mapping[str, Any], document: SchemaDocument) -> bool:
    """Whether the members of an object fit; any other value does."""
    if not isinstance(value, Mapping):
        return True
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if "patternProperties" in schema:  # not followed, so the schema of other names isn't known
        others = True
    names = schema.get("propertyNames", True)
    return all(
        fits(part, known.get(name, others), document) and fits(name, names, document) for name, part in value.items()
    )


def _items_fit(value: Any, schema: Mapping[str, Any], document: SchemaDocument) -> bool:
    """Whether the items of an array fit; any other value does."""
    if not isinstance(value, list):
        return True
    first, others = items_of(schema)
    schemas = itertools.chain(first, itertools.repeat(others))
    return all(fits(item, part, document) for item, part in zip(value, schemas, strict=False))


def _is_multiple(value: float, step: float) -> bool:
    """Whether a number is a multiple, by exact arithmetic and by floats, as validators see it: 0.3 isn't one of 0.1."""
    exact = (Fraction(str(value)) / Fraction(str(step))).denominator == 1
    return exact and (isinstance(step, int) or float(value / step).is_integer())


_CHECKS: dict[str, Callable[[Any, Mapping[str, Any], SchemaDocument], bool]] = {
    "type": lambda value, schema, _: any(IS_TYPE[kind](value) for kind in types_of(schema)),
    "const": lambda value, schema, _: same(value, schema["const"]),
    "enum": lambda value, schema, _: any(same(value, candidate) for candidate in schema["enum"]),
    "$ref": lambda value, schema, document: fits(value, document.resolve(schema["$ref"]), document),
    "allOf": lambda value, schema, document: all(fits(value, part, document) for part in schema["allOf"]),
    "anyOf": lambda value, schema, document: any(fits(value, part, document) for part in schema["anyOf"]),
    "oneOf": lambda value, schema, document: sum(fits(value, part, document) for part in schema["oneOf"]) == 1,
    "not": lambda value, schema, document: not fits(value, schema["not"], document),
    "properties": _members_fit,
    "additionalProperties": _members_fit,
    "propertyNames": _members_fit,
    "items": _items_fit,
    "prefixItems": _items_fit,
}
_LIMITS: dict[str, tuple[tuple[type, ...], Callable[[Any, Any], bool]]] = {
    "minimum": ((int, float), operator.ge),
    "maximum": ((int, float), operator.le),
    # In draft 4, which OpenAPI 3.0 still uses, these two are booleans.
    "exclusiveMinimum": ((int, float), lambda value, limit: isinstance(limit, bool) or value > limit),
    "exclusiveMaximum": ((int, float), lambda value, limit: isinstance(limit, bool) or value < limit),
    "multipleOf": ((int, float), _is_multiple),
    "minLength": ((str,), lambda value, limit: len(value) >= limit),
    "maxLength": ((str,), lambda value, limit: len(value) <= limit),
    "pattern": ((str,), lambda value, pattern: compiled(pattern).search(value) is not None),
    "minItems": ((list,), lambda value, limit: len(value) >= limit),
    "maxItems": ((list,), lambda value, limit: len(value) <= limit),
    "uniqueItems": ((list,), lambda value, unique: not unique or all_differ(value)),
    "required": ((Mapping,), lambda value, names: all(name in value for name in names)),
    "minProperties": ((Mapping,), lambda value, limit: len(value) >= limit),
    "maxProperties": ((Mapping,), lambda value, limit: len(value) <= limit),
}
"""Keywords that limit values of certain Python types, and say nothing of others."""
