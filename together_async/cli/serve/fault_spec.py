"""Faults in words, as `together-async serve --fault` takes them.

status:429                                  a name, and its arguments after a colon
cut:after_token=3,how=close                 several arguments, separated by commas
status:503,message='Later, please'          quotes around a value with a comma or a space
status:429,headers.retry-after=2            one entry of an argument that has several
cut:after_token=3 + split:every=1           two faults in one response
10% status:429                              one request in ten
model=slow-model drip                       the requests for one model
first=2 status:429                          the first two requests
model=slow-model first=2 status:429         the first two requests for it
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union

import attrs

from together_async.testing import faults as module
from together_async.testing.fault import Fault, Faults, PlacedFault
from together_async.testing.rules import ByModel, Chance, InTurn, Rule

_QUOTED = r"""'[^']*'|"[^"]*\""""
_WORD = re.compile(rf"""(?:[^\s'"]|{_QUOTED})+""")
_ARGUMENT = re.compile(rf"""(?:[^,'"]|{_QUOTED})+""")
_NAMED = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
_CHANCE = re.compile(r"(\d+(?:\.\d+)?)%")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([nrt0\\]))")
_CHARACTERS = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\"}
_MOST_IN_TURN = 100_000


def _spelling(class_name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", class_name).lower()


FAULTS: Mapping[str, type[Fault]] = {
    _spelling(name): value
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Fault) and value not in {Fault, Faults, PlacedFault}
}
"""Every fault, by its name in a text."""


def read_rule(spec: str) -> Rule:
    """Returns the rule that a text describes.

    Args:
        spec: Conditions, if any, then one fault or several, separated by ` + `.

    Raises:
        ValueError: The text can't be read; the message says what is expected.
    """
    words = _split(_WORD, spec, r"\s+")
    conditions: list[Callable[[Rule], Rule]] = []
    while words and (condition := _condition(words[0])) is not None:
        conditions.append(condition)
        words.pop(0)
    if not words:
        raise ValueError(f"no fault, expected one of {', '.join(FAULTS)}")
    if words[1::2] != ["+"] * (len(words) // 2) or len(words) % 2 == 0:
        raise ValueError(
            "expected conditions (10%, model=NAME, first=N), then a fault, or several with ' + ' between them; "
            "quotes go around a value with spaces"
        )
    rule: Rule = _sum([_read_fault(word) for word in words[::2]])
    for condition in reversed(conditions):
        rule = condition(rule)
    return rule


def table() -> Iterator[tuple[str, str, str]]:
    """Yields, for each fault, its name, its arguments as they are written, and what it does."""
    for name, fault in FAULTS.items():
        arguments = ", ".join(_written(fault, field) for field in attrs.fields(fault))
        yield name, arguments, _summary(fault)


def _summary(fault: type[Fault]) -> str:
    text = (inspect.getdoc(fault) or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r" \(see `\w+`\)", "", text)


def _sum(faults: list[Fault]) -> Fault:
    first, *others = faults
    for other in others:
        first = first + other
    return first


def _split(pattern: re.Pattern[str], text: str, between: str) -> list[str]:
    if re.sub(between, "", pattern.sub("", text)):
        raise ValueError(f"a quote without its other half in {text!r}")
    return [str(found[0]) for found in pattern.finditer(text)]


def _condition(word: str) -> Callable[[Rule], Rule] | None:
    if percentage := _CHANCE.fullmatch(word):
        probability = float(percentage[1]) / 100
        if probability > 1:
            raise ValueError(f"{word}: expected 0% to 100%")
        return lambda rule: Chance(probability, rule)
    name, is_pair, value = word.partition("=")
    if not is_pair or name not in {"model", "first"}:
        return None
    if name == "model":
        return lambda rule: ByModel({_unquoted(value): rule})
    count = int(value) if value.isdecimal() else 0
    if not 1 <= count <= _MOST_IN_TURN:
        raise ValueError(f"{word}: expected a number of requests, 1 to {_MOST_IN_TURN}")
    return lambda rule: InTurn(*[rule] * count)


# --------------------------------------------------------------------------------------------------------------- faults


def _read_fault(word: str) -> Fault:
    name, _, arguments = word.partition(":")
    wanted = re.sub("[-_]", "", name).lower()
    fault = next((fault for fault in FAULTS.values() if fault.__name__.lower() == wanted), None)
    if fault is None:
        raise ValueError(f"unknown fault {name!r}, expected one of {', '.join(FAULTS)}")
    name = _spelling(fault.__name__)
    try:
        return fault(**_arguments(fault, _split(_ARGUMENT, arguments, ",")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {_reason(fault, error)}") from error


def _reason(fault: type[Fault], error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    missing = [field.name for field in attrs.fields(fault) if field.default is attrs.NOTHING]
    # The names were checked before, so a TypeError of the constructor means that arguments are missing.
    return f"needs {' and '.join(missing)}" if isinstance(error, TypeError) else text


def _arguments(fault: type[Fault], words: list[str]) -> dict[str, Any]:
    fields = attrs.fields_dict(fault)
    hints = typing.get_type_hints(fault)
    found: dict[str, Any] = {}
    for position, argument in enumerate(words):
        named = _NAMED.fullmatch(argument)
        name, text = (named[1].replace("-", "_"), named[2]) if named else (_positional(fault, position), argument)
        holder, _, entry = (named[1] if named else "").partition(".")
        if len(fields) == 1 and _is_mapping(next(iter(hints.values()))) and named:  # `headers:x-a=b`
            holder, entry = next(iter(fields)), named[1]
        if entry and holder in fields and _is_mapping(hints[holder]):
            found.setdefault(holder, {})[entry] = _unquoted(text) or None
        elif name not in fields:
            known = ", ".join(_written(fault, field) for field in fields.values())
            raise ValueError(f"no argument {name!r}, expected {known or 'none'}")
        else:
            try:
                found[name] = _read(hints[name], _unquoted(text))
            except ValueError as error:
                raise ValueError(f"{name}: got {_unquoted(text)!r}, expected {error}") from error
    return found


def _positional(fault: type[Fault], position: int) -> str:
    names = [str(field.name) for field in attrs.fields(fault) if not field.kw_only]
    if position >= len(names):
        known = ", ".join(_written(fault, field) for field in attrs.fields(fault))
        raise ValueError(f"expected arguments by name: {known or 'it has none'}")
    return names[position]


def _unquoted(text: str) -> str:
    return re.sub(_QUOTED, lambda quoted: quoted[0][1:-1], text)


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is Mapping


def _read(hint: Any, text: str) -> Any:
    """Read a value of this type from a text.

    Raises:
        ValueError: The text is not one; the message says what is expected.
    """
    match typing.get_origin(hint):
        case typing.Literal:
            return _one_of(typing.get_args(hint), text)
        case types.UnionType | typing.Union:
            return _read_union([member for member in typing.get_args(hint) if member is not type(None)], text)
        case origin if origin is tuple:
            return tuple(_read(int, number) for number in text.split("/"))
    readers: Mapping[Any, tuple[Callable[[str], Any], str]] = {
        bool: (_read_bool, "true or false"),
        int: (int, "a whole number"),
        float: (float, "a number"),
        bytes: (_read_bytes, "a text, with \\n, \\r, \\xff for bytes"),
        str: (str, "a text"),
    }
    reader, expected = readers[hint]
    try:
        return reader(text)
    except (ValueError, KeyError):
        raise ValueError(expected) from None


def _read_union(members: list[Any], text: str) -> Any:
    if any(_is_mapping(member) for member in members):
        if text.startswith("{"):
            try:
                return json.loads(text)
            except ValueError:
                raise ValueError("a JSON object, or any other text") from None
        return text
    if members == [int, str]:
        return int(text) if text.isdecimal() else text
    return _read(members[0], text)


def _one_of(choices: tuple[str, ...], text: str) -> str:
    for choice in choices:
        if text == choice or _read_bytes(text) == choice.encode():
            return choice
    raise ValueError(" or ".join(_escaped(choice) for choice in choices))


def _read_bool(text: str) -> bool:
    return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]


def _read_bytes(text: str) -> bytes:
    parts: list[bytes] = []
    done = 0
    for escape in _ESCAPE.finditer(text):
        parts += (text[done : escape.start()].encode(), _byte(escape))
        done = escape.end()
    return b"".join((*parts, text[done:].encode()))


def _byte(escape: re.Match[str]) -> bytes:
    return bytes([int(escape[1], 16)]) if escape[1] else _CHARACTERS[escape[2]].encode()


def _escaped(value: Any) -> str:
    if isinstance(value, bytes):
        return repr(value)[2:-1]
    if isinstance(value, str):
        return value.encode("unicode_escape").decode()
    return str(value).lower() if isinstance(value, bool) else str(value)


def _written(fault: type[Fault], field: Any) -> str:
    """An argument as it is written: its name, then its default or the kind of its value."""
    hint = typing.get_type_hints(fault)[field.name]
    members = typing.get_args(hint) if typing.get_origin(hint) in {Union, types.UnionType} else (hint,)
    if any(_is_mapping(member) for member in members) and len(members) == 1:
        return "NAME=TEXT" if len(attrs.fields(fault)) == 1 else f"{field.name}.NAME=TEXT"
    for member in members:
        if typing.get_origin(member) is Literal:
            return f"{field.name}={'|'.join(_escaped(choice) for choice in typing.get_args(member))}"
    if field.default not in (attrs.NOTHING, None, ()):
        return f"{field.name}={_escaped(field.default)}"
    kinds = {int: "N", float: "SECONDS", bool: "true", str: "TEXT", bytes: "TEXT"}
    kind = next((kinds[member] for member in members if member in kinds), "N/N/N")
    return f"{field.name}={kind}"
