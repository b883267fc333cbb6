"""The errors for calls of which nothing is sent: their model is paused too long, or the account has no money. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from together_async.errors import PaymentRequiredError, RateLimitError, unsent
from together_async.ratelimit.lane import MOST_PAUSE_S, RateLimited


class PaymentStop(NamedTuple):
    """What is kept of a 402. Not the error itself: its traceback holds the request, and with it the prompt.

    Attributes:
        text: The error's text.
        kind: The error's class, made anew for each call that is turned away.
        facts: The keyword arguments for it.
    """

    text: str
    kind: type[PaymentRequiredError]
    facts: dict[str, Any]

    @classmethod
    def of(cls, error: PaymentRequiredError) -> PaymentStop:
        """Returns the facts of an error."""
        names = ("status_code", "headers", "body", "request_id", "retry_after")
        return cls(str(error), type(error), {name: getattr(error, name) for name in names})

    def error(self) -> PaymentRequiredError:
        """Returns the error for another call."""
        text = (
            f"{self.facts['status_code']}: the account has no credit or has reached its spending limit, says the "
            "response to another call; this one was not sent. Pay or raise the limit at the service, then call "
            "client.limiter.resume(); without that, one call a minute tries again"
        )
        return unsent(self.kind(text, **self.facts))


def paused(
    model: str,
    limited: RateLimited,
    max_pause_s: float,
    wall: datetime | None,
    *,
    asked_s: float = 0.0,
    names_times: bool = False,
) -> RateLimitError:
    """Returns the error for a call that does not wait so long.

    Args:
        model: The model's name.
        limited: How long it is paused, and has refused everything.
        max_pause_s: How long a pause the call would have waited for.
        wall: The time of day, in UTC; None if nobody knows.
        asked_s: For how long the service asked to pause it, which may be longer than it is paused.
        names_times: Whether the service said how long to wait; then it may refuse everything for `MOST_PAUSE_S`.
    """
    bound = f"Retry.max_retry_after is {max_pause_s:g} s"
    if limited.pause_s > max_pause_s:
        asked_s = max(asked_s, limited.pause_s)
        until = "" if wall is None else f", until {wall + timedelta(seconds=asked_s):%Y-%m-%d %H:%M:%S} UTC"
        reason = f"the service asked for a pause of {asked_s:.1f} s for {model}{until}"
    else:
        reason = f"the service has refused every request to {model} for {limited.refusing_s:.1f} s"
        if names_times and max_pause_s < MOST_PAUSE_S:
            bound = f"a service that names the times to wait is given {MOST_PAUSE_S:g} s"
    text = f"429: {reason}, and {bound}, so the call does not wait. Call later, or raise Retry.max_retry_after"
    return unsent(RateLimitError(text, status_code=429, retry_after=max(asked_s, limited.pause_s)))
