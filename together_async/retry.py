"""What is asked again, when, and how often. Pure: chance and time are arguments.

The table (statuses: the API's error page):

| what came | again? |
|---|---|
| 408, 409, 429, 500, 502, 503, 504, 520, 524, 529 | yes |
| every other status, 402 before all | no |
| no connection, a connection that was lost, a connection that could not be made in time | yes |
| any other timeout | no: it is the caller's own limit, and the work was probably being done, and billed |
| a stream that broke before anything of it was handed out | as for the same failure without a stream |
| a stream of which something was handed out | no, never |
| an answer that is not the protocol's | no |

A delay is chosen at random from zero to `base_delay` * 2 ** (attempt - 1), at most `max_delay` ("full jitter":
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and is never shorter than what the server
told in `retry-after` or `retry-after-ms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import attrs

from together_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    IncompleteStreamError,
    StreamAPIError,
    StreamConnectionError,
    TogetherError,
)
from together_async.models import Retried
from together_async.validation import FINITE, number

RETRIED_STATUSES: Final = frozenset({408, 409, 429, 500, 502, 503, 504, 520, 524, 529})
FREE_RETRIES: Final = 10
"""Retries which the first calls of a client may make among them, however few the calls are."""
RECENT_S: Final = 60.0
_MOST_ATTEMPTS: Final = 100
_ATTEMPTS: Final = f"a whole number from 1 (no retry) to {_MOST_ATTEMPTS}"


@attrs.frozen
class Retry:
    """How often a call is tried, and how long it waits in between.

    Args:
        attempts: How often a request is sent at most, from 1, which never retries, to 100.
        budget: Retries are at most this fraction of all calls of the client, from 0 to 1, and never fewer than 10. When
            everything fails, 1,000 calls cost at most 1,200 requests; the replacement of a pooled connection that the
            server had closed is an attempt, but no retry. Of a call's own `Retry` this is not used.
        base_delay: Seconds; the first delay is at most this.
        max_delay: Seconds; no delay is longer, unless the server asked for it.
        max_retry_after: Seconds; a server that asks to wait longer ends the call at once.

    Raises:
        ValueError: A value out of its range.
    """

    attempts: int = attrs.field(default=4, validator=number(1, _MOST_ATTEMPTS, _ATTEMPTS, whole=True))
    budget: float = attrs.field(default=0.2, validator=number(0, 1, "a number from 0 to 1"))
    base_delay: float = attrs.field(default=0.5, validator=number(0, 86_400, "seconds from 0 to 86400"))
    max_delay: float = attrs.field(default=30.0, validator=number(0, 86_400, "seconds from 0 to 86400"))
    max_retry_after: float = attrs.field(default=60.0, validator=number(0, FINITE, "seconds from 0"))


class RetryBudget:
    """How many retries a client may still make: at most `fraction` of its calls, and the first ten in any case.

    What the calls have earned is kept while they are recent: a client that went well for a day may not make up for it
    in a minute. Time is counted in spans of `RECENT_S`; those of the running one and of the one before are recent.
    """

    __slots__ = ("_before", "_fraction", "_free", "_since", "_started", "left")

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self.left = float(FREE_RETRIES) if fraction else 0.0
        self._free = self.left  # what the first calls have yet to earn
        self._since = -math.inf  # when the running span began
        self._started = self._before = 0  # calls in it, and in the one before

    def __repr__(self) -> str:
        return f"<RetryBudget {self.left:g}>"

    def call(self, now: float) -> None:
        """Counts a call."""
        if now - self._since >= RECENT_S:
            self._before = self._started if now - self._since < 2 * RECENT_S else 0
            self._since, self._started = now, 0
        self._started += 1
        if self._free > 0:
            self._free -= self._fraction
        else:
            most = max(FREE_RETRIES, self._fraction * (self._started + self._before))
            self.left = min(most, self.left + self._fraction)

    def spend(self) -> bool:
        """Takes one retry; False when there is none."""
        if self.left < 1 - 1e-9:
            return False
        self.left -= 1
        return True


def is_retryable(error: TogetherError) -> bool:
    """Returns what the table says of an error, given that nothing was handed out yet."""
    if isinstance(error, APIStatusError):
        return error.status_code in RETRIED_STATUSES
    if isinstance(error, StreamAPIError):
        return error.status_code in RETRIED_STATUSES
    if isinstance(error, APITimeoutError):
        return error.phase == "connect"
    if isinstance(error, StreamConnectionError):
        error = error.__cause__ if isinstance(error.__cause__, APIConnectionError) else error
    if isinstance(error, APIConnectionError):
        return error.transient
    return isinstance(error, (StreamConnectionError, IncompleteStreamError))


def backoff(retry: Retry, attempt: int, chance: Callable[[], float]) -> float:
    """Returns the delay after the `attempt`-th attempt, from 1 on, in seconds.

    Args:
        retry: The rules.
        attempt: How many attempts there were.
        chance: Returns a number from 0 to 1.
    """
    return chance() * min(retry.max_delay, retry.base_delay * 2.0 ** (attempt - 1))


def retry_after_s(error: TogetherError) -> float | None:
    """Returns how long the server asked to wait, None when it did not."""
    return error.retry_after if isinstance(error, APIStatusError) else None


def reason(error: TogetherError) -> str:
    """Returns why an attempt failed, in a few words without anybody's text."""
    if isinstance(error, APIStatusError):
        return str(error.status_code)
    if isinstance(error, StreamAPIError):
        return f"error {error.status_code} in the stream"
    if isinstance(error, APITimeoutError):
        return f"timeout: {error.phase}"
    return "connection lost" if isinstance(error, (StreamConnectionError, IncompleteStreamError)) else "no connection"


def note(retries: tuple[Retried, ...], ending: str) -> str:
    """Returns the sentence about the attempts of a call that failed after all."""
    tried = "; ".join(f"{one.reason}, waited {one.waited_s:.1f} s" for one in retries)
    return f"{len(retries) + 1} attempts ({tried}); {ending}" if retries else ending
