"""One call from its turn under the limits to a response: every attempt of it, and what the limits hear of them.

This is the one place that retries. A call waits for its turn, sends, and hands on a response whose status is a
success; the stream, or `create`, reads it and says how it ended. What fails before anything was handed to the caller
may be asked again here; what `retry` decides holds for all ways to ask.

The order at the end of an attempt is: the connection is closed, the tokens that were not used are given back, the
place is freed.
"""

from __future__ import annotations

import asyncio
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from together_async import retry
from together_async.errors import (
    APIConnectionError,
    APIStatusError,
    PaymentRequiredError,
    RateLimitError,
    TogetherError,
)
from together_async.models import Retried, Usage
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.headers import AccountLimits, limited_kind, read_limits
from together_async.ratelimit.lane import MOST_PAUSE_S
from together_async.retry import Retry, RetryBudget
from together_async.timeouts import Timeouts, due, earliest
from together_async.wire.error_bodies import retry_after, status_error
from together_async.wire.http_request import HTTPRequest
from together_async.wire.redaction import scrub

if TYPE_CHECKING:
    from together_async.http.response import HTTPResponse
    from together_async.http.transport import Abortable, Transport
    from together_async.ratelimit.driver import Driver
    from together_async.ratelimit.limits import Priority
    from together_async.ratelimit.queue import Reservation
    from together_async.request import ChatCompletionRequest


class CallContext(Protocol):
    """What a call needs of the client that makes it."""

    def _transport_for(self, headers: Mapping[str, str] | None) -> Transport:
        """Returns the connections of the running loop, if there is a key to use them with."""
        ...

    def _secrets_of(self, request: ChatCompletionRequest) -> list[str]:
        """Returns what no error's text may repeat."""
        ...


class Call:
    """One call and its attempts.

    Args:
        home: The client.
        request: What to ask.
        driver: Of the limiter that grants its turns.
        budget: The client's.
        http: The same as it is sent.
        headers: Added to, or in place of, the client's.
        timeouts: The call's.
        rules: When to ask again.
        priority: Who goes first.
        size: The request's size.
        streamed: Whether the response comes token by token.
        counts_as_queued: Whether `Limits.max_queued` holds for it.
        skips_slow_start: Whether it is one of a number that the caller has named.
        chance: A number from 0 to 1.

    Attributes:
        attempts: HTTP requests made so far.
        retries: Why there was more than one.
        tokens: What the limits were told that it used, prompt and answer; None before its end.
        estimated: Whether that is what was seen, because the server's own count did not come.
        first_sent_at: When its first attempt began, on the event loop's clock; None when there was none.
        on_wait: Hears when it begins (1) and ends (-1) to wait for its turn.
        on_rest: The same for the wait before another attempt.
    """

    __slots__ = (
        "_abort",
        "_budget",
        "_counts_as_queued",
        "_driver",
        "_headers",
        "_home",
        "_http",
        "_loop",
        "_model",
        "_number",
        "_pause_s",
        "_priority",
        "_request",
        "_reservation",
        "_retry_after_s",
        "_rules",
        "_sent_at",
        "_since",
        "_size",
        "_skips_slow_start",
        "_started",
        "_streamed",
        "_timeouts",
        "_tries",
        "_waiter",
        "attempts",
        "chance",
        "estimated",
        "first_sent_at",
        "on_rest",
        "on_wait",
        "retries",
        "tokens",
    )

    def __init__(
        self,
        *,
        home: CallContext,
        request: ChatCompletionRequest,
        driver: Driver,
        budget: RetryBudget,
        http: HTTPRequest,
        headers: Mapping[str, str] | None,
        timeouts: Timeouts,
        rules: Retry,
        priority: Priority,
        size: Size,
        streamed: bool,
        counts_as_queued: bool = True,
        skips_slow_start: bool = False,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._home = home
        self._request = request
        self._driver = driver
        self._budget = budget
        self._http = http
        self._headers = headers
        self._timeouts = timeouts
        self._rules = rules
        self._priority: Priority = priority
        self._model = request.model
        self._size = size
        self._streamed = streamed
        self.chance = chance
        self.attempts = self._tries = 0
        self.retries: tuple[Retried, ...] = ()
        self.tokens: int | None = None
        self.estimated = False
        self.first_sent_at: float | None = None
        self.on_wait: Callable[[int], None] | None = None
        self.on_rest: Callable[[int], None] | None = None
        self._counts_as_queued, self._skips_slow_start = counts_as_queued, skips_slow_start
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: float | None = None
        self._sent_at = 0.0
        self._retry_after_s: float | None = None  # of an error within the response
        self._pause_s = 0.0  # that the last 429 was taken for
        self._since: float | None = None  # when the last attempt failed
        self._number: int | None = None
        self._reservation: Reservation | None = None
        self._waiter: asyncio.Future[None] | Abortable | None = None
        self._abort: APIConnectionError | None = None

    def __repr__(self) -> str:
        return f"<Call to {self._model}, {self._tries} of {self._rules.attempts} attempts>"

    def secrets(self) -> list[str]:
        """Returns what no error's text may repeat."""
        return self._home._secrets_of(self._request)

    # ----------------------------------------------------------------------------------------------------------- asking

    async def open(self) -> HTTPResponse:
        """Returns the response of the first attempt whose status is a success.

        Raises:
            TogetherError: What the last attempt came to, or why there was none; with attempts and retries.
        """
        transport = self._home._transport_for(self._headers)
        self._loop = transport.loop
        if self._started is None:
            self._started = self._loop.time()
            self._budget.call(self._started)
        transport.openings.add(self)  # so that closing the client reaches a call that waits
        last: TogetherError | None = None
        try:
            while True:
                one = self._ask(last)
                if not one.granted:
                    await self._turn(one, last)
                self._reservation, self._number = one, one.number
                try:
                    return await self._attempt(transport, one)
                except TogetherError as error:
                    await self._sleep(self._decide(error))
                    last = error
        finally:
            transport.openings.discard(self)

    async def again(self, error: TogetherError) -> HTTPResponse:
        """Returns another response after one that began and broke before anything of it was handed to the caller.

        Raises:
            TogetherError: `error` itself, if there is no other attempt; else as `open`.
        """
        delay_s = self._decide(error)
        transport = self._home._transport_for(self._headers)
        transport.openings.add(self)
        try:
            await self._sleep(delay_s)
        finally:
            transport.openings.discard(self)
        return await self.open()

    async def _attempt(self, transport: Transport, one: Reservation) -> HTTPResponse:
        self._tries += 1
        self._retry_after_s = None
        now = self._sent_at = transport.loop.time()
        if self.first_sent_at is None:
            self.first_sent_at = now
        if self._since is not None:
            self._note_wait()
        try:
            if self._abort is not None:
                self._raise_if_aborted()
            exchange = await transport.open(
                self._http,
                headers=self._headers,
                timeouts=self._timeouts,
                started=self._started or now,
                sent=now,
                may_replace=self._may_replace,
                on_opening=self._note_opening,
            )
        except TogetherError as error:
            scrub(error, self.secrets())
            self.attempts += error.attempts
            self._fail(one, sent=error.attempts > 0)
            raise
        except BaseException:  # cancelled: the server may be at work by now
            self.ended(None)
            raise
        finally:
            self._waiter = None
        self.attempts += exchange.attempts
        exchange.attempts = self.attempts
        told = read_limits(exchange.raw_headers)
        if 200 <= exchange.status < 300:
            latency_s = exchange.arrived - now if self._streamed else None
            self._driver.record_response(one, told, good=True, latency_s=latency_s)
            return exchange
        raise await self._refusal(one, exchange, told)

    def _ask(self, last: TogetherError | None) -> Reservation:
        """Asks for a turn. What goes wrong here ends the call; `last` is what sent it here again."""
        try:
            return self._driver.ask(
                self._model,
                self._size,
                priority=self._priority,
                number=self._number,
                max_pause_s=self._rules.max_retry_after,
                counts_as_queued=self._counts_as_queued,
                skips_slow_start=self._skips_slow_start,
            )
        except TogetherError as error:
            raise self._turned_away(error) from last

    async def _turn(self, one: Reservation, last: TogetherError | None) -> None:
        """Waits for a turn that was asked for."""
        timeouts = self._timeouts
        assert self._loop is not None and self._started is not None  # noqa: S101, PT018 - opened
        deadline = earliest(
            due("queue", timeouts.queue, self._loop.time()), due("total", timeouts.total, self._started)
        )
        is_new = self._number is None
        try:
            await self._driver.wait(one, is_new=is_new, deadline=deadline, on_waiting=self._note_waiting)
        except TogetherError as error:
            raise self._turned_away(error) from last

    def _turned_away(self, error: TogetherError) -> TogetherError:
        self._note_wait()
        error.attempts, error.retries = self.attempts, self.retries
        return error

    async def _refusal(self, one: Reservation, exchange: HTTPResponse, told: AccountLimits | None) -> TogetherError:
        """Returns the error for a response that is none of success, when the limits have heard of it."""
        status = exchange.status
        try:
            self._waiter = exchange  # so that it can be given up
            try:
                body = await exchange.read_error_body()
            finally:
                self._waiter = None
                exchange.close()
            self._raise_if_aborted()
            error = self._status_error(exchange, body)
            if isinstance(error, RateLimitError):
                self._limited(one, told, retry.retry_after_s(error), error.body)
            else:
                if status == 503:
                    self._driver.record_overload(one)
                self._driver.record_response(one, told, good=False)
                if isinstance(error, PaymentRequiredError):
                    self._driver.record_payment_required(error)
        finally:
            self._fail(one, sent=True)
        return error

    def _limited(self, one: Reservation, told: AccountLimits | None, retry_after_s: float | None, body: Any) -> None:
        self._pause_s = retry.backoff(self._rules, self._tries, self.chance) if retry_after_s is None else retry_after_s
        self._driver.record_rate_limit(one, told, wait_s=self._pause_s, kind=limited_kind(body))

    def _status_error(self, exchange: HTTPResponse, body: bytes) -> APIStatusError:
        headers = exchange.headers
        note = (
            f" (the redirect to {_origin(headers['location'])} was not followed)"
            if 300 <= exchange.status < 400 and "location" in headers
            else ""
        )
        return status_error(exchange.status, headers, body, secrets=self.secrets(), note=note)

    def _fail(self, one: Reservation, *, sent: bool) -> None:
        """Gives everything back."""
        self._reservation = None
        if sent:
            self._driver.release(one, 0)
        else:
            self._driver.withdraw(one)

    # --------------------------------------------------------------------------------------------------------- retrying

    def _decide(self, error: TogetherError) -> float:
        """Returns the delay before the next attempt; raises `error` when there is none."""
        error.attempts, error.retries = self.attempts, self.retries
        retry_after_s = retry.retry_after_s(error)
        if retry_after_s is None:
            retry_after_s = self._retry_after_s
        limited = isinstance(error, RateLimitError)
        backoff_s = retry.backoff(self._rules, self._tries, self.chance)
        delay_s = self._pause_s if limited else (retry_after_s or 0.0) + backoff_s
        ending = self._ending(error, retry_after_s, delay_s)
        if ending is not None:
            if self._rules.attempts > 1 and (self.retries or retry.is_retryable(error)):
                error.add_note(retry.note(self.retries, ending))
            try:
                raise error
            finally:
                del error  # whose traceback holds this frame
        self._since = self._now()
        self.retries = (*self.retries, Retried(retry.reason(error), delay_s))
        # After a 429 the limiter pauses the model, for everybody; the call waits there, in its old place.
        return 0.0 if limited and delay_s <= MOST_PAUSE_S else delay_s

    def _ending(self, error: TogetherError, retry_after_s: float | None, delay_s: float) -> str | None:
        """Returns why there is no other attempt, None when there is one."""
        rules, total, started = self._rules, self._timeouts.total, self._started or 0.0
        for forbidden, why in (
            (self._abort is not None, "the call was given up"),
            (not retry.is_retryable(error), "such a failure is not asked again"),
            (self._tries >= rules.attempts, "Retry.attempts allows no more"),
            (
                retry_after_s is not None and retry_after_s > rules.max_retry_after,
                "the server's wait is longer than Retry.max_retry_after",
            ),
            (total is not None and self._now() + delay_s >= started + total, "Timeouts.total leaves no time for it"),
        ):
            if forbidden:
                return why
        if not self._counts_as_queued and isinstance(error, RateLimitError):
            # One of a bounded number, all of which wait together until the told time: that makes no storm, and a pause
            # that hits hundreds at once would use the budget up.
            return None
        return None if self._budget.spend() else "the client's retry budget is used up"

    def _note_wait(self) -> None:
        """The wait after the last failure is over: enters how long it was in the place of what was planned."""
        since, self._since = self._since, None
        if since is not None:
            self.retries = (*self.retries[:-1], self.retries[-1]._replace(waited_s=self._now() - since))

    def _now(self) -> float:
        assert self._loop is not None  # noqa: S101 - opened
        return self._loop.time()

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        assert self._loop is not None  # noqa: S101 - opened
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, _end, waiter)
        if self.on_rest is not None:
            self.on_rest(1)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
            if self.on_rest is not None:
                self.on_rest(-1)

    # ---------------------------------------------------------------------------------------------------------- ending

    def abort(self, failure: APIConnectionError) -> None:
        """Ends whatever the call waits for with `failure`: its turn, the next attempt, or a response's head."""
        self._abort = failure
        waiter = self._waiter
        if isinstance(waiter, asyncio.Future):
            if not waiter.done():
                self._note_wait()
                failure.attempts, failure.retries = self.attempts, self.retries
                waiter.set_exception(failure)
        elif waiter is not None:
            waiter.abort(failure)  # a head, or an error's body, that is awaited

    def _note_waiting(self, waiter: asyncio.Future[None] | None) -> None:
        self._waiter = waiter
        if self.on_wait is not None:
            self.on_wait(-1 if waiter is None else 1)

    def _note_opening(self, opening: Any) -> None:
        self._waiter = opening

    def _raise_if_aborted(self) -> None:
        if self._abort is not None:
            failure = self._abort
            failure.attempts = 0  # of this attempt
            raise failure

    def _may_replace(self) -> bool:
        """A pooled connection was stale; the server had closed it before it could have read the request.

        That counts as an attempt, but not as a retry of the budget: a server that closes each connection a moment
        after its answer would use it up although every call succeeds.
        """
        if self._tries >= self._rules.attempts:
            return False
        self._tries += 1
        self.retries = (*self.retries, Retried("stale connection", 0.0))
        return True

    def ended(self, usage: Usage | None, seen: int = 0) -> None:
        """Says that the response has ended, or was left. The first word counts.

        Args:
            usage: The server's own count, None when it did not come.
            seen: Tokens that were seen of the answer; what counts then, with the estimate of the prompt.
        """
        one, self._reservation = self._reservation, None
        if one is None:
            return
        driver = self._driver
        prompt, completion, total = _counts(usage)
        estimator = one.estimator
        if total is None:
            self.estimated = True
            total = estimator.prompt(self._size) + seen
        else:
            estimator.learn(self._size, prompt, completion)
            loop = self._loop
            if one.timed and not self._streamed and completion and loop is not None and not loop.is_closed():
                driver.record_latency(one, loop.time() - self._sent_at, tokens=completion)
        self.tokens = total
        driver.release(one, total)

    def heard(self, status: int | None, body: Any, headers: Mapping[str, str]) -> None:
        """Says that the response, whose status was a success, holds an error with a status of its own."""
        one = self._reservation
        if one is None:
            return
        self._retry_after_s = retry_after(headers, status=status or 0, now=time.time)
        if status == 429:
            self._limited(one, None, self._retry_after_s, body)
        elif status == 503:
            self._driver.record_overload(one)
        elif status == 402:
            text = "402: the account's spending limit is reached (said within a response)"
            self._driver.record_payment_required(PaymentRequiredError(text, status_code=402, body=body))


def _counts(usage: Usage | None) -> tuple[int | None, int | None, int | None]:
    """Returns what the server counted: prompt, completion, both together; None for what it did not."""
    if usage is None:
        return None, None, None
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    if total is None and prompt is not None and completion is not None:
        total = prompt + completion
    return prompt, completion, total


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _origin(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # "http://[::1"
        return "what is no URL"
    return f"{parts.scheme}://{parts.hostname}" if parts.hostname else "another path"
