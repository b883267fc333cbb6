"""The keywords of JSON Schema: the types they speak of, two schemas merged into one, references resolved.

Values are JSON values as Python has them; a schema is a mapping or a bool (draft 2020-12).
"""

from __future__ import annotations

import itertools
import math
import operator
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

Schema = Mapping[str, Any] | bool

# -------------------------------------------------------------------------------------------------------------- values


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def same(value: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 equals 1.0, but not true."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(same(part, other[name]) for name, part in value.items())
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same, value, other))
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def all_differ(values: list[Any]) -> bool:
    """Whether no two JSON values are equal."""
    return not any(same(value, other) for value, other in itertools.combinations(values, 2))


# --------------------------------------------------------------------------------------------------------------- types

IS_TYPE: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: is_number(value) and (isinstance(value, int) or value.is_integer()),
    "number": is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
"""Whether a JSON value is of a type, for each type."""

_TYPE_OF_KEYWORD = {
    **dict.fromkeys(("properties", "required", "additionalProperties", "propertyNames", "minProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("pattern", "format", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}
"""The type that a schema without `type` is about. By the letter, such a schema allows all other types too."""


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """Returns the types a value may have: those the schema names, else the one its keywords are about, else string."""
    types = schema.get("type")
    if types is None:
        return [next((_TYPE_OF_KEYWORD[keyword] for keyword in schema if keyword in _TYPE_OF_KEYWORD), "string")]
    return [types] if isinstance(types, str) else list(types)


def items_of(schema: Mapping[str, Any]) -> tuple[Sequence[Schema], Schema]:
    """Returns the schemas of the first items, in order, and the schema of all further items."""
    items = schema.get("items", True)
    if isinstance(items, list):  # as before draft 2020-12
        return items, schema.get("additionalItems", True)
    return schema.get("prefixItems", ()), items


# -------------------------------------------------------------------------------------------------------------- merged


def _both(schema: Any, other: Any) -> Any:
    return {"allOf": [schema, other]}


def _both_each(parts: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {**parts, **{name: _both(parts[name], part) if name in parts else part for name, part in others.items()}}


def _common(values: list[Any], others: list[Any]) -> list[Any]:
    return [value for value in values if any(same(value, other) for other in others)]


def _common_types(types: Any, others: Any) -> list[str]:
    """Returns the types in both; an integer is a number, too."""
    left, right = set(types_of({"type": types})), set(types_of({"type": others}))
    return sorted((left & right) | ({"integer"} if "integer" in left | right and "number" in left ^ right else set()))


_MERGE: dict[str, Callable[[Any, Any], Any]] = {
    "type": _common_types,
    "enum": _common,
    "required": operator.add,
    "properties": _both_each,
    **dict.fromkeys(("items", "additionalProperties", "propertyNames"), _both),
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "uniqueItems": operator.or_,
}
"""How a keyword of two schemas that must both hold becomes one. Of any other keyword the later value is taken; the
check of the finished value finds out whether that was enough."""


def merged(schema: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Returns the keywords of two schemas that must both hold, as one mapping."""
    result = {**schema, **other}
    for keyword in schema.keys() & other.keys() & _MERGE.keys():
        if schema[keyword] != other[keyword]:
            result[keyword] = _MERGE[keyword](schema[keyword], other[keyword])
    if "enum" in result and "type" in result:
        types = types_of(result)
        result["enum"] = [value for value in result["enum"] if any(IS_TYPE[kind](value) for kind in types)]
    return result


# ---------------------------------------------------------------------------------------------------------- references


class SchemaDocument:
    """A whole schema: where its references lead, and how deep a value must be at least.

    A height is the number of values inside one another that a schema requires: 0 for a plain value, infinite where a
    value would never end.
    """

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.heights: dict[str, float] = dict.fromkeys(_references(root), math.inf)
        self._measure()

    def resolve(self, reference: str, path: str = "$") -> Schema:
        """Returns the schema a reference points to, by RFC 6901.

        Raises:
            ValueError: It points out of this schema, or to something that is not there.
        """
        place: Any = self.root
        try:
            root, *parts = urllib.parse.unquote(reference).split("/")
            if root != "#":
                raise KeyError(root)
            for part in parts:
                name = part.replace("~1", "/").replace("~0", "~")
                place = place[int(name)] if isinstance(place, list) else place[name]
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: $ref {reference!r} points to nothing in this schema") from error
        if not isinstance(place, (Mapping, bool)):
            raise ValueError(f"{path}: $ref {reference!r} points to a {type(place).__name__}, expected a schema")
        return cast("Schema", place)

    def _measure(self) -> None:
        """Finds the height behind every reference: infinite at first, then lowered until nothing changes."""
        lower = True
        while lower:
            lower = False
            for reference, height in self.heights.items():
                try:
                    found = self.height(self.resolve(reference))
                except ValueError:
                    continue
                if found < height:
                    self.heights[reference] = found
                    lower = True

    def height(self, schema: Schema) -> float:
        """Returns the least height of a schema's values."""
        if isinstance(schema, bool):
            return 0 if schema else math.inf
        if "const" in schema or "enum" in schema:
            return 0
        heights = [min((self.height_as(kind, schema) for kind in types_of(schema)), default=0)]
        heights.extend(map(self.height, schema.get("allOf", ())))
        if "$ref" in schema:
            heights.append(1 + self.heights.get(schema["$ref"], math.inf))
        heights.extend(
            min(map(self.height, schema[choice]), default=math.inf) for choice in ("anyOf", "oneOf") if choice in schema
        )
        return max(heights)

    def height_as(self, kind: str, schema: Mapping[str, Any]) -> float:
        """Returns the least height of a schema's values of one type."""
        if kind == "object":
            known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
            parts = [known.get(name, others) for name in schema.get("required", ())]
        elif kind == "array":
            first, others = items_of(schema)
            parts = [*first, others][: schema.get("minItems", 0)]
        else:
            return 0
        return max((1 + self.height(part) for part in parts), default=0)


def _references(place: Any) -> Iterator[str]:
    if isinstance(place, Mapping):
        if isinstance(place.get("$ref"), str):
            yield place["$ref"]
        place = list(place.values())
    if isinstance(place, list):
        for part in place:
            yield from _references(part)
