"""`RateLimiter`: the admission of one account, driven by the event loop and its clock."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from together_async.errors import APIConnectionError, APITimeoutError, PaymentRequiredError, TogetherError
from together_async.ratelimit.admission import Admission, Reservation
from together_async.ratelimit.estimator import Estimator, Size
from together_async.ratelimit.headers import AccountLimits, Kind
from together_async.ratelimit.limits import Limits, LimitsState, Priority, check_priority
from together_async.timeouts import Due, due

_AWAY: Final = "the limiter is in use in another event loop that still runs; make one limiter per loop"


class RateLimiter:
    """Keeps all clients that share it within one account's limits.

    ```python
    limiter = RateLimiter(Limits(requests_per_minute=600))
    async with AsyncTogether(limits=limiter) as one, AsyncTogether(limits=limiter) as another: ...
    ```

    Clients ask it by themselves; for other requests of the same account there is `async with limiter.reserve(...)`.
    It has no task, and a timer only while a call waits. It belongs to the event loop it is used in; when that loop has
    ended it can be used in another one, and knows what it has learned.

    Args:
        limits: What is allowed.
        clock: Seconds, never going back. A test may bring its own.
    """

    def __init__(self, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise ValueError(f"limits: got a {type(limits).__name__}, expected Limits or a RateLimiter")
        self.limits = limits if limits is not None else Limits()
        self._clock = clock
        self._admission = Admission(self.limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def __repr__(self) -> str:
        return f"<RateLimiter {self.state!r}>"

    @property
    def state(self) -> LimitsState:
        """What is going on now. Made when it is read, and only then."""
        return self._admission.state(self._clock(), datetime.now(UTC))

    def estimator(self, model: str) -> Estimator:
        """Returns what was learned about the sizes of a model's requests."""
        return self._admission.lane(model, self._clock()).estimator

    # --------------------------------------------------------------------------------------------------------- asking

    def reserve(
        self,
        model: str,
        tokens: float = 0,
        *,
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> _Reserving:
        """Returns a context manager that waits for its turn, and holds its place until it is left.

        ```python
        async with limiter.reserve(model, tokens=500) as reservation:
            ...
            reservation.tokens_used = 420
        ```

        Args:
            model: The model's name.
            tokens: How many it is expected to use, prompt and completion.
            priority: "interactive" or "batch".
            timeout: Seconds to wait at most, None for any time.

        Raises (when it is entered):
            QueueFullError: `Limits.max_queued` wait already.
            APITimeoutError: Its turn did not come in time.
            RateLimitError, PaymentRequiredError: Nothing can be sent now.
        """
        check_priority(priority)
        return _Reserving(self, model, tokens, priority, timeout)

    async def acquire(
        self,
        model: str,
        tokens: float | Size = 0,
        *,
        priority: Priority = "interactive",
        number: int | None = None,
        max_pause_s: float = math.inf,
        counts_as_queued: bool = True,
        skips_slow_start: bool = False,
        late: Due | None = None,
        on_waiting: Callable[[asyncio.Future[None] | None], None] | None = None,
    ) -> Reservation:
        """Waits for a turn. What comes back has to be released.

        Args:
            model: The model's name.
            tokens: How many it is expected to use, or its size, from which that is estimated.
            priority: "interactive" or "batch".
            number: Of an earlier reservation of the same call, whose place it keeps.
            max_pause_s: A pause that is longer is not waited for.
            counts_as_queued: Whether `Limits.max_queued` counts it and holds for it; False for the calls of a `map`,
                whose number is bounded already.
            skips_slow_start: Whether it is one of a number that the caller has named.
            late: When to give up, on the event loop's clock.
            on_waiting: Called with a future before the wait, with None after it. Whoever sets an exception on the
                future ends the wait with it.

        Raises:
            QueueFullError, APITimeoutError, RateLimitError, PaymentRequiredError: See `reserve`.
            APIConnectionError: The limiter is in use in another event loop.
        """
        one = self.ask(
            model,
            tokens,
            priority=priority,
            number=number,
            max_pause_s=max_pause_s,
            counts_as_queued=counts_as_queued,
            skips_slow_start=skips_slow_start,
        )
        if not one.granted:
            await self.wait(
                one, is_new=number is None, counts_as_queued=counts_as_queued, late=late, on_waiting=on_waiting
            )
        return one

    def ask(
        self,
        model: str,
        tokens: float | Size,
        *,
        priority: Priority,
        number: int | None,
        max_pause_s: float,
        counts_as_queued: bool,
        skips_slow_start: bool,
    ) -> Reservation:
        """Asks for a turn, as `acquire` does; one that is not granted has to be waited for with `wait`, at once."""
        self._enter_loop()
        return self._admission.ask(
            model,
            tokens,
            self._clock(),
            priority=priority,
            number=number,
            max_pause_s=max_pause_s,
            at_once=True,
            counts_as_queued=counts_as_queued,
            skips_slow_start=skips_slow_start,
        )

    async def wait(
        self,
        one: Reservation,
        *,
        is_new: bool,
        counts_as_queued: bool,
        late: Due | None,
        on_waiting: Callable[[asyncio.Future[None] | None], None] | None,
    ) -> None:
        """Waits for the turn of a reservation that `ask` did not grant."""
        admission, loop, now = self._admission, self._enter_loop(), self._clock()
        self._pump(now)
        if one.granted:
            return
        if is_new and counts_as_queued:
            try:
                admission.check_room(one.model, now)
            except TogetherError:
                self.withdraw(one)
                raise
        waiter: asyncio.Future[None] = loop.create_future()
        one.waiter = waiter
        timer = None if late is None else loop.call_at(late.at, _expire, waiter, late)
        if on_waiting is not None:
            on_waiting(waiter)
        try:
            await waiter
        except BaseException:
            # Refused, late or cancelled; the latter may come in the very turn in which it was let go.
            self.withdraw(one)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if on_waiting is not None:
                on_waiting(None)
            one.waiter = None

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            old = self._loop
            if old is not None and (self._admission.in_flight or self._admission.queued):
                if not old.is_closed():
                    error = APIConnectionError(_AWAY)
                    error.attempts = 0
                    raise error
                self._admission.forget_calls()
            self._loop, self._timer, self._timer_at = loop, None, math.inf
        return loop

    # -------------------------------------------------------------------------------------------------------- hearing

    def answered(
        self, one: Reservation, told: AccountLimits | None, *, good: bool, latency_s: float | None = None
    ) -> None:
        """The head of a response is there; `latency_s` is how long it took, where that says how busy the server is."""
        now = self._clock()
        if latency_s is not None:
            self._admission.took(one, latency_s, tokens=None)
        self._admission.answered(one, now, told, good=good)
        self._pump(now)

    def limited(self, one: Reservation, told: AccountLimits | None, *, wait_s: float, kind: Kind | None) -> None:
        """A 429 came."""
        now = self._clock()
        self._admission.limited(one, now, told, wait_s=wait_s, kind=kind)
        self._pump(now)

    def overloaded(self, one: Reservation) -> None:
        """A 503 came."""
        self._admission.overloaded(one)

    def stop(self, error: PaymentRequiredError) -> None:
        """A 402 came: nothing more is sent for a while."""
        now = self._clock()
        self._admission.stop(error, now)
        self._pump(now)

    def resume(self) -> None:
        """Takes back what a 402 has stopped: somebody has paid. Without it a call a minute later finds out."""
        self._admission.resume()

    def took(self, one: Reservation, seconds: float, *, tokens: int) -> None:
        """A whole response has come."""
        self._admission.took(one, seconds, tokens=tokens)

    def release(self, one: Reservation, tokens: float | None = None) -> None:
        """The request has ended; `tokens` is what it used, None for what was expected."""
        now = self._clock()
        if tokens is not None:
            self._admission.settle(one, tokens, now)
        self._admission.release(one, now)
        self._pump(now)

    def withdraw(self, one: Reservation) -> None:
        """A call gave up before anything was sent for it."""
        now = self._clock()
        self._admission.withdraw(one, now)
        self._pump(now)

    # --------------------------------------------------------------------------------------------------------- driving

    def _pump(self, now: float) -> None:
        """Lets go who may go, and sets the timer for the next."""
        admission = self._admission
        if admission.queued:
            for one in admission.advance(now):
                if one.waiter is not None:
                    _wake(one.waiter)
        elif self._timer is None and not admission.refused:
            return
        else:
            admission.next_at = math.inf
        if admission.refused:
            refused, admission.refused = admission.refused, []
            for one, error in refused:
                if one.waiter is not None:
                    _wake(one.waiter, error)
        self._set_timer(admission.next_at, now)

    def _set_timer(self, at: float, now: float) -> None:
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        loop = self._loop
        if at < math.inf and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody waits in it any more
                self._timer = loop.call_later(max(0.0, at - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._pump(self._clock())


def _wake(waiter: asyncio.Future[None], error: TogetherError | None = None) -> None:
    if waiter.done():
        return
    with contextlib.suppress(RuntimeError):  # its loop is closed
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _expire(waiter: asyncio.Future[None], late: Due) -> None:
    if not waiter.done():
        error = APITimeoutError(phase=late.phase, seconds=late.seconds)
        error.attempts = 0
        waiter.set_exception(error)


class _Reserving:
    """What `RateLimiter.reserve` returns.

    Attributes:
        tokens_used: What the request has used in the end; None for what was expected.
    """

    def __init__(
        self, limiter: RateLimiter, model: str, tokens: float, priority: Priority, timeout: float | None
    ) -> None:
        self._limiter = limiter
        self._asked = (model, tokens, priority, timeout)
        self._one: Reservation | None = None
        self.tokens_used: float | None = None

    async def __aenter__(self) -> Self:
        model, tokens, priority, timeout = self._asked
        late = due("queue", timeout, asyncio.get_running_loop().time())
        self._one = await self._limiter.acquire(model, tokens, priority=priority, late=late)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._one is not None  # noqa: S101 - entered
        limiter, used = self._limiter, self.tokens_used
        if exc is None:
            limiter.answered(self._one, None, good=True)  # so that an unknown model is asked faster from now on
        elif used is None:
            used = 0
        limiter.release(self._one, used)
