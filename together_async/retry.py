"""Which failures are retried, when, and how often. Pure: randomness and time are arguments.

The table (statuses: the API's error page):

| failure | retried? |
|---|---|
| 429 | the call waits, see below |
| 408, 409, 500, 502, 503, 504, 520, 524, 529 | yes |
| every other status, 402 above all, and a 429 of an account without credit | no |
| no connection, a lost connection, a connection that could not be opened in time | yes |
| any other timeout | no: it is the caller's own limit, and the work was probably being done, and billed |
| a stream that broke before anything of it was handed out | as the same failure without a stream |
| a stream of which something was handed out | never |
| a response that breaks the protocol | no |

A delay is chosen at random from zero to `base_delay` * 2 ** (attempt - 1), at most `max_delay` ("full jitter":
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and is never shorter than what the server
asked for in `retry-after` or `retry-after-ms`.

A 429 is no failure: it says that the call's turn has not come yet. The call goes back into the queue, in its old place,
and the limiter sends it when the service allows, however often that takes. Neither `Retry.attempts` nor the budget
counts it. It ends the call only when the service asks for a wait above `Retry.max_retry_after`, when it has refused
every request to the model for longer than that (for 15 minutes, if it names the times to wait: then it is at work, and
what it lets in may have gone to other calls), or when `Timeouts.total` or `Timeouts.queue` leave no time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import attrs

from together_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    IncompleteStreamError,
    PaymentRequiredError,
    StreamAPIError,
    StreamConnectionError,
    TogetherError,
)
from together_async.models import Retried
from together_async.validation import FINITE, number

RETRIED_STATUSES: Final = frozenset({408, 409, 429, 500, 502, 503, 504, 520, 524, 529})
FREE_RETRIES: Final = 10
"""Retries that the first calls of a client may make between them, however few the calls are."""
RECENT_S: Final = 60.0
"""Seconds for which the retries earned by calls are kept, at least; at most twice as many."""
BATCH_WAIT_S: Final = 900.0
"""Seconds of the longest pause that batch calls wait for, at least, unless they bring a `Retry` of their own."""
REFUSING_S: Final = 900.0
"""Seconds for which a service that names the times to wait may refuse everything, at least."""
_YEAR_S: Final = 366 * 86_400
_MOST_ATTEMPTS: Final = 100
_ATTEMPTS: Final = f"a whole number from 1 (no retry) to {_MOST_ATTEMPTS}"


@attrs.frozen
class Retry:
    """How often a failed call is tried again, and how long it waits in between.

    A 429 is not a failure but a wait, which these numbers do not count; `max_retry_after` bounds it.

    Attributes:
        attempts: HTTP requests at most, those that were answered with 429 left out; from 1, which never retries, to
            100. Default 4. (`.attempts` of completions and errors counts every HTTP request.)
        budget: The largest share of retries among all calls of the client, from 0, which never retries, to 1; ten
            retries are allowed in any case above 0. With the default of 0.2, 1,000 calls that all fail cost at most
            1,200 requests. Replacing a pooled connection that the server had closed is an attempt, but not a retry; a
            429 is neither. The budget is the client's: that of a single call's `Retry` is not used.
        base_delay: Seconds, from 0 to 86400: the first delay is at most this. Default 0.5.
        max_delay: Seconds, from 0 to 86400: no delay is longer, unless the server asked for it. Default 30.
        max_retry_after: Seconds, from 0. When the server asks for a longer pause, the call fails at once, and the error
            says until when; so does a call that waits in the queue when such a pause comes. A server that names no time
            may refuse every request to a model for as long (one that names times, for 15 minutes), then its calls fail.
            It does not bound the wait in the queue, which pauses may make up many times: `Timeouts.total` and
            `Timeouts.queue` do. With 0 a 429 is raised at once. Default 60. For batch calls, which are in no hurry
            (`priority="batch"`, as in `map` and `run_batch`), the client's value counts as at least 900; that of a
            `Retry` that they bring counts as it is.

    Raises:
        ValueError: A value out of its range; the text names field, value and range.
    """

    attempts: int = attrs.field(default=4, validator=number(1, _MOST_ATTEMPTS, _ATTEMPTS, whole=True))
    budget: float = attrs.field(default=0.2, validator=number(0, 1, "a number from 0 to 1"))
    base_delay: float = attrs.field(default=0.5, validator=number(0, 86_400, "seconds from 0 to 86400"))
    max_delay: float = attrs.field(default=30.0, validator=number(0, 86_400, "seconds from 0 to 86400"))
    max_retry_after: float = attrs.field(default=60.0, validator=number(0, FINITE, "seconds from 0"))


class RetryBudget:
    """How many retries a client may still make: at most `fraction` of its calls, and the first ten in any case.

    The retries that calls have earned are kept while the calls are recent: a day without failures does not allow a
    minute of nothing but retries. Time is counted in spans of `RECENT_S`; the calls of the running span and of the one
    before it are recent.

    Args:
        fraction: Retries per call, from 0 to 1; 0 allows no retry, not even the first ten.

    Attributes:
        left: Retries that may still be made.
    """

    __slots__ = ("_before", "_fraction", "_free", "_since", "_started", "left")

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self.left = float(FREE_RETRIES) if fraction else 0.0
        self._free = self.left  # retries that the first calls have yet to earn
        self._since = -math.inf  # when the running span began
        self._started = self._before = 0  # calls in it, and in the one before

    def __repr__(self) -> str:
        return f"<RetryBudget {self.left:g}>"

    def record_call(self, now: float) -> None:
        """Counts a call, which earns a fraction of a retry.

        Args:
            now: Seconds of a clock that does not go back.
        """
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
        """Takes a retry from the budget; returns False when it is used up."""
        if self.left < 1 - 1e-9:
            return False
        self.left -= 1
        return True


def checked_retry(retry: object) -> Retry | None:
    """Returns an argument that has to be a `Retry` or None.

    Raises:
        ValueError: It is neither.
    """
    if retry is not None and not isinstance(retry, Retry):
        raise ValueError(f"retry: got a {type(retry).__name__}, expected a Retry, as Retry(attempts=2)")
    return retry


def is_retryable(error: TogetherError) -> bool:
    """Returns whether an error is retried, by the table above, if nothing was handed out yet; True for a 429."""
    if isinstance(error, PaymentRequiredError):
        return False  # whatever its status: a 429 may say that the account has no credit
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


def backoff(retry: Retry, attempt: int, rng: Callable[[], float]) -> float:
    """Returns the random delay before the next attempt, in seconds.

    Args:
        retry: The delays to choose from.
        attempt: How many attempts there were, from 1.
        rng: Returns a random number from 0 to 1.
    """
    return rng() * min(retry.max_delay, retry.base_delay * 2.0 ** (attempt - 1))


def for_batch(retry: Retry) -> Retry:
    """Returns a client's rules for its batch calls, which wait for a pause of up to 15 minutes at least."""
    return attrs.evolve(retry, max_retry_after=max(retry.max_retry_after, BATCH_WAIT_S))


def reason_to_end(retry: Retry, attempts: int, asked_s: float, *, too_late: str | None, now: float) -> str | None:
    """Returns why a failed call makes no other attempt; None if it makes one, as long as the budget allows it.

    Args:
        retry: The rules.
        attempts: Attempts that have failed, from 1; those answered with 429 are left out.
        asked_s: Seconds that the server asked to wait; 0 if it did not ask.
        too_late: The field of `Timeouts` that leaves no time for another attempt; None if all do.
        now: Seconds since 1970.
    """
    if attempts >= retry.attempts:
        return "Retry.attempts allows no more"
    if asked_s > retry.max_retry_after:
        return f"the service asks for a wait of {_too_long(asked_s, retry, now)}"
    return None if too_late is None else _leaves_no_time(too_late)


def reason_not_to_wait(
    retry: Retry, pause_s: float, *, refusing_s: float, names_times: bool, too_late: str | None, now: float
) -> str | None:
    """Returns why a call does not wait after a 429; empty if its caller wants no wait, None if it waits.

    Args:
        retry: The rules.
        pause_s: Seconds until the model is sent something again.
        refusing_s: Seconds for which the service has refused every request to the model.
        names_times: Whether the service said how long to wait.
        too_late: The field of `Timeouts` that leaves no time for the wait; None if all do.
        now: Seconds since 1970.
    """
    most_s = retry.max_retry_after
    if not most_s:
        return ""
    if pause_s > most_s:
        return f"the model is paused for {_too_long(pause_s, retry, now)}"
    if names_times and most_s < REFUSING_S:
        most_s, bound = REFUSING_S, f"a service that names the times to wait is given {REFUSING_S:g} s"
    else:
        bound = f"Retry.max_retry_after is {most_s:g} s"
    if refusing_s > most_s:
        return f"the service has refused everything for {refusing_s:.0f} s, and {bound}"
    if too_late is None:
        return None
    return f"the model is paused for {until(pause_s, now)}, and Timeouts.{too_late} leaves no time for that"


def _too_long(seconds: float, retry: Retry, now: float) -> str:
    return f"{until(seconds, now)}, and Retry.max_retry_after is {retry.max_retry_after:g} s"


def _leaves_no_time(limit: str) -> str:
    return f"Timeouts.{limit} leaves no time for another attempt"


def retry_after_s(error: TogetherError) -> float | None:
    """Returns the seconds that the server asked to wait, None when it did not ask."""
    return error.retry_after if isinstance(error, APIStatusError) else None


def reason(error: TogetherError) -> str:
    """Returns why an attempt failed, in a few words that repeat nothing of the server's or the caller's text."""
    if isinstance(error, APIStatusError):
        return str(error.status_code)
    if isinstance(error, StreamAPIError):
        return f"error {error.status_code} in the stream"
    if isinstance(error, APITimeoutError):
        return f"timeout: {error.phase}"
    return "connection lost" if isinstance(error, (StreamConnectionError, IncompleteStreamError)) else "no connection"


def note(retries: tuple[Retried, ...], ending: str) -> str:
    """Returns the note on the error of a call that failed in the end: its attempts, and why there was no other.

    Attempts that failed for the same reason are put together: there may be hundreds of 429s.

    Args:
        retries: The attempts before the last one.
        ending: Why there was no other; empty if the error says so itself.
    """
    if not retries:
        return ending
    waits: dict[str, list[float]] = {}
    for retried in retries:
        waits.setdefault(retried.reason, []).append(retried.waited_s)
    tried = "; ".join(
        f"{reason}{f' x {len(seconds)}' if len(seconds) > 1 else ''}, waited {sum(seconds):.1f} s"
        for reason, seconds in waits.items()
    )
    return f"{len(retries) + 1} attempts ({tried}){f'; {ending}' if ending else ''}"


def until(seconds: float, now: float) -> str:
    """Returns how long a wait is, and when it is over, as "90 s, until 2025-02-03 04:05:06 UTC".

    Args:
        seconds: The wait, from 0; beyond a year the date is left out.
        now: Seconds since 1970.
    """
    if seconds > _YEAR_S:
        return f"{seconds:.3g} s"
    return f"{math.ceil(seconds)} s, until {datetime.fromtimestamp(now + seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
