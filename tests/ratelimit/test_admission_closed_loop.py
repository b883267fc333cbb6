"""Admission against the emulator's account: all of what it gives is used, and few 429s come."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from support.admission import MODEL, ClockedAdmission
from together_async import Limits
from together_async.ratelimit.admission import Admission
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.headers import limited_kind, read_limits
from together_async.ratelimit.queue import Reservation
from together_async.testing import Account, Dynamic, Rate
from together_async.testing.ideal import ideal_seconds


@attrs.frozen
class World:
    """An account, the network in between, and two thousand calls.

    Attributes:
        rate: The account's.
        limits: What the user gave the client.
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
    """An admission and an account face to face: a queue of events, at whose times the clock jumps."""

    def __init__(self, world: World, seed: int = 1) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.now = 0.0
        self.account = Account(world.rate, clock=lambda: self.now)
        self.admission = Admission(world.limits)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.timer = (math.inf, 0)
        self.works = [(self.rng.randint(20, 40), self.rng.randint(40, 80)) for _ in range(world.calls)]
        self.last_at = 0.0

    def run(self) -> None:
        """All calls ask at once, as with `asyncio.gather`; a call that is refused asks again."""
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
        """The share of the account's largest throughput that was reached."""
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
        for reservation in admission.advance(self.now) if admission.queued else ():
            self.after(self.network(), reservation.waiter)
        at = admission.next_at if admission.queued else math.inf
        if at != self.timer[0]:
            number = next(self.numbers)
            self.timer = (at, number)
            if at < math.inf:
                self.after(max(0.0, at - self.now) + self.rng.uniform(0, self.world.late_s), lambda: self.fire(number))

    def fire(self, number: int) -> None:
        if self.timer[1] == number:
            self.timer = (math.inf, 0)
            self.pump()

    def network(self) -> float:
        return self.rng.uniform(*self.world.network_s)

    def ask(self, prompt: int, generated: int, number: int | None) -> None:
        size = Size(prompt, self.world.max_tokens, 1)
        reservation = self.admission.ask(MODEL, size, self.now, number=number)
        reservation.waiter = lambda: self.arrive(reservation, prompt, generated)

    def arrive(self, reservation: Reservation, prompt: int, generated: int) -> None:
        verdict = self.account.admit(MODEL, prompt + generated)
        shown = {
            name: str(float(value) * self.world.unit) if "limit-limit" in name else value
            for name, value in verdict.headers.items()
            if self.world.headers == "shown"
        }
        back_s = self.network()
        if not verdict.admitted:
            self.after(back_s, lambda: self.limited(reservation, prompt, generated, shown, verdict.body))
            return
        self.last_at = self.now
        answer_s = self.rng.uniform(*self.world.answer_s)
        self.after(back_s + answer_s * (1 if self.world.whole else 0.2), lambda: self.answered(reservation, shown))
        self.after(back_s + answer_s, lambda: self.ended(reservation, prompt, generated))

    def answered(self, reservation: Reservation, headers: dict[str, str]) -> None:
        self.admission.record_response(reservation, self.now, read_limits(headers), good=True)
        self.pump()

    def ended(self, reservation: Reservation, prompt: int, generated: int) -> None:
        estimator = self.admission.lane(MODEL, self.now).estimator
        estimator.learn(Size(prompt, self.world.max_tokens, 1), prompt, generated)
        self.admission.settle(reservation, prompt + generated, self.now)
        self.admission.release(reservation, self.now)
        self.pump()

    def limited(
        self, reservation: Reservation, prompt: int, generated: int, headers: dict[str, str], body: Any
    ) -> None:
        wait_s = float(headers.get("x-ratelimit-reset", 0.5 * self.rng.random()))
        self.admission.record_rate_limit(
            reservation, self.now, read_limits(headers), wait_s=wait_s, kind=limited_kind(body)
        )
        self.admission.settle(reservation, 0, self.now)
        self.admission.release(reservation, self.now)
        self.ask(prompt, generated, reservation.number)
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
    ids=["configured", "reported", "unknown"],
)
def test_rate_that_is_sixty_times_too_high_is_found_out(world: World) -> None:
    """A unit is mistaken (per minute for per second): 429s come at first, then few, and the account is used."""
    loop = ClosedLoop(world)
    answers: list[int] = []
    admit = loop.account.admit

    def admitted(model: str, tokens: int) -> Any:
        verdict = admit(model, tokens)
        answers.append(verdict.status)
        return verdict

    loop.account.admit = admitted  # type: ignore[method-assign]  # to note each verdict
    loop.run()
    later = answers[len(answers) // 2 :]
    assert later.count(429) / len(later) < 0.02
    assert loop.reached > 0.6


def test_dynamic_account_whose_limits_are_told_sixty_times_too_high_is_not_given_up() -> None:
    """Its limits are not reached then, but no call waits for hours either."""
    loop = ClosedLoop(World(DYNAMIC, unit=60, calls=500))
    loop.run()
    assert loop.now < 1_500
    assert loop.refused < 0.1


def test_what_others_use_of_the_account_holds_nobody_up_for_longer_than_told() -> None:
    """Nothing is left of 10,000 tokens a second, for a second; a client that keeps to 100 waits 1 s, not 100 s."""
    driver = ClockedAdmission(Limits(tokens_per_minute=6_000))
    reservation = driver.asked(1)
    headers = {"x-tokenlimit-limit": "10000", "x-tokenlimit-remaining": "0", "x-ratelimit-reset": "1"}
    driver.to(0.1)
    driver.answered(reservation, read_limits(headers))
    two = driver.asked(1)
    driver.to(20)
    assert two.granted_at is not None
    assert 0.9 < two.granted_at < 1.5
