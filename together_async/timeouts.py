"""Timeouts: the value people set, and the pure arithmetic of what is due when. No clock: time is an argument."""

from __future__ import annotations

from typing import Final, NamedTuple

import attrs

from together_async.errors import TimeoutPhase
from together_async.validation import FINITE, number

_seconds: Final = number(0, FINITE, "seconds above 0, or None to switch it off", above=True, optional=True)


@attrs.frozen
class Timeouts:
    """Limits in seconds; None switches one off. Each error names the limit that ran out.

    Args:
        connect: To open a connection (name lookup, TCP, TLS, proxy), per attempt.
        first_token: From sending the request, anew for each attempt, to the first generated token of a stream, or to
            the first byte of a whole response that is no blank, which comes when all of it has been generated.
        idle: Silence between content while a stream is being read. Comments, pings, role-only chunks and dripping
            bytes are not content; the time the consumer takes does not count.
        total: One deadline over everything, all attempts and the whole stream.
        queue: To wait for a turn under the client's limits, for each attempt anew. Nothing has been sent when it runs
            out.

    Raises:
        ValueError: A limit that is not a finite number above 0.
    """

    connect: float | None = attrs.field(default=10.0, validator=_seconds)
    first_token: float | None = attrs.field(default=300.0, validator=_seconds)
    idle: float | None = attrs.field(default=60.0, validator=_seconds)
    total: float | None = attrs.field(default=None, validator=_seconds)
    queue: float | None = attrs.field(default=None, validator=_seconds)


class Due(NamedTuple):
    """When something is late, on the event loop's clock, and how it is called then; made for every call."""

    at: float
    phase: TimeoutPhase
    seconds: float


def earliest(one: Due | None, other: Due | None) -> Due | None:
    """Returns the one that is late first, None when neither can be."""
    if one is None or other is None:
        return one or other
    return one if one.at <= other.at else other


def due(phase: TimeoutPhase, seconds: float | None, since: float) -> Due | None:
    """Returns when `seconds` after `since` is; None when the limit is switched off."""
    return None if seconds is None else Due(since + seconds, phase, seconds)
