"""Checks of arguments: each raises a ValueError with the argument's name, its value and the expectation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import attrs


def seconds(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    """A time in seconds, 0 to infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{attribute.name}: got {value!r}, expected seconds, at least 0")


def optional_seconds(_: Any, attribute: attrs.Attribute[Any], value: float | None) -> None:
    """A time in seconds, 0 to infinity, or None."""
    if value is not None:
        seconds(_, attribute, value)


def data(_: Any, attribute: attrs.Attribute[bytes], value: bytes) -> None:
    """Bytes."""
    if not isinstance(value, bytes):
        raise ValueError(f"{attribute.name}: got a {type(value).__name__}, expected bytes")


def whole(least: int | None) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """An int of at least `least`, where that is given; None passes."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least)
        ):
            raise ValueError(
                f"{attribute.name}: got {value!r}, expected an int{'' if least is None else f' of at least {least}'}"
            )

    return check


def one_of(*choices: Any) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """One of the choices."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise ValueError(f"{attribute.name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")

    return check


def times(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    """A number of repetitions, 1 to infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise ValueError(f"{attribute.name}: got {value!r}, expected a number of at least 1")


def mapping(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{attribute.name}: got a {type(value).__name__}, expected a mapping")


def offsets(_: Any, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    """A tuple of ints of at least 0."""
    for offset in value:
        whole(0)(_, attribute, offset)


def probability(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name}: got {value!r}, expected a number, 0 to 1")


def status(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
    """An HTTP status from 200 to 599."""
    if not isinstance(value, int) or not 200 <= value <= 599:
        raise ValueError(f"{attribute.name}: got {value!r}, expected an HTTP status, 200 to 599")


def within(least: float, most: float, *, above: bool = False, optional: bool = False) -> Any:
    """A number from `least` (or above it) to `most`, or None where `optional`; the message names the class, too."""

    def validate(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None or not optional:
            check_number(f"{type(instance).__name__}.{attribute.name}", value, least, most, above=above)

    return validate


# ----------------------------------------------------------------------------------------------- arguments of functions


def shown(value: object) -> str:
    """Returns a value as error messages show it."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return "an int too large"  # Python refuses to write very long ints out
    return repr(value)


def check_number(name: str, value: Any, least: float, most: float, *, above: bool = False, whole: bool = False) -> None:
    """Checks that a number is from `least` to `most`; with `above`, not `least` itself; with `whole`, an int."""
    kinds = int if whole else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not least <= value <= most
        or (above and value == least)
    ):
        bounds = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name}: got {shown(value)}, expected {kind} {bounds}")


def check_type(name: str, value: object, kind: Any, expected: str) -> None:
    """Checks that a value is of a type, as `isinstance` takes it; `expected` describes it in words."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")


def check_at_least_0(name: str, value: float) -> float:
    """Returns a number that is at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name}: got {value!r}, expected a number of at least 0")
    return value


def check_positive(name: str, value: float | None) -> float | None:
    """Returns a number above 0, or None."""
    if value is not None and not value > 0:
        raise ValueError(f"{name}: got {value!r}, expected more than 0, or None for no limit")
    return value
