"""Values whose attrs class is laid over a `msgspec.Struct`: what a stream makes for each of its tokens.

To everybody who looks they are frozen attrs classes. Beneath, their instances are Structs: msgspec decodes one in a
third of the time that an attrs class with as many fields takes, and the garbage collector need not look at it. That is
also why they can't be referred to weakly. They have no subclasses: equality and copies would leave out their fields.

A Struct's field always has a value, so it can't tell null from absent, and it has no place for keys that nobody knows.
So a value from the wire is *linked* to the bytes it came from, which `to_dict` decodes in full when it is called. A
value made by `make` notes which fields it was given. One made by its constructor, or `attrs.evolve`, has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import attrs
import msgspec

from together_async.models.base import Value, decode_tolerantly, plain

__all__ = ["Source", "StructValue", "set_source", "struct_value"]

S = TypeVar("S", bound="StructValue")
Source: TypeAlias = bytes | tuple[bytes, int]
"""The bytes of a chunk. For a choice, and its delta, that is not the first of the JSON array: also its place in it."""


class StructValue(Value):
    """Base of the classes that `struct_value` makes."""

    __slots__ = ("_given", "_source")

    def __init_subclass__(cls) -> None:
        if any(issubclass(base, StructValue) and issubclass(base, msgspec.Struct) for base in cls.__bases__):
            raise TypeError(
                f"{cls.__name__}: a class of chunks has no subclasses; hold the chunk in a class of your own"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the value as the JSON object it came as, unknown keys included.

        A value that was not decoded returns the fields that it was made of, as far as that is known: one that was made
        by its constructor returns those that are not None.
        """
        source: Source | None = getattr(self, "_source", None)
        if source is not None:
            raw, place = (source, 0) if isinstance(source, bytes) else source
            try:
                part = self._part_of(decode_tolerantly(raw), place)
            except (LookupError, TypeError):
                part = None
            if isinstance(part, dict):
                return part
        given: tuple[str, ...] | None = getattr(self, "_given", None)
        if given is not None:
            return {name: plain(getattr(self, name)) for name in given}
        return self._made_of()

    def _made_of(self) -> dict[str, Any]:
        """Returns the JSON object of a value that was made by its constructor."""
        values = ((field.name, getattr(self, field.name)) for field in attrs.fields(type(self)))  # type: ignore[arg-type]  # every subclass is an attrs class
        return {name: plain(value) for name, value in values if value is not None}

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]  # a new one each time
        """The fields that are in `to_dict`, for what looks at objects with `vars()`, as FastAPI's encoder does."""
        fields = attrs.fields_dict(type(self))  # type: ignore[arg-type]  # every subclass is an attrs class
        return {name: getattr(self, name) for name in self.to_dict() if name in fields}

    @staticmethod
    def _part_of(document: Any, place: int) -> Any:
        """Returns this value's part of the JSON of the whole chunk.

        Args:
            document: The chunk, decoded.
            place: That of the choice in the chunk's array, from 0.

        Raises:
            LookupError, TypeError: There is no such part.
        """
        raise NotImplementedError

    @classmethod
    def _make(cls, given: dict[str, Any]) -> Self:
        value = cls(**given)
        _set_given(value, tuple(given))
        return value

    def __copy__(self) -> Self:
        return self  # it is frozen; msgspec's copy would have no link

    def __reduce__(self) -> str | tuple[Any, ...]:
        fields = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}  # type: ignore[arg-type]  # every subclass is an attrs class
        return _restore, (type(self), fields, getattr(self, "_given", None), getattr(self, "_source", None))


_set_given: Callable[[StructValue, tuple[str, ...]], None] = vars(StructValue)["_given"].__set__
set_source: Callable[[StructValue, Source], None] = vars(StructValue)["_source"].__set__
"""Links a frozen value to the bytes it came from: the slot's own setter, the cheapest way there is."""


def _restore(
    cls: type[StructValue], fields: dict[str, Any], given: tuple[str, ...] | None, source: Source | None
) -> StructValue:
    value = cls(**fields)
    if given is not None:
        _set_given(value, given)
    if source is not None:
        set_source(value, source)
    return value


if TYPE_CHECKING:
    from attrs import frozen as struct_value
else:

    def struct_value(cls: type[S]) -> type[S]:
        """Returns a frozen attrs class over a `msgspec.Struct` with the same fields.

        Raises:
            TypeError: A field has no plain default, or a converter or validator: the constructor is msgspec's.
        """
        namespace = {name: item for name, item in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        field_type = type(attrs.field())
        these = {}
        for field in attrs.fields(attrs.frozen(cls, slots=False)):  # made to read the fields, and for nothing else
            if (
                field.default is attrs.NOTHING
                or isinstance(field.default, attrs.Factory)
                or field.converter
                or field.validator
            ):
                raise TypeError(f"{cls.__name__}.{field.name}: expected a plain default, no converter and no validator")
            given = namespace.get(field.name)
            these[field.name] = given if isinstance(given, field_type) else attrs.field(default=field.default)
            namespace[field.name] = field.default
        struct = type(msgspec.Struct)(cls.__name__, (*cls.__bases__, msgspec.Struct), namespace, frozen=True, gc=False)
        # A Struct has its own __init__ and __match_args__. attrs adds equality, hash, and what its functions look for.
        return attrs.frozen(struct, these=these, slots=False, init=False, repr=False, match_args=False)
