"""The rates of an account: fixed, or dynamic by one rule."""

from __future__ import annotations

import math
from typing import Any

import attrs

from together_async.testing.validators import check_number, check_type, within

LEAST_RATE, LARGEST = 1e-9, 1e12
"""Within these bounds no sum overflows and no wait is infinite."""


@attrs.frozen
class Dynamic:
    """How a live limit moves between its floor and its ceiling, for requests and tokens separately.

    The ceiling is the rate's number. Every admitted amount raises the limit in proportion, so a limit in full use
    doubles in `doubling_s`; in half use it rises half as fast, and unused it does not rise. A 429 is the sign of a
    burst, since the bucket absorbs jitter: it multiplies the limit by `fall`, at most once in `fall_every_s`. Only
    requests move the limit, neither time alone nor a 503. A refund undoes the rise that the refunded amount had caused,
    unless the limit is at its ceiling.

    Args:
        start: The limit of a fresh account, as a fraction of the ceiling, from `floor` to 1.
        floor: The lowest it falls to, as a fraction of the ceiling, from 0.000001 to 1.
        doubling_s: Seconds of full use that double the limit, from 0.001 to 1e9.
        fall: The factor of a 429, from 0.001 to 1; at 1 the limit never falls.
        fall_every_s: Seconds after a fall during which further 429s do not lower the limit, from 0 to 1e9.

    Raises:
        ValueError: A value is out of its range.
    """

    start: float = 0.1
    floor: float = attrs.field(default=0.05, validator=within(1e-6, 1))
    doubling_s: float = attrs.field(default=30.0, validator=within(1e-3, 1e9))
    fall: float = attrs.field(default=0.5, validator=within(1e-3, 1))
    fall_every_s: float = attrs.field(default=5.0, validator=within(0, 1e9))

    def __attrs_post_init__(self) -> None:
        check_number("Dynamic.start", self.start, self.floor, 1)

    @property
    def growth(self) -> float:
        """The share of itself by which a limit in full use rises per second."""
        return math.log(2) / self.doubling_s


def _dynamic_or_none(_: object, field: Any, value: Any) -> None:
    if value is not None:
        check_type(f"Rate.{field.name}", value, Dynamic, "a Dynamic, or None for a fixed rate")


@attrs.frozen
class Rate:
    """What an account may use of one model.

    Args:
        requests_per_second: From 1e-9 to 1e12; None does not limit requests.
        tokens_per_second: Tokens of prompt and completion together, from 1e-9 to 1e12; None does not limit tokens.
        burst_s: The seconds' worth that may be used at once, above 0 and at most 1e6. One request is always allowed.
        dynamic: How the live limits move below these numbers; None keeps them fixed.

    Raises:
        ValueError: A value is out of its range.
    """

    requests_per_second: float | None = attrs.field(default=None, validator=within(LEAST_RATE, LARGEST, optional=True))
    tokens_per_second: float | None = attrs.field(default=None, validator=within(LEAST_RATE, LARGEST, optional=True))
    burst_s: float = attrs.field(default=1.0, validator=within(0, 1e6, above=True))
    dynamic: Dynamic | None = attrs.field(default=None, validator=_dynamic_or_none)

    @classmethod
    def per_minute(
        cls,
        requests: float | None = None,
        tokens: float | None = None,
        burst_s: float = 1.0,
        dynamic: Dynamic | None = None,
    ) -> Rate:
        """Returns a rate given per minute.

        Args:
            requests: Requests per minute, from 6e-8 to 6e13; None does not limit requests.
            tokens: Tokens per minute, likewise.
            burst_s: As for `Rate`.
            dynamic: As for `Rate`.

        Raises:
            ValueError: A value is out of its range.
        """
        for name, value in (("requests", requests), ("tokens", tokens)):
            if value is not None:
                check_number(f"Rate.per_minute({name})", value, 60 * LEAST_RATE, 60 * LARGEST)
        return cls(
            None if requests is None else requests / 60, None if tokens is None else tokens / 60, burst_s, dynamic
        )
