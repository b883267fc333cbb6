"""Who may send next, for all clients of one account in one event loop. Pure: no asyncio, no clock, no chance.

Theory of operation. A call asks for a `Reservation`; it waits in the queue of its model (a `Lane`), first come first
served within its priority. The first in line is *booked*: its request and its tokens are taken from the model's
buckets, whether they are there or not, and it goes as soon as they are. Only one is booked at a time, so a
cancellation, a refund or a changed limit moves everybody behind it at once. It also needs a place: one of those for
all models together, and one of its model's.

Whoever drives this (`Driver`, or a test with a clock of its own) reports every event, with the time as an argument:
`ask`, `withdraw`, `record_response`, `record_rate_limit`, `settle`, `release`. After each, `advance` returns the calls
that may go now, and `next_at` is when to come again if nothing else happens before.

Of two priorities the interactive one goes first, but while both wait every `TURNS`-th turn is the batch's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from together_async.errors import PaymentRequiredError, QueueFullError, RateLimitError, TogetherError
from together_async.ratelimit.bucket import Bucket
from together_async.ratelimit.congestion import CongestionWindow
from together_async.ratelimit.estimator import Estimator, Size
from together_async.ratelimit.headers import AccountLimits, Kind
from together_async.ratelimit.limits import Limits, LimitsState, ModelState, Priority

TURNS: Final = 5
"""While both priorities wait, one turn of so many is the batch's."""
FIRST_AT_ONCE: Final = 4
"""Requests to a model that has not answered yet, of those whose number the caller has named; the next wait for gaps."""
FIRST_GAP_S: Final = 1.0
LEAST_GAP_S: Final = 0.02
"""A model that was never asked may allow a request per second, or a thousand. As long as no answer has told its limits,
one more than there were good answers may wait for theirs, so that their number doubles in an answer's time (TCP's slow
start), and beyond that the gaps between requests are a second, half a second and so on, at last this."""
MOST_PAUSE_S: Final = 900.0
"""No header pauses a model for longer; then it is asked again."""
STOP_S: Final = 60.0
"""After a 402 one request in so many seconds is let through, to see whether somebody has paid."""
_MOST_LANES: Final = 1_000
_WAITING, _BOOKED, _GRANTED, _ENDED = range(4)


class Reservation:
    """A call's place: waiting, then under way, until it is released.

    Attributes:
        model: The model's name.
        tokens: Tokens it is expected to use; booked, and estimated from the size if that is given, when it is first in
            line.
        number: Its place in the order of arrival. A call that asks again brings its number, and keeps its place.
        granted_at: When it was let go; None while it waits.
        waiter: Whatever the driver has to wake.
    """

    __slots__ = (
        "_answered",
        "_costs",
        "_epoch",
        "_lane",
        "_marks",
        "_settled",
        "_state",
        "counts_as_queued",
        "granted_at",
        "max_pause_s",
        "number",
        "priority",
        "size",
        "skips_slow_start",
        "tokens",
        "waiter",
    )

    def __init__(
        self, lane: Lane, tokens: float | Size, *, priority: Priority, number: int, max_pause_s: float, epoch: int
    ) -> None:
        self._lane = lane
        self._epoch = epoch
        self._state = _WAITING
        self._answered = self._settled = False
        self._marks = self._costs = (0.0, 0.0)  # what had been booked when it went; what was booked for it
        self.size = tokens if isinstance(tokens, Size) else None
        self.tokens = 0.0 if isinstance(tokens, Size) else tokens
        self.priority: Priority = priority
        self.number = number
        self.max_pause_s = max_pause_s
        self.granted_at: float | None = None
        self.skips_slow_start = False
        self.counts_as_queued = True
        self.waiter: Any = None

    def __repr__(self) -> str:
        state = ("waiting", "first in line", "under way", "ended")[self._state]
        return f"<Reservation {self.number} of {self.model}, {self.tokens:g} tokens, {state}>"

    @property
    def model(self) -> str:
        """The model's name."""
        return self._lane.model

    @property
    def estimator(self) -> Estimator:
        """What was learned about the sizes of the model's requests."""
        return self._lane.estimator

    @property
    def timed(self) -> bool:
        """Whether anybody wants to know how long the answer takes."""
        return self._lane.window is not None

    @property
    def granted(self) -> bool:
        """Whether it is under way."""
        return self._state == _GRANTED


class Lane:
    """One model: its queue, its buckets, its window."""

    __slots__ = (
        "_ended",
        "answers",
        "estimator",
        "first",
        "gap_at",
        "gap_s",
        "in_flight",
        "known",
        "last",
        "learned_at",
        "least_max_pause_s",
        "limits",
        "model",
        "overloaded",
        "patient",
        "paused_until",
        "places",
        "queued",
        "queues",
        "rate_limited",
        "requests",
        "sent",
        "tokens",
        "turns",
        "unanswered",
        "used_at",
        "window",
    )

    def __init__(self, model: str, limits: Limits, now: float, *, shares_places: bool) -> None:
        concurrency = limits.concurrency
        self.model = model
        self.limits = limits
        self.requests = Bucket("requests", _per_second(limits.requests_per_minute), now)
        self.tokens = Bucket("tokens", _per_second(limits.tokens_per_minute), now)
        self.window = CongestionWindow(now) if concurrency == "auto" else None
        self.places = concurrency if isinstance(concurrency, int) and not shares_places else None
        self.estimator = Estimator()
        self.queues: dict[Priority, deque[Reservation]] = {"interactive": deque(), "batch": deque()}
        self.first: Reservation | None = None  # the one that is booked
        self.turns = 0  # of the interactive ones since the batch had one, while it waited
        self.least_max_pause_s = math.inf  # of those that ever waited
        self.queued = self.in_flight = self.unanswered = 0
        self.patient = 0  # of those that wait: how many `Limits.max_queued` does not count
        self._ended = 0  # withdrawn ones that are still in a queue
        self.paused_until = -math.inf
        self.known = isinstance(concurrency, int)  # whoever says how much he wants at once is not kept from it
        self.gap_at, self.gap_s = -math.inf, FIRST_GAP_S
        self.answers = 0
        self.last: Reservation | None = None  # that went
        self.learned_at = -math.inf  # when the request was sent whose answer told of the limits last
        self.sent = self.rate_limited = self.overloaded = 0
        self.used_at = now

    # ---------------------------------------------------------------------------------------------------------- queue

    def enter(self, one: Reservation) -> None:
        """Puts a call into its queue; one that comes again with its old number, before those that came later."""
        self.queued += 1
        self.least_max_pause_s = min(self.least_max_pause_s, one.max_pause_s)
        first = self.first
        if first is not None and (
            one.number < first.number
            if one.priority == first.priority
            else one.priority == "interactive" and self.turns < TURNS - 1
        ):
            self._step_back(first)
        queue = self.queues[one.priority]
        if not queue or queue[-1].number < one.number:
            queue.append(one)
        else:
            queue.insert(next(place for place, other in enumerate(queue) if other.number >= one.number), one)

    def _step_back(self, first: Reservation) -> None:
        """The one that is booked lets another go first."""
        self._take_back(first)
        first._state = _WAITING
        self.queues[first.priority].appendleft(first)
        self.first = None

    def book(self, now: float) -> Reservation | None:
        """Returns the one that is first in line, booked; None when nobody waits."""
        if self.first is None:
            interactive, batch = self._live("interactive"), self._live("batch")
            queue = batch if batch and (not interactive or self.turns >= TURNS - 1) else interactive
            if not queue:
                return None
            self._book(queue.popleft(), now)
        return self.first

    def enter_first(self, one: Reservation, now: float) -> None:
        """Books a call that finds nobody waiting, without a place in a queue."""
        self.queued += 1
        self.least_max_pause_s = min(self.least_max_pause_s, one.max_pause_s)
        self.refill(now)
        self._book(one, now)

    def _book(self, one: Reservation, now: float) -> None:
        self.first = one
        one._state = _BOOKED
        if one.size is not None:  # not before, since there may have been something to learn
            one.tokens = self.estimator.total(one.size)
        one._costs = (self.requests.cost(1.0), self.tokens.cost(one.tokens))
        self.requests.take(one._costs[0], now)
        self.tokens.take(one._costs[1], now)

    def _live(self, priority: Priority) -> deque[Reservation]:
        queue = self.queues[priority]
        while queue and queue[0]._state == _ENDED:
            queue.popleft()
            self._ended -= 1
        return queue

    def _take_back(self, one: Reservation) -> None:
        self.requests.take_back(one._costs[0])
        self.tokens.take_back(one._costs[1])

    def leave(self, one: Reservation) -> None:
        """Takes a call out that has not been let go; what it had booked is others' now."""
        self.queued -= 1
        if one._state == _BOOKED:
            self._take_back(one)
            self.first = None
        else:
            self._ended += 1
            if self._ended > 64 and self._ended > self.queued:
                for queue in self.queues.values():
                    live = [other for other in queue if other._state != _ENDED and other is not one]
                    queue.clear()
                    queue.extend(live)
                self._ended = 0
        one._state = _ENDED

    def waiting(self) -> Iterator[Reservation]:
        """Those that wait, in the order of their numbers within each priority."""
        if self.first is not None:
            yield self.first
        for queue in self.queues.values():
            yield from (one for one in tuple(queue) if one._state == _WAITING)

    # ------------------------------------------------------------------------------------------------------- decisions

    def wait_s(self, one: Reservation, now: float) -> float:
        """Returns the seconds until the booked one may go, infinite when that depends on others."""
        if self.places is not None and self.in_flight >= self.places:
            return math.inf
        wait_s = max(self.paused_until - now, self.requests.wait_s(one._costs[0]), self.tokens.wait_s(one._costs[1]))
        if self.window is not None:
            wait_s = max(wait_s, self.window.wait_s(self.in_flight, self.unanswered, now))
        if not self.known and self._asks_much(skips_slow_start=one.skips_slow_start):
            wait_s = max(wait_s, self.gap_at - now)
        return max(wait_s, 0.0)

    def _asks_much(self, *, skips_slow_start: bool) -> bool:
        """Whether one more, of a model that has told nothing yet, has to wait for a gap.

        Those whose number the caller has named wait for a first answer at most, which may tell the limits.
        """
        if skips_slow_start:
            return not self.answers and self.unanswered >= FIRST_AT_ONCE
        return self.unanswered > self.answers

    def try_grant(self, one: Reservation, now: float) -> bool:
        """Lets a call go that finds nobody waiting, no limit and a place; False leaves all as it was.

        It is `enter_first`, `wait_s` and `go` where there is nothing to reckon.
        """
        requests, tokens = self.requests, self.tokens
        if (
            requests.rate < math.inf
            or tokens.rate < math.inf
            or self.window is not None
            or self.paused_until > now
            or (self.places is not None and self.in_flight >= self.places)
            or (not self.known and self._asks_much(skips_slow_start=one.skips_slow_start))
        ):
            return False
        if one.size is not None:
            one.tokens = self.estimator.total(one.size)
        one._costs = (1.0, one.tokens)
        requests.let_pass(1.0, now)
        tokens.let_pass(one.tokens, now)
        self.used_at = now
        self._went(one, now)
        return True

    def go(self, one: Reservation, now: float) -> None:
        """Lets the booked one go."""
        self.first = None
        self.requests.go()
        self.tokens.go()
        self.queued -= 1
        if one.priority != "batch" and self._live("batch"):
            self.turns += 1
        if self.window is not None:
            self.window.record_sent(self.in_flight, now)
        self._went(one, now)

    def _went(self, one: Reservation, now: float) -> None:
        self.last = one
        if one.priority == "batch":
            self.turns = 0
        if not self.known:
            self.gap_at = now + self.gap_s
            self.gap_s = max(LEAST_GAP_S, self.gap_s / 2)
        self.in_flight += 1
        self.unanswered += 1
        self.sent += 1
        one._state = _GRANTED
        one.granted_at = now
        one._marks = (self.requests.booked, self.tokens.booked)

    def refill(self, now: float) -> None:
        """Brings the buckets up to date."""
        self.used_at = now
        self.requests.refill(now)
        self.tokens.refill(now)

    def state(self, now: float, wall: datetime) -> ModelState:
        """Returns what there is to show."""
        paused_for_s = max(0.0, self.paused_until - now)
        window = self.window.places if self.window is not None else None
        told = (self.requests.told, self.tokens.told)
        return ModelState(
            model=self.model,
            in_flight=self.in_flight,
            queued=self.queued,
            concurrency=self.places if self.places is not None else window,
            requests_per_minute=self.requests.per_minute,
            tokens_per_minute=self.tokens.per_minute,
            server_requests_per_minute=None if told[0] is None else told[0] * 60,
            server_tokens_per_minute=None if told[1] is None else told[1] * 60,
            paused_for_s=paused_for_s,
            paused_until=wall + timedelta(seconds=paused_for_s) if paused_for_s else None,
            sent=self.sent,
            rate_limited=self.rate_limited,
            overloaded=self.overloaded,
        )


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


class Admission:
    """All lanes of one account, and the places they share.

    Args:
        limits: What the caller wants.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.places = limits.concurrency if isinstance(limits.concurrency, int) else None
        self.in_flight = self.queued = self.patient = 0
        self.next_at = math.inf
        self.refused: list[tuple[Reservation, TogetherError]] = []
        """Calls that wait for nothing any more, with the error for each; the driver takes them after every event."""
        self._lanes: dict[str, Lane] = {}
        self._busy: dict[str, Lane] = {}  # those in which somebody waits
        self._numbers = 0
        self._epoch = 0  # one for each event loop
        self._stop: PaymentRequiredError | None = None
        self._stopped_at = self._probe_at = -math.inf

    def lane(self, model: str, now: float) -> Lane:
        """Returns a model's lane, made when it is asked for the first time."""
        lane = self._lanes.get(model)
        if lane is None:
            if len(self._lanes) >= _MOST_LANES:
                self._forget_idle()
            limits = self.limits.of(model)
            # The number for all models is kept here, so just a model's own is its lane's.
            lane = self._lanes[model] = Lane(model, limits, now, shares_places=limits is self.limits)
        return lane

    def _forget_idle(self) -> None:
        idle = [lane for lane in self._lanes.values() if not lane.in_flight and not lane.queued]
        for lane in sorted(idle, key=lambda lane: lane.used_at)[: _MOST_LANES // 2]:
            del self._lanes[lane.model]

    # ---------------------------------------------------------------------------------------------------------- asking

    def ask(
        self,
        model: str,
        tokens: float | Size,
        now: float,
        *,
        priority: Priority = "interactive",
        number: int | None = None,
        max_pause_s: float = math.inf,
        at_once: bool = False,
        counts_as_queued: bool = True,
        skips_slow_start: bool = False,
    ) -> Reservation:
        """Puts a call into the queue; `advance` says when it may go, `check_room` whether it may wait.

        Args:
            model: The model's name.
            tokens: What it is expected to use, or its size, from which that is estimated.
            now: The time.
            priority: Who goes first.
            number: Of the call's earlier reservation, if it asks again.
            max_pause_s: A pause that is longer than this is not waited for.
            at_once: Lets it go, if nobody waits and it may; `advance` does not return it then.
            counts_as_queued: Whether `Limits.max_queued` counts it.
            skips_slow_start: Whether it is one of a number that the caller has named.

        Raises:
            RateLimitError: The model is paused for longer than `max_pause_s`.
            PaymentRequiredError: The account's spending limit was reached a moment ago.
        """
        if self._stop is not None:
            if now < self._probe_at:
                raise _again(self._stop)
            self._probe_at = now + STOP_S
        lane = self.lane(model, now)
        if lane.paused_until - now > max_pause_s:
            raise _paused(lane, now)
        if number is None:
            number = self._numbers = self._numbers + 1
        one = Reservation(lane, tokens, priority=priority, number=number, max_pause_s=max_pause_s, epoch=self._epoch)
        one.skips_slow_start = skips_slow_start
        one.counts_as_queued = counts_as_queued
        if at_once and not self._busy:
            has_place = self.places is None or self.in_flight < self.places
            if has_place and lane.try_grant(one, now):
                self.in_flight += 1
                return one
            lane.enter_first(one, now)
            if has_place and lane.wait_s(one, now) <= 0:
                lane.go(one, now)
                self.in_flight += 1
                return one
        else:
            if lane.first is not None:  # who may have to step back
                lane.refill(now)
            lane.enter(one)
        self._count(one, 1)
        self._busy[model] = lane
        return one

    def _count(self, one: Reservation, change: int) -> None:
        """One more waits, or one less."""
        self.queued += change
        if not one.counts_as_queued:
            one._lane.patient += change
            self.patient += change

    def check_room(self, model: str, now: float) -> None:
        """Raises when a call that has to wait finds as many waiting as may.

        Raises:
            QueueFullError: It does; nothing has changed but that the call is not in the queue.
        """
        lane = self.lane(model, now)
        counts = [(self.limits.max_queued, self.queued - self.patient)]
        if lane.limits is not self.limits:
            counts.append((lane.limits.max_queued, lane.queued - lane.patient))
        for most, waiting in counts:
            if most is not None and waiting > most:
                raise QueueFullError(
                    f"the queue is full: {waiting - 1} calls wait and Limits.max_queued is {most}; "
                    "ask later, or raise it"
                )

    def withdraw(self, one: Reservation, now: float) -> None:
        """A call that waits gives up, or one that was let go has not been sent: what it held is others' now."""
        lane = one._lane
        lane.refill(now)
        if one._state in (_WAITING, _BOOKED) and one._epoch == self._epoch:
            self._leave(one)
        elif self._under_way(one):
            lane.requests.settle(one._costs[0], 0.0, last=one is lane.last)
            lane.sent -= 1
            self.settle(one, 0, now)
            self.release(one, now)

    def _leave(self, one: Reservation) -> None:
        lane = one._lane
        lane.leave(one)
        self._count(one, -1)
        if not lane.queued:
            self._busy.pop(lane.model, None)

    # --------------------------------------------------------------------------------------------------------- granting

    def advance(self, now: float) -> list[Reservation]:
        """Returns those that may go now, in order, and sets `next_at`."""
        self.next_at = math.inf
        granted: list[Reservation] = []
        blocked: set[str] = set()
        while len(blocked) < len(self._busy):
            if self.places is not None and self.in_flight >= self.places:
                break  # a release will come
            lane = self._next_lane(blocked, now)
            one = lane.first
            assert one is not None  # noqa: S101 - a busy lane has somebody waiting, who was booked
            wait_s = lane.wait_s(one, now)
            if wait_s > 0:
                blocked.add(lane.model)
                self.next_at = min(self.next_at, now + wait_s)
                continue
            lane.go(one, now)
            self._count(one, -1)
            self.in_flight += 1
            granted.append(one)
            if not lane.queued:
                del self._busy[lane.model]
        return granted

    def _next_lane(self, blocked: set[str], now: float) -> Lane:
        """The lane whose first in line came first: where places are short, no model's calls overtake another's."""
        if len(self._busy) == 1:
            (lane,) = self._busy.values()
            lane.refill(now)
            lane.book(now)
            return lane
        lanes = [lane for model, lane in self._busy.items() if model not in blocked]
        for lane in lanes:
            lane.refill(now)
            lane.book(now)
        return min(lanes, key=lambda lane: lane.first.number if lane.first is not None else 0)

    # ---------------------------------------------------------------------------------------------------------- hearing

    def record_response(self, one: Reservation, now: float, told: AccountLimits | None, *, good: bool) -> None:
        """Hears that the head of a response is there.

        Args:
            one: Whose.
            now: The time.
            told: What its headers tell about the limits.
            good: Whether the answer is a success (an error other than 429 is none, but no sign of a limit either).
        """
        lane, sent_at = one._lane, one.granted_at
        if one._answered or sent_at is None or not self._under_way(one):
            return
        if told is not None:
            lane.refill(now)
            self._learn(one, now, told)
            lane.known = True
        if good:
            lane.answers += 1
            if sent_at >= self._stopped_at:
                self._stop = None
            if lane.window is not None:
                lane.window.record_response(lane.in_flight, now)
        self._count_answer(one)

    def _under_way(self, one: Reservation) -> bool:
        return one._state == _GRANTED and one._epoch == self._epoch

    def _count_answer(self, one: Reservation) -> None:
        if not one._answered:
            one._answered = True
            one._lane.unanswered -= 1

    def _learn(self, one: Reservation, now: float, told: AccountLimits | None) -> None:
        lane, sent_at = one._lane, one.granted_at
        if told is None or sent_at is None:
            return
        if sent_at < lane.learned_at:
            return  # answers overtake one another; this one tells of an older state
        lane.learned_at = sent_at
        elapsed_s = now - sent_at
        for bucket, capacity, mark, amount in (
            (lane.requests, told.requests, one._marks[0], 1.0),
            (lane.tokens, told.tokens, one._marks[1], one.tokens),
        ):
            bucket.learn(capacity, amount=amount, since=bucket.booked - mark, elapsed_s=elapsed_s)

    def record_rate_limit(
        self, one: Reservation, now: float, told: AccountLimits | None, *, wait_s: float, kind: Kind | None
    ) -> None:
        """Hears of a 429: nothing more is sent to this model before `wait_s` have passed, then less.

        Args:
            one: Whose.
            now: The time.
            told: What the headers tell about the limits.
            wait_s: How long the service asked to wait, else what the caller thinks right.
            kind: Which limit it was; None when it is not known, and requests are taken to be it.
        """
        lane = one._lane
        lane.rate_limited += 1
        if not self._under_way(one):
            return
        lane.refill(now)
        sent_at = now if one.granted_at is None else one.granted_at
        # Before the rate falls, so that it falls from what is true.
        self._learn(one, now, told)
        lane.known = True
        # The refused request stays booked, though the service has not counted it: else each 429 would let one go.
        (lane.tokens if kind == "tokens" else lane.requests).fall(sent_at, now)
        if lane.window is not None:
            lane.window.record_rate_limit(lane.in_flight, lane.unanswered, sent_at, now)
        lane.paused_until = max(lane.paused_until, now + min(wait_s, MOST_PAUSE_S))
        pause_s = lane.paused_until - now
        if pause_s > lane.least_max_pause_s:
            for other in tuple(lane.waiting()):
                if pause_s > other.max_pause_s:
                    self._leave(other)
                    self.refused.append((other, _paused(lane, now)))
        self._count_answer(one)

    def record_overload(self, one: Reservation) -> None:
        """Hears of a 503: the platform's trouble, which says nothing about the account. It is counted."""
        one._lane.overloaded += 1

    def record_payment_required(self, error: PaymentRequiredError, now: float) -> None:
        """Hears of a 402: whatever waits is refused, and so is what comes, until a request after a while succeeds."""
        self._stop = error
        self._stopped_at, self._probe_at = now, now + STOP_S
        for lane in tuple(self._busy.values()):
            for one in tuple(lane.waiting()):
                self._leave(one)
                self.refused.append((one, _again(error)))

    def resume(self) -> None:
        """Takes a 402 back."""
        self._stop = None

    def record_latency(self, one: Reservation, seconds: float, *, tokens: int | None) -> None:
        """Hears how long an answer took: the head of a stream, or with `tokens` the whole of a response."""
        window = one._lane.window
        if window is not None:
            window.latencies[0 if tokens is None else 1].add(seconds / max(tokens or 1, 1), window.size)

    def settle(self, one: Reservation, tokens: float, now: float) -> None:
        """Puts what was really used in the place of what was expected. Once; later ones change nothing."""
        if one._settled or not self._under_way(one):
            return
        one._settled = True
        lane = one._lane
        bucket = lane.tokens
        if bucket.rate < math.inf:
            lane.refill(now)
            tokens = bucket.cost(tokens)
        bucket.settle(one._costs[1], tokens, last=one is lane.last)
        if lane.first is not None:
            self._estimate_anew(lane)

    @staticmethod
    def _estimate_anew(lane: Lane) -> None:
        """Something may have been learned that makes the first in line smaller, or larger."""
        first = lane.first
        if first is None or first.size is None:
            return
        tokens = float(lane.estimator.total(first.size))
        if tokens != first.tokens:
            lane.tokens.take_back(first._costs[1])
            first.tokens = tokens
            first._costs = (first._costs[0], lane.tokens.cost(tokens))
            lane.tokens.take(first._costs[1], lane.used_at)

    def release(self, one: Reservation, now: float) -> None:
        """The request has ended, its place is free. Once; later ones change nothing."""
        if not self._under_way(one):
            return
        self._count_answer(one)
        one._state = _ENDED
        lane = one._lane
        lane.used_at = now
        lane.in_flight -= 1
        self.in_flight -= 1

    def forget_calls(self) -> None:
        """The event loop of all calls is gone, and they with it. What was learned stays."""
        for lane in self._lanes.values():
            for one in tuple(lane.waiting()):
                lane.leave(one)
            for queue in lane.queues.values():
                queue.clear()
            lane.queued = lane.in_flight = lane.unanswered = lane.patient = lane._ended = 0
        self._epoch += 1
        self.in_flight = self.queued = self.patient = 0
        self._busy.clear()
        self.next_at = math.inf

    def state(self, now: float, wall: datetime) -> LimitsState:
        """Returns what there is to show."""
        for lane in self._lanes.values():
            used_at = lane.used_at
            lane.refill(now)
            lane.used_at = used_at
        return LimitsState(
            in_flight=self.in_flight,
            queued=self.queued,
            concurrency=self.places,
            models={model: lane.state(now, wall) for model, lane in self._lanes.items()},
            stopped=None if self._stop is None else str(self._stop),
        )


def _again(error: PaymentRequiredError) -> PaymentRequiredError:
    """The same for a call of which nothing was sent."""
    again = PaymentRequiredError(
        "402: the account's spending limit is reached, as another call was told a moment ago; nothing was sent. Raise "
        "the limit at the service; a call that comes a minute later tries again",
        status_code=error.status_code,
        headers=error.headers,
        body=error.body,
        request_id=error.request_id,
        retry_after=error.retry_after,
    )
    again.attempts = 0
    return again


def _paused(lane: Lane, now: float) -> RateLimitError:
    wait_s = lane.paused_until - now
    error = RateLimitError(
        f"429: the service asked for a pause of {wait_s:.1f} s for {lane.model}, which is longer than "
        "Retry.max_retry_after; nothing was sent. Ask later, or raise it",
        status_code=429,
        retry_after=wait_s,
    )
    error.attempts = 0
    return error
