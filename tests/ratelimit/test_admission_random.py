"""Random calls: a search for a counterexample to what `Admission` promises.

`CASES=20000 pytest tests/ratelimit/test_admission_random.py -s --hypothesis-seed=1` searches longer than the suite
does, and prints how many calls asked.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.admission import LATE_S, ROOM_S, ROUNDING, ClockedAdmission
from together_async import Limits, RateLimitError
from together_async.ratelimit.bucket import GUARD_S
from together_async.ratelimit.limits import Priority
from together_async.ratelimit.queue import BATCH_TURN_EVERY, Reservation

# Whatever calls are asked, cancelled, settled, released and refused, in whatever order:
# (a) between any two grants no more goes than the rate gives in that time, a bucket, and one request that is larger;
# (b) nothing of the rate is lost while a call waits;
# (c) a call that isn't cancelled gets a turn, no count is left above 0, and the buckets fill up again;
# (d) within a priority, no call overtakes another of its model;
# (e) where only the rates of its model hold a call, of five turns for which both priorities wait, the batch has one;
#     where only the places of the account do, interactive calls go first, but for the batch's fifth place,
#     and the oldest first, whatever their models;
# (f) no more calls are under way than allowed, of all models and of each, and than the process has descriptors for;
# (g) a call that does not wait for a long pause is refused when there is one, and no other is.
# The second test holds (b), the first all others. Event loops are closed, and calls forgotten, in the middle of it.


CASES = int(os.environ.get("CASES", "300"))


asks_made = 0


@pytest.fixture(scope="module", autouse=True)
def _say_how_many() -> Iterator[None]:
    yield
    if "CASES" in os.environ:
        print(f"\n{asks_made} calls asked")


models = st.sampled_from(["m", "n"])


requests_per_minute = st.sampled_from([None, 30.0, 60.0, 600.0, 6_000.0, 60_000.0])


tokens_per_minute = st.sampled_from([None, 600.0, 6_000.0, 60_000.0])


places = st.sampled_from([None, 1, 2, 5])


actions = st.tuples(
    st.sampled_from("aaaaaaabbhccceeeeelwtttjdf"),
    st.integers(0, 63),  # which call
    st.sampled_from([0, 0.001, 0.004, 0.05, 0.2, 1.0, 3.0, 20.0]),  # seconds
    st.sampled_from([0, 1, 7, 40, 90, 900, 9_000]),  # tokens
)


@attrs.define
class Record:
    """A call that was granted its turn."""

    at: float
    tokens: float
    sent: bool = True


class Search(ClockedAdmission):
    """An admission that checks each step."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.limits = limits
        self.records: dict[int, Record] = {}
        self.order: dict[str, list[int]] = {}
        self.refunds: dict[str, list[tuple[float, float]]] = {}
        self.waits: dict[int, Reservation] = {}
        self.under_way: dict[int, Reservation] = {}
        self.passed: Counter[str] = Counter()  # interactive turns since the waiting batch had one
        self.limited_before = self.short_before = False
        self.under_way_before = 0
        limits_of_rates = (limits.requests_per_minute, limits.tokens_per_minute)
        self.shares_places_alone = not limits.models and limits_of_rates == (None, None)

    def enter(
        self,
        tokens: float,
        model: str,
        priority: Priority,
        number: int | None = None,
        max_pause_s: float = math.inf,
    ) -> None:
        global asks_made  # noqa: PLW0603 - what the longer search reports
        asks_made += 1
        try:
            reservation = self.ask(tokens, model, priority=priority, number=number, max_pause_s=max_pause_s)
        except RateLimitError:
            assert self.admission.lane(model, self.now).paused_until - self.now > max_pause_s
            return
        self.waits[id(reservation)] = reservation
        self.advance()

    def advance(self) -> list[Reservation]:
        batch_waited = {reservation.model for reservation in self.waits.values() if reservation.priority == "batch"}
        granted = super().advance()
        turned_away, self.turned_away = self.turned_away, []
        for reservation, _ in turned_away:
            lane = reservation.lane
            refusing_s = 0.0 if lane.refusing_since is None else self.now - lane.refusing_since
            assert reservation.max_pause_s < max(lane.paused_until - self.now, refusing_s)
            del self.waits[id(reservation)]
        for reservation in self.waits.values():
            if reservation not in granted:
                assert reservation.max_pause_s >= reservation.lane.paused_until - self.now, "it should be refused"
        for reservation in granted:
            assert reservation.granted
            del self.waits[id(reservation)]
            for other in self.waits.values():
                same_model = other.model == reservation.model or self.only_places
                if same_model and other.priority == reservation.priority:
                    assert other.number > reservation.number, f"{reservation} overtook {other}"
            if self.only_places:
                self.count_place(reservation)
            elif self.limits.concurrency is None and not self.short_before:
                self.count_turn(reservation, batch_waited)
            self.under_way[id(reservation)] = reservation
            self.records[id(reservation)] = Record(self.now, reservation.tokens)
            self.order.setdefault(reservation.model, []).append(id(reservation))
            reservation.waiter = reservation  # so that no other object gets this id
        self.check_places()
        again = self.admission.advance(self.now)
        assert not again, "what may go goes at once"
        assert not self.waits or self.admission.next_at < math.inf or self.under_way, "nothing will wake them"
        return granted

    @property
    def only_places(self) -> bool:
        """Whether nothing but the number of places can hold a call."""
        return self.shares_places_alone and not self.limited_before and not self.short_before

    def count_place(self, reservation: Reservation) -> None:
        waiting = Counter(other.priority for other in self.waits.values())
        if reservation.priority == "batch":
            if waiting["interactive"] and self.limits.concurrency is not None:
                assert self.passed["all"] == BATCH_TURN_EVERY - 1, "a person waits for a batch"
            self.passed["all"] = 0
        elif waiting["batch"]:
            self.passed["all"] += 1
            assert self.passed["all"] < BATCH_TURN_EVERY, "the batch waits for ever"

    def count_turn(self, reservation: Reservation, batch_waited: set[str]) -> None:
        if reservation.priority == "batch" or reservation.model not in batch_waited:
            self.passed[reservation.model] = 0
        elif any((other.model, other.priority) == (reservation.model, "batch") for other in self.waits.values()):
            self.passed[reservation.model] += 1
            assert self.passed[reservation.model] < BATCH_TURN_EVERY, "the batch waits for ever"

    def check_places(self) -> None:
        count = Counter(reservation.model for reservation in self.under_way.values())
        state = self.state
        assert state.in_flight == len(self.under_way)
        assert state.queued == len(self.waits)
        if isinstance(self.limits.concurrency, int):
            assert state.in_flight <= self.limits.concurrency
        if state.descriptor_places is not None and self.granted and self.granted[-1].granted_at == self.now:
            assert state.in_flight <= max(state.descriptor_places, self.under_way_before)
        self.under_way_before = state.in_flight
        for model, shown in state.models.items():
            assert shown.in_flight == count[model]
            assert shown.queued == sum(reservation.model == model for reservation in self.waits.values())
            limits = self.limits.of(model)
            if limits is not self.limits and isinstance(limits.concurrency, int):
                assert shown.in_flight <= limits.concurrency

    def check_rates(self) -> None:
        """Compares every two grants. The bucket is one request, or no token, and what comes in ROOM_S."""
        for model, order in self.order.items():
            limits = self.limits.of(model)
            records = [self.records[key] for key in order]
            for per_minute, amounts, least in (
                (limits.requests_per_minute, [1.0] * len(records), 1.0),
                (limits.tokens_per_minute, [reservation.tokens for reservation in records], 0.0),
            ):
                if per_minute is None:
                    continue
                rate = per_minute / 60
                size = least + rate * ROOM_S
                for last, end in enumerate(records):
                    total = 0.0
                    for first in range(last, -1, -1):
                        start = records[first]
                        total += amounts[first] if start.sent else 0.0
                        given = rate * (end.at - start.at) + size + (0 if least else max(size, amounts[last]))
                        if not least:
                            given += sum(
                                amount for at, amount in self.refunds.get(model, ()) if start.at <= at <= end.at
                            )
                        assert total <= given + ROUNDING * (1 + total), (model, first, last, total, given)

    def act(self, action: tuple[str, int, float, float]) -> None:
        kind, who, seconds, tokens = action
        if kind in "abh":
            max_pause_s = 1.5 if kind == "h" else math.inf  # in a hurry
            self.enter(tokens, "mn"[who & 1], "batch" if kind == "b" else "interactive", max_pause_s=max_pause_s)
        elif kind == "f":
            self.close_loop(who)
        elif kind in "tj":
            self.step(seconds, jumps=kind == "j")
        elif kind == "c":
            if self.waits:
                reservation = self.waits.pop(list(self.waits)[who % len(self.waits)])
                if not any(
                    (other.model, other.priority) == (reservation.model, "batch") for other in self.waits.values()
                ):
                    self.passed[reservation.model] = 0  # no batch waits any more
                self.withdraw(reservation)
        elif self.under_way:
            reservation = list(self.under_way.values())[who % len(self.under_way)]
            self.end_one(reservation, kind, seconds, tokens)

    def close_loop(self, who: int) -> None:
        """Its calls are gone, and what they do afterwards changes nothing."""
        if who > 20:
            return
        left = [*self.waits.values(), *self.under_way.values()]
        self.admission.forget_calls()
        self.waits.clear()
        self.under_way.clear()
        for model in "mn":
            self.passed[model] = 0
        for reservation in left:
            assert self.admission.record_descriptors_exhausted(reservation, self.now)
            self.withdraw(reservation)
            self.end(reservation, 5)

    def step(self, seconds: float, *, jumps: bool) -> None:
        if not jumps:
            self.to(self.now + seconds)
        elif self.admission.next_at < math.inf and self.admission.queued:
            self.now = max(self.now, self.admission.next_at)
            self.advance()

    def end_one(self, reservation: Reservation, kind: str, seconds: float, tokens: float) -> None:
        key = id(reservation)
        if kind == "w":  # it was never sent
            self.records[key].sent = False
            self.refunds.setdefault(reservation.model, []).append((self.now, reservation.tokens))
            del self.under_way[key]
            self.withdraw(reservation)
        elif kind == "l":
            self.limited_before = True
            self.records[key].sent = False  # the service has not counted it
            self.refunds.setdefault(reservation.model, []).append((self.now, reservation.tokens))
            self.admission.record_rate_limit(
                reservation, self.now, None, wait_s=min(seconds, 3.0), kind="tokens" if tokens else None, jitter=1
            )
            self.advance()
            del self.under_way[key]
            self.end(reservation, 0)
            if tokens != 1:
                self.enter(reservation.tokens, reservation.model, reservation.priority, reservation.number)
        elif kind == "d":
            self.short_before = True
            self.records[key].sent = False
            self.refunds.setdefault(reservation.model, []).append((self.now, reservation.tokens))
            del self.under_way[key]
            self.admission.record_descriptors_exhausted(reservation, self.now)
            self.enter(reservation.tokens, reservation.model, reservation.priority, reservation.number)
        else:
            self.answered(reservation)
            used = min(tokens, 2 * reservation.tokens)
            if used < reservation.tokens:
                self.refunds.setdefault(reservation.model, []).append((self.now, reservation.tokens - used))
            del self.under_way[key]
            self.end(reservation, used)

    def finish(self) -> None:
        """Every call gets a turn; then all is as it was before the first."""
        jumps = 0
        while self.waits or self.under_way:
            before = len(self.waits)
            for reservation in list(self.under_way.values()):
                self.end_one(reservation, "e", 0, reservation.tokens)
            if self.waits and len(self.waits) == before:
                assert self.admission.next_at < math.inf, "a lost waiter"
                self.now = max(self.now, self.admission.next_at)
                self.advance()
            jumps = jumps + 1 if len(self.waits) == before else 0
            # A rate that rises by itself makes its bucket larger: a request of more than that comes nearer by halves.
            assert jumps < 40, "the time comes, and no call goes"
        self.now += 100_000
        state = self.state
        assert (state.in_flight, state.queued) == (0, 0)
        for model in state.models:
            lane = self.admission.lane(model, self.now)
            assert (lane.in_flight, lane.queue.length, lane.unanswered, lane.queue.first) == (0, 0, 0, None)
            for bucket in (lane.requests, lane.tokens):
                if bucket.rate < math.inf:
                    assert bucket.level == pytest.approx(bucket.size)
            configured = self.limits.of(model).requests_per_minute
            if not self.limited_before and configured is not None:
                assert state.models[model].requests_per_minute == pytest.approx(configured, rel=0.05)


@settings(
    max_examples=CASES, derandomize="CASES" not in os.environ, database=None, suppress_health_check=list(HealthCheck)
)
@given(
    requests_per_minute,
    tokens_per_minute,
    places,
    st.one_of(st.none(), st.tuples(requests_per_minute, tokens_per_minute, places)),
    st.lists(actions, min_size=10, max_size=120),
)
# Two calls would go at once after a pause, if the bucket filled up while one is booked.
@example(
    60.0,
    None,
    1,
    None,
    [("a", 0, 0, 0), ("a", 0, 0, 0), ("a", 0, 0, 0), ("t", 0, 20.0, 0), ("e", 0, 0, 0), ("e", 0, 0, 0)],
)
def test_random_calls_stay_within_the_limits_and_nobody_is_lost(
    requests: float | None,
    tokens: float | None,
    most: int | None,
    other: tuple[float | None, float | None, int | None] | None,
    plan: list[tuple[str, int, float, float]],
) -> None:
    """See above: everything but (b)."""
    mine = {"requests_per_minute": requests, "tokens_per_minute": tokens, "concurrency": most}
    if other is None:
        limits = Limits(**mine)  # type: ignore[arg-type]  # the values have several types
    else:
        own = Limits(requests_per_minute=other[0], tokens_per_minute=other[1], concurrency=other[2])
        limits = Limits.per_model({"n": own}, **mine)
    search = Search(limits)
    for action in plan:
        search.act(action)
    search.finish()
    search.check_rates()


@settings(max_examples=max(CASES // 5, 30), derandomize="CASES" not in os.environ, database=None)
@given(
    st.sampled_from([600.0, 6_000.0, 60_000.0]),
    st.sampled_from([None, 6_000.0, 600_000.0]),
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 30, 400, 3_000]), st.booleans(), st.sampled_from(["stays", "stays", "leaves"])
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 20),
    st.integers(0, 2**32),
)
def test_random_calls_lose_nothing_of_the_rate_while_somebody_waits(
    requests: float, tokens: float | None, calls: list[tuple[int, bool, str]], times: int, seed: int
) -> None:
    """Each call takes the time of its request or of its tokens, whichever is longer, and no more, late timers included.

    Some leave while they wait, half of what was booked is given back, and every timer is up to 40 ms late.
    """
    global asks_made  # noqa: PLW0603 - what the longer search reports
    rng = random.Random(seed)
    driver = ClockedAdmission(Limits(requests_per_minute=requests, tokens_per_minute=tokens))

    # Where a service may hold no more than the largest call, each call is given room for the network's jitter.
    largest_s = max(amount for amount, _, _ in calls) * 60 / tokens if tokens else 0.0
    guard_s = GUARD_S if largest_s > 1 - GUARD_S else 0.0

    def share(amount: float) -> float:
        return max(60 / requests, amount * 60 / tokens + guard_s if tokens and amount else 0.0)

    staying, leaving = 0.0, []
    for amount, batch, ending in calls * times:
        asks_made += 1
        reservation = driver.ask(amount, priority="batch" if batch else "interactive")
        if ending == "leaves":
            leaving.append(reservation)
        else:
            staying += share(amount)
    rng.shuffle(leaving)
    while driver.admission.queued:
        for reservation in driver.advance():
            driver.end(reservation, reservation.tokens)
        while leaving and rng.random() < 0.5:
            reservation = leaving.pop()
            if reservation.granted_at is None:
                driver.withdraw(reservation)
            else:
                staying += share(reservation.tokens)
        if driver.admission.queued and driver.admission.next_at > driver.now:
            assert driver.admission.next_at < math.inf
            driver.now = driver.admission.next_at + rng.uniform(0, LATE_S)
    staying += sum(share(reservation.tokens) for reservation in leaving if reservation.granted_at is not None)
    assert driver.now <= staying / 0.99 + ROOM_S
