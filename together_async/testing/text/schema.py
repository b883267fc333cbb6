"""JSON values that a JSON Schema allows, and the arguments of tool calls."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from together_async.testing.text.formats import FORMATS
from together_async.testing.text.keywords import (
    Schema,
    SchemaDocument,
    is_number,
    items_of,
    merged,
    same,
    types_of,
)
from together_async.testing.text.patterns import matching
from together_async.testing.text.prose import identifier, phrase, plausible_length, plausible_text
from together_async.testing.text.validation import fits

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T")

_DEEP = 8
"""From this depth on, optional parts are left out, and choices fall on the branch that ends soonest."""
_TRIES = 20
_MOST_VALUES = 5_000


class _TooManyValuesError(ValueError):
    """More than `_MOST_VALUES` values were made; there is no end in sight."""


def instance_of(schema: Schema, rng: Random) -> Any:
    """Returns a JSON value that a JSON Schema allows.

    Follows `type`, `enum`, `const`, `$ref` inside the schema, `allOf`, `anyOf`, `oneOf`, `not` and the limits of
    numbers, text, arrays and objects; all other keywords are ignored. `examples` and `default` are used when no
    made-up value fits.

    Args:
        schema: A schema of draft 2020-12, as msgspec and pydantic write it. An empty one gives an object with an
            answer.
        rng: The source of randomness.

    Raises:
        ValueError: No value was found: there is none, none that ends, or luck failed. The message says where.
        ModuleNotFoundError: The schema has a `pattern`, and `rstr` is not installed; the message says how to install
            it.
    """
    if schema is True or schema == {}:
        return {"answer": plausible_text(rng, plausible_length(rng))}
    try:
        return _InstanceMaker(schema, rng).value(schema, "$", 0)
    except (RecursionError, OverflowError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"$: not a JSON Schema that can be followed ({type(error).__name__}: {error})") from error


def tool_arguments(parameters: Mapping[str, Any] | None, rng: Random) -> str:
    """Returns the arguments of a tool call: the JSON text of an object that the tool's parameters allow.

    Args:
        parameters: The tool's JSON Schema; None or an empty one means that it has no parameters.
        rng: The source of randomness.

    Raises:
        ValueError: As `instance_of`; also when the parameters do not describe an object.
        ModuleNotFoundError: As `instance_of`.
    """
    if not parameters:
        return "{}"
    arguments = instance_of({"type": "object", **parameters}, rng)
    if not isinstance(arguments, Mapping):
        raise ValueError(f"$: got parameters of type {parameters.get('type')!r}, expected 'object'")
    return json.dumps(arguments, ensure_ascii=False, allow_nan=False)


class _InstanceMaker:
    """Makes values for one schema.

    Each value is made from the schema's keywords flattened into one mapping, and then checked against the schema
    itself. So the makers may be simple: a value that doesn't fit is made again.

    In all methods, `path` is the place in the schema, and `depth` the number of values and references around it.
    """

    def __init__(self, root: Schema, rng: Random) -> None:
        self.rng = rng
        self._document = SchemaDocument(root)
        self._values_made = 0

    def value(self, schema: Schema, path: str, depth: int) -> Any:
        """Returns a value that fits a schema."""
        problem: ValueError | None = None
        for _ in range(_TRIES):
            flat, below, chose = self._flat(schema, path, depth)
            try:
                made = self._made(flat, path, below)
            except _TooManyValuesError as error:
                problem = problem or error
                break
            except ValueError as error:
                problem = error
                if not chose:
                    break
                continue
            if fits(made, schema, self._document):
                return made
        offered = (*schema.get("examples", ()), schema.get("default")) if isinstance(schema, Mapping) else ()
        for example in offered:
            if example is not None and fits(example, schema, self._document):
                return copy.deepcopy(example)
        raise problem or ValueError(f"{path}: found no value that satisfies all of {_names(schema)}")

    def _made(self, flat: dict[str, Any], path: str, depth: int) -> Any:
        self._values_made += 1
        if self._values_made > _MOST_VALUES:
            raise _TooManyValuesError(f"{path}: more than {_MOST_VALUES} values")
        if "const" in flat:
            return copy.deepcopy(flat["const"])
        if "enum" in flat:
            return copy.deepcopy(_chosen(flat["enum"], self.rng, f"{path}: no value is left of enum"))
        height = self._document.height(flat)
        if depth >= _DEEP and height == math.inf:
            raise ValueError(f"{path}: its required parts never end")
        types = types_of(flat)
        if depth >= _DEEP:
            types = [min(types, key=lambda kind: self._document.height_as(kind, flat))] if types else types
        kind = _chosen(types, self.rng, f"{path}: no type is left")
        if kind not in _MAKERS:
            raise ValueError(f"{path}: got type {kind!r}, expected one of {sorted(_MAKERS)}")
        return _MAKERS[kind](self, flat, path, depth)

    # --- one flat mapping of keywords

    def _flat(self, schema: Schema, path: str, depth: int) -> tuple[dict[str, Any], int, bool]:
        """Follows references and picks branches until plain keywords remain.

        Returns:
            The keywords, the depth, and whether a branch was picked.
        """
        flat: dict[str, Any] = {}
        waiting: list[Schema] = [schema]
        chose = False
        while waiting:
            part = waiting.pop(0)
            if isinstance(part, bool):
                flat = flat if part else {**flat, "enum": []}
                continue
            keywords = dict(part)
            waiting.extend(keywords.pop("allOf", ()))
            if "$ref" in keywords:
                depth += 1
                if depth > 100 + len(self._document.heights):
                    raise ValueError(f"{path}: its references never end")
                waiting.append(self._document.resolve(keywords.pop("$ref"), path))
            for choice in ("anyOf", "oneOf"):
                if choice in keywords:
                    chose = True
                    waiting.append(self._branch(keywords.pop(choice), path, depth))
            flat = merged(flat, keywords)
        return flat, depth, chose

    def _branch(self, branches: Sequence[Schema], path: str, depth: int) -> Schema:
        ending = [branch for branch in branches if self._ends(branch)]
        if depth >= _DEEP and ending:
            return min(ending, key=self._document.height)
        return _chosen(ending or branches, self.rng, f"{path}: nothing to choose from")

    def _ends(self, schema: Schema) -> bool:
        return self._document.height(schema) < math.inf

    # --- values by type

    def object(self, flat: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        """Makes an object: all required members, most of the optional ones, a few entries of a mapping."""
        known: Mapping[str, Schema] = flat.get("properties", {})
        others: Schema = flat.get("additionalProperties", True)
        required = list(dict.fromkeys(flat.get("required", ())))
        fewest, most = flat.get("minProperties", 0), flat.get("maxProperties", math.inf)
        optional = [name for name in known if name not in required and self._ends(known[name])]
        self.rng.shuffle(optional)
        wanted = sum(self.rng.random() < _likelihood(depth) for _ in optional)
        room = max(min(most - len(required), max(wanted, fewest - len(required))), 0)
        taken = {*required, *itertools.islice(optional, int(room))}
        made = {
            name: self.value(known.get(name, others), f"{path}.properties.{name}", depth + 1)
            for name in (*(name for name in known if name in taken), *(name for name in required if name not in known))
        }
        if others is not False:
            typed = isinstance(others, Mapping) and bool(others) and not known and self._ends(others)
            entries = self.rng.randint(1, 3) if typed and depth < _DEEP else 0
            self._add_entries(made, flat, path, depth, min(most, max(fewest, len(made) + entries)))
        return made

    def _add_entries(self, made: dict[str, Any], flat: dict[str, Any], path: str, depth: int, until: float) -> None:
        """Adds entries with names that the schema does not know, until there are `until` of all."""
        names = flat.get("propertyNames", True)
        for _ in range(_TRIES + 4 * int(min(until, _MOST_VALUES))):
            if len(made) >= until:
                break
            name = identifier(self.rng) if names is True else self.value(names, f"{path}.propertyNames", depth)
            if isinstance(name, str) and name not in made and name not in flat.get("properties", {}):
                others = flat.get("additionalProperties", True)
                made[name] = self.value(others, f"{path}.additionalProperties", depth + 1)

    def array(self, flat: dict[str, Any], path: str, depth: int) -> list[Any]:
        """Makes an array of a few items."""
        first, others = items_of(flat)
        fewest, most = flat.get("minItems", 0), flat.get("maxItems", math.inf)
        if others is False:
            most = min(most, len(first))
        usual = fewest
        if depth < _DEEP and all(map(self._ends, first)):
            more = self.rng.randint(1, 1 + math.ceil(2 * _likelihood(depth)))
            usual = max(fewest, len(first) + (more if not first and self._ends(others) else 0))
        made: list[Any] = []
        for place in range(int(min(most, usual))):
            part, where = (first[place], f"prefixItems[{place}]") if place < len(first) else (others, "items")
            item = self.value(part, f"{path}.{where}", depth + 1)
            if flat.get("uniqueItems"):
                item = self._unlike(made, item, part, f"{path}.{where}", depth + 1)
                if any(same(item, other) for other in made):
                    break  # fewer items, then; the check finds out whether they are enough
            made.append(item)
        return made

    def _unlike(self, others: list[Any], item: Any, part: Schema, path: str, depth: int) -> Any:
        """Returns `item`, or another one in its place while it equals one of the others and tries are left."""
        for _ in range(_TRIES):
            if not any(same(item, other) for other in others):
                break
            item = self.value(part, path, depth)
        return item

    def string(self, flat: dict[str, Any], path: str, _: int) -> str:
        """Makes a text: by a pattern, by a format, or of a few words."""
        shortest, longest = flat.get("minLength", 0), flat.get("maxLength", math.inf)
        if shortest > min(longest, 1_000_000):
            raise ValueError(f"{path}: got minLength {shortest}, expected at most {min(longest, 1_000_000)}")
        if "pattern" in flat:
            try:
                return matching(flat["pattern"], self.rng, lambda text: shortest <= len(text) <= longest)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        if flat.get("format") in FORMATS:
            return FORMATS[flat["format"]](self.rng)
        text = phrase(self.rng, self.rng.randint(1, 4))
        if flat.get("contentEncoding") == "base64":
            return base64.b64encode(text.encode()).decode()
        while len(text) < shortest:
            text += " " + phrase(self.rng, 1 + (shortest - len(text)) // 8)
        return text if len(text) <= longest else text[: int(longest)].rstrip().ljust(int(min(longest, shortest)), "s")

    def integer(self, flat: dict[str, Any], path: str, _: int) -> int:
        """Makes a whole number, from 0 to 100 where the schema sets no limits."""
        step = Fraction(_step(flat, path, Fraction(1)).numerator)
        made = _multiple(flat, self.rng, step)
        if made is None:
            raise ValueError(f"{path}: no whole number is left between its limits")
        return int(made)

    def number(self, flat: dict[str, Any], path: str, _: int) -> float:
        """Makes a number, with two decimals where the schema sets no step and such a number is within the limits."""
        made = _multiple(flat, self.rng, _step(flat, path, Fraction(1, 100)))
        if made is None and "multipleOf" not in flat:
            low, high = _limits(flat, Fraction(1))
            made = low[0] + (high[0] - low[0]) * Fraction(self.rng.random()) if low[0] <= high[0] else None
        if made is None:
            raise ValueError(f"{path}: no number is left between its limits")
        return float(made)


_MAKERS: dict[str, Callable[[_InstanceMaker, dict[str, Any], str, int], Any]] = {
    "object": _InstanceMaker.object,
    "array": _InstanceMaker.array,
    "string": _InstanceMaker.string,
    "integer": _InstanceMaker.integer,
    "number": _InstanceMaker.number,
    "boolean": lambda maker, *_: maker.rng.random() < 0.5,
    "null": lambda *_: None,
}


def _likelihood(depth: int) -> float:
    """Returns how likely an optional part comes: less and less with the depth, so that trees end."""
    return 0.9 * (1 - depth / _DEEP) if depth < _DEEP else 0


def _names(schema: Schema) -> str:
    return ", ".join(schema) if isinstance(schema, Mapping) else "`false`"


def _chosen(choices: Sequence[T], rng: Random, problem: str) -> T:
    if not choices:
        raise ValueError(problem)
    return rng.choice(choices)


def _step(flat: dict[str, Any], path: str, usual: Fraction) -> Fraction:
    step = Fraction(str(flat["multipleOf"])) if "multipleOf" in flat else usual
    if step <= 0:
        raise ValueError(f"{path}: got multipleOf {step}, expected a number above 0")
    return step


def _limits(flat: dict[str, Any], step: Fraction) -> tuple[tuple[Fraction, bool], tuple[Fraction, bool]]:
    """Returns the lowest and the highest number, each with whether it is itself excluded; 0 to 100 or so by default."""

    def those(inclusive: str, exclusive: str) -> list[tuple[Fraction, bool]]:
        given = ((flat.get(inclusive), False), (flat.get(exclusive), True))
        return [(Fraction(str(limit)), out) for limit, out in given if is_number(limit)]

    wide = max(Fraction(100), 10 * step)
    low = max(those("minimum", "exclusiveMinimum"), default=None)
    high = min(those("maximum", "exclusiveMaximum"), key=lambda limit: (limit[0], not limit[1]), default=None)
    if low is None:
        low = (Fraction(0) if high is None or high[0] > 0 else high[0] - wide, False)
    return low, high or (low[0] + wide, False)


def _multiple(flat: dict[str, Any], rng: Random, step: Fraction) -> Fraction | None:
    (low, without_low), (high, without_high) = _limits(flat, step)
    first = math.floor(low / step) + 1 if without_low else math.ceil(low / step)
    last = math.ceil(high / step) - 1 if without_high else math.floor(high / step)
    return step * rng.randint(first, last) if first <= last else None
