"""An admission and an account face to face, without sockets: a queue of events, at whose times the clock jumps."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs

from support.admission import MODEL
from together_async import Limits
from together_async.ratelimit.admission import Admission
from together_async.ratelimit.estimator import Size
from together_async.ratelimit.headers import limited_kind, read_limits
from together_async.ratelimit.queue import Reservation
from together_async.testing import Account, Rate
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
        headers: "shown", "hidden", or "refusals hidden" (those of 429s only).
        unit: What the limits in the headers are multiplied by.
        calls: How many.
        network_s: How long one way takes, from and to.
        dial_s: How long a new connection takes to open, from and to; a connection that is free is used again.
        late_s: How late a timer is at most.
        careful: Whether the calls start carefully.
        refuses: Whether a request is refused, whatever the account says: a function of its number from 1, the time and
            a random number.
        steady: Seconds from one call to the next; 0 for all at once.
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
    dial_s: tuple[float, float] = (0.0, 0.0)
    late_s: float = 0.002
    careful: bool = False
    refuses: Callable[[int, float, float], bool] = lambda number, now, chance: False
    steady: float = 0.0

    def describe(self) -> str:
        """The test's name."""
        limits = "given" if self.limits.requests_per_minute else self.limits.concurrency or "learned"
        whole = "whole" if self.whole else "streamed"
        careful = "-careful" if self.careful else ""
        return f"{limits}-{self.headers}-{whole}-{self.answer_s[0]:g}s-{self.max_tokens}-{self.late_s:g}s late{careful}"


class ClosedLoop:
    """A run of one world."""

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
        self.last_at = self.done_at = 0.0
        self.sent = self.refusals = self.done = 0
        self.refused_at: list[float] = []
        self.refused_calls: Counter[int | None] = Counter()
        self.free_connections = 0

    def run(self, until: float = math.inf) -> ClosedLoop:
        """Makes all calls, at once as with `asyncio.gather` or one after the other; a call that is refused asks again.

        Args:
            until: When to stop, whatever is left to do.
        """
        for place, (prompt, generated) in enumerate(self.works):
            if self.world.steady:
                self.after(place * self.world.steady, functools.partial(self.start, prompt, generated))
            else:
                self.ask(prompt, generated, None)
        self.pump(timer=False)
        while self.events and self.events[0][0] <= until:
            self.now, _, do = heapq.heappop(self.events)
            do()
        if not self.events:
            assert (self.admission.in_flight, self.admission.queued) == (0, 0)
            assert self.done == self.world.calls
        return self

    @property
    def reached(self) -> float:
        """The share of the account's largest throughput that was reached."""
        tokens = sum(map(sum, self.works)) / len(self.works)
        return ideal_seconds(self.world.rate, self.account.counts().admitted, tokens) / self.last_at

    @property
    def refused(self) -> float:
        """The share of 429s."""
        return self.refusals / self.sent

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), do))

    def pump(self, *, timer: bool) -> None:
        admission = self.admission
        for reservation in admission.advance(self.now, timer=timer) if admission.queued else ():
            self.send(reservation)
        at = admission.next_at if admission.queued else math.inf
        if at != self.timer[0]:
            number = next(self.numbers)
            self.timer = (at, number)
            if at < math.inf:
                self.after(max(0.0, at - self.now) + self.rng.uniform(0, self.world.late_s), lambda: self.fire(number))

    def fire(self, number: int) -> None:
        if self.timer[1] == number:
            self.timer = (math.inf, 0)
            self.pump(timer=True)

    def network(self) -> float:
        return self.rng.uniform(*self.world.network_s)

    def start(self, prompt: int, generated: int) -> None:
        self.ask(prompt, generated, None)
        self.pump(timer=False)

    def ask(self, prompt: int, generated: int, number: int | None) -> None:
        size = Size(prompt, self.world.max_tokens, 1)
        reservation = self.admission.ask(
            MODEL, size, self.now, number=number, careful_start=self.world.careful, at_once=True
        )
        reservation.waiter = lambda: self.arrive(reservation, prompt, generated)
        if reservation.granted:
            self.send(reservation)

    def send(self, reservation: Reservation) -> None:
        if self.free_connections or not self.world.dial_s[1]:
            self.free_connections = max(0, self.free_connections - 1)
            self.after(self.network(), reservation.waiter)
            return
        started = self.now
        self.admission.record_dialling(reservation, started)

        def connected() -> None:
            self.admission.record_dialled(reservation, self.now, self.now - started, connected=True)
            self.after(self.network(), reservation.waiter)
            self.pump(timer=False)

        self.after(self.rng.uniform(*self.world.dial_s), connected)

    def arrive(self, reservation: Reservation, prompt: int, generated: int) -> None:
        self.sent += 1
        back_s = self.network()
        if self.world.refuses(self.sent, self.now, self.rng.random()):
            self.after(back_s, lambda: self.limited(reservation, prompt, generated, {}, None))
            return
        verdict = self.account.admit(MODEL, prompt + generated)
        shown = {
            name: str(float(value) * self.world.unit) if "limit-limit" in name else value
            for name, value in verdict.headers.items()
            if self.world.headers != "hidden"
        }
        if not verdict.admitted:
            silent = self.world.headers != "shown"
            headers, body = ({}, None) if silent else (shown, verdict.body)
            self.after(back_s, lambda: self.limited(reservation, prompt, generated, headers, body))
            return
        self.last_at = self.now
        answer_s = self.rng.uniform(*self.world.answer_s)
        self.after(back_s + answer_s * (1 if self.world.whole else 0.2), lambda: self.answered(reservation, shown))
        self.after(back_s + answer_s, lambda: self.ended(reservation, prompt, generated))

    def answered(self, reservation: Reservation, headers: dict[str, str]) -> None:
        self.admission.record_response(reservation, self.now, read_limits(headers), good=True)
        self.pump(timer=False)

    def ended(self, reservation: Reservation, prompt: int, generated: int) -> None:
        estimator = self.admission.lane(MODEL, self.now).estimator
        estimator.learn(Size(prompt, self.world.max_tokens, 1), prompt, generated)
        self.admission.settle(reservation, prompt + generated, self.now)
        self.admission.release(reservation, self.now)
        self.free_connections += 1
        self.done, self.done_at = self.done + 1, self.now
        self.pump(timer=False)

    def limited(
        self, reservation: Reservation, prompt: int, generated: int, headers: dict[str, str], body: Any
    ) -> None:
        self.refusals += 1
        self.free_connections += 1
        self.refused_at.append(self.now)
        self.refused_calls[reservation.number] += 1
        reset = headers.get("x-ratelimit-reset")
        self.admission.record_rate_limit(
            reservation,
            self.now,
            read_limits(headers),
            wait_s=None if reset is None else float(reset),
            kind=limited_kind(body),
            jitter=self.rng.random(),
        )
        self.admission.settle(reservation, 0, self.now)
        self.admission.release(reservation, self.now)
        self.ask(prompt, generated, reservation.number)
        self.pump(timer=False)
