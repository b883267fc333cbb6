"""`Driver`: runs the admission of one account on an event loop, for the calls of all clients that share it.

`Admission` decides, without a clock; the driver has the clock, one timer while calls wait, and the futures they wait
on. After every event it wakes the calls whose turn has come and sets the timer for the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from together_async.errors import (
    APIConnectionError,
    APITimeoutError,
    PaymentRequiredError,
    QueueFullError,
    TogetherError,
    unsent,
)
from together_async.ratelimit.admission import Admission
from together_async.ratelimit.deadlock import HeldPlaces
from together_async.ratelimit.estimator import Estimator, Size
from together_async.ratelimit.headers import AccountLimits, Kind
from together_async.ratelimit.lane import RateLimited
from together_async.ratelimit.limits import Limits, Priority
from together_async.ratelimit.queue import Reservation
from together_async.tasks import CALLBACK_TASK, handed_over, wake
from together_async.timeouts import Due

_OTHER_LOOP: Final = "the limiter is in use in another event loop that still runs; make one limiter per loop"


class Driver:
    """Grants turns to calls, and records what their responses report.

    A call's life: `ask`, then `wait` if its turn has not come yet; the `record_...` methods as its response arrives;
    `release` when the request has ended, or `withdraw` when nothing was sent.

    Args:
        limits: The caller's limits.
        clock: Returns seconds that never go back.

    Attributes:
        admission: The decisions; for inspection.
        held: The streams that hold its places, and who waits for one.
        timer: Set while a waiting call's turn depends on time alone, else None.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.admission = Admission(limits, _time_of_day)
        self.held = HeldPlaces()
        self.timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None

    def estimator(self, model: str) -> Estimator:
        """Returns what was learned about the sizes of a model's requests."""
        return self.admission.lane(model, self._clock()).estimator

    # --------------------------------------------------------------------------------------------------------- turns

    async def acquire(
        self,
        model: str,
        tokens: float | Size = 0,
        *,
        priority: Priority = "interactive",
        deadline: Due | None = None,
    ) -> Reservation:
        """Waits for the turn of a new call, through any pause: `ask`, then `wait` if it was not granted at once.

        Returns:
            A reservation, to be given back with `release` or `withdraw`.

        Raises:
            QueueFullError: As from `wait`, whose other errors come too, and those of `ask`.
        """
        reservation = self.ask(
            model,
            tokens,
            priority=priority,
            number=None,
            max_pause_s=math.inf,
            counts_as_queued=True,
            careful_start=False,
        )
        if not reservation.granted:
            await self.wait(reservation, is_new=True, deadline=deadline, on_waiting=None)
        return reservation

    def ask(
        self,
        model: str,
        tokens: float | Size,
        *,
        priority: Priority,
        number: int | None,
        max_pause_s: float,
        counts_as_queued: bool,
        careful_start: bool,
    ) -> Reservation:
        """Asks for a turn; a reservation that is not granted must `wait` at once.

        Args:
            model: The model's name.
            tokens: Tokens the request is expected to use, prompt and completion; or its size, to estimate them from.
            priority: "interactive" or "batch".
            number: The number of an earlier reservation of the same call, whose place it keeps; None for a new call.
            max_pause_s: The call fails instead of waiting for a longer pause.
            counts_as_queued: Whether `Limits.max_queued` counts the call and applies to it; False for the calls of a
                `map`, whose number is bounded already.
            careful_start: Whether the call waits for the first answer of a model whose limits are not known.

        Returns:
            A reservation, to be given back with `release` or `withdraw`.

        Raises:
            RateLimitError: The model is paused for longer than `max_pause_s`; try later.
            PaymentRequiredError: The account's spending limit is reached.
            APIConnectionError: The limiter is in use in another event loop.
        """
        self._enter_loop()
        return self.admission.ask(
            model,
            tokens,
            self._clock(),
            priority=priority,
            number=number,
            max_pause_s=max_pause_s,
            at_once=True,
            counts_as_queued=counts_as_queued,
            careful_start=careful_start,
        )

    async def wait(
        self,
        reservation: Reservation,
        *,
        is_new: bool,
        deadline: Due | None,
        on_waiting: Callable[[asyncio.Future[None] | None], None] | None,
    ) -> None:
        """Waits for the turn of a reservation that `ask` did not grant.

        Args:
            reservation: What `ask` returned.
            is_new: Whether the call asks for the first time, so that it needs room in the queue.
            deadline: When to give up, on the event loop's clock; None for never.
            on_waiting: Called with a future before the wait and with None after it; None for nobody. Setting an
                exception on the future ends the wait with that exception.

        Raises:
            QueueFullError: `Limits.max_queued` calls wait already; try later. Or it would never get a place (see
                `ratelimit.deadlock`).
            APITimeoutError: `deadline` passed first.
            RateLimitError: The model was paused, meanwhile, for longer than the call's `max_pause_s`; try later.
            PaymentRequiredError: The account's spending limit was reached meanwhile.
        """
        admission, loop, now = self.admission, self._enter_loop(), self._clock()
        self._pump(now)
        if reservation.granted:
            return
        if is_new and reservation.counts_as_queued:
            try:
                admission.check_room(reservation.model, now)
            except TogetherError:
                self.withdraw(reservation)
                raise
        waiter: asyncio.Future[None] = loop.create_future()
        reservation.waiter = waiter
        timer = None if deadline is None else loop.call_at(deadline.at, _expire, waiter, deadline)
        if on_waiting is not None:
            on_waiting(waiter)
        try:
            if self.held.streams:
                await _record_waiting(self.held, self.admission, reservation, waiter, self._clock)
            await waiter
        except BaseException:
            # Turned away, late or cancelled; a cancellation may come in the very turn of the loop that granted it.
            self.withdraw(reservation)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if on_waiting is not None:
                on_waiting(None)
            reservation.waiter = None
            self.held.waiting.pop(reservation, None)

    def release(self, reservation: Reservation, tokens: float | None = None) -> None:
        """Gives a place back when the request has ended; `tokens` is what it used, None for what was expected."""
        if handed_over(self._loop, self.release, reservation, tokens):
            return
        self.held.streams.pop(reservation, None)
        now = self._clock()
        if tokens is not None:
            self.admission.settle(reservation, tokens, now)
        self.admission.release(reservation, now)
        self._pump(now)

    def withdraw(self, reservation: Reservation) -> None:
        """Gives up a reservation for which nothing was sent."""
        if handed_over(self._loop, self.withdraw, reservation):
            return
        now = self._clock()
        self.admission.withdraw(reservation, now)
        self._pump(now)

    # ------------------------------------------------------------------------------------------------------- responses

    def record_response(
        self,
        reservation: Reservation,
        limits: AccountLimits | None,
        *,
        good: bool,
        latency_s: float | None = None,
    ) -> None:
        """Records the head of a response.

        Args:
            reservation: The call's.
            limits: The limits that its headers report; None if they report none.
            good: Whether the status is a success.
            latency_s: Seconds from the request to the head, where that shows how busy the server is; else None.
        """
        now = self._clock()
        if latency_s is not None:
            self.admission.record_latency(reservation, latency_s, tokens=None)
        self.admission.record_response(reservation, now, limits, good=good)
        self._pump(now)

    def record_rate_limit(
        self, reservation: Reservation, limits: AccountLimits | None, *, wait_s: float | None, kind: Kind | None
    ) -> RateLimited:
        """Records a 429; the arguments and what is returned are those of `Admission.record_rate_limit`."""
        now = self._clock()
        limited = self.admission.record_rate_limit(
            reservation,
            now,
            limits,
            wait_s=wait_s,
            kind=kind,
            jitter=random.random(),  # noqa: S311 - clients that come back apart, no secret
        )
        self._pump(now)
        return limited

    def record_descriptors_exhausted(self, reservation: Reservation) -> bool:
        """Records that no connection could be opened, because the process has no file descriptor left (`EMFILE`).

        Gives the reservation back; nothing was sent.

        Returns:
            Whether the call may ask again with its number, and wait for a place; False when nothing has been under way
            for a minute, and there was no descriptor all the time.
        """
        now = self._clock()
        may_wait = self.admission.record_descriptors_exhausted(reservation, now)
        self._pump(now)
        return may_wait

    def dialling(self, reservation: Reservation) -> Dial | None:
        """Returns what is to be called when a new connection is opened for a request; None if nobody needs to know.

        The pace at which the limits of an unknown model are found out depends on it.
        """
        return Dial(self, reservation) if reservation.blind else None

    def record_dialling(self, reservation: Reservation) -> float:
        """Records that a new connection begins to be opened for a request, and returns when that is."""
        now = self._clock()
        self.admission.record_dialling(reservation, now)
        return now

    def record_dialled(self, reservation: Reservation, started: float, *, connected: bool) -> None:
        """Records that the connection that began at `started` is open, or has failed."""
        record = functools.partial(self.record_dialled, reservation, started, connected=connected)
        if handed_over(self._loop, record):  # a call of an ended loop may be destroyed while it is in the next
            return
        now = self._clock()
        self.admission.record_dialled(reservation, now, now - started, connected=connected)
        self._pump(now)

    def record_overload(self, reservation: Reservation) -> None:
        """Records a 503."""
        self.admission.record_overload(reservation)

    def record_payment_required(self, error: PaymentRequiredError) -> None:
        """Records a 402: nothing more is sent for a while."""
        now = self._clock()
        self.admission.record_payment_required(error, now)
        self._pump(now)

    def record_latency(self, reservation: Reservation, seconds: float, *, tokens: int) -> None:
        """Records how long a whole response of `tokens` completion tokens took."""
        self.admission.record_latency(reservation, seconds, tokens=tokens)

    # ------------------------------------------------------------------------------------------------------ event loop

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            old = self._loop
            if old is not None and (self.admission.in_flight or self.admission.queued):
                if not old.is_closed():
                    raise unsent(APIConnectionError(_OTHER_LOOP))
                self.admission.forget_calls()
            self._loop, self.timer, self._timer_at = loop, None, math.inf
            self.held.clear()
        return loop

    def _pump(self, now: float, *, timer: bool = False) -> None:
        """Wakes the calls that were granted or turned away, and sets the timer for the next."""
        admission = self.admission
        if admission.queued:
            for reservation in admission.advance(now, timer=timer):
                if reservation.waiter is not None:
                    wake(reservation.waiter)
        elif self.timer is None and not admission.turned_away:
            return
        else:
            admission.next_at = math.inf
        if admission.turned_away:
            turned_away, admission.turned_away = admission.turned_away, []
            for reservation, error in turned_away:
                if reservation.waiter is not None:
                    wake(reservation.waiter, error)
        self._set_timer(admission.next_at, now)

    def _set_timer(self, at: float, now: float) -> None:
        if at == self._timer_at or (self._timer_at <= now and at <= now):
            return
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self._timer_at = at
        loop = self._loop
        if at < math.inf and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and no call waits in it any more
                self.timer = loop.call_later(max(0.0, at - now), self._on_timer)

    def _on_timer(self) -> None:
        self.timer, self._timer_at = None, math.inf
        self._pump(self._clock(), timer=True)


async def _record_waiting(
    held: HeldPlaces,
    admission: Admission,
    reservation: Reservation,
    waiter: asyncio.Future[None],
    clock: Callable[[], float],
) -> None:
    """Records which task waits while streams are open.

    Raises:
        QueueFullError: It would wait for ever.
    """
    task = CALLBACK_TASK.get() or id(asyncio.current_task())
    for turns_left in (2, 1, 0):
        try:
            held.record_waiting(reservation, task, admission, clock())
        except QueueFullError:
            if not turns_left:
                raise
        else:
            return
        await asyncio.sleep(0)  # a stream may just have been handed to a task that goes on reading it
        if waiter.done():
            return


class Dial:
    """The opening of a new connection for a request to a model of unknown limits."""

    __slots__ = ("_driver", "_reservation", "_started")

    def __init__(self, driver: Driver, reservation: Reservation) -> None:
        self._driver = driver
        self._reservation = reservation
        self._started: float | None = None

    def begun(self) -> None:
        """Records that a connection begins to be opened."""
        if self._started is None:
            self._started = self._driver.record_dialling(self._reservation)

    def ended(self, connected: bool) -> None:
        """Records that it is open (TCP, proxy and TLS), or has failed. Only the first call counts."""
        started, self._started = self._started, None
        if started is not None:
            self._driver.record_dialled(self._reservation, started, connected=connected)


def _time_of_day() -> datetime:
    return datetime.now(UTC)


def _expire(waiter: asyncio.Future[None], deadline: Due) -> None:
    wake(waiter, unsent(APITimeoutError(phase=deadline.phase, seconds=deadline.seconds)))
