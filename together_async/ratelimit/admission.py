"""Admission control: decides which waiting call is sent next, for all clients of one account in one event loop. Pure.

Theory of operation. A call asks for a `Reservation` and waits in the queue of its model (a `Lane`), first come, first
served within its priority. The first in line is booked, and is sent as soon as the model's buckets allow. It also needs
a place: one of the account's (`Limits.concurrency`), and one of its model's.

Whose turn it is. The calls of one model share its rates, the calls of all models share the account's places.

1. A free place goes to an interactive call that could go, of whatever model, the oldest first; but while calls of both
   priorities compete, every `BATCH_TURN_EVERY`-th place goes to the oldest batch call.
2. A lane that has to wait for its own limits has its next call booked, by turns of its own that follow the same rule
   (`Queue`), and competes with that call alone: else the batch of a slow model would never go, while others take the
   batch's places. If it is a batch call, it competes for a place in the name of the interactive ones behind it: they
   would have to wait for the batches of all models otherwise.

Without a number of places nobody competes, and each lane goes by its own turns.

What keeps calls from going. A 429 pauses its model, and a waiting call that does not wait so long is turned away
(`turned_away`). A 402 concerns the account: all waiting and new calls are turned away, but one is let through every
`STOP_S`, to see whether the account has been paid. A lack of file descriptors lowers the number of places for all
models for a while (`DescriptorShortage`).

What an event costs. An event concerns one lane, and only lanes with an event, or whose time has come, are looked at
(`Schedule`), and none while no place is free. One `advance` looks at `MOST_LOOKS` lanes at most.

Whoever drives this (`Driver`, or a test with a clock of its own) reports every event, with the time as an argument.
`ask` begins a call's turn; `release` ends it, or `withdraw` if nothing was sent, or `record_descriptors_exhausted` if
nothing could be. In between come `record_dialling` and `record_dialled` (its connection), `record_response`,
`record_rate_limit`, `record_overload` or `record_payment_required` (the head), `record_latency` and `settle` (the
end). After each, `advance` returns the calls that may be sent now, `turned_away` has those that never will be, and
`next_at` is when to call it again if no event comes before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Final

from together_async.errors import PaymentRequiredError, QueueFullError, TogetherError
from together_async.ratelimit.descriptors import DescriptorShortage
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.headers import AccountLimits, Kind
from together_async.ratelimit.lane import Lane, RateLimited
from together_async.ratelimit.limits import Limits, LimitsState, Priority
from together_async.ratelimit.queue import BATCH_TURN_EVERY, BOOKED, ENDED, GRANTED, WAITING, Reservation
from together_async.ratelimit.schedule import Schedule
from together_async.ratelimit.turned_away import PaymentStop, paused

STOP_S: Final = 60.0
"""After a 402 one request is let through every so many seconds, to see whether the account has been paid."""
MAX_LANES: Final = 1_000
"""Models whose state is kept, but for those that are in use. One more makes the admission forget idle ones: first those
of which nothing is known, then those that are not paused; of equal ones those that were used longest ago."""
FORGOTTEN_AT_ONCE: Final = MAX_LANES // 8
"""How many are forgotten at once, so that a new name does not cost a search each time."""
PAUSED_AT_ONCE: Final = MAX_LANES // 100
"""How many of these may be paused."""
MOST_LOOKS: Final = 200
"""Lanes that one `advance` looks at, and so the calls that it lets go: some milliseconds. If others may go too,
`next_at` is that very moment, and the event loop has its turn in between."""


class Admission:
    """All lanes of one account, and the places they share.

    It is one thing, although it has many methods: each is an event in a call's life, and all of them keep the same few
    counts.

    Args:
        limits: The caller's limits.
        wall: Returns the time of day in UTC, for errors; None leaves it out of them.

    Attributes:
        places: How many calls may be under way at once, all models together; None for no such limit.
        in_flight: How many are.
        queued: How many wait.
        uncounted: How many of these `Limits.max_queued` does not count.
        next_at: When `advance` can grant a turn at the earliest, if no event comes before; infinite if it can't.
        turned_away: Waiting calls that can't be sent any more, with the error for each; the driver takes them after
            every event.
    """

    def __init__(self, limits: Limits, wall: Callable[[], datetime] | None = None) -> None:
        self.limits = limits
        self.places = limits.concurrency if isinstance(limits.concurrency, int) else None
        self.in_flight = self.queued = self.uncounted = 0
        self.next_at = math.inf
        self.turned_away: list[tuple[Reservation, TogetherError]] = []
        self._lanes: dict[str, Lane] = {}
        self._busy: dict[str, Lane] = {}  # those in which calls wait
        self._schedule = Schedule()
        self._interactive_turns = 0  # places since the batch had one, while it waited
        self._sweep_at = MAX_LANES
        self._wall = wall
        self._numbers = 0
        self._epoch = 0  # counts event loops
        self._shortage: DescriptorShortage | None = None
        self._stop: PaymentStop | None = None
        self._stopped_at = self._probe_at = -math.inf

    def lane(self, model: str, now: float) -> Lane:
        """Returns a model's lane, made on first use."""
        lane = self._lanes.get(model)
        if lane is None:
            if len(self._lanes) >= self._sweep_at:
                self._forget_idle(now)
            limits = self.limits.of(model)
            # The number for all models is kept here, so a lane keeps its model's own number only.
            lane = self._lanes[model] = Lane(model, limits, now, shares_places=limits is self.limits)
        return lane

    def _forget_idle(self, now: float) -> None:
        idle = [lane for lane in self._lanes.values() if not lane.in_flight and not lane.queue.length]
        idle.sort(key=lambda lane: (lane.paused_until > now, _has_learned(lane), lane.used_at))
        surplus = len(self._lanes) - MAX_LANES
        paused = sum(lane.paused_until > now for lane in idle)
        for lane in idle[: max(surplus + PAUSED_AT_ONCE, min(surplus + FORGOTTEN_AT_ONCE, len(idle) - paused))]:
            del self._lanes[lane.model]
        self._sweep_at = max(MAX_LANES, len(self._lanes) + FORGOTTEN_AT_ONCE)

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
        careful_start: bool = False,
    ) -> Reservation:
        """Puts a call into the queue; `advance` returns it when it may be sent, `check_room` raises if it may not wait.

        Args:
            model: The model's name.
            tokens: Tokens the request is expected to use, or its size, to estimate them from.
            now: Seconds of a clock that does not go back; all times are of the same.
            priority: "interactive", or "batch", which yields to interactive calls.
            number: The number of an earlier reservation of the same call, whose place it keeps; None for a new call.
            max_pause_s: The call fails instead of waiting for a longer pause.
            at_once: Grants the turn here if no call waits and it may be sent; `advance` then does not return it.
            counts_as_queued: Whether `Limits.max_queued` counts it.
            careful_start: Whether the call waits for the first answer of a model whose limits are not known.

        Raises:
            RateLimitError: The model is paused for longer than `max_pause_s`.
            PaymentRequiredError: The account's spending limit was reached a moment ago.
        """
        if self._stop is not None:
            if now < self._probe_at:
                raise self._stop.error()
            self._probe_at = now + STOP_S
        lane = self.lane(model, now)
        if lane.paused_until - now > max_pause_s and lane.pause_s(now) > max_pause_s:
            raise self._paused_error(lane, RateLimited(lane.pause_s(now), 0.0), max_pause_s)
        if number is None:
            number = self._numbers = self._numbers + 1
        reservation = Reservation(
            lane,
            tokens,
            priority=priority,
            number=number,
            max_pause_s=max_pause_s,
            counts_as_queued=counts_as_queued,
            careful_start=careful_start,
            epoch=self._epoch,
        )
        is_alone = at_once and not self._busy and (self.places is None or self.in_flight < self.places)
        if is_alone and (self._shortage is None or self._has_place(now)):
            if lane.try_grant(reservation, now):
                self.in_flight += 1
                return reservation
            lane.enqueue_first(reservation, now)
            wait_s = lane.wait_s(reservation, now)
            if wait_s <= 0:
                lane.grant(reservation, now)
                self.in_flight += 1
                return reservation
            self._schedule.park(lane, now + wait_s)
        else:
            if lane.queue.first is not None:  # it may have to step back
                lane.refill(now)
            lane.enqueue(reservation)
            self._schedule.update(lane)
        self._count_waiting(reservation, 1)
        self._busy[model] = lane
        return reservation

    @property
    def lacks_place(self) -> bool:
        """Whether as many calls are under way as may be, all models together."""
        return self.places is not None and self.in_flight >= self.places

    def _has_place(self, now: float) -> bool:
        """Returns whether one more call may be under way, as far as the number for all models goes."""
        if self.places is not None and self.in_flight >= self.places:
            return False
        self._forget_old_shortage(now)
        return self._shortage is None or self._shortage.free_at(self.in_flight, now) <= now

    def _forget_old_shortage(self, now: float) -> None:
        if self._shortage is not None and self._shortage.is_over(now):
            self._shortage = None

    def _count_waiting(self, reservation: Reservation, change: int) -> None:
        self.queued += change
        if not reservation.counts_as_queued:
            reservation.lane.queue.uncounted += change
            self.uncounted += change

    def check_room(self, model: str, now: float) -> None:
        """Checks that a call that has to wait, and has been counted, finds room in the queue.

        Raises:
            QueueFullError: `Limits.max_queued` other calls wait already. The call is to be withdrawn.
        """
        lane = self.lane(model, now)
        counts = [(self.limits.max_queued, self.queued - self.uncounted)]
        if lane.limits is not self.limits:
            counts.append((lane.limits.max_queued, lane.queue.length - lane.queue.uncounted))
        for max_queued, waiting in counts:
            if max_queued is not None and waiting > max_queued:
                raise QueueFullError(
                    f"the queue is full: {waiting - 1} calls wait and Limits.max_queued is {max_queued}; "
                    "call later, or raise it"
                )

    def withdraw(self, reservation: Reservation, now: float) -> None:
        """Releases a reservation for which nothing was sent, whether it waits or was granted."""
        lane = reservation.lane
        lane.refill(now)
        if reservation.state in (WAITING, BOOKED) and reservation.epoch == self._epoch:
            self._remove(reservation)
        elif self._under_way(reservation):
            last = reservation is lane.last_granted
            lane.requests.settle(reservation.costs[0], 0.0, last=last)
            lane.sent -= 1
            self.settle(reservation, 0, now)
            self.release(reservation, now)

    def _remove(self, reservation: Reservation) -> None:
        lane = reservation.lane
        lane.remove(reservation)
        self._count_waiting(reservation, -1)
        if lane.queue.length:
            self._schedule.update(lane)
        else:
            self._schedule.remove(lane)
            self._busy.pop(lane.model, None)

    # --------------------------------------------------------------------------------------------------------- granting

    def advance(self, now: float, *, timer: bool = True) -> list[Reservation]:
        """Returns the calls that may be sent now, in order, and sets `next_at`.

        Args:
            now: The time.
            timer: Whether the time for which `next_at` asked has come, and the event loop has read what came until
                then: lanes that wait for a time are looked at.
        """
        schedule = self._schedule
        if timer:
            for _ in range(MOST_LOOKS):
                lane = schedule.pop_due(now)
                if lane is None:
                    break
                lane.tick(now)
        granted: list[Reservation] = []
        looks = MOST_LOOKS
        while looks and self._has_place(now):
            looks -= 1
            priority, lane = self._next_lane()
            if lane is None:
                break
            wait_s = self._look(lane, priority, now)
            if wait_s > 0:
                schedule.park(lane, now + wait_s)
            else:
                granted.append(self._grant_first(lane, now))
        self._set_next(now, at_once=not looks)
        return granted

    def _next_lane(self) -> tuple[Priority, Lane | None]:
        """Returns the lane that competes for a place with the oldest call of the priority whose turn it is."""
        interactive, batch = self._schedule.first("interactive"), self._schedule.first("batch")
        passed_over = self._interactive_turns >= BATCH_TURN_EVERY - 1
        if batch is not None and (interactive is None or passed_over):
            return "batch", batch
        return "interactive", interactive

    def _look(self, lane: Lane, priority: Priority, now: float) -> float:
        """Books the first call of a lane, and returns the seconds until it may go."""
        lane.refill(now)
        shared = self.places is not None or self._shortage is not None
        queue = lane.queue
        # What is booked stays so while it cannot go: a bucket counts each booking.
        reservation = queue.first or lane.book_next(now, priority if shared else None)
        assert reservation is not None  # noqa: S101 - calls wait in a lane of the schedule
        wait_s = lane.wait_s(reservation, now)
        if shared and wait_s > 0:
            own = queue.next_priority()
            if own != reservation.priority:
                reservation = lane.book_next(now, own)
                assert reservation is not None  # noqa: S101 - one of that priority waits
                wait_s = lane.wait_s(reservation, now)
        return wait_s

    def _grant_first(self, lane: Lane, now: float) -> Reservation:
        reservation = lane.queue.first
        assert reservation is not None  # noqa: S101 - it was booked
        lane.grant(reservation, now)
        self._count_waiting(reservation, -1)
        self.in_flight += 1
        if lane.queue.length:
            self._schedule.touch(lane)
        else:
            self._schedule.remove(lane)
            del self._busy[lane.model]
        if reservation.priority == "batch":
            self._interactive_turns = 0
        elif self._schedule.first("batch") is not None:
            self._interactive_turns += 1
        return reservation

    def _set_next(self, now: float, *, at_once: bool) -> None:
        """Sets `next_at`. A lane whose time comes while no place is free competes for the next one from then on."""
        self.next_at = self._schedule.next_due
        if at_once:
            self.next_at = min(self.next_at, now)
        shortage = self._shortage
        if shortage is not None and self._next_lane()[1] is not None:
            free_at = shortage.free_at(self.in_flight, now)
            if free_at > now:  # else a number of the caller's is missing, and only the end of a call helps
                self.next_at = min(self.next_at, free_at)

    # ----------------------------------------------------------------------------------------------------- connections

    def record_dialling(self, reservation: Reservation, now: float) -> None:
        """Records that a new connection begins to be opened for a call that was granted its turn."""
        reservation.lane.start.record_dialling(now)

    def record_dialled(self, reservation: Reservation, now: float, seconds: float, *, connected: bool) -> None:
        """Records that the connection is open (TCP, proxy and TLS), or has failed.

        Args:
            reservation: The call's.
            now: The time.
            seconds: How long it took.
            connected: Whether it is open, so that the request is on its way.
        """
        lane = reservation.lane
        lane.start.record_dialled(now, seconds, connected=connected)
        self._schedule.touch(lane)

    def record_descriptors_exhausted(self, reservation: Reservation, now: float) -> bool:
        """Withdraws a reservation whose request found no file descriptor, and lowers the number of places.

        Returns:
            Whether its call may ask again; see `DescriptorShortage`.
        """
        if not self._under_way(reservation):
            return True
        self.withdraw(reservation, now)
        shortage = self._shortage
        if shortage is None:
            shortage = self._shortage = DescriptorShortage(now)
        return shortage.record_exhausted(self.in_flight, now)

    # ------------------------------------------------------------------------------------------------------- responses

    def record_response(
        self, reservation: Reservation, now: float, limits: AccountLimits | None, *, good: bool
    ) -> None:
        """Records the head of a response.

        Args:
            reservation: The call's.
            now: The time.
            limits: The limits that its headers report; None if they report none.
            good: Whether the status is a success. False for errors other than 429, which show no limit either.
        """
        lane, sent_at = reservation.lane, reservation.granted_at
        if reservation.answered or sent_at is None or not self._under_way(reservation):
            return
        if limits is not None:
            lane.refill(now)
            lane.learn(reservation, now, limits)
            if lane.paused_until > now and lane.queue.length:
                self._turn_away_unwilling(lane, RateLimited(lane.pause_s(now), 0.0))
        if not good:
            lane.refusing_since = None  # a failure of another kind
        else:
            if not lane.heads_lie:
                lane.record_accepted()
            if self._shortage is not None:
                self._shortage.record_response()
            if sent_at >= self._stopped_at:
                self._stop = None
            if lane.window is not None:
                lane.window.record_response(lane.in_flight, now)
        lane.record_answered(reservation)
        if lane.queue.length:
            self._schedule.touch(lane)

    def _under_way(self, reservation: Reservation) -> bool:
        return reservation.state == GRANTED and reservation.epoch == self._epoch

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
        """Records a 429: nothing more is sent to this model before `wait_s` have passed, then less than before.

        Args:
            reservation: The call's.
            now: The time.
            limits: The limits that the headers report; None if they report none.
            wait_s: Seconds that the service asked to wait; None if it did not say.
            kind: Which limit was exceeded; None if the service names neither, which counts as requests.
            jitter: A random number from 0 to 1, so that clients do not come back all at once.

        Returns:
            How long the model is paused, and for how long the service has refused everything.
        """
        lane = reservation.lane
        lane.rate_limited += 1
        if not self._under_way(reservation):
            return RateLimited(lane.pause_s(now), 0.0)
        limited = lane.record_rate_limit(reservation, now, limits, wait_s=wait_s, kind=kind, jitter=jitter)
        self._turn_away_unwilling(lane, limited, names_times=wait_s is not None)
        lane.record_answered(reservation)
        self._schedule.touch(lane)
        return limited

    def _turn_away_unwilling(self, lane: Lane, limited: RateLimited, *, names_times: bool = False) -> None:
        """Turns away the calls of a lane that do not wait so long."""
        if max(limited) <= lane.queue.shortest_max_pause_s:
            return
        for waiting in lane.queue.unwilling(max(limited)):
            self._remove(waiting)
            error = self._paused_error(lane, limited, waiting.max_pause_s, names_times=names_times)
            self.turned_away.append((waiting, error))

    def _paused_error(
        self, lane: Lane, limited: RateLimited, max_pause_s: float, *, names_times: bool = False
    ) -> TogetherError:
        wall = self._wall() if self._wall is not None else None
        asked_s = limited.pause_s + lane.asked_until - lane.paused_until  # a pause is bounded, what is asked is not
        return paused(lane.model, limited, max_pause_s, wall, asked_s=asked_s, names_times=names_times)

    def record_overload(self, reservation: Reservation) -> None:
        """Counts a 503. The platform is overloaded, which shows nothing about the account's limits."""
        reservation.lane.overloaded += 1

    def record_payment_required(self, error: PaymentRequiredError, now: float) -> None:
        """Records a 402: all waiting and new calls are turned away, until a request that is tried later succeeds."""
        self._stop = PaymentStop.of(error)
        self._stopped_at, self._probe_at = now, now + STOP_S
        for lane in tuple(self._busy.values()):
            for waiting in tuple(lane.queue.waiting()):
                self._remove(waiting)
                self.turned_away.append((waiting, self._stop.error()))

    def resume(self) -> None:
        """Forgets a 402: requests are sent again."""
        self._stop = None

    def record_latency(self, reservation: Reservation, seconds: float, *, tokens: int | None) -> None:
        """Records how long a response took.

        Args:
            reservation: The call's.
            seconds: From the request to the head of a stream, or to the end of a whole response.
            tokens: Completion tokens of the whole response; None for the head of a stream.
        """
        window = reservation.lane.window
        if window is not None:
            window.latencies[0 if tokens is None else 1].add(seconds / max(tokens or 1, 1), window.size)

    def settle(self, reservation: Reservation, tokens: float, now: float) -> None:
        """Replaces the expected tokens by those that were used. Only the first call counts."""
        if reservation.settled or reservation.state != GRANTED or reservation.epoch != self._epoch:
            return
        reservation.settled = True
        lane = reservation.lane
        if lane.heads_lie and tokens and not reservation.refused:
            lane.record_accepted()
        if reservation.granted_at is not None and reservation.granted_at < lane.levels_set_at:
            return  # the level that a refusal reported includes it
        bucket = lane.tokens
        if bucket.rate < math.inf:
            lane.used_at = now
            bucket.refill(now)
            tokens = bucket.cost(tokens)
        bucket.settle(reservation.costs[1], tokens, last=reservation is lane.last_granted)
        if lane.queue.length:
            lane.estimate_first_again()
            self._schedule.touch(lane)

    def release(self, reservation: Reservation, now: float) -> None:
        """Frees the place of a request that has ended. Only the first call counts."""
        if reservation.state != GRANTED or reservation.epoch != self._epoch:
            return
        lane = reservation.lane
        if not reservation.answered:
            lane.record_answered(reservation)
        reservation.state = ENDED
        lane.used_at = now
        lane.in_flight -= 1
        self.in_flight -= 1
        if lane.queue.length:
            self._schedule.touch(lane)

    def forget_calls(self) -> None:
        """Forgets all calls, because their event loop is gone, and keeps what was learned."""
        for lane in self._lanes.values():
            lane.forget_calls()
        self._epoch += 1
        self.in_flight = self.queued = self.uncounted = 0
        self._busy.clear()
        self._schedule.clear()
        self.next_at = math.inf

    def state(self, now: float, wall: datetime) -> LimitsState:
        """Returns the values to show; `wall` is the time of day at `now`."""
        self._forget_old_shortage(now)
        for lane in self._lanes.values():
            used_at = lane.used_at
            lane.refill(now)
            lane.used_at = used_at
        return LimitsState(
            in_flight=self.in_flight,
            queued=self.queued,
            concurrency=self.places,
            descriptor_places=None if self._shortage is None else self._shortage.places(now),
            models={model: lane.state(now, wall) for model, lane in self._lanes.items()},
            stopped=None if self._stop is None else self._stop.text,
        )


def _has_learned(lane: Lane) -> bool:
    """Returns whether something is known of a model's limits that would have to be found out anew."""
    reported = lane.requests.control.reported is not None or lane.tokens.control.reported is not None
    return reported or lane.rate_limited > 0
