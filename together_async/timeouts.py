"""`Timeouts`, the value that callers set, and the arithmetic of deadlines. Pure: time is an argument."""

from __future__ import annotations

from typing import Final, NamedTuple

import attrs

from together_async.errors import TimeoutPhase
from together_async.validation import FINITE, number

_seconds: Final = number(0, FINITE, "seconds above 0, or None to switch it off", above=True, optional=True)


@attrs.frozen
class Timeouts:
    """How long a call may take, phase by phase: seconds above 0; None switches a limit off.

    A call that takes longer fails with `APITimeoutError`, or `StreamTimeoutError` once its first token has come; the
    error's `phase` is the name of the limit.

    When the event loop was blocked or the process stopped beyond `connect`, `first_token` or `idle`, that says nothing
    about the server: what has come in the meantime is read first, and the limit then lasts as much longer as its timer
    was late, at most a second. `total` and `queue` get no such second look.

    Attributes:
        connect: Seconds to open a connection (name lookup, TCP, TLS, proxy), for each attempt. In a session of yours
            this is the limit of aiohttp, for TCP and TLS, without that second look. Default 10.
        first_token: Seconds from sending the request to the first generated token of a stream, or to the first
            non-blank byte of a whole response, which comes when all of it has been generated; for each attempt. Default
            300.
        idle: Seconds of silence between content while a stream is read. Comments, pings, role-only chunks and dripping
            bytes are not content; the time the consumer takes does not count. Default 60.
        total: Seconds for everything: all attempts and the whole stream. Default None.
        queue: Seconds to wait for a turn under the client's limits. The wait goes on over 429s: it ends with the first
            request that is answered with something else, and begins anew if that has failed and is retried. Nothing is
            under way when it runs out. Default None.

    Raises:
        ValueError: A limit that is not a finite number above 0; the text names field, value and range.
    """

    connect: float | None = attrs.field(default=10.0, validator=_seconds)
    first_token: float | None = attrs.field(default=300.0, validator=_seconds)
    idle: float | None = attrs.field(default=60.0, validator=_seconds)
    total: float | None = attrs.field(default=None, validator=_seconds)
    queue: float | None = attrs.field(default=None, validator=_seconds)


class Due(NamedTuple):
    """A deadline; made for every call.

    Attributes:
        at: When it is, on the event loop's clock.
        phase: The limit it comes from.
        seconds: The value of that limit.
    """

    at: float
    phase: TimeoutPhase
    seconds: float


def earliest(first: Due | None, second: Due | None) -> Due | None:
    """Returns the earlier of two deadlines; None when there is neither."""
    if first is None or second is None:
        return first or second
    return first if first.at <= second.at else second


def due(phase: TimeoutPhase, seconds: float | None, since: float) -> Due | None:
    """Returns the deadline `seconds` after `since`; None when the limit is switched off."""
    return None if seconds is None else Due(since + seconds, phase, seconds)
