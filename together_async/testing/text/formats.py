"""Text for the `format` keyword of JSON Schema: dates, addresses, identifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from together_async.testing.text.prose import phrase

if TYPE_CHECKING:
    from random import Random


def _digits(rng: Random, digits: int) -> str:
    return "".join(rng.choices("0123456789abcdef", k=digits))


def _date(rng: Random) -> str:
    return f"{rng.randint(1990, 2035)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _time(rng: Random) -> str:
    return f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}Z"


def _uuid(rng: Random) -> str:
    return f"{_digits(rng, 8)}-{_digits(rng, 4)}-4{_digits(rng, 3)}-a{_digits(rng, 3)}-{_digits(rng, 12)}"


def _ipv4(rng: Random) -> str:
    return f"192.0.2.{rng.randint(1, 254)}"  # RFC 5737: reserved for documentation


def _host(rng: Random) -> str:
    return f"{phrase(rng, 1)}.example"  # RFC 2606: never registered


FORMATS: dict[str, Callable[[Random], str]] = {
    "date": _date,
    "time": _time,
    "date-time": lambda rng: f"{_date(rng)}T{_time(rng)}",
    "duration": lambda rng: f"PT{rng.randint(1, 90)}M",
    "email": lambda rng: f"{phrase(rng, 1)}@{_host(rng)}",
    "hostname": _host,
    "uri": lambda rng: f"https://{_host(rng)}/{phrase(rng, 1)}",
    **dict.fromkeys(("uuid", "uuid4"), _uuid),
    **dict.fromkeys(("ipv4", "ipvanyaddress"), _ipv4),
    "ipv6": lambda rng: f"2001:db8::{rng.randint(1, 0xFFFF):x}",
    "decimal": lambda rng: f"{rng.randint(0, 100)}.{rng.randint(0, 99):02}",
}
"""A maker of text for each known format."""
