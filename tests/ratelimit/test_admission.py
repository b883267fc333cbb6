"""Who may send next: `Admission`, driven by hand and by a search for a counterexample. The clock is a number.

`CASES=20000 pytest tests/test_admission.py -k random -s --hypothesis-seed=1` searches longer than the suite does, and
says how many calls asked.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from together_async import Limits, PaymentRequiredError, QueueFullError, RateLimitError
from together_async.ratelimit import LimitsState
from together_async.ratelimit.admission import STOP_S, Admission
from together_async.ratelimit.bucket import GUARD_S
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.headers import AccountLimits, Kind, ReportedLimit, limited_kind, read_limits
from together_async.ratelimit.lane import FIRST_AT_ONCE, FIRST_GAP_S
from together_async.ratelimit.limits import Priority
from together_async.ratelimit.queue import BATCH_TURN_EVERY, Reservation
from together_async.ratelimit.rate_control import FALL
from together_async.testing import Account, Dynamic, Rate
from together_async.testing.ideal import ideal_seconds

CASES = int(os.environ.get("CASES", "300"))
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDING = 1e-6
ROOM_S = 0.5
"""Seconds' worth that may go at once, beside one request: half of what a service is taken to hold, or less."""
LATE_S = 0.04
"""How late a timer may be without any loss."""
MODEL = "m"


def told(
    requests: float | None = None,
    left: float | None = None,
    tokens: float | None = None,
    tokens_left: float | None = None,
) -> AccountLimits:
    """What headers say: limits per second, and what was left."""
    return AccountLimits(ReportedLimit(requests, left), ReportedLimit(tokens, tokens_left))


class Driver:
    """Admission with a clock: what a limiter does, without an event loop.

    Args:
        limits: What is allowed.
        known: Whether the service has answered before, so that nobody has to wait and see.
    """

    def __init__(self, limits: Limits, *, known: bool = True) -> None:
        self.known = known
        self.admission = Admission(limits)
        self.now = 0.0
        self.granted: list[Reservation] = []
        self.refused: list[tuple[Reservation, Exception]] = []

    def ask(self, tokens: float | Size = 0, model: str = MODEL, **options: Any) -> Reservation:
        self.admission.lane(model, self.now).slow_start.limits_known |= self.known
        return self.admission.ask(model, tokens, self.now, **options)

    def asked(self, tokens: float | Size = 0, model: str = MODEL, **options: Any) -> Reservation:
        one = self.ask(tokens, model, **options)
        self.advance()
        return one

    def advance(self) -> list[Reservation]:
        granted = self.admission.advance(self.now)
        self.granted += granted
        self.refused += self.admission.refused
        self.admission.refused = []
        return granted

    def to(self, time: float) -> list[Reservation]:
        """Lets the time pass; returns those that went meanwhile."""
        found = self.advance()
        while self.admission.queued and self.admission.next_at <= time:
            self.now = max(self.now, self.admission.next_at)
            found += self.advance()
        self.now = time
        return found + self.advance()

    def answered(self, one: Reservation, told: AccountLimits | None = None, *, good: bool = True) -> None:
        self.admission.record_response(one, self.now, told, good=good)
        self.advance()

    def limited(
        self, one: Reservation, wait_s: float = 1.0, *, told: AccountLimits | None = None, kind: Kind | None = None
    ) -> None:
        """A 429 comes, and ends the request."""
        self.admission.record_rate_limit(one, self.now, told, wait_s=wait_s, kind=kind)
        self.advance()
        self.end(one, 0)

    def end(self, one: Reservation, used: float | None = None) -> None:
        if used is not None:
            self.admission.settle(one, used, self.now)
        self.admission.release(one, self.now)
        self.advance()

    def withdraw(self, one: Reservation) -> None:
        self.admission.withdraw(one, self.now)
        self.advance()

    @property
    def state(self) -> LimitsState:
        return self.admission.state(self.now, EPOCH)

    def rate(self, model: str = MODEL) -> float:
        """The requests per second that are kept now."""
        self.state  # noqa: B018 - brings it up to date
        return self.admission.lane(model, self.now).requests.rate


# -------------------------------------------------------------------------------------------------------- the statement
#
# Whatever is asked, cancelled, settled, released and refused, in whatever order:
# (a) between any two grants no more goes than the rate gives in that time, a bucket, and one request that is larger;
# (c) whoever doesn't cancel gets a turn, nobody is left in a count, and the buckets fill up again;
# (d) within a priority, nobody overtakes; (e) of five turns for which both priorities wait, the batch has one;
# (f) no more are under way than may be, of all models and of each.
# That nothing is lost of the rate while somebody waits, (b), is the test after this one.

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
    st.sampled_from("aaaaaaabccceeeelwtttj"),
    st.integers(0, 63),  # who
    st.sampled_from([0, 0.001, 0.004, 0.05, 0.2, 1.0, 3.0, 20.0]),  # seconds
    st.sampled_from([0, 1, 7, 40, 90, 900, 9_000]),  # tokens
)


@attrs.define
class Record:
    """One that went."""

    at: float
    tokens: float
    sent: bool = True


class Search(Driver):
    """The driver that checks each step."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.limits = limits
        self.records: dict[int, Record] = {}
        self.order: dict[str, list[int]] = {}
        self.refunds: dict[str, list[tuple[float, float]]] = {}
        self.waits: dict[int, Reservation] = {}
        self.under_way: dict[int, Reservation] = {}
        self.passed: Counter[str] = Counter()  # interactive turns since the batch, which waited, had one
        self.limited_before = False

    def enter(self, tokens: float, model: str, priority: Priority, number: int | None = None) -> None:
        global asks_made  # noqa: PLW0603 - what the longer search reports
        asks_made += 1
        one = self.ask(tokens, model, priority=priority, number=number)
        self.waits[id(one)] = one
        self.advance()

    def advance(self) -> list[Reservation]:
        batch_waited = {one.model for one in self.waits.values() if one.priority == "batch"}
        granted = super().advance()
        for one in granted:
            assert one.granted
            del self.waits[id(one)]
            for other in self.waits.values():
                if (other.model, other.priority) == (one.model, one.priority):
                    assert other.number > one.number, f"{one} overtook {other}"
            self.count_turn(one, batch_waited)
            self.under_way[id(one)] = one
            self.records[id(one)] = Record(self.now, one.tokens)
            self.order.setdefault(one.model, []).append(id(one))
            one.waiter = one  # so that nobody else gets this id
        self.check_places()
        again = self.admission.advance(self.now)
        assert not again, "what may go goes at once"
        assert not self.waits or self.admission.next_at < math.inf or self.under_way, "nothing will wake them"
        return granted

    def count_turn(self, one: Reservation, batch_waited: set[str]) -> None:
        if one.priority == "batch" or one.model not in batch_waited:
            self.passed[one.model] = 0
        elif any((other.model, other.priority) == (one.model, "batch") for other in self.waits.values()):
            self.passed[one.model] += 1
            assert self.passed[one.model] < BATCH_TURN_EVERY, "the batch waits for ever"

    def check_places(self) -> None:
        count = Counter(one.model for one in self.under_way.values())
        state = self.state
        assert state.in_flight == len(self.under_way)
        assert state.queued == len(self.waits)
        if isinstance(self.limits.concurrency, int):
            assert state.in_flight <= self.limits.concurrency
        for model, shown in state.models.items():
            assert shown.in_flight == count[model]
            assert shown.queued == sum(one.model == model for one in self.waits.values())
            limits = self.limits.of(model)
            if limits is not self.limits and isinstance(limits.concurrency, int):
                assert shown.in_flight <= limits.concurrency

    def check_rates(self) -> None:
        """Compares every two grants. The bucket is one request, or none of the tokens, and what comes in ROOM_S."""
        for model, order in self.order.items():
            limits = self.limits.of(model)
            records = [self.records[key] for key in order]
            for per_minute, amounts, least in (
                (limits.requests_per_minute, [1.0] * len(records), 1.0),
                (limits.tokens_per_minute, [one.tokens for one in records], 0.0),
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
        if kind in "ab":
            self.enter(tokens, "mn"[who & 1], "batch" if kind == "b" else "interactive")
        elif kind in "tj":
            self.step(seconds, jumps=kind == "j")
        elif kind == "c":
            if self.waits:
                one = self.waits.pop(list(self.waits)[who % len(self.waits)])
                self.withdraw(one)
        elif self.under_way:
            one = list(self.under_way.values())[who % len(self.under_way)]
            self.end_one(one, kind, seconds, tokens)

    def step(self, seconds: float, *, jumps: bool) -> None:
        if not jumps:
            self.to(self.now + seconds)
        elif self.admission.next_at < math.inf and self.admission.queued:
            self.now = max(self.now, self.admission.next_at)
            self.advance()

    def end_one(self, one: Reservation, kind: str, seconds: float, tokens: float) -> None:
        key = id(one)
        if kind == "w":  # it was never sent
            self.records[key].sent = False
            self.refunds.setdefault(one.model, []).append((self.now, one.tokens))
            del self.under_way[key]
            self.withdraw(one)
        elif kind == "l":
            self.limited_before = True
            self.records[key].sent = False  # the service has not counted it
            self.refunds.setdefault(one.model, []).append((self.now, one.tokens))
            self.admission.record_rate_limit(
                one, self.now, None, wait_s=min(seconds, 3.0), kind="tokens" if tokens else None
            )
            self.advance()
            del self.under_way[key]
            self.end(one, 0)
            if tokens != 1:
                self.enter(one.tokens, one.model, one.priority, one.number)
        else:
            self.answered(one)
            used = min(tokens, 2 * one.tokens)
            if used < one.tokens:
                self.refunds.setdefault(one.model, []).append((self.now, one.tokens - used))
            del self.under_way[key]
            self.end(one, used)

    def finish(self) -> None:
        """Everybody gets a turn; then all is as it was."""
        jumps = 0
        while self.waits or self.under_way:
            before = len(self.waits)
            for one in list(self.under_way.values()):
                self.end_one(one, "e", 0, one.tokens)
            if self.waits and len(self.waits) == before:
                assert self.admission.next_at < math.inf, "a lost waiter"
                self.now = max(self.now, self.admission.next_at)
                self.advance()
            jumps = jumps + 1 if len(self.waits) == before else 0
            assert jumps < 10, "the time comes, and nobody goes"
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
# Two go at once after a pause, when the bucket fills up behind the back of the one that is booked.
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
    """See above: everything but what is lost of the rate."""
    mine = {"requests_per_minute": requests, "tokens_per_minute": tokens, "concurrency": most}
    if other is None:
        limits = Limits(**mine)  # type: ignore[arg-type]
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
    """Each call takes the time its request or its tokens take, whichever is longer, and no more; a late timer's too.

    Some leave while they wait, half of what was booked is given back, and every timer is up to 40 ms late.
    """
    global asks_made  # noqa: PLW0603
    chance = random.Random(seed)
    driver = Driver(Limits(requests_per_minute=requests, tokens_per_minute=tokens))

    # Where a service may hold no more than the largest of them, each is given room for a network's jitter.
    largest_s = max(amount for amount, _, _ in calls) * 60 / tokens if tokens else 0.0
    guard_s = GUARD_S if largest_s > 1 - GUARD_S else 0.0

    def share(amount: float) -> float:
        return max(60 / requests, amount * 60 / tokens + guard_s if tokens and amount else 0.0)

    staying, leaving = 0.0, []
    for amount, batch, ending in calls * times:
        asks_made += 1
        one = driver.ask(amount, priority="batch" if batch else "interactive")
        if ending == "leaves":
            leaving.append(one)
        else:
            staying += share(amount)
    chance.shuffle(leaving)
    while driver.admission.queued:
        for one in driver.advance():
            driver.end(one, one.tokens)
        while leaving and chance.random() < 0.5:
            one = leaving.pop()
            if one.granted_at is None:
                driver.withdraw(one)
            else:
                staying += share(one.tokens)
        if driver.admission.queued and driver.admission.next_at > driver.now:
            assert driver.admission.next_at < math.inf
            driver.now = driver.admission.next_at + chance.uniform(0, LATE_S)
    staying += sum(share(one.tokens) for one in leaving if one.granted_at is not None)
    assert driver.now <= staying / 0.99 + ROOM_S


# ---------------------------------------------------------------------------------------------------- first come, first


def test_large_call_among_ten_thousand_small_ones_waits_for_what_came_before_it() -> None:
    """It takes 90 % of a minute's tokens. Its wait is the sum before it divided by the rate, to within a bucket."""
    driver = Driver(Limits(tokens_per_minute=60_000))
    before = [driver.ask(10) for _ in range(5_000)]
    large = driver.ask(54_000)
    after = [driver.ask(10) for _ in range(5_000)]
    driver.to(1_000)
    assert large.granted_at == pytest.approx(50, abs=1.1 * ROOM_S)
    assert max(one.granted_at or 0 for one in before) <= (large.granted_at or 0)
    assert min(one.granted_at or 0 for one in after) == pytest.approx(50 + 54, abs=1.1 * ROOM_S)
    assert driver.granted == [*before, large, *after]


def test_large_call_is_not_starved_by_a_stream_of_small_ones() -> None:
    """Whatever comes later at ten times the rate waits for it, and not it for them."""
    driver = Driver(Limits(tokens_per_minute=60_000))
    ahead = [driver.asked(100) for _ in range(100)]
    large = driver.asked(54_000)
    for step in range(2_000):
        driver.to(step / 100)
        driver.ask(100)
    assert all(one.granted for one in ahead)
    assert large.granted_at == pytest.approx(10, abs=1.1 * ROOM_S)
    assert driver.granted[-1] is large
    driver.to(63)
    assert driver.granted[-1] is large, "its tokens are paid for before another one goes"
    driver.to(64.6)
    assert driver.granted[-1] is not large


def test_many_that_come_at_once_are_spread() -> None:
    """No burst: a few go at once, the rest one by one, each after its share of the minute."""
    driver = Driver(Limits(requests_per_minute=600))
    for _ in range(100):
        driver.ask()
    driver.to(20)
    times = [one.granted_at or 0.0 for one in driver.granted]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert sum(gap == 0 for gap in gaps) <= 10 * ROOM_S
    assert gaps[6:] == pytest.approx([0.1] * 93, rel=0.05)


def test_call_in_between_is_served_in_the_order_of_arrival_across_models() -> None:
    """Where places are short, the calls of one model don't overtake those of another."""
    driver = Driver(Limits(concurrency=1))
    driver.asked(model="a")
    asked = [driver.asked(model=model) for model in "abcabccba"]
    while driver.admission.queued:
        driver.end(driver.granted[-1])
    assert driver.granted[1:] == asked


def test_one_models_rate_does_not_hold_up_the_others() -> None:
    """A model that may not go yet keeps no place from those that may."""
    driver = Driver(
        Limits.per_model({"slow": Limits(requests_per_minute=1)}, concurrency=2, requests_per_minute=60_000)
    )
    slow = [driver.asked(model="slow") for _ in range(3)]
    driver.end(slow[0])
    fast = [driver.asked(model="fast") for _ in range(3)]
    driver.to(0.01)
    assert [one.granted for one in fast] == [True, True, False]
    assert not slow[1].granted


def test_places_of_all_and_of_one_model_are_both_kept() -> None:
    driver = Driver(Limits.per_model({"a": Limits(concurrency=2)}, concurrency=3))
    for _ in range(4):
        driver.asked(model="a")
        driver.asked(model="b")
    state = driver.state
    assert (state.models["a"].in_flight, state.models["b"].in_flight, state.in_flight) == (2, 1, 3)
    driver.end(next(one for one in driver.granted if one.model == "b"))
    assert driver.state.models["a"].in_flight == 2
    assert driver.state.in_flight == 3


def test_cancelled_waiter_gives_its_place_and_what_it_booked_to_the_next() -> None:
    """A large one is first in line and leaves: the small one behind it goes at once."""
    driver = Driver(Limits(tokens_per_minute=600))
    driver.asked(100)
    large, small = driver.asked(6_000), driver.asked(1)
    driver.to(5)
    driver.withdraw(large)
    driver.to(12)
    assert not large.granted
    assert small.granted_at == pytest.approx(10, abs=1.1 * ROOM_S)
    assert driver.state.queued == 0


def test_thousand_cancelled_waiters_leave_nothing_behind() -> None:
    """Those that gave up in the middle of the queue are neither served nor kept."""
    driver = Driver(Limits(concurrency=1))
    first = driver.asked()
    waiting = [driver.asked(priority="batch" if place % 2 else "interactive") for place in range(1_000)]
    for one in waiting[:-1]:
        driver.withdraw(one)
    lane = driver.admission.lane(MODEL, 0)
    assert sum(map(len, lane.queue._calls.values())) < 200
    driver.end(first)
    assert driver.granted == [first, waiting[-1]]


def test_withdrawn_after_its_turn_counts_as_never_sent() -> None:
    """Request, tokens and place are given back, and it isn't counted among those that were sent."""
    driver = Driver(Limits(requests_per_minute=60, tokens_per_minute=60_000, concurrency=1))
    one, other = driver.asked(40), driver.asked(40)
    driver.withdraw(one)
    assert other.granted_at == 0
    assert driver.state.sent == 1
    driver.withdraw(one)
    driver.end(one)
    assert driver.state.in_flight == 1


def test_end_counts_once() -> None:
    """A second settle or release, or one of a call that waits, changes nothing."""
    driver = Driver(Limits(tokens_per_minute=6_000_000, concurrency=5))
    one = driver.asked(500)
    level = driver.admission.lane(MODEL, 0).tokens.level
    driver.admission.settle(one, 400, 0)
    for _ in range(2):
        driver.end(one, 0)
    assert driver.admission.lane(MODEL, 0).tokens.level == level + 100
    assert driver.state.in_flight == 0
    driver.asked(600_000)
    waiting = driver.asked(500)
    driver.end(waiting, 0)
    assert driver.state.queued == 1


# ----------------------------------------------------------------------------------------------------------- priorities


def test_interactive_goes_first_and_batch_has_one_turn_in_five() -> None:
    driver = Driver(Limits(concurrency=1))
    first = driver.asked(priority="batch")
    for _ in range(20):
        driver.asked(priority="batch")
        driver.asked(priority="interactive")
    driver.end(first)
    while driver.admission.queued:
        driver.end(driver.granted[-1])
    order = "".join(one.priority[0] for one in driver.granted[1:])
    assert order == "iiiib" * 5 + "b" * 15


def test_interactive_call_goes_before_the_batch_call_that_is_first_in_line() -> None:
    """Also when that one has been booked already; what it had booked is booked again, for the other."""
    driver = Driver(Limits(requests_per_minute=60))
    driver.asked()
    batch = [driver.asked(priority="batch") for _ in range(2)]
    driver.to(0.5)
    interactive = driver.asked()
    driver.to(5)
    assert driver.granted[1:] == [interactive, *batch]
    assert interactive.granted_at == pytest.approx(1, rel=0.1)
    assert batch[1].granted_at == pytest.approx(3, rel=0.1)


def test_call_that_asks_again_keeps_its_place() -> None:
    """After a failure a call goes before all that came after it, the one which is first in line included."""
    driver = Driver(Limits(concurrency=1))
    first = driver.asked()
    later = [driver.asked() for _ in range(3)]
    driver.admission.record_response(first, 0, None, good=False)
    driver.admission.release(first, 0)
    again = driver.ask(number=first.number)
    driver.advance()
    assert driver.granted == [first, again]
    driver.end(again)
    assert driver.granted[-1] is later[0]


@pytest.mark.parametrize("failed", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_calls_that_ask_again_are_in_the_order_of_their_numbers(failed: list[int]) -> None:
    """Whatever the order in which they failed."""
    driver = Driver(Limits(concurrency=3, requests_per_minute=600))
    calls = [driver.asked() for _ in range(8)]
    driver.to(1)
    assert [one.granted for one in calls] == [True] * 3 + [False] * 5
    driver.admission.record_rate_limit(calls[0], driver.now, None, wait_s=1, kind=None)
    for place in failed:
        driver.end(calls[place], 0)
        driver.asked(number=calls[place].number)
    del driver.granted[:]
    while driver.admission.queued:
        driver.to(driver.now + 1)
        for one in list(driver.granted):
            driver.end(one)
    assert [one.number for one in driver.granted] == list(range(1, 9))


# ----------------------------------------------------------------------------------------------------------------- 429s


def test_429_pauses_its_model_until_the_told_time_and_no_other() -> None:
    driver = Driver(Limits(requests_per_minute=6_000))
    one = driver.asked(model="a")
    waiting = [driver.ask(model="a") for _ in range(5)]
    driver.now = 0.001
    driver.limited(one, 3.0)
    for model in "aabb":
        driver.ask(model=model)
    driver.to(3.0)
    assert {one.model for one in driver.granted[1:]} == {"b"}
    assert len(driver.granted) == 3
    shown = driver.state.models["a"]
    assert shown.paused_for_s == pytest.approx(0.001)
    assert shown.paused_until == EPOCH + timedelta(seconds=shown.paused_for_s)
    assert driver.state.models["b"].paused_until is None
    driver.to(3.001)
    assert driver.granted[3] is waiting[0]
    driver.to(4)
    assert driver.state.models["a"].queued == 0
    assert driver.state.models["a"].paused_until is None


def test_shorter_pause_does_not_end_a_longer_one() -> None:
    """Two 429s come back; the second asks for less."""
    driver = Driver(Limits(requests_per_minute=6_000))
    first, second, waiting = driver.ask(), driver.ask(), driver.ask()
    driver.to(0.1)
    driver.limited(first, 5)
    driver.limited(second, 1)
    third = driver.ask()
    driver.to(5)
    assert third.granted_at is None
    assert driver.state.models[MODEL].paused_for_s == pytest.approx(0.1)
    driver.to(5.2)
    assert third.granted_at == pytest.approx(5.1)
    assert waiting.granted_at is not None


def test_grants_after_a_pause_are_spread() -> None:
    """What came together in the pause doesn't go together: never more than the rate and a bucket."""
    driver = Driver(Limits(requests_per_minute=600))
    one = driver.asked()
    for _ in range(200):
        driver.ask()
    driver.limited(one, 5)
    driver.to(60)
    times = [one.granted_at or 0.0 for one in driver.granted[1:]]
    assert times[0] == pytest.approx(5)
    for place, start in enumerate(times):
        assert sum(start <= time <= start + 1 for time in times[place:]) <= 10 + 1 + 10 * ROOM_S
    assert len(times) == 200


def test_rate_falls_once_for_all_that_were_in_flight_and_comes_back_in_five_seconds() -> None:
    """Twenty requests come back with 429s: one event. A request sent after the fall that is refused is another."""
    driver = Driver(Limits(requests_per_minute=6_000))
    flying = [driver.ask() for _ in range(20)]
    driver.to(1)
    assert all(one.granted for one in flying)
    assert driver.rate() == pytest.approx(100)
    for one in flying:
        driver.now += 0.01
        driver.limited(one, 0.1)
    # It has begun to rise while the last of them came.
    assert 100 * FALL * 0.95 < driver.rate() < 100 * FALL + 3
    assert driver.state.rate_limited == 20
    driver.to(driver.now + 5.5)
    assert driver.rate() > 90
    driver.to(driver.now + 900)
    assert driver.rate() == pytest.approx(100, rel=0.01)


def test_second_fall_soon_after_the_first_finds_out_what_went_well() -> None:
    """What was told or configured is not believed any more: the rate is less than what was sent and refused."""
    driver = Driver(Limits(requests_per_minute=60_000))
    for second in range(20):
        for part in range(20):
            driver.to(second + part / 20)
            driver.asked()
    for _ in range(2):
        driver.limited(driver.granted[-1], 0.1)
        driver.to(driver.now + 1)
        driver.asked()
    assert 8 < driver.rate() < 20
    for step in range(1, 2_000):
        driver.to(22 + step / 20)
        driver.end(driver.asked())
    assert driver.rate() > 20, "it rises again while it is used"


def test_429_of_tokens_lowers_the_tokens_alone() -> None:
    driver = Driver(Limits(requests_per_minute=6_000, tokens_per_minute=60_000))
    driver.limited(driver.asked(10), 1, kind="tokens")
    shown = driver.state.models[MODEL]
    assert shown.requests_per_minute == pytest.approx(6_000)
    assert shown.tokens_per_minute == pytest.approx(60_000 * FALL, rel=0.05)


def test_503_lowers_nothing() -> None:
    """The platform is overloaded; rates, window and queue stay as they are."""
    driver = Driver(Limits(concurrency="auto", requests_per_minute=600))
    one = driver.asked()
    before = driver.state.models[MODEL]
    driver.admission.record_overload(one)
    driver.answered(one, good=False)
    driver.end(one, 0)
    after = driver.state.models[MODEL]
    assert after.overloaded == driver.state.overloaded == 1
    assert attrs.evolve(after, overloaded=0) == attrs.evolve(before, in_flight=0)


def test_pause_that_is_too_long_for_a_call_ends_it_at_once() -> None:
    """Those that wait, and those that come: `RateLimitError` with the seconds, and nothing sent. Others wait on."""
    driver = Driver(Limits(requests_per_minute=60))
    one = driver.asked()
    hasty, patient = driver.asked(max_pause_s=60), driver.asked(max_pause_s=600)
    driver.limited(one, 120)
    ((refused, error),) = driver.refused
    assert refused is hasty
    assert isinstance(error, RateLimitError)
    assert (error.retry_after, error.attempts, error.status_code) == (120, 0, 429)
    assert MODEL in str(error)
    assert "max_retry_after" in str(error)
    with pytest.raises(RateLimitError, match=r"pause of 120\.0 s"):
        driver.ask(max_pause_s=60)
    driver.asked(model="other", max_pause_s=60)
    assert driver.state.queued == 1
    driver.to(121)
    assert patient.granted


# ------------------------------------------------------------------------------------------------------------- learning


def test_remaining_lowers_what_may_go_now() -> None:
    """Somebody else uses the account too: what the service says is left counts, not what was sent from here."""
    driver = Driver(Limits(requests_per_minute=600))
    driver.to(10)
    one = driver.asked()
    driver.now += 0.01
    driver.answered(one, told(10, 0))
    next_one = driver.asked()
    assert next_one.granted_at is None
    driver.to(20)
    assert next_one.granted_at == pytest.approx(10.15, abs=0.1)


def test_remaining_never_raises_what_may_go_now() -> None:
    """A service's bucket may hold a minute's worth; ours spreads it."""
    driver = Driver(Limits(requests_per_minute=600))
    for _ in range(50):
        driver.ask()
    driver.advance()
    for one in list(driver.granted):
        driver.answered(one, told(10, 600))
    assert len(driver.granted) <= 1 + 10 * ROOM_S


def test_told_limits_fall_and_rise_again() -> None:
    """What is told holds from then on, where it is lower than what is configured."""
    driver = Driver(Limits(requests_per_minute=6_000))
    for limit, kept in ((10, 10), (2.5, 2.5), (50, 50), (500, 100)):
        one = driver.asked()
        driver.now += 1
        driver.answered(one, told(limit))
        driver.end(one)
        assert driver.rate() == pytest.approx(kept, rel=0.05)
        assert driver.state.models[MODEL].server_requests_per_minute == limit * 60
        driver.now += 10
        driver.advance()


def test_headers_of_an_older_request_do_not_undo_those_of_a_newer_one() -> None:
    """Answers overtake each other; a limit that fell since the older one was counted stays fallen."""
    driver = Driver(Limits(requests_per_minute=6_000))
    older = driver.asked()
    driver.to(1)
    newer = driver.asked()
    driver.to(1.1)
    driver.answered(newer, told(5, 0))
    driver.to(1.2)
    driver.answered(older, told(100, 99))
    assert driver.rate() == pytest.approx(5)


def test_limits_of_one_model_say_nothing_about_another() -> None:
    driver = Driver(Limits(requests_per_minute=6_000))
    driver.answered(driver.asked(model="a"), told(1, 0, 10, 0))
    assert driver.rate("a") == pytest.approx(1, rel=0.05)
    assert driver.rate("b") == pytest.approx(100)


def test_unknown_account_is_not_stormed() -> None:
    """Without any limits, before the first answer, a thousand calls don't go at once; after it all may."""
    driver = Driver(Limits(), known=False)
    calls = [driver.asked() for _ in range(1_000)]
    assert calls[0].granted
    driver.to(FIRST_GAP_S * 0.9)
    assert not calls[1].granted
    driver.to(FIRST_GAP_S)
    assert calls[1].granted
    driver.to(2 * FIRST_GAP_S)
    assert 3 <= len(driver.granted) <= 60
    driver.answered(driver.granted[0], told(1_000_000, None))
    driver.to(2 * FIRST_GAP_S + 1)
    assert all(one.granted for one in calls)


def test_unknown_account_without_headers_is_used_in_full_after_some_answers() -> None:
    """A server that tells nothing has no limits, as far as one can see: its answers let more and more go."""
    driver = Driver(Limits(), known=False)
    calls = [driver.ask() for _ in range(1_000)]
    for _ in range(20):
        driver.to(driver.now + 0.1)
        for one in list(driver.granted):
            driver.answered(one)
            driver.end(one)
    assert all(one.granted_at is not None for one in calls)


def test_estimates_that_come_back_are_no_capacity_where_the_service_holds_a_request() -> None:
    """It never charged what was expected too much, and was full meanwhile: the next one waits for its own time."""
    driver = Driver(Limits(tokens_per_minute=6_000))
    _, first, second, third = (driver.ask(150) for _ in range(4))
    driver.to(3.2)
    assert second.granted_at is not None
    assert third.granted_at is None
    driver.end(first, 50)
    driver.to(10)
    assert third.granted_at is not None
    assert third.granted_at - second.granted_at > 1.5


def test_estimates_that_come_back_are_capacity_elsewhere() -> None:
    """A second's worth is many requests: what wasn't used is there for those that wait."""
    driver = Driver(Limits(tokens_per_minute=600_000))
    calls = [driver.ask(2_000) for _ in range(4)]
    driver.to(0.01)
    assert [one.granted for one in calls[2:]] == [False] * 2
    for one in list(driver.granted):
        driver.end(one, 20)
    assert calls[-1].granted


def test_estimate_is_made_when_the_turn_comes() -> None:
    """A thousand calls ask before anything was learned; those that wait profit from what the first ones cost."""
    driver = Driver(Limits(tokens_per_minute=600_000))
    calls = [driver.ask(Size(20, 1_000, 1)) for _ in range(100)]
    driver.advance()
    first = driver.granted[0]
    assert first.tokens == 1_020
    driver.to(0.5)
    assert len(driver.granted) < 10
    driver.admission.lane(MODEL, 0).estimator.learn(Size(20, 1_000, 1), 20, 80)
    driver.end(first, 100)
    driver.to(2)
    assert all(one.granted_at is not None for one in calls)
    assert calls[-1].tokens < 300


# ----------------------------------------------------------------------------------------------------------- 402, loops


def paid() -> PaymentRequiredError:
    return PaymentRequiredError("402: no money", status_code=402, headers={"x": "y"}, body={"a": 1}, request_id="r")


def test_402_refuses_all_that_wait_and_all_that_come() -> None:
    """One clear error for each, of every model; a request that is under way is left alone."""
    driver = Driver(Limits(concurrency=2))
    sent, flying = driver.asked(), driver.asked(model="b")
    waiting = [driver.asked(model=model) for model in "abab"]
    driver.admission.record_payment_required(paid(), driver.now)
    driver.advance()
    driver.end(sent, 0)
    assert {id(one) for one, _ in driver.refused} == {id(one) for one in waiting}
    errors = [error for _, error in driver.refused]
    with pytest.raises(PaymentRequiredError) as caught:
        driver.ask(model="c")
    for error in (*errors, caught.value):
        assert isinstance(error, PaymentRequiredError)
        assert (error.attempts, error.status_code, error.request_id, error.body) == (0, 402, "r", {"a": 1})
        assert "nothing was sent" in str(error)
    assert len({id(error) for error in errors}) == 4, "one error of its own for each: a traceback is added to it"
    assert (driver.state.queued, driver.state.in_flight) == (0, 1)
    assert "402" in (driver.state.stopped or "")
    driver.end(flying)


def test_one_request_a_minute_looks_whether_somebody_has_paid() -> None:
    driver = Driver(Limits())
    one = driver.asked()
    driver.admission.record_payment_required(paid(), driver.now)
    driver.end(one, 0)
    driver.to(STOP_S - 0.1)
    with pytest.raises(PaymentRequiredError):
        driver.ask()
    driver.to(STOP_S)
    probe = driver.asked()
    assert probe.granted
    with pytest.raises(PaymentRequiredError):
        driver.ask()
    driver.admission.record_payment_required(paid(), driver.now)
    driver.end(probe, 0)
    driver.to(2 * STOP_S)
    probe = driver.asked()
    driver.answered(probe)
    assert driver.state.stopped is None
    assert driver.asked()


def test_answer_to_a_request_from_before_the_402_does_not_end_the_stop() -> None:
    """It was on its way already; the account is still without money."""
    driver = Driver(Limits(concurrency=10))
    early, refused = driver.asked(), driver.asked()
    driver.to(1)
    driver.admission.record_payment_required(paid(), driver.now)
    driver.end(refused, 0)
    driver.answered(early)
    driver.end(early)
    with pytest.raises(PaymentRequiredError):
        driver.ask()


def test_what_was_learned_stays_when_the_calls_are_forgotten() -> None:
    """Their event loop is gone: counts are 0, the places are free, and nothing of them changes anything any more."""
    driver = Driver(Limits(concurrency=2))
    flying = [driver.asked() for _ in range(2)]
    waiting = [driver.asked() for _ in range(3)]
    driver.answered(flying[0], told(10, 0))
    driver.now = 100
    driver.admission.forget_calls()
    state = driver.state
    assert (state.in_flight, state.queued) == (0, 0)
    assert state.models[MODEL].server_requests_per_minute == 600
    again = [driver.asked() for _ in range(2)]
    driver.to(101)
    assert all(one.granted for one in again)
    for one in (*flying, *waiting):
        driver.end(one, 0)
        driver.withdraw(one)
        driver.admission.record_rate_limit(one, driver.now, None, wait_s=50, kind=None)
        driver.answered(one, told(1, 0))
    state = driver.state
    assert (state.in_flight, state.queued, state.models[MODEL].paused_until) == (2, 0, None)
    assert state.models[MODEL].server_requests_per_minute == 600


def test_full_queue() -> None:
    """`check_room` is asked after a call found that it has to wait; the call itself is in the count then."""
    driver = Driver(Limits.per_model({"b": Limits(max_queued=0, concurrency=1)}, concurrency=2, max_queued=1))
    driver.asked(model="a")
    driver.asked(model="b")
    driver.asked(model="a")
    driver.admission.check_room("a", 0)
    driver.asked(model="a")
    with pytest.raises(QueueFullError, match=r"1 calls wait and Limits\.max_queued is 1") as caught:
        driver.admission.check_room("a", 0)
    assert caught.value.attempts == 0


def test_thousand_models_are_not_kept_for_ever() -> None:
    """A service that is asked for ever new names costs no memory; those in use are kept."""
    driver = Driver(Limits())
    kept = driver.asked(model="kept")
    for name in range(2_500):
        driver.now += 1
        driver.end(driver.asked(model=str(name)))
    assert len(driver.state.models) <= 1_000
    assert driver.state.models["kept"].in_flight == 1
    assert driver.state.models["2499"].sent == 1
    driver.end(kept)
    assert driver.state.in_flight == 0


def test_reading_the_state_changes_nothing() -> None:
    """Two drivers do the same; one is looked at all the time."""

    def times(*, look: bool) -> list[float | None]:
        driver = Driver(Limits(requests_per_minute=120, tokens_per_minute=60_000))
        calls = [driver.asked(700) for _ in range(20)]
        for step in range(1, 300):
            driver.to(step / 10)
            if look:
                assert repr(driver.state)
        return [one.granted_at for one in calls]

    assert times(look=True) == pytest.approx(times(look=False), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- closed loop


@attrs.frozen
class World:
    """An account, the network in between, and two thousand calls.

    Attributes:
        rate: The account's.
        limits: What the client was told by its user.
        answer_s: How long an answer takes, from and to.
        whole: Whether the head comes with the end, not after a fifth of the time.
        max_tokens: Of each request; 40 to 80 are generated.
        headers: "shown", or "hidden".
        unit: What the limits in the headers are multiplied by.
        calls: How many.
        network_s: How long one way takes, from and to.
        late_s: How late a timer is at most.
    """

    rate: Rate
    limits: Limits = attrs.field(factory=Limits)
    answer_s: tuple[float, float] = (0.5, 1.5)
    whole: bool = False
    max_tokens: int = 80
    headers: str = "shown"
    unit: float = 1
    calls: int = 2_000
    network_s: tuple[float, float] = (0.005, 0.03)
    late_s: float = 0.002

    def describe(self) -> str:
        """The test's name."""
        limits = "given" if self.limits.requests_per_minute else self.limits.concurrency or "learned"
        whole = "whole" if self.whole else "streamed"
        return f"{limits}-{self.headers}-{whole}-{self.answer_s[0]:g}s-{self.max_tokens}-{self.late_s:g}s late"


class ClosedLoop:
    """Admission and an account face to face: a queue of what happens next, and nobody waits for it."""

    def __init__(self, world: World, seed: int = 1) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.now = 0.0
        self.account = Account(world.rate, clock=lambda: self.now)
        self.admission = Admission(world.limits)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.timer = (math.inf, 0)
        self.works = [(self.chance.randint(20, 40), self.chance.randint(40, 80)) for _ in range(world.calls)]
        self.last_at = 0.0

    def run(self) -> None:
        """All ask at once, as with `asyncio.gather`; a call that is refused asks again."""
        for prompt, generated in self.works:
            self.ask(prompt, generated, None)
        self.pump()
        while self.events:
            self.now, _, do = heapq.heappop(self.events)
            do()
        assert (self.admission.in_flight, self.admission.queued) == (0, 0)
        assert self.account.counts().admitted == self.world.calls

    @property
    def reached(self) -> float:
        """Of what the account gives at most."""
        tokens = sum(map(sum, self.works)) / len(self.works)
        return ideal_seconds(self.world.rate, self.world.calls, tokens) / self.last_at

    @property
    def refused(self) -> float:
        """The share of 429s."""
        counts = self.account.counts()
        return counts.limited / counts.asked

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), do))

    def pump(self) -> None:
        admission = self.admission
        for one in admission.advance(self.now) if admission.queued else ():
            self.after(self.network(), one.waiter)
        at = admission.next_at if admission.queued else math.inf
        if at != self.timer[0]:
            number = next(self.numbers)
            self.timer = (at, number)
            if at < math.inf:
                self.after(
                    max(0.0, at - self.now) + self.chance.uniform(0, self.world.late_s), lambda: self.fire(number)
                )

    def fire(self, number: int) -> None:
        if self.timer[1] == number:
            self.timer = (math.inf, 0)
            self.pump()

    def network(self) -> float:
        return self.chance.uniform(*self.world.network_s)

    def ask(self, prompt: int, generated: int, number: int | None) -> None:
        size = Size(prompt, self.world.max_tokens, 1)
        one = self.admission.ask(MODEL, size, self.now, number=number)
        one.waiter = lambda: self.arrive(one, prompt, generated)

    def arrive(self, one: Reservation, prompt: int, generated: int) -> None:
        verdict = self.account.admit(MODEL, prompt + generated)
        shown = {
            name: str(float(value) * self.world.unit) if "limit-limit" in name else value
            for name, value in verdict.headers.items()
            if self.world.headers == "shown"
        }
        back_s = self.network()
        if not verdict.admitted:
            self.after(back_s, lambda: self.limited(one, prompt, generated, shown, verdict.body))
            return
        self.last_at = self.now
        answer_s = self.chance.uniform(*self.world.answer_s)
        self.after(back_s + answer_s * (1 if self.world.whole else 0.2), lambda: self.answered(one, shown))
        self.after(back_s + answer_s, lambda: self.ended(one, prompt, generated))

    def answered(self, one: Reservation, headers: dict[str, str]) -> None:
        self.admission.record_response(one, self.now, read_limits(headers), good=True)
        self.pump()

    def ended(self, one: Reservation, prompt: int, generated: int) -> None:
        estimator = self.admission.lane(MODEL, self.now).estimator
        estimator.learn(Size(prompt, self.world.max_tokens, 1), prompt, generated)
        self.admission.settle(one, prompt + generated, self.now)
        self.admission.release(one, self.now)
        self.pump()

    def limited(self, one: Reservation, prompt: int, generated: int, headers: dict[str, str], body: Any) -> None:
        wait_s = float(headers.get("x-ratelimit-reset", 0.5 * self.chance.random()))
        self.admission.record_rate_limit(one, self.now, read_limits(headers), wait_s=wait_s, kind=limited_kind(body))
        self.admission.settle(one, 0, self.now)
        self.admission.release(one, self.now)
        self.ask(prompt, generated, one.number)
        self.pump()


FIXED = Rate.per_minute(600, 60_000)
DYNAMIC = Rate.per_minute(600, 60_000, dynamic=Dynamic(start=0.1))
GIVEN = Limits(requests_per_minute=600, tokens_per_minute=60_000)
AUTO = Limits(concurrency="auto")


@pytest.mark.parametrize(
    "world",
    [
        World(FIXED, answer_s=(0.05, 0.05)),
        World(FIXED),
        World(FIXED, max_tokens=1_000),
        World(FIXED, answer_s=(5, 5)),
        World(FIXED, AUTO, answer_s=(5, 5)),
        World(FIXED, GIVEN, answer_s=(5, 5), whole=True),
        World(FIXED, GIVEN, max_tokens=1_000),
        World(FIXED, GIVEN, headers="hidden", max_tokens=1_000),
        World(FIXED, late_s=0.02),
        World(Rate.per_minute(600, 30_000), GIVEN, late_s=0.02),
    ],
    ids=World.describe,
)
def test_fixed_account_is_used_in_full_without_429s(world: World) -> None:
    """600 requests and 60,000 tokens a minute, of which one request takes about a share of each: 97 % and 0.5 %."""
    loop = ClosedLoop(world)
    loop.run()
    assert loop.reached >= 0.97
    assert loop.refused < 0.005


@pytest.mark.parametrize(
    "world",
    [
        World(DYNAMIC, answer_s=(0.05, 0.05)),
        World(DYNAMIC),
        World(DYNAMIC, AUTO, max_tokens=1_000),
        World(DYNAMIC, answer_s=(5, 5)),
        World(DYNAMIC, GIVEN),
    ],
    ids=World.describe,
)
@pytest.mark.parametrize("seed", [2, 8])
def test_dynamic_account_rises_as_fast_as_it_can(world: World, seed: int) -> None:
    """It starts at a tenth of its ceiling, doubles in 30 s of full use and is halved by a 429: 90 % and 1 %."""
    loop = ClosedLoop(world, seed)
    loop.run()
    assert loop.reached >= 0.9
    assert loop.refused < 0.01


@pytest.mark.parametrize(
    "world",
    [
        World(FIXED, Limits(requests_per_minute=36_000, tokens_per_minute=3.6e6), headers="hidden"),
        World(FIXED, unit=60),
        World(FIXED, headers="hidden"),
    ],
    ids=["configured", "told", "unknown"],
)
def test_rate_that_is_sixty_times_too_high_is_found_out(world: World) -> None:
    """A unit misunderstood (per minute for per second): 429s come at first, then few, and the account is used."""
    loop = ClosedLoop(world)
    answers: list[int] = []
    admit = loop.account.admit

    def admitted(model: str, tokens: int) -> Any:
        verdict = admit(model, tokens)
        answers.append(verdict.status)
        return verdict

    loop.account.admit = admitted  # type: ignore[method-assign]
    loop.run()
    later = answers[len(answers) // 2 :]
    assert later.count(429) / len(later) < 0.02
    assert loop.reached > 0.6


def test_dynamic_account_whose_limits_are_told_sixty_times_too_high_is_not_given_up() -> None:
    """Nobody reaches its limits then, but nobody waits for hours either."""
    loop = ClosedLoop(World(DYNAMIC, unit=60, calls=500))
    loop.run()
    assert loop.now < 1_500
    assert loop.refused < 0.1


def test_what_others_use_of_the_account_holds_nobody_up_for_longer_than_told() -> None:
    """Nothing is left of 10,000 tokens a second, for a second; who keeps to 100 waits for one, not a hundred."""
    driver = Driver(Limits(tokens_per_minute=6_000))
    one = driver.asked(1)
    headers = {"x-tokenlimit-limit": "10000", "x-tokenlimit-remaining": "0", "x-ratelimit-reset": "1"}
    driver.to(0.1)
    driver.answered(one, read_limits(headers))
    two = driver.asked(1)
    driver.to(20)
    assert two.granted_at is not None
    assert 0.9 < two.granted_at < 1.5


def test_repr_says_where_a_call_is() -> None:
    driver = Driver(Limits(concurrency=1))
    first, second, third = (driver.asked(5) for _ in range(3))
    assert repr(first) == "<Reservation 1 of m, 5 tokens, under way>"
    assert repr(second) == "<Reservation 2 of m, 5 tokens, first in line>" or "waiting" in repr(second)
    assert repr(third) == "<Reservation 3 of m, 5 tokens, waiting>"
    driver.end(first)
    assert "ended" in repr(first)
    assert (second.model, second.granted) == (MODEL, True)


# ------------------------------------------------------------------------------------- at once, patient, in a hurry


def shown(admission: Admission, now: float) -> Any:
    """All that can be seen of an admission."""
    return admission.state(now, EPOCH), admission.queued, admission.in_flight, admission.uncounted, set(admission._busy)


@pytest.mark.parametrize("seed", range(20))
def test_asking_at_once_is_asking_and_advancing(seed: int) -> None:
    """The short way for a call that finds nobody waiting: in whatever order calls ask, are answered, end and give up,
    the same ones go at the same times, and the state is the same."""
    rng = random.Random(seed)
    limits = rng.choice(
        [
            Limits(),
            Limits("auto"),
            Limits(2),
            Limits(3, requests_per_minute=120, tokens_per_minute=6_000),
            Limits.per_model({MODEL: Limits(2)}, concurrency=3),
        ]
    )
    plain, quick = Admission(limits), Admission(limits)
    pairs: list[tuple[Reservation, Reservation]] = []
    now = 0.0
    for _ in range(300):
        now += rng.choice([0, 0, 0.01, 0.3, 2.0])
        match rng.randrange(5):
            case 0 | 1:
                options: dict[str, Any] = {
                    "priority": rng.choice(["interactive", "batch"]),
                    "counts_as_queued": rng.random() < 0.5,
                    "skips_slow_start": rng.random() < 0.3,
                }
                model, tokens = rng.choice([MODEL, "other"]), rng.choice([0, 10, 300])
                one = plain.ask(model, tokens, now, **options)
                plain.advance(now)
                pairs.append((one, quick.ask(model, tokens, now, at_once=True, **options)))
            case 2 if pairs and pairs[0][0].priority == "interactive":
                one, other = pairs.pop(0)
                plain.withdraw(one, now)
                quick.withdraw(other, now)
            case 3 if pairs:
                for admission, one in zip((plain, quick), rng.choice(pairs), strict=True):
                    admission.record_response(one, now, None, good=True)
            case 4 if pairs and pairs[0][0].granted:
                for admission, one in zip((plain, quick), pairs.pop(0), strict=True):
                    admission.settle(one, 5, now)
                    admission.release(one, now)
        plain.advance(now)
        quick.advance(now)
        assert shown(plain, now) == shown(quick, now)
        assert [one.granted_at for one, _ in pairs] == [other.granted_at for _, other in pairs]


def test_asked_at_once_it_goes_and_advance_does_not_say_it_again() -> None:
    """It is under way when `ask` returns; one that may not go is booked, and the next waits behind it."""
    driver = Driver(Limits(1))
    first, second, third = (driver.ask(at_once=True) for _ in range(3))
    assert first.granted
    assert driver.advance() == []
    assert (driver.admission.in_flight, driver.admission.queued) == (1, 2)
    driver.end(first)
    assert (second.granted, third.granted) == (True, False)
    driver.admission.withdraw(second, driver.now)
    assert driver.advance() == [third]


@pytest.mark.parametrize("model", [MODEL, "other"])
def test_nobody_is_overtaken_at_once(model: str) -> None:
    """Where somebody waits, of the same model or of another, asking at once is asking."""
    driver = Driver(Limits.per_model({MODEL: Limits(requests_per_minute=60)}, concurrency=5))
    held = [driver.asked() for _ in range(5)]
    waits = driver.ask(at_once=True)
    driver.admission.release(held[0], driver.now)  # nobody has been let go yet
    late = driver.ask(model=model, at_once=True)
    assert not late.granted
    assert waits.number < late.number


def test_a_number_that_was_named_waits_for_the_first_answer_at_most() -> None:
    """Of a model that has told nothing, a few are asked at once; a good answer, whatever it tells, lets the others go;
    who has named no number goes on doubling."""
    for skips_slow_start, at_first, then in ((True, FIRST_AT_ONCE, 50), (False, 1, 3)):
        driver = Driver(Limits(), known=False)
        ones = [driver.asked(skips_slow_start=skips_slow_start) for _ in range(50)]
        assert sum(one.granted for one in ones) == at_first
        driver.answered(ones[0])
        assert sum(one.granted for one in ones) == then


def test_a_number_that_was_named_does_not_wait_for_ever_for_the_first_answer() -> None:
    """A server that takes minutes is asked on after the gaps of an unknown model."""
    driver = Driver(Limits(), known=False)
    ones = [driver.asked(skips_slow_start=True) for _ in range(50)]
    driver.to(10)
    assert all(one.granted for one in ones)


def test_a_number_that_was_named_keeps_to_what_is_told() -> None:
    """The first answer says two a second: the others don't rush."""
    driver = Driver(Limits(), known=False)
    ones = [driver.asked(skips_slow_start=True) for _ in range(50)]
    driver.to(0.1)
    driver.answered(ones[0], told(2, 0))
    before = sum(one.granted for one in ones)
    driver.to(5.1)
    assert sum(one.granted for one in ones) - before <= 11


@pytest.mark.parametrize("per_model", [False, True])
def test_the_patient_are_neither_refused_nor_counted(per_model: bool) -> None:
    """`max_queued` is for the others: as many of them may wait as if there were no patient ones."""
    limits = Limits.per_model({MODEL: Limits(1, max_queued=2)}) if per_model else Limits(1, max_queued=2)
    driver = Driver(limits)
    held = driver.asked()
    patient = [driver.asked(counts_as_queued=False) for _ in range(10)]
    for _ in range(2):
        driver.asked()
        driver.admission.check_room(MODEL, driver.now)
    driver.asked()
    with pytest.raises(QueueFullError, match=r"2 calls wait and Limits\.max_queued is 2"):
        driver.admission.check_room(MODEL, driver.now)
    driver.admission.withdraw(patient[-1], driver.now)
    driver.end(held)
    with pytest.raises(QueueFullError):
        driver.admission.check_room(MODEL, driver.now)


@pytest.mark.parametrize("seed", range(10))
def test_the_patient_are_counted_right_whatever_happens(seed: int) -> None:
    """Let go, withdrawn, refused for a pause or a 402, forgotten with their loop: as many as wait."""
    rng = random.Random(seed)
    driver = Driver(Limits.per_model({"other": Limits(2)}, concurrency=4))
    ones: list[Reservation] = []
    for _ in range(200):
        admission = driver.admission
        match rng.randrange(7):
            case 0 | 1 | 2:
                admission.resume()
                admission.lane(MODEL, driver.now).paused_until = -math.inf
                ones.append(
                    driver.asked(
                        model=rng.choice([MODEL, "other"]),
                        counts_as_queued=rng.random() < 0.5,
                        at_once=True,
                        max_pause_s=5,
                    )
                )
            case 3 if ones:
                admission.withdraw(ones.pop(rng.randrange(len(ones))), driver.now)
            case 4:
                for one in [one for one in ones if one.granted][:2]:
                    driver.end(one, 0)
            case 5 if rng.random() < 0.2:
                admission.record_payment_required(PaymentRequiredError("402", status_code=402), driver.now)
            case 6 if rng.random() < 0.2:
                admission.forget_calls()
                ones = []
        driver.advance()
        waiting = [one for lane in admission._lanes.values() for one in lane.queue.waiting()]
        assert admission.queued == len(waiting)
        assert admission.uncounted == sum(not one.counts_as_queued for one in waiting)
        for lane in admission._lanes.values():
            assert lane.queue.uncounted == sum(not one.counts_as_queued for one in lane.queue.waiting())
