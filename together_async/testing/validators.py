"""Validators of attrs fields: each raises a ValueError that names the field, the value and what was expected."""

from __future__ import annotations

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
