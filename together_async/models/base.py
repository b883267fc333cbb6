"""What all values from the API have in common: their way back to JSON, and how they are made here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

import attrs
import msgspec

V = TypeVar("V", bound="Value")


def or_none(value: Any) -> Any:
    """Equality key of fields for which servers send empty, null or nothing, and mean the same."""
    return value or None


def loose() -> Any:
    """A field for which empty, null and absent are equal."""
    return attrs.field(default=None, eq=or_none, hash=False)


def unhashed() -> Any:
    """A field that may hold JSON objects or arrays, which can be compared and not hashed."""
    return attrs.field(default=None, hash=False)


class Value:
    """Base of every value from the API; it converts back to the JSON that was received.

    Most subclasses are frozen attrs classes with a `__dict__`, and their defaults are class attributes as well. That is
    for the decoder: it asks `hasattr` for each field the JSON left out, which costs 20 ns when the class has the
    default, and 230 ns when it must find an empty slot. It also means that a decoded value's `__dict__` holds only the
    fields that came. The classes of chunks are made otherwise (see `models.struct_value`).
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the value as the JSON object it came as: nulls are None, absent fields stay absent.

        A completion, and a chunk with its choices and deltas, also return the keys that this package does not know. A
        value that was not decoded returns the fields it was made of.
        """
        return {name: plain(value) for name, value in vars(self).items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join([f'{name}={value!r}' for name, value in self.__rich_repr__()])})"

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        for field in attrs.fields(type(self)):  # type: ignore[arg-type]  # every subclass is an attrs class
            if field.repr and (value := getattr(self, field.name)) is not None:
                yield field.name, value

    @classmethod
    def _make(cls, given: dict[str, Any]) -> Self:
        value = cls.__new__(cls)
        vars(value).update(given)
        return value


def decode_tolerantly(raw: bytes) -> Any:
    """Returns the JSON of a document that was decoded before; None if even this can't read it.

    A typed decoder skips values that no field reads, so they may be broken: text that is not UTF-8, of which the bytes
    are replaced, or a number that no float can hold, which becomes infinity.
    """
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        pass
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(raw.decode("utf-8", "replace"))
    return None


def defaults_on_class(cls: type[V]) -> type[V]:
    """Makes each field's default a class attribute too, where msgspec's `hasattr` finds it (see `Value`)."""
    for field in attrs.fields(cls):  # type: ignore[arg-type]  # an attrs class
        setattr(cls, field.name, field.default)
    return cls


def make(cls: type[V], **given: Any) -> V:
    """Returns a value with just the given fields present, as if decoded: its `to_dict` leaves the others out."""
    return cls._make(given)


def present(**given: Any) -> dict[str, Any]:
    """Returns the given fields which are not None, for `make`."""
    return {name: value for name, value in given.items() if value is not None}


def plain(value: Any) -> Any:
    """Returns a value as JSON's own types: values become dicts, tuples lists."""
    if isinstance(value, str):
        return value
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value
