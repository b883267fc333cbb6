"""Times and lists as servers write them in headers, and the names of the headers on limits. Pure.

A time to wait comes as seconds, as milliseconds, as a date (Unix time in seconds or milliseconds, HTTP's, RFC 3339's),
or as a duration of Go. Which of these it is shows in the text itself; the header's name does not decide it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

DAY_S: Final = 86_400.0
"""No wait beyond a day is believed."""
JUST_PASSED_S: Final = 60.0
"""A date that passed longer ago makes no sense: it is a clock that is wrong, or a value that never changes."""
_UNIX_S: Final = (1e9, 1e11)
_UNIX_MS: Final = (1e12, 1e14)
"""Numbers of this size are dates, from the year 2001 on."""
_LONGEST: Final = 100
"""Characters of a time; the longest form of a date has 62."""
_LONGEST_LIST: Final = 2_000
_UNITS: Final = {"d": DAY_S, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_DURATION: Final = re.compile(r"(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ms|[uµμ]s|ns|[dhms]))+")
_DURATION_PART: Final = re.compile(r"([0-9.]+)([a-zµμ]+)")
_RFC_3339: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}.*")
_ITEM: Final = re.compile(r'(?:[^,"]|"[^"]*")+')
_PART: Final = re.compile(r'(?:[^;"]|"[^"]*")+')


class LimitNames(NamedTuple):
    """The names of the headers that report one limit of an account.

    Attributes:
        limit: Of the header with the limit itself.
        remaining: Of the header with what remains of it.
        reset: Of the header that says when there is more.
    """

    limit: str
    remaining: str
    reset: str


TOGETHER_NAMES: Final = LimitNames("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
"""Together's for requests, and those of gateways. The reset holds for tokens too."""
OPENAI_NAMES: Final = {
    kind: LimitNames(f"x-ratelimit-limit-{kind}", f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}")
    for kind in ("requests", "tokens")
}
ANTHROPIC_NAMES: Final = {
    kind: LimitNames(*(f"anthropic-ratelimit-{kind}-{end}" for end in ("limit", "remaining", "reset")))
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
}
DRAFT_NAMES: Final = LimitNames("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
"""Of the IETF's drafts to 6, and of GitLab."""


def by_lower_name(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns headers with their names in lower case; the values of a repeated one are joined by commas."""
    named: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        named[key] = f"{named[key]}, {value}" if key in named else value
    return named


def seconds_to_wait(text: str, now: Callable[[], float], *, unit_s: float = 1.0) -> float | None:
    """Returns the seconds that a header's time is ahead, from 0 to a day; None for one that makes no sense.

    These make no sense: negative numbers, NaN and infinity, what is more than a day ahead, and dates that passed more
    than a minute ago. A date that has just passed is 0.

    Args:
        text: The header's value.
        now: Returns the wall clock, in seconds since the epoch; asked only for a date.
        unit_s: The seconds in a plain number: 0.001 for a header in milliseconds.
    """
    try:
        number = float(text)
    except ValueError:
        return _seconds_of_text(text.strip(), now)
    if 0 <= number * unit_s <= DAY_S:
        return number * unit_s
    if _UNIX_S[0] <= number < _UNIX_S[1]:
        return _seconds_ahead(number, now)
    if _UNIX_MS[0] <= number < _UNIX_MS[1]:
        return _seconds_ahead(number / 1_000, now)
    return None


def is_date(text: str) -> bool:
    """Returns whether a time is a date, not a number of seconds or a duration."""
    try:
        number = float(text)
    except ValueError:
        return go_duration(text) is None and _timestamp(text.strip()) is not None
    return _UNIX_S[0] <= number < _UNIX_S[1] or _UNIX_MS[0] <= number < _UNIX_MS[1]


def go_duration(text: str) -> float | None:
    """Returns the seconds of a duration as Go writes it, `1h2m3.5s`, `6ms`, `450µs`; None if it is not one.

    Days are read too, which Go does not write. A plain number has no unit, and is not a duration.
    """
    text = text.strip()
    if len(text) > _LONGEST or _DURATION.fullmatch(text) is None:
        return None
    parts = _DURATION_PART.findall(text)
    return sum(float(amount) * _UNITS[unit.replace("µ", "u").replace("μ", "u")] for amount, unit in parts)


def _seconds_of_text(text: str, now: Callable[[], float]) -> float | None:
    seconds = go_duration(text)
    if seconds is not None:
        return seconds if seconds <= DAY_S else None
    timestamp = _timestamp(text)
    return None if timestamp is None else _seconds_ahead(timestamp, now)


def _timestamp(text: str) -> float | None:
    """Returns the Unix time of a date in words; None if it is not one. A date without a zone is UTC's."""
    if len(text) > _LONGEST:
        return None
    try:
        date = datetime.fromisoformat(text.upper()) if _RFC_3339.fullmatch(text) else parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _seconds_ahead(timestamp: float, now: Callable[[], float]) -> float | None:
    seconds = timestamp - now()
    return max(0.0, seconds) if -JUST_PASSED_S <= seconds <= DAY_S else None


class ListItem(NamedTuple):
    """An item of a list in a header: `"default";r=50;t=30` or `100;w=60`.

    Attributes:
        value: The item itself, without its quotes; empty for `limit=100, remaining=50, reset=30`, which is one item.
        parameters: Its parameters, names in lower case; of a repeated one the last counts.
    """

    value: str
    parameters: Mapping[str, str]


def list_items(text: str) -> list[ListItem]:
    """Returns the items of a list in a header (RFC 9651), as far as servers write one.

    Args:
        text: The header's value; what goes beyond 2,000 characters is left out.
    """
    items: list[ListItem] = []
    for piece in _ITEM.findall(text[:_LONGEST_LIST]):
        item = _list_item(piece)
        if items and not item.value and not items[-1].value:
            item = ListItem("", {**items.pop().parameters, **item.parameters})
        if item.value or item.parameters:
            items.append(item)
    return items


def _list_item(item: str) -> ListItem:
    first, *others = _PART.findall(item) or [""]
    value, parameters = first.strip(), others
    if "=" in value and value[0] != '"':
        value, parameters = "", [first, *others]
    return ListItem(_unquoted(value), dict(map(_parameter, parameters)))


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), _unquoted(value.strip())


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
