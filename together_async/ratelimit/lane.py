"""One model of an account: its queue, its buckets, its congestion window. Pure.

The first call in line is *booked*: its request and its tokens are taken from the buckets, whether they are there or
not, and it is sent as soon as they are. Only one call is booked at a time, so a cancellation, a refund or a changed
limit takes effect for every call behind it at once.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from together_async.ratelimit.backoff import LEAST_S, Backoff
from together_async.ratelimit.bucket import HELD_S, Bucket
from together_async.ratelimit.congestion import CongestionWindow
from together_async.ratelimit.estimator import Estimator
from together_async.ratelimit.headers import AccountLimits, Kind, ReportedLimit
from together_async.ratelimit.limits import Limits, ModelState, Priority
from together_async.ratelimit.queue import BOOKED, GRANTED, Queue, Reservation
from together_async.ratelimit.silent_refusals import Cause, Judgement, SilentRefusals
from together_async.ratelimit.start import Start

MOST_PAUSE_S: Final = 900.0
"""No header pauses a model for longer; then the next request is sent."""
REFUSING_GAP_S: Final = 30.0
"""If nothing is asked for so long after a 429 and its pause, the service is not taken to have refused everything."""
ACCEPTED_AFTER_S: Final = 1.0
"""A request that has not been refused for so long, and for longer than a refusal takes, was accepted."""
COUNTED_IN_ANY_ORDER_S: Final = 0.05
"""Requests that are sent within so many seconds of one another may be counted by the service in another order."""
EXPLAINED: Final = 3.0
"""A limit explains a reset of so many times what a typical request waits for it, and of what a service holds."""


class RateLimited(NamedTuple):
    """What follows from a 429.

    Attributes:
        pause_s: Seconds until something is sent to this model again.
        refusing_s: Seconds for which the service has refused every request to this model; 0 at the first 429 after a
            good answer, and up to 15 minutes as long as the service names the times to wait.
    """

    pause_s: float
    refusing_s: float


class Lane:
    """One model: its queue, its buckets, its window.

    It has many methods and is one thing: each is an event in a request's life, and changes what the next may do.

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
        start: How fast requests are sent while its limits are not known.
        in_flight: Calls under way.
        unanswered: The calls under way that wait for the head of their response.
        paused_until: Nothing is sent before this time, because the service asked for it; at most `MOST_PAUSE_S` ahead.
        asked_until: Until when the service asked to send nothing.
        last_granted: The reservation granted last; None before the first.
        learned_at: When the request was sent whose response reported the limits last.
        levels_set_at: When a refusal reported how much capacity is left; what earlier requests used is in it.
        refusing_since: When the first 429 came after which no request has been accepted; None without one.
        heads_lie: Whether the service has refused requests within responses that looked good.
        used_at: When a call used the lane last.
        sent: Requests sent so far.
        rate_limited: 429s so far.
        overloaded: 503s so far.
    """

    __slots__ = (
        "_backoff",
        "_finding",
        "_number",
        "_quota_pause",
        "_quota_sent_at",
        "_refusals",
        "_refused_at",
        "asked_until",
        "estimator",
        "heads_lie",
        "in_flight",
        "last_granted",
        "learned_at",
        "levels_set_at",
        "limits",
        "model",
        "overloaded",
        "paused_until",
        "places",
        "queue",
        "rate_limited",
        "refusing_since",
        "requests",
        "sent",
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
        self.start = Start()
        self.in_flight = self.unanswered = 0
        self.paused_until = self.asked_until = self.learned_at = self.levels_set_at = -math.inf
        self.refusing_since: float | None = None
        self.heads_lie = False
        self._refused_at = -math.inf  # when the last 429 came
        self._quota_sent_at = -math.inf  # when the request was sent whose answer said so
        self._quota_pause = -math.inf  # the end of a pause because nothing remained of a window
        self._refusals = SilentRefusals()
        self._backoff = Backoff()
        self._finding: Bucket | None = None  # in which a rate was found after the refusals of the last event
        self.last_granted: Reservation | None = None
        self.used_at = now
        self.sent = self.rate_limited = self.overloaded = 0
        self._number = 0  # of the request that was sent last

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
        self.start.forget_requests()
        self.in_flight = self.unanswered = 0

    def pause_s(self, now: float) -> float:
        """Returns the seconds until something is sent to this model again, from 0; to a microsecond.

        Not rounded, a pause of just what a call waits for may be above that, by an error of the arithmetic.
        """
        return max(0.0, round(self.paused_until - now, 6))

    # ------------------------------------------------------------------------------------------------------- granting

    def wait_s(self, reservation: Reservation, now: float) -> float:
        """Returns the seconds until the booked call may be sent; infinite if that depends on other calls."""
        if self.places is not None and self.in_flight >= self.places:
            return math.inf
        requests, tokens = reservation.costs
        wait_s = max(self.paused_until - now, self.requests.wait_s(requests), self.tokens.wait_s(tokens))
        if self.window is not None:
            wait_s = max(wait_s, self.window.wait_s(self.in_flight, self.unanswered, now))
        if self._backoff.probing:
            wait_s = max(wait_s, self._backoff.wait_s(now))
        elif self._starting:
            wait_s = max(wait_s, self.start.wait_s(self.unanswered, now, careful=reservation.careful_start))
        return max(wait_s, 0.0)

    def lacks_place(self, now: float) -> bool:
        """Returns whether no other call may be sent before one of those under way has ended or is answered."""
        if self.places is not None and self.in_flight >= self.places:
            return True
        return self.window is not None and self.window.wait_s(self.in_flight, self.unanswered, now) == math.inf

    @property
    def _starting(self) -> bool:
        """Whether nothing is known of the service's limits: none was reported, and none found."""
        return not (self.start.limits_known or self.requests.found or self.tokens.found)

    def tick(self, now: float) -> None:
        """Lets time pass for the start. Call it from the timer, when the time that `wait_s` named has come."""
        self._backoff.tick(now)
        if self._starting:
            self.start.tick(now)

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
        """Grants a turn if no call waits, and capacity and places are there for sure; else changes nothing: False."""
        requests, tokens, start = self.requests, self.tokens, self.start
        limited = requests.rate < math.inf or tokens.rate < math.inf
        if (
            self.window is not None
            or self.paused_until > now
            or requests.quota_until > now
            or tokens.quota_until > now
            or (self.places is not None and self.in_flight >= self.places)
            or self._backoff.probing
            or (
                self._starting
                and (self.unanswered >= start.unanswered_allowed or reservation.careful_start)
                and start.wait_s(self.unanswered, now, careful=reservation.careful_start) > 0
            )
        ):
            return False
        if reservation.size is not None:
            reservation.tokens = self.estimator.total(reservation.size)
        if limited:
            self.refill(now)
            costs = requests.cost(1.0), tokens.cost(reservation.tokens)
            if (costs[0] > requests.level and requests.rate < math.inf) or (
                costs[1] > tokens.level and tokens.rate < math.inf
            ):
                return False
            requests.take(costs[0], now)
            tokens.take(costs[1], now)
        else:
            costs = (1.0, reservation.tokens)
            requests.record_unlimited(1.0, now)
            tokens.record_unlimited(reservation.tokens, now)
            self.used_at = now
        reservation.costs = costs
        self._record_grant(reservation, now)
        return True

    def _record_grant(self, reservation: Reservation, now: float) -> None:
        self.last_granted = reservation
        if reservation.priority == "batch":
            self.queue.interactive_turns = 0
        if not self.start.limits_known:
            reservation.blind = True
            self.start.record_sent(self.unanswered, now)
        if self._backoff.probing:
            self._backoff.record_sent(now)
        self.in_flight += 1
        self.unanswered += 1
        self.sent += 1
        self._number += 1
        reservation.sent_number = self._number
        if now >= self._refusals.next_mark_at:
            self._refusals.mark(self._number, now)
        reservation.state = GRANTED
        reservation.granted_at = now
        reservation.booked_totals = (self.requests.booked, self.tokens.booked)

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
            since = bucket.booked - total
            bucket.learn(reported, amount=amount, since=since, elapsed_s=elapsed_s)
            if reported.reset_s and reported.remaining is not None:
                self._learn_quota(bucket, reported, since, now)
        if _reports(limits):
            self.start.limits_known = True

    def _learn_quota(self, bucket: Bucket, reported: ReportedLimit, since: float, now: float) -> None:
        """Keeps to what remains of a window until it ends, where a service counts in windows.

        A limit per second explains a reset by itself: so long does it take until there is enough again.
        """
        left = (reported.remaining or 0.0) - since
        explained_s = EXPLAINED * max(1.0 / self.requests.rate, bucket.typical / bucket.rate) + HELD_S
        if reported.limit is not None and reported.window_s <= HELD_S and reported.reset_s <= explained_s:
            return
        until = now + min(reported.reset_s, MOST_PAUSE_S)
        later = self.learned_at > self._quota_sent_at + COUNTED_IN_ANY_ORDER_S
        bucket.set_quota(left if later else min(left, bucket.quota_left), until)
        self._quota_sent_at = self.learned_at
        if (reported.remaining or 0.0) < min(1.0, bucket.typical):
            self.asked_until = max(self.asked_until, now + reported.reset_s)
            self.paused_until = self._quota_pause = max(self.paused_until, until)
        elif later and self.paused_until == self._quota_pause:
            self.paused_until = self.asked_until = now  # a later answer has taken it back

    def record_rate_limit(
        self,
        reservation: Reservation,
        now: float,
        limits: AccountLimits | None,
        *,
        wait_s: float | None,
        kind: Kind | None,
        jitter: float,
    ) -> RateLimited:
        """Records a 429; the arguments are those of `Admission.record_rate_limit`."""
        self.refill(now)
        sent_at = now if reservation.granted_at is None else reservation.granted_at
        self._backoff.record_refusal(sent_at, now)
        refusing_since = self._refusing_from(now)
        if reservation.answered and not reservation.refused:
            self.heads_lie = True  # this one was refused within a response that looked good
            self.start.forget_answer()
        reservation.refused = True
        if limits is not None and _reports(limits):
            pause_s = self._record_reported_refusal(reservation, now, limits, kind)
        else:
            pause_s = self._record_silent_refusal(reservation, now, limits, kind, jitter)
        if self.window is not None:
            self.window.record_rate_limit(self.in_flight, self.unanswered, sent_at, now)
        self.asked_until = max(self.asked_until, now + (wait_s or 0.0))
        self.paused_until = max(self.paused_until, now + min(max(pause_s, wait_s or 0.0), MOST_PAUSE_S))
        refusing_s = now - refusing_since
        if wait_s is not None and refusing_s <= MOST_PAUSE_S:
            refusing_s = 0.0  # it says itself for how long, and one call after another may be what it lets in
        return RateLimited(self.pause_s(now), refusing_s)

    def _refusing_from(self, now: float) -> float:
        """Returns since when the service has refused every request, at a 429 that comes now."""
        idle_s = now - max(self._refused_at, self.paused_until)
        old_s = max(ACCEPTED_AFTER_S, self._backoff.stray_s())
        # A request that has been under way for longer than a refusal takes was accepted.
        under_way = self.unanswered > self._refusals.sent_since(now - old_s, self._number)
        if self.refusing_since is None or idle_s > REFUSING_GAP_S or under_way:
            self.refusing_since = now
        self._refused_at = now
        return self.refusing_since

    def _record_reported_refusal(
        self, reservation: Reservation, now: float, limits: AccountLimits, kind: Kind | None
    ) -> float:
        """Learns from a 429 that reports limits; returns the seconds to pause."""
        first = not self.start.limits_known
        self.start.limits_known = True
        self._backoff.end()
        if not reservation.blind:
            # Before the rate falls, so that it falls from its true value.
            self.learn(reservation, now, limits)
            # The refused request stays booked, though the service has not counted it: else each 429 would send another.
            sent_at = now if reservation.granted_at is None else reservation.granted_at
            (self.tokens if kind == "tokens" else self.requests).record_rate_limit(sent_at, now)
            return LEAST_S
        # It was sent before anything was known, and shows nothing against what is reported now. The level is what the
        # refusal reports, since it was judged just now; what is booked includes all that were refused with it.
        if first or self.paused_until > now:
            self.requests.set_level(limits.requests, amount=1.0)
            self.tokens.set_level(limits.tokens, amount=reservation.tokens)
            self.learned_at = self.levels_set_at = now
        # Until all of these refusals are in.
        return self._backoff.together_s()

    def _record_silent_refusal(
        self, reservation: Reservation, now: float, limits: AccountLimits | None, kind: Kind | None, jitter: float
    ) -> float:
        """Learns from a 429 that reports no limit; returns the seconds to pause."""
        self.learn(reservation, now, limits)
        known = self.requests.control.reported is not None or self.tokens.control.reported is not None
        sent_at = now if reservation.granted_at is None else reservation.granted_at
        bucket = self.tokens if kind == "tokens" else self.requests
        judgement = self._refusals.judge(
            reservation.sent_number, sent_at, self._number, now, known=known, finding=bucket.found
        )
        if not judgement.again:
            self._finding = None
        nothing = judgement.cause is Cause.NOTHING_ACCEPTED
        if known and judgement.cause is Cause.STRAY:
            return LEAST_S
        if known:
            bucket.record_rate_limit(sent_at, now)
        elif not nothing:
            return self._find(bucket, judgement, now)
        else:
            self._undo_find()
            self._backoff.probe()
        return self._backoff.next_pause_s(jitter, nothing_accepted=nothing, again=judgement.again)

    def _find(self, bucket: Bucket, judgement: Judgement, now: float) -> float:
        """Finds the rate of a service that has never reported one; returns the seconds to pause."""
        if judgement.cause is Cause.LIMIT:
            self._backoff.end()
            bucket = self._finding or bucket  # an event is about one bucket, whatever its refusals name
            bucket.find(judgement.accepted, judgement.since_last_s, again=self._finding is not None)
            self._finding = bucket
            self._refusals.resume(self._number, now - self._backoff.latency_s / 2)
            return self._backoff.together_s()
        if self._refusals.by_chance:
            bucket.search_from(self._refusals.best)
            return LEAST_S
        self._undo_find()
        return self._backoff.stray_s()

    def _undo_find(self) -> None:
        """Undoes what the event's first refusals were taken for, if more of them have shown that it is no limit."""
        if self._finding is not None:
            self._finding.undo_find()
            self._finding = None

    def record_accepted(self) -> None:
        """Records that the service has accepted a request."""
        self.start.unanswered_allowed += 1
        self.refusing_since = None
        self._backoff.end()

    def record_answered(self, reservation: Reservation) -> None:
        """Records that a call no longer waits for the head of its response. Only the first call counts."""
        if not reservation.answered:
            reservation.answered = True
            self.unanswered -= 1

    def state(self, now: float, wall: datetime) -> ModelState:
        """Returns the values to show; `wall` is the time of day at `now`."""
        paused_for_s = self.pause_s(now)
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


def _reports(limits: AccountLimits) -> bool:
    """Returns whether a response reports a limit; the rest of a window alone shows no rate."""
    return limits.requests.limit is not None or limits.tokens.limit is not None


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


def _per_minute(per_second: float | None) -> float | None:
    return None if per_second is None else per_second * 60
