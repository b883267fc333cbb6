"""One model of an account: its queue, its buckets, its congestion window. Pure.

The first call in line is *booked*: its request and its tokens are taken from the buckets, whether they are there or
not, and it is sent as soon as they are. Only one call is booked at a time, so a cancellation, a refund or a changed
limit takes effect for every call behind it at once.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from together_async.ratelimit.bucket import Bucket
from together_async.ratelimit.congestion import CongestionWindow
from together_async.ratelimit.estimator import Estimator
from together_async.ratelimit.headers import AccountLimits, Kind
from together_async.ratelimit.limits import Limits, ModelState, Priority
from together_async.ratelimit.queue import BOOKED, GRANTED, Queue, Reservation

FIRST_AT_ONCE: Final = 4
"""Requests to a model that has not answered yet, if the caller has set how many calls run at once; the next wait for
gaps."""
FIRST_GAP_S: Final = 1.0
LEAST_GAP_S: Final = 0.02
"""A model may allow a request per second, or a thousand. While no response has reported its limits, the number of
requests without a response is at most one more than the number of good responses, so that it doubles in the time of a
response (TCP's slow start). Requests beyond that are sent after gaps of a second, half a second and so on, down to
this."""
MOST_PAUSE_S: Final = 900.0
"""No header pauses a model for longer; then the next request is sent."""


class SlowStart:
    """How fast requests are sent to a model while its limits are not known.

    Attributes:
        limits_known: Whether a response has reported them, or the caller has set a number of calls at once.
        responses: Good responses so far.
        gap_at: When the next request may be sent if too many wait for a response.
        gap_s: Seconds from the next request to the one after it.
    """

    __slots__ = ("gap_at", "gap_s", "limits_known", "responses")

    def __init__(self, *, limits_known: bool) -> None:
        self.limits_known = limits_known
        self.responses = 0
        self.gap_at, self.gap_s = -math.inf, FIRST_GAP_S

    def needs_gap(self, unanswered: int, *, skips_slow_start: bool) -> bool:
        """Returns whether one more call, next to those without a response, has to wait for a gap.

        If the caller has set how many calls run at once, they wait for the first response at most, which may report the
        limits.
        """
        if skips_slow_start:
            return not self.responses and unanswered >= FIRST_AT_ONCE
        return unanswered > self.responses


class RateLimited(NamedTuple):
    """What follows from a 429.

    Attributes:
        pause_s: Seconds until something is sent to this model again.
        refusing_s: Seconds for which the service has refused every request to this model; 0 at the first 429 after a
            good answer.
    """

    pause_s: float
    refusing_s: float


class Start:
    """How requests are paced while a model's limits are not known."""

    __slots__ = ()

    def record_dialling(self, now: float) -> None:
        """Records that a connection begins to be opened for a request."""

    def record_dialled(self, now: float, *, connected: bool, seconds: float) -> None:
        """Records that it is open, or has failed, after so many seconds."""


BACKOFF_S: Final = 1.0
"""A pause for which the service named no time."""


class Lane:
    """One model: its queue, its buckets, its window.

    Args:
        model: The model's name.
        limits: The limits of this model.
        now: Seconds of a clock that does not go back; all times are of the same.
        shares_places: Whether the number of calls at once is that of all models together, which `Admission` keeps.

    Attributes:
        queue: The waiting calls.
        requests: Capacity for requests.
        tokens: Capacity for tokens.
        window: Finds how many may be under way at once, for `Limits(concurrency="auto")`; else None.
        places: The caller's number of calls at once for this model alone; None without one.
        estimator: What was learned about the sizes of its requests.
        slow_start: How fast requests are sent while its limits are not known.
        start: How they are paced meanwhile.
        in_flight: Calls under way.
        unanswered: The calls under way that wait for the head of their response.
        paused_until: Nothing is sent before this time, because a 429 asked for it.
        last_granted: The reservation granted last; None before the first.
        learned_at: When the request was sent whose response reported the limits last.
        used_at: When a call used the lane last.
        sent: Requests sent so far.
        rate_limited: 429s so far.
        overloaded: 503s so far.
    """

    __slots__ = (
        "estimator",
        "in_flight",
        "last_granted",
        "learned_at",
        "limits",
        "model",
        "overloaded",
        "paused_until",
        "places",
        "queue",
        "rate_limited",
        "requests",
        "sent",
        "slow_start",
        "start",
        "tokens",
        "unanswered",
        "used_at",
        "window",
    )

    def __init__(self, model: str, limits: Limits, now: float, *, shares_places: bool) -> None:
        concurrency = limits.concurrency
        self.model = model
        self.limits = limits
        self.queue = Queue()
        self.requests = Bucket("requests", _per_second(limits.requests_per_minute), now)
        self.tokens = Bucket("tokens", _per_second(limits.tokens_per_minute), now)
        self.window = CongestionWindow(now) if concurrency == "auto" else None
        self.places = concurrency if isinstance(concurrency, int) and not shares_places else None
        self.estimator = Estimator()
        # A number of calls at once that the caller set is not started slowly.
        self.slow_start = SlowStart(limits_known=isinstance(concurrency, int))
        self.start = Start()
        self.in_flight = self.unanswered = 0
        self.paused_until = self.learned_at = -math.inf
        self.last_granted: Reservation | None = None
        self.used_at = now
        self.sent = self.rate_limited = self.overloaded = 0

    def __repr__(self) -> str:
        return f"<Lane {self.model}: {self.in_flight} in flight, {self.queue.length} queued>"

    # -------------------------------------------------------------------------------------------------------- waiting

    def enqueue(self, reservation: Reservation) -> None:
        """Puts a call into the queue: a call that asks again, with its old number, before those that came later."""
        queue = self.queue
        queue.count(reservation)
        if queue.first is not None and queue.precedes_first(reservation):
            self._unbook(queue.first)
            queue.step_back()
        queue.add(reservation)

    def enqueue_first(self, reservation: Reservation, now: float) -> None:
        """Books a call at once, since no other waits."""
        self.queue.count(reservation)
        self.refill(now)
        self._book(reservation, now)

    def book_next(self, now: float, priority: Priority | None = None) -> Reservation | None:
        """Returns the first call in line, booked; None when no call waits.

        Args:
            now: The time.
            priority: Whose call it has to be; a call of the other priority steps back. None for the one whose turn it
                is, or which is booked already.
        """
        queue = self.queue
        if queue.first is not None and priority is not None and queue.first.priority != priority:
            self._unbook(queue.first)
            queue.step_back()
        if queue.first is None:
            reservation = queue.pop(priority)
            if reservation is not None:
                self._book(reservation, now)
        return queue.first

    def _book(self, reservation: Reservation, now: float) -> None:
        self.queue.first = reservation
        reservation.state = BOOKED
        if reservation.size is not None:  # not before: something may have been learned while it waited
            reservation.tokens = self.estimator.total(reservation.size)
        requests, tokens = reservation.costs = (self.requests.cost(1.0), self.tokens.cost(reservation.tokens))
        self.requests.book(requests, now)
        self.tokens.book(tokens, now)

    def _unbook(self, reservation: Reservation) -> None:
        requests, tokens = reservation.costs
        self.requests.unbook(requests)
        self.tokens.unbook(tokens)

    def estimate_first_again(self) -> None:
        """Books the first call in line anew: something may have been learned that changes its estimate."""
        first = self.queue.first
        if first is None or first.size is None:
            return
        tokens = float(self.estimator.total(first.size))
        if tokens != first.tokens:
            self.tokens.unbook(first.costs[1])
            first.tokens = tokens
            first.costs = (first.costs[0], self.tokens.cost(tokens))
            self.tokens.book(first.costs[1], self.used_at)

    def remove(self, reservation: Reservation) -> None:
        """Removes a waiting call, and gives its booked capacity to others."""
        if reservation is self.queue.first:
            self._unbook(reservation)
        self.queue.remove(reservation)

    def forget_calls(self) -> None:
        """Forgets all calls, waiting and under way, and keeps what was learned."""
        if self.queue.first is not None:
            self._unbook(self.queue.first)
        self.queue.clear()
        self.in_flight = self.unanswered = 0

    # ------------------------------------------------------------------------------------------------------- granting

    def wait_s(self, reservation: Reservation, now: float) -> float:
        """Returns the seconds until the booked call may be sent; infinite if that depends on other calls."""
        if self.places is not None and self.in_flight >= self.places:
            return math.inf
        requests, tokens = reservation.costs
        wait_s = max(self.paused_until - now, self.requests.wait_s(requests), self.tokens.wait_s(tokens))
        if self.window is not None:
            wait_s = max(wait_s, self.window.wait_s(self.in_flight, self.unanswered, now))
        start = self.slow_start
        if not start.limits_known and start.needs_gap(self.unanswered, skips_slow_start=reservation.skips_slow_start):
            wait_s = max(wait_s, start.gap_at - now)
        return max(wait_s, 0.0)

    def grant(self, reservation: Reservation, now: float) -> None:
        """Grants the booked call its turn."""
        self.requests.record_sent()
        self.tokens.record_sent()
        self.queue.grant_first()
        if self.window is not None:
            self.window.record_sent(self.in_flight, now)
        self._record_grant(reservation, now)

    # Quick path of Lane.grant, with enqueue_first and wait_s before it;
    # tests/ratelimit/test_lane_at_once.py::test_asking_at_once_keeps_the_same_numbers holds the two together.
    def try_grant(self, reservation: Reservation, now: float) -> bool:
        """Grants a turn if no call waits, no rate is known and there is a place; else changes nothing: False."""
        requests, tokens, start = self.requests, self.tokens, self.slow_start
        if (
            requests.rate < math.inf
            or tokens.rate < math.inf
            or self.window is not None
            or self.paused_until > now
            or (self.places is not None and self.in_flight >= self.places)
            or (
                not start.limits_known
                and start.needs_gap(self.unanswered, skips_slow_start=reservation.skips_slow_start)
            )
        ):
            return False
        if reservation.size is not None:
            reservation.tokens = self.estimator.total(reservation.size)
        reservation.costs = (1.0, reservation.tokens)
        requests.record_unlimited(1.0, now)
        tokens.record_unlimited(reservation.tokens, now)
        self.used_at = now
        self._record_grant(reservation, now)
        return True

    def _record_grant(self, reservation: Reservation, now: float) -> None:
        self.last_granted = reservation
        if reservation.priority == "batch":
            self.queue.interactive_turns = 0
        start = self.slow_start
        if not start.limits_known:
            start.gap_at = now + start.gap_s
            start.gap_s = max(LEAST_GAP_S, start.gap_s / 2)
        self.in_flight += 1
        self.unanswered += 1
        self.sent += 1
        reservation.state = GRANTED
        reservation.granted_at = now
        reservation.booked_totals = (self.requests.booked, self.tokens.booked)

    def tick(self, now: float) -> None:
        """Records that the event loop has read what came until now, before the lane is looked at by the timer."""

    def refill(self, now: float) -> None:
        """Brings the buckets up to date."""
        self.used_at = now
        self.requests.refill(now)
        self.tokens.refill(now)

    # ------------------------------------------------------------------------------------------------------ responses

    def learn(self, reservation: Reservation, now: float, limits: AccountLimits | None) -> None:
        """Adopts the limits that a response reports. The buckets must be up to date."""
        sent_at = reservation.granted_at
        if limits is None or sent_at is None:
            return
        if sent_at < self.learned_at:
            return  # responses overtake one another; this one reports an older state
        self.learned_at = sent_at
        elapsed_s = now - sent_at
        for bucket, reported, total, amount in (
            (self.requests, limits.requests, reservation.booked_totals[0], 1.0),
            (self.tokens, limits.tokens, reservation.booked_totals[1], reservation.tokens),
        ):
            bucket.learn(reported, amount=amount, since=bucket.booked - total, elapsed_s=elapsed_s)

    def record_rate_limit(
        self,
        reservation: Reservation,
        now: float,
        limits: AccountLimits | None,
        *,
        wait_s: float | None,
        kind: Kind | None,
    ) -> RateLimited:
        """Records a 429; the arguments are those of `Admission.record_rate_limit`."""
        self.refill(now)
        sent_at = now if reservation.granted_at is None else reservation.granted_at
        # Before the rate falls, so that it falls from its true value.
        self.learn(reservation, now, limits)
        self.slow_start.limits_known = True
        # The refused request stays booked, though the service has not counted it: else each 429 would send one more.
        (self.tokens if kind == "tokens" else self.requests).record_rate_limit(sent_at, now)
        if self.window is not None:
            self.window.record_rate_limit(self.in_flight, self.unanswered, sent_at, now)
        self.paused_until = max(self.paused_until, now + min(BACKOFF_S if wait_s is None else wait_s, MOST_PAUSE_S))
        return RateLimited(self.paused_until - now, 0.0)

    def record_answered(self, reservation: Reservation) -> None:
        """Records that a call no longer waits for the head of its response. Only the first call counts."""
        if not reservation.answered:
            reservation.answered = True
            self.unanswered -= 1

    def state(self, now: float, wall: datetime) -> ModelState:
        """Returns the values to show; `wall` is the time of day at `now`."""
        paused_for_s = max(0.0, self.paused_until - now)
        window = self.window.places if self.window is not None else None
        requests, tokens = self.requests, self.tokens
        return ModelState(
            model=self.model,
            in_flight=self.in_flight,
            queued=self.queue.length,
            concurrency=self.places if self.places is not None else window,
            requests_per_minute=requests.per_minute,
            tokens_per_minute=tokens.per_minute,
            server_requests_per_minute=_per_minute(requests.control.reported),
            server_tokens_per_minute=_per_minute(tokens.control.reported),
            paused_for_s=paused_for_s,
            paused_until=wall + timedelta(seconds=paused_for_s) if paused_for_s else None,
            sent=self.sent,
            rate_limited=self.rate_limited,
            overloaded=self.overloaded,
        )


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


def _per_minute(per_second: float | None) -> float | None:
    return None if per_second is None else per_second * 60
