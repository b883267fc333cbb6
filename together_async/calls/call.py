"""`Call`: one call from its turn under the limits to a response, over all of its attempts.

This is the one place that retries. A call waits for its turn, sends, and returns a response whose status is a success.
The stream, or `calls.whole`, reads the response and reports how it ended. As long as the caller has seen nothing of an
answer, another attempt may follow a failed one; the rules of `retry` hold for streams and whole responses alike.

A call that is answered with 429 has not failed: it goes on waiting, in its old place. The same holds for one that finds
no file descriptor for its connection, of which nothing was sent.

At the end of an attempt three things happen, in this order: the connection is closed, tokens that were not used are
given back, the place is freed.

A call that was given up (`abort`) may learn of it late: what it waited for may have come in the very turn of the event
loop. So it looks after every wait, and before it asks for a turn or sends anything.
"""

from __future__ import annotations

import asyncio
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from together_async import retry
from together_async.errors import (
    APIConnectionError,
    APIStatusError,
    InsufficientQuotaError,
    PaymentRequiredError,
    RateLimitError,
    TimeoutPhase,
    TogetherError,
    unsent,
)
from together_async.http.errors import DescriptorsExhaustedError
from together_async.models import Retried, Usage
from together_async.ratelimit.estimator import NOT_COUNTED, believed_counts
from together_async.ratelimit.headers import AccountLimits, limited_kind, read_limits
from together_async.ratelimit.lane import MOST_PAUSE_S
from together_async.retry import Retry, RetryBudget
from together_async.tasks import wake
from together_async.timeouts import Due, Timeouts, due, earliest
from together_async.wire.error_bodies import retry_after, status_error
from together_async.wire.quota import is_out_of_quota
from together_async.wire.redaction import scrub, secrets_of

if TYPE_CHECKING:
    from together_async.http.connections import Connections
    from together_async.http.response import HTTPResponse
    from together_async.http.transport import Abortable, Opening, Transport
    from together_async.ratelimit.driver import Driver
    from together_async.ratelimit.estimator import Size
    from together_async.ratelimit.lane import RateLimited
    from together_async.ratelimit.limits import Priority
    from together_async.ratelimit.queue import Reservation
    from together_async.request import ChatCompletionRequest
    from together_async.wire.http_request import HTTPRequest


@attrs.define(eq=False, repr=False)  # a traceback with locals must not show headers or messages
class CallSettings:
    """What stays the same over all attempts of a call.

    Attributes:
        connections: The client's connections.
        driver: The limiter's driver: it decides when the call may be sent, and learns from the responses.
        budget: The retries that the client's calls may make together.
        request: The request.
        http_request: The request as it is sent.
        headers: Added to, or in place of, the client's; None adds nothing.
        timeouts: The deadlines of the call.
        retry: When another attempt follows a failed one.
        priority: "interactive" or "batch".
        size: The size of the request, from which its tokens are estimated.
        streamed: Whether the answer comes token by token.
        counts_as_queued: Whether the call counts towards `Limits.max_queued`, and is refused beyond it.
        careful_start: Whether the call waits for the first answer of a model whose limits are not known.
    """

    connections: Connections
    driver: Driver
    budget: RetryBudget
    request: ChatCompletionRequest
    http_request: HTTPRequest
    headers: Mapping[str, str] | None
    timeouts: Timeouts
    retry: Retry
    priority: Priority
    size: Size
    streamed: bool
    counts_as_queued: bool = True
    careful_start: bool = False


class Call:
    """One call and its attempts.

    It has many methods and is one thing: its turn, its attempts and the waits between them change together, and how an
    attempt failed decides whether and when there is another.

    Args:
        settings: What to send, and how.
        rng: Returns a random number from 0 to 1.

    Attributes:
        settings: As given.
        attempts: HTTP requests made so far, those answered with 429 too.
        retries: Why there was more than one.
        tokens: Tokens of prompt and answer, as they were settled with the limiter; None before the end.
        estimated: Whether that is an estimate, because the server's own count did not come, or is impossible.
        first_sent_at: When the first attempt began, on the event loop's clock; None before that.
        on_wait: Called with 1 when the call begins to wait for its turn, with -1 when the wait ends; None for no call.
        on_backoff: The same for the wait before another attempt.
    """

    __slots__ = (
        "_aborted",
        "_failed_at",
        "_failures",
        "_limited",
        "_limited_at",
        "_loop",
        "_number",
        "_queued_at",
        "_refused_at",
        "_reservation",
        "_retry_after_s",
        "_rng",
        "_sent_at",
        "_started",
        "_unpaid",
        "_waiter",
        "attempts",
        "estimated",
        "first_sent_at",
        "on_backoff",
        "on_wait",
        "retries",
        "settings",
        "tokens",
    )

    def __init__(self, settings: CallSettings, *, rng: Callable[[], float] = random.random) -> None:
        self.settings = settings
        self.attempts = 0
        self.retries: tuple[Retried, ...] = ()
        self.tokens: int | None = None
        self.estimated = False
        self.first_sent_at: float | None = None
        self.on_wait: Callable[[int], None] | None = None
        self.on_backoff: Callable[[int], None] | None = None
        self._rng = rng
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: float | None = None
        self._sent_at = 0.0  # of the latest attempt
        self._limited: RateLimited | None = None  # what follows from the 429 of the latest attempt
        self._limited_at = 0.0  # when the latest 429 was reported to the limiter, whose pause begins then
        self._refused_at: float | None = None  # when the first of the 429s came that were inside of a good response
        self._queued_at: float | None = None  # since when it has waited for its turn, over any number of 429s
        self._failed_at: float | None = None  # the latest attempt, until the next one is sent
        self._failures = 0  # attempts as `Retry.attempts` counts them: without those answered with 429
        self._retry_after_s: float | None = None  # what an error within the response asked for
        self._reservation: Reservation | None = None
        self._number: int | None = None  # of the first reservation: later ones keep the place in the queue
        self._waiter: asyncio.Future[None] | Abortable | None = None  # what `abort` has to wake
        self._aborted: APIConnectionError | None = None  # raised as `unsent`: the attempts are counted already
        self._unpaid = False  # whether an error inside of a response said that the account has to be paid

    def __repr__(self) -> str:
        settings = self.settings
        return f"<Call to {settings.request.model}, {self._failures} of {settings.retry.attempts} attempts failed>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop it runs in; None before it has begun."""
        return self._loop

    def secrets(self) -> list[str]:
        """Returns what no error's text may repeat: the key, and the texts of the messages."""
        return secrets_of(self.settings.connections.api_key, self.settings.request.messages)

    # --------------------------------------------------------------------------------------------------------- sending

    async def open(self) -> HTTPResponse:
        """Returns the response of the first attempt whose status is a success.

        Raises:
            TogetherError: The error of the last attempt, or why there was none; with `attempts` and `retries`.
        """
        settings, transport = self.settings, self._transport()
        self._loop = transport.loop
        if self._started is None:
            self._started = self._loop.time()
            settings.budget.record_call(self._started)
        transport.openings.add(self)  # so that closing the client reaches a call that waits
        failure: TogetherError | None = None
        try:
            while True:
                reservation = self._ask(failure)
                if not reservation.granted:
                    await self._wait_for_turn(reservation, failure)
                self._reservation, self._number = reservation, reservation.number
                try:
                    return await self._attempt(transport, reservation)
                except DescriptorsExhaustedError as error:
                    self._ask_for_place(reservation, error)
                    failure = error
                except TogetherError as error:
                    await self._back_off(self._delay_after(error))
                    failure = error
        finally:
            failure = None  # its traceback holds this frame
            transport.openings.discard(self)

    async def again(self, error: TogetherError) -> HTTPResponse:
        """Returns another response, after one that began and broke before the caller had seen anything of it.

        Raises:
            TogetherError: `error` itself if there is no other attempt, else what `open` raises.
        """
        delay_s = self._delay_after(error)
        transport = self._transport()
        transport.openings.add(self)
        try:
            await self._back_off(delay_s)
        finally:
            transport.openings.discard(self)
        return await self.open()

    def _transport(self) -> Transport:
        """Returns the client's transport; raises if the client is closed, or anything else forbids to send."""
        try:
            return self.settings.connections.transport(self.settings.headers)
        except TogetherError as error:
            self._turned_away(error)
            raise

    async def _attempt(self, transport: Transport, reservation: Reservation) -> HTTPResponse:
        settings = self.settings
        self._retry_after_s = self._limited = None
        now = self._sent_at = transport.loop.time()
        if self.first_sent_at is None:
            self.first_sent_at = now
        failed_at = self._failed_at
        if failed_at is not None:
            self._note_waited()
        try:
            if self._aborted is not None:
                raise unsent(self._aborted)
            response = await transport.open(
                settings.http_request,
                headers=settings.headers,
                timeouts=settings.timeouts,
                started=self._started or now,
                sent=now,
                may_replace=self._may_replace,
                on_opening=self._note_opening,
                dial=settings.driver.dialling(reservation),
            )
        except TogetherError as error:
            scrub(error, self.secrets())
            self.attempts += error.attempts
            if not isinstance(error, DescriptorsExhaustedError):
                self._give_back(reservation, sent=error.attempts > 0)
            elif not error.attempts:
                self._failed_at = failed_at  # it goes on waiting for this attempt
            raise
        except BaseException:  # cancelled: the server may be at work by now
            self.settle(None)
            raise
        finally:
            self._waiter = None
        self.attempts += response.attempts
        response.attempts = self.attempts
        limits = read_limits(response.raw_headers)
        if 200 <= response.status < 300:
            latency_s = response.arrived - now if settings.streamed else None
            settings.driver.record_response(reservation, limits, good=True, latency_s=latency_s)
            if settings.streamed:
                settings.driver.held.record_stream(reservation, response, settings.driver.admission)
            return response
        raise await self._error_for(reservation, response, limits)

    def _ask(self, failure: TogetherError | None) -> Reservation:
        """Asks for a turn. An error here ends the call; `failure` is why it asks again."""
        settings = self.settings
        try:
            if self._aborted is not None:
                raise unsent(self._aborted)
            return settings.driver.ask(
                settings.request.model,
                settings.size,
                priority=settings.priority,
                number=self._number,
                max_pause_s=settings.retry.max_retry_after,
                counts_as_queued=settings.counts_as_queued,
                careful_start=settings.careful_start,
            )
        except TogetherError as error:
            raise self._turned_away(error) from failure

    async def _wait_for_turn(self, reservation: Reservation, failure: TogetherError | None) -> None:
        if self._queued_at is None:
            self._queued_at = self._now()
        try:
            await self.settings.driver.wait(
                reservation,
                is_new=self._number is None,
                deadline=self._deadline(),
                on_waiting=self._note_waiting,
            )
        except TogetherError as error:
            raise self._turned_away(error) from failure

    def _turned_away(self, error: TogetherError) -> TogetherError:
        """Returns an error that ends the call before its next attempt."""
        self._note_waited()
        error.attempts, error.retries = self.attempts, self.retries
        return error

    async def _error_for(
        self, reservation: Reservation, response: HTTPResponse, limits: AccountLimits | None
    ) -> TogetherError:
        """Returns the error for a response that is not a success, after reporting it to the limiter."""
        settings = self.settings
        try:
            self._waiter = response  # so that `abort` reaches it
            try:
                body = await response.read_error_body()
            finally:
                self._waiter = None
                response.close()
            if self._aborted is not None:
                raise unsent(self._aborted)
            error = self._status_error(response, body)
            if isinstance(error, RateLimitError) and not isinstance(error, PaymentRequiredError):
                self._record_rate_limit(reservation, limits, retry.retry_after_s(error), error.body)
            else:
                if response.status == 503:
                    settings.driver.record_overload(reservation)
                settings.driver.record_response(reservation, limits, good=False)
                if isinstance(error, PaymentRequiredError):
                    settings.driver.record_payment_required(error)
        finally:
            self._give_back(reservation, sent=True)
        return error

    def _record_rate_limit(
        self, reservation: Reservation, limits: AccountLimits | None, retry_after_s: float | None, body: Any
    ) -> None:
        self._limited_at = self._now()
        self._limited = self.settings.driver.record_rate_limit(
            reservation, limits, wait_s=retry_after_s, kind=limited_kind(body)
        )

    def _status_error(self, response: HTTPResponse, body: bytes) -> APIStatusError:
        headers, note = response.headers, ""
        if 300 <= response.status < 400 and "location" in headers:
            note = f" (the redirect to {_origin(headers['location'])} was not followed)"
        return status_error(response.status, headers, body, secrets=self.secrets(), note=note)

    def _give_back(self, reservation: Reservation, *, sent: bool) -> None:
        """Ends a reservation that brought no answer."""
        self._reservation = None
        if sent:
            self.settings.driver.release(reservation, 0)
        else:
            self.settings.driver.withdraw(reservation)

    # --------------------------------------------------------------------------------------------------------- retrying

    def _delay_after(self, error: TogetherError) -> float:
        """Returns the seconds until the next attempt; raises `error` if there is none."""
        error.attempts, error.retries = self.attempts, self.retries
        limited = self._limited
        asked_s = retry.retry_after_s(error)
        if asked_s is None:
            asked_s = self._retry_after_s
        delay_s, ending = self._next_try(asked_s) if limited is None else self._next_turn(limited, asked_s)
        if self._aborted is not None:
            ending = "the call was given up"
        elif self._unpaid or not retry.is_retryable(error):
            ending = "such a failure is not retried"
        elif ending is None and limited is None and not self.settings.budget.spend():
            ending = "the client's retry budget is used up"
        if ending is not None:
            self._describe(error, ending)
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        self._failed_at = self._now() if limited is None else self._limited_at
        self.retries = (*self.retries, Retried(retry.reason(error), delay_s))
        # After a 429 the limiter pauses the model for everybody; the call waits there, in its old place.
        return 0.0 if limited is not None and delay_s <= MOST_PAUSE_S else delay_s

    def _next_try(self, asked_s: float | None) -> tuple[float, str | None]:
        """Returns the seconds until a failed call is tried again, and why it is not; None if it is."""
        rules = self.settings.retry
        self._queued_at = self._refused_at = None
        self._failures += 1
        delay_s = (asked_s or 0.0) + retry.backoff(rules, self._failures, self._rng)
        too_late = self._too_late(delay_s)
        return delay_s, retry.reason_to_end(rules, self._failures, asked_s or 0.0, too_late=too_late, now=time.time())

    def _next_turn(self, limited: RateLimited, asked_s: float | None) -> tuple[float, str | None]:
        """Returns the seconds for which a call waits after a 429, and why it does not; None if it does."""
        if self._queued_at is None:
            self._queued_at = self._limited_at
        pause_s = max(limited.pause_s, asked_s or 0.0)
        return pause_s, retry.reason_not_to_wait(
            self.settings.retry,
            pause_s,
            refusing_s=self._refusing_s(limited),
            names_times=asked_s is not None,
            too_late=self._too_late(pause_s),
            now=time.time(),
        )

    def _describe(self, error: TogetherError, ending: str) -> None:
        """Says in an error why there is no other attempt."""
        if self._limited is not None and ending:
            error.args, ending = (f"{error}; {ending}", *error.args[1:]), ""
        if self.retries or (ending and self.settings.retry.attempts > 1 and retry.is_retryable(error)):
            error.add_note(retry.note(self.retries, ending))

    def _too_late(self, delay_s: float) -> TimeoutPhase | None:
        """Returns the time limit that runs out before the next attempt, in so many seconds; None if none does."""
        deadline = self._deadline()
        return None if deadline is None or self._now() + delay_s < deadline.at else deadline.phase

    def _deadline(self) -> Due | None:
        """Returns when the wait for a turn has to end."""
        timeouts, started, queued_at = self.settings.timeouts, self._started, self._queued_at
        return earliest(
            None if started is None else due("total", timeouts.total, started),
            None if queued_at is None else due("queue", timeouts.queue, queued_at),
        )

    def _refusing_s(self, limited: RateLimited) -> float:
        """Returns the seconds for which nothing but refusals has come.

        The limiter knows it, unless the refusals are in the bodies of responses that look good.
        """
        in_bodies_s = 0.0 if self._refused_at is None else self._now() - self._refused_at
        return max(limited.refusing_s, in_bodies_s)

    def _ask_for_place(self, reservation: Reservation, error: DescriptorsExhaustedError) -> None:
        """Lets the call wait for a place, because no file descriptor was left for its connection; or raises `error`.

        It was no attempt: nothing was sent.
        """
        self._reservation = None
        if not self.attempts:
            self.first_sent_at = None
        error.attempts, error.retries = self.attempts, self.retries
        if not self.settings.driver.record_descriptors_exhausted(reservation):
            raise error

    def _note_waited(self) -> None:
        """Replaces the planned delay of the latest retry by the time that was really waited."""
        failed_at, self._failed_at = self._failed_at, None
        if failed_at is not None:
            self.retries = (*self.retries[:-1], self.retries[-1]._replace(waited_s=self._now() - failed_at))

    def _now(self) -> float:
        assert self._loop is not None  # noqa: S101 - `open` has set it
        return self._loop.time()

    async def _back_off(self, seconds: float) -> None:
        if seconds <= 0:
            return
        assert self._loop is not None  # noqa: S101 - `open` has set it
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, wake, waiter)
        if self.on_backoff is not None:
            self.on_backoff(1)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
            if self.on_backoff is not None:
                self.on_backoff(-1)

    # ---------------------------------------------------------------------------------------------------------- ending

    def abort(self, failure: APIConnectionError) -> None:
        """Ends with `failure` whatever the call waits for: its turn, the next attempt, or the head of a response."""
        self._aborted = failure
        waiter = self._waiter
        if isinstance(waiter, asyncio.Future):
            if not waiter.done():
                self._note_waited()
                failure.attempts, failure.retries = self.attempts, self.retries
                wake(waiter, failure)
        elif waiter is not None:
            waiter.abort(failure)  # the head of a response, or the body of an error

    def _note_waiting(self, waiter: asyncio.Future[None] | None) -> None:
        self._waiter = waiter
        if self.on_wait is not None:
            self.on_wait(-1 if waiter is None else 1)

    def _note_opening(self, opening: Opening) -> None:
        self._waiter = opening

    def _may_replace(self) -> bool:
        """Whether the request may be sent again because a pooled connection was stale: the server had closed it.

        The server can't have read the request. The second request counts as an attempt, but not as a retry of the
        budget: a server that closes each connection a moment after its answer would use the budget up although every
        call succeeds.
        """
        if self._failures + 1 >= self.settings.retry.attempts:
            return False
        self._failures += 1
        self.retries = (*self.retries, Retried("stale connection", 0.0))
        return True

    def settle(self, usage: Usage | None, seen: int = 0) -> None:
        """Settles the call with the limiter once its response has ended or was left. Later calls change nothing.

        Args:
            usage: The server's count of tokens; None if it did not come.
            seen: Tokens of the answer that have come. Without a `usage` that can be believed, these and an estimate of
                the prompt count.
        """
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return
        settings = self.settings
        prompt, completion, total = NOT_COUNTED
        if usage is not None:
            prompt, completion, total = believed_counts(
                settings.size, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
            )
        estimator = reservation.estimator
        if total is None:
            self.estimated = True
            total = estimator.prompt(settings.size) + seen
        else:
            estimator.learn(settings.size, prompt, completion)
            loop = self._loop
            if reservation.timed and not settings.streamed and completion and loop is not None and not loop.is_closed():
                settings.driver.record_latency(reservation, loop.time() - self._sent_at, tokens=completion)
        self.tokens = total
        settings.driver.release(reservation, total)

    def record_error_in_body(self, status: int | None, body: Any, headers: Mapping[str, str]) -> None:
        """Reports to the limiter that a response with a successful status holds an error with a status of its own."""
        reservation = self._reservation
        if reservation is None:
            return
        driver = self.settings.driver
        self._retry_after_s = retry_after(headers, status=status or 0, now=time.time)
        if status == 402 or is_out_of_quota(body):
            self._unpaid = True
            driver.record_payment_required(_unpaid(status, body))
        elif status == 429:
            if self._refused_at is None:
                self._refused_at = self._now()
            self._record_rate_limit(reservation, None, self._retry_after_s, body)
        elif status == 503:
            driver.record_overload(reservation)


def _unpaid(status: int | None, body: Any) -> PaymentRequiredError:
    """Returns the error for the other calls, after a response said that the account has to be paid."""
    if status == 402:
        text = "402: the account's spending limit is reached (said within a response)"
        return PaymentRequiredError(text, status_code=402, body=body)
    if status is None or status < 400:
        status = 429  # the error has no status of its own
    text = f"{status}: the account's credit is used up (said within a response)"
    return InsufficientQuotaError(text, status_code=status, body=body)


def _origin(url: str) -> str:
    """Returns a URL's scheme and host in words that repeat nothing else of it."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # "http://[::1"
        return "something that is not a URL"
    return f"{parts.scheme}://{parts.hostname}" if parts.hostname else "another path"
