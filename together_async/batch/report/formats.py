"""How the report writes texts, numbers, durations and moments.

Text from a file or a server goes through `text` or `quoted`, and through nothing else.
"""

from __future__ import annotations

import html
import math
import unicodedata
from datetime import UTC, datetime
from typing import Final

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SPACE: Final = "\u00a0"
UNKNOWN: Final = "\u2013"
_JOINERS: Final = "\u200c\u200d"  # needed in Persian, Hindi and emoji
DAY_S: Final = 86_400
_LONG: Final = (
    (3_599.5, 1, 60, "min", "s"),
    (DAY_S - 30, 60, 60, "h", "min"),
    (math.inf, 3_600, 24, "d", "h"),
)
"""How durations are written: up to which, seconds of the small unit, how many make the large one; both units."""


def text(value: str) -> str:
    """Returns foreign text as HTML: nothing in it is markup, and invisible characters are shown as codes."""
    plain = " ".join(value.split())
    return html.escape(plain if plain.isprintable() else "".join(map(_visible, plain)))


def _visible(character: str) -> str:
    # Controls, direction overrides, lone surrogates, private and unassigned code points, unusual line ends.
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} and character not in _JOINERS:
        return f"\\u{ord(character):04x}"
    return character


def quoted(value: str) -> str:
    """Returns foreign text as HTML, isolated so that its direction does not affect the text around it."""
    shown = text(value)
    return f"<bdi>{shown}</bdi>" if shown else '<span class="quiet">(blank)</span>'


def count(number: float) -> str:
    """Returns a count or a rate: `12,345`, `0.25`."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"


def compact(number: float) -> str:
    """Returns a number for an axis: `250`, `12k`, `1.5M`."""
    for least, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= least:
            return f"{number / (1e3 if unit == 'k' else least):.4g}{unit}"
    return count(number)


def share(part: float, whole: float) -> str:
    """Returns a part in percent, with enough digits that only all is `100 %` and only nothing is `0 %`."""
    percent = 100 * part / whole if whole else 0.0
    to_end = min(percent, 100 - percent)
    digits = 0 if to_end == 0 else 1 if to_end >= 0.1 else -math.floor(math.log10(to_end))
    return f"{percent:.{digits}f}{_SPACE}%"


def duration(seconds: float | None, *, brief: bool = False) -> str:
    """Returns `48 ms`, `1.20 s`, `2 min 05 s`, `3 h 12 min` or `2 d 04 h`.

    Args:
        seconds: The duration; None if it is not known, which gives a dash.
        brief: Whether it is a round number, written without zeros: `1.2 s`, `2 min`.
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995:
        return f"{seconds * 1e3:.{4 if brief else 2 if seconds < 0.00995 else 3}g}{_SPACE}ms"
    if seconds < (60 if brief else 99.95):
        return (f"{seconds:.4g}" if brief else f"{seconds:#.3g}") + f"{_SPACE}s"
    _, small_s, size, unit, small_unit = next(row for row in _LONG if seconds < row[0])
    large, small = divmod(round(seconds / small_s), size)
    return f"{large:,}{_SPACE}{unit}" + ("" if brief and not small else f" {small:02}{_SPACE}{small_unit}")


def clock(at: float, step_s: float = 1.0) -> str:
    """Returns the time of day in UTC, as exact as steps of `step_s` seconds need."""
    moment = datetime.fromtimestamp(at, UTC)
    if step_s >= 60:
        return f"{moment:%H:%M}"
    return f"{moment:%H:%M:%S}" if step_s >= 1 else f"{moment:%H:%M:%S}.{moment.microsecond // 100_000}"


def day(at: float, *, year: bool = False) -> str:
    """Returns the day in UTC: `23 Nov`, or `23 Nov 2026` with `year`."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment.day}{_SPACE}{_MONTHS[moment.month - 1]}" + (f"{_SPACE}{moment.year}" if year else "")
