"""`RateLimiter`: the public face of one account's limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from together_async.ratelimit.driver import Driver
from together_async.ratelimit.limits import PRIORITIES, Limits, LimitsState, Priority, check_priority
from together_async.ratelimit.queue import Reservation
from together_async.timeouts import due
from together_async.validation import NumberRange, described

_TOKENS: Final = NumberRange(whole=False, low=0, high=1e12)
_TIMEOUT: Final = NumberRange(whole=False, low=0)


def _check(model: str, tokens: float, priority: str, timeout: float | None) -> None:
    if timeout is not None:
        _TIMEOUT.check("timeout", timeout)
    if type(model) is str and model and type(tokens) is int and 0 <= tokens <= _TOKENS.high and priority in PRIORITIES:
        return  # nearly always; what follows costs more than half of an `asyncio.Semaphore`
    if not isinstance(model, str) or not model:
        raise ValueError(f"model: got {described(model)}, expected the model's name, a str that is not empty")
    _TOKENS.check("tokens", tokens)
    check_priority(priority)


class RateLimiter:
    """Keeps all clients that share it within one account's limits.

    ```python
    limiter = RateLimiter(Limits(requests_per_minute=600))
    async with AsyncTogether(limits=limiter) as first, AsyncTogether(limits=limiter) as second: ...
    ```

    Clients use it by themselves; for other requests of the same account there is `async with limiter.reserve(...)`.
    It runs no task, and sets a timer only while a call waits. It belongs to the event loop in which it is used; once
    that loop has ended, it can be used in another one, and keeps what it has learned.

    Args:
        limits: The limits to keep; None keeps only those that the service reports.
        clock: Returns seconds that never go back. A test may bring its own.

    Attributes:
        limits: The limits it was made with.
        driver: What the calls of a client use, attempt by attempt. It may change in any release; users need
            `reserve`, or `acquire` and its `release`.

    Raises:
        ValueError: `limits` is not a `Limits`.
    """

    def __init__(self, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise ValueError(f"limits: got a {type(limits).__name__}, expected Limits or a RateLimiter")
        self.limits = limits if limits is not None else Limits()
        self.driver = Driver(self.limits, clock)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<RateLimiter {self.state!r}>"

    @property
    def state(self) -> LimitsState:
        """What is going on now. Computed on each access."""
        return self.driver.admission.state(self._clock(), datetime.now(UTC))

    def resume(self) -> None:
        """Sends calls again after a 402, once the account is paid; without it, a call a minute later finds out."""
        self.driver.admission.resume()

    def reserve(
        self,
        model: str,
        tokens: float = 0,
        *,
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> _Reserving:
        """Returns a context manager that waits for its turn, and holds its place until the block ends.

        ```python
        async with limiter.reserve(model, tokens=500) as reservation:
            ...
            reservation.tokens_used = 420
        ```

        Args:
            model: The model's name.
            tokens: Tokens the request is expected to use, prompt and completion together; from 0 to 1e12.
            priority: "interactive", or "batch", which yields to interactive calls.
            timeout: Seconds to wait at most, from 0, which does not wait; None for any time. A pause that the service
                asks for is waited for, up to 15 minutes.

        Raises:
            ValueError: An argument out of its range; the text names argument, value and range.

        Raises (on entering):
            QueueFullError: `Limits.max_queued` calls wait already; try later.
            APITimeoutError: Its turn did not come within `timeout`.
            PaymentRequiredError: The account's spending limit is reached; raise it, then call `resume`.
            APIConnectionError: The limiter is in use in another event loop.
        """
        _check(model, tokens, priority, timeout)
        return _Reserving(self, model, tokens, priority, timeout)

    async def acquire(
        self,
        model: str,
        tokens: float = 0,
        *,
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Reservation:
        """Waits for a turn, as `reserve` does with the same arguments and errors, where a block doesn't fit.

        Returns:
            A reservation, to be given back with `release`.
        """
        _check(model, tokens, priority, timeout)
        deadline = None if timeout is None else due("queue", timeout, asyncio.get_running_loop().time())
        return await self.driver.acquire(model, tokens, priority=priority, deadline=deadline)

    def release(self, reservation: Reservation, tokens_used: float | None = None) -> None:
        """Gives back what `acquire` returned, once the request has ended. Twice is fine.

        Args:
            reservation: What `acquire` returned.
            tokens_used: Tokens that the request used, prompt and completion together, from 0 to 1e12; None for as many
                as expected.

        Raises:
            ValueError: `tokens_used` is out of its range. The reservation is not given back.
        """
        if tokens_used is not None:
            tokens_used = _TOKENS.check("tokens_used", tokens_used)
        self.driver.release(reservation, tokens_used)


class _Reserving:
    """What `RateLimiter.reserve` returns."""

    def __init__(
        self, limiter: RateLimiter, model: str, tokens: float, priority: Priority, timeout: float | None
    ) -> None:
        self._limiter = limiter
        self._arguments = (model, tokens, priority, timeout)
        self._reservation: Reservation | None = None
        self._tokens_used: float | None = None

    @property
    def tokens_used(self) -> float | None:
        """Tokens the request used in the end, from 0 to 1e12; None for as many as expected.

        Raises:
            ValueError: It is set to a value out of its range.
        """
        return self._tokens_used

    @tokens_used.setter
    def tokens_used(self, tokens: float | None) -> None:
        self._tokens_used = None if tokens is None else _TOKENS.check("tokens_used", tokens)

    async def __aenter__(self) -> Self:
        model, tokens, priority, timeout = self._arguments
        self._reservation = await self._limiter.acquire(model, tokens, priority=priority, timeout=timeout)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        reservation, driver, used = self._reservation, self._limiter.driver, self.tokens_used
        assert reservation is not None  # noqa: S101 - entered
        if exc is None:
            # Counts as an answer for the start of an unknown model.
            driver.record_response(reservation, None, good=True)
        elif used is None:
            used = 0
        driver.release(reservation, used)
