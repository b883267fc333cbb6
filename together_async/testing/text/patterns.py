"""Text that matches a regular expression, by way of the optional package rstr."""

from __future__ import annotations

import functools
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

_SPREADS = (6, 2, 0, 16, 1, 64, 4, 200)
"""How far above its minimum an unbounded repetition may go, by attempt: the first suits most patterns."""
_ATTEMPTS = 64
_MOST_REPEATS = 50_000
_READABLE = string.printable[:95]  # without the tabs and line breaks at the end
_BEYOND_ASCII = "".join(map(chr, range(0xA1, 0x180)))
_ALPHABETS = {
    "printable": _READABLE,
    "whitespace": " ",
    # rstr builds this one from a set, whose order differs from process to process.
    "nonword": "".join(character for character in _READABLE if not (character.isalnum() or character == "_")),
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def matching(pattern: str, rng: Random, fits: Callable[[str], bool] = lambda _: True) -> str:
    """Returns a text that matches a regular expression from beginning to end.

    Lookarounds, back references and word boundaries are left to luck: some are met, some raise.

    Args:
        pattern: A pattern for Python's `re`, which reads most of what JSON Schema's patterns are written in.
        rng: The source of randomness.
        fits: A further condition on the text, such as its length.

    Raises:
        ValueError: Not a regular expression, or no text matched after 64 attempts.
        ModuleNotFoundError: `rstr` is not installed; the message says how to install it.
    """
    expression = compiled(pattern)
    xeger = _xeger_class()(rng, **_ALPHABETS)
    for attempt in range(_ATTEMPTS):
        xeger.spread, xeger.repeats = _SPREADS[attempt % len(_SPREADS)], 0
        try:
            with warnings.catch_warnings(action="ignore"):  # parsing the pattern again warns again
                text: str = xeger.xeger(pattern)
        except (LookupError, RecursionError) as error:  # syntax rstr doesn't know; sets without a character
            raise ValueError(f"pattern {pattern!r}: too unusual to make a text for; use a simpler one") from error
        if expression.fullmatch(text) and fits(text) and not _SURROGATE.search(text):
            return text
    raise ValueError(f"pattern {pattern!r}: none of {_ATTEMPTS} texts matched it; use a simpler one")


@functools.lru_cache(256)
def compiled(pattern: str) -> re.Pattern[str]:
    """Returns a compiled pattern.

    Raises:
        ValueError: Not a regular expression.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # "[[" warns that its meaning may change
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern {pattern!r}: not a regular expression ({error})") from error


@functools.cache
def _xeger_class() -> type[Any]:
    try:
        from rstr.xeger import Xeger  # noqa: PLC0415 - an optional dependency
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a text that matches a pattern needs the package rstr: pip install 'together-async[testing]'", name="rstr"
        ) from error

    class Bounded(Xeger):
        """Repeats a few times where rstr repeats up to 100 times, and draws the same text in every process."""

        spread = 0
        repeats = 0

        def _handle_repeat(self, start_range: int, end_range: int, value: Any) -> str:
            times = self._random.randint(start_range, max(start_range, min(end_range, start_range + self.spread)))
            pieces: list[str] = []
            for _ in range(times):
                self.repeats += 1
                if self.repeats > _MOST_REPEATS:
                    raise ValueError(f"a pattern: more than {_MOST_REPEATS} repetitions; use fewer")
                pieces.extend(map(self._handle_state, value))
            return "".join(pieces)

        def _handle_in(self, value: Any) -> str:
            first, *others = value
            if first[0].name == "NEGATE":
                excluded = set().union(*map(self._members, others))
                left = [character for character in _READABLE if character not in excluded]
                return self._random.choice(left or [each for each in _BEYOND_ASCII if each not in excluded])
            return self._random.choice([character for item in value for character in self._members(item)])

        def _members(self, item: Any) -> Sequence[str]:
            opcode, value = item
            if opcode.name == "RANGE" and value[1] - value[0] > 512:  # perhaps all of Unicode
                return [chr(self._random.randint(*value)) for _ in range(64)]
            members: Sequence[str] = self._handle_state(item)
            return members

    return Bounded
