"""The base of all faults: an edit of a response's plan, perhaps at a place; `+` combines several."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from together_async.testing.response import Position, ResponsePlan


@attrs.frozen(repr=False)
class Fault:
    """Something that goes wrong with a response. Subclass it for faults of your own."""

    def apply(self, response: ResponsePlan) -> bool:
        """Edits the plan in place; returns False if the fault had no place in it, because the response is shorter."""
        raise NotImplementedError

    def __add__(self, other: Fault) -> Faults:
        return Faults((*members(self), *members(other)))

    def __repr__(self) -> str:
        # Only what differs from the defaults: that is what the author wrote.
        written = (
            (field.name, getattr(self, field.name))
            for field in attrs.fields(type(self))
            if getattr(self, field.name) != _default_of(field)
        )
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in written)})"


def _default_of(field: attrs.Attribute[Any]) -> Any:
    factory = getattr(field.default, "factory", None)
    return field.default if factory is None else factory()


@attrs.frozen(repr=False)
class Faults(Fault):
    """Several faults of one response, applied in order. Made by `+`."""

    members: tuple[Fault, ...] = ()

    def apply(self, response: ResponsePlan) -> bool:
        """Applies every fault; returns False if any had no place."""
        placed = [fault.apply(response) for fault in self.members]  # all of them, also after one without a place
        return all(placed)


def members(fault: Fault) -> tuple[Fault, ...]:
    """Returns the faults that a sum consists of; for a single fault, the fault itself.

    Raises:
        TypeError: Not a fault.
    """
    if not isinstance(fault, Fault):
        raise TypeError(f"got {type(fault).__name__}, expected a fault to add; a rule goes around the sum")
    return fault.members if isinstance(fault, Faults) else (fault,)


@attrs.frozen(kw_only=True, repr=False)
class PlacedFault(Fault):
    """A fault at a place (see `Position`): before the first byte, in the head, after a token, or at a byte.

    Args:
        in_head: After this many bytes of the head, at least 0.
        after_token: After this many tokens, at least 0; 0 is right after the head.
        at_byte: After this many bytes of the body before compression, at least 0.

    Attributes:
        default_position: The place when none is given. A fault that only makes sense in a body has its start here, and
            refuses `in_head`.
    """

    in_head: int | None = None
    after_token: int | None = None
    at_byte: int | None = None
    default_position: ClassVar[Position] = Position()

    def __attrs_post_init__(self) -> None:
        if self.place.in_head is not None and self.default_position != Position():
            raise ValueError(f"in_head: {type(self).__name__} goes into a body; use after_token or at_byte")

    @property
    def place(self) -> Position:
        """Where it happens."""
        given = Position(self.in_head, self.after_token, self.at_byte)
        return self.default_position if given == Position() else given
