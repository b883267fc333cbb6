"""Checks of the values that callers set, and the words for a value that is refused. Pure."""

from __future__ import annotations

import operator
import sys
from typing import Any, Final

FINITE: Final = sys.float_info.max
"""The largest finite float. Python's ints go beyond it."""


def shown(value: object) -> str:
    """Returns a setting as an error shows it: its repr."""
    # Python refuses to write out the largest ints.
    return "an int too large" if isinstance(value, int) and abs(value) > FINITE else repr(value)


def described(value: object) -> str:
    """Returns what an error says of a value that may be a prompt: a number as it is, else its type and length."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"  # Python refuses to write out the largest ints
    if isinstance(value, (bool, int, float)) or value is None:
        return repr(value)
    return f"a {type(value).__name__}" + (
        f" of length {len(value)}" if isinstance(value, (str, bytes, list, tuple, dict)) else ""
    )


def is_number(value: object, low: float, high: float, *, above: bool = False, whole: bool = False) -> bool:
    """Returns whether a value is an int or a float from `low` to `high`. A bool is not a number; NaN is in no range.

    Args:
        value: Any value.
        low: The least number that passes.
        high: The largest.
        above: `low` itself does not pass.
        whole: Only an int passes.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return (low < value if above else low <= value) and value <= high


def number(
    low: float,
    high: float,
    expected: str,
    *,
    above: bool = False,
    whole: bool = False,
    optional: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """Returns an attrs validator of a number; its ValueError names class, field, value and what is expected.

    Args:
        low: The least number that passes.
        high: The largest.
        expected: The end of the message.
        above: `low` itself does not pass.
        whole: Only an int passes.
        optional: None passes.
        words: Texts that pass as well.
    """

    def validate(instance: object, field: Any, value: Any) -> None:
        if (optional and value is None) or (isinstance(value, str) and value in words):
            return
        if not is_number(value, low, high, above=above, whole=whole):
            raise ValueError(f"{type(instance).__name__}.{field.name}: got {shown(value)}, expected {expected}")

    return validate


class NumberRange:
    """The numbers that a field of a request may hold. Without bounds, infinities and NaN are still refused.

    Args:
        whole: Only integers.
        low: The least.
        high: The largest.
    """

    __slots__ = ("high", "low", "whole")

    def __init__(self, *, whole: bool, low: float = -FINITE, high: float = FINITE) -> None:
        self.whole = whole
        self.low = low
        self.high = high

    def check(self, name: str, value: Any) -> int | float:
        """Returns the number as int or float; NumPy's scalars and the like are converted.

        Args:
            name: The field's name, for the error.
            value: Any value. A bool is not a number here.

        Raises:
            ValueError: Not a number, or out of range; names field, value and range.
        """
        number = value if type(value) is int or type(value) is float else _as_number(value)
        if number is None or not self.low <= number <= self.high or (self.whole and type(number) is float):
            raise ValueError(f"{name}: got {described(value)}, expected {self}")
        return number

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a finite number"
        if self.high < FINITE:
            return f"{kind} from {self.low:g} to {self.high:g}"
        return f"{kind}, at least {self.low:g}" if self.low > -FINITE else kind


def _as_number(value: Any) -> int | float | None:
    """Returns a number of another type, such as NumPy's, as Python's own; None for all else, bool included."""
    if isinstance(value, (bool, str)):
        return None
    try:
        if hasattr(value, "__index__"):
            return operator.index(value)
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError, OverflowError):  # an array of several, Decimal("sNaN"), Fraction(10**400)
        return None
