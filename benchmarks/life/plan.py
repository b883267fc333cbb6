"""What becomes of a call, derived from its number: the same on both sides of the connection. Pure.

The message of a call says what the server does: `<number> <tokens> <fault>`. The text of the answer begins with the
number, so that it can't be mistaken for that of another call.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from together_async import Retry, Timeouts
from together_async.testing import (
    Account,
    Chance,
    CloseAfter,
    Cut,
    Drip,
    ErrorInStream,
    Fault,
    Garbage,
    Gzip,
    Rate,
    Reply,
    Split,
    Stall,
    Status,
)


class Burst(Fault):
    """No fault, and no pause: all tokens come at once."""

    def apply(self, response: Any) -> bool:
        for piece in response.body:
            piece.wait_s = 0.0
        return True


FAULTS: dict[str, Any] = {
    "none": None,
    "burst": Burst(),
    "reset": Cut(how="reset", after_token=3),
    "close": Cut(how="close", after_token=2),
    "end": Cut(how="end", after_token=1),
    "silent": Stall(),
    "stall": Stall(after_token=2),
    "pings": Stall(after_token=2, seconds=5, ping_every=0.05),
    "slow": Drip(size=200, every_s=0.05),
    "split": Split(every=11),
    "gzip": Gzip(),
    "stale": CloseAfter(),
    "garbage": Garbage(after_token=2),
    "error": ErrorInStream(after_token=2, code=503),
    "500": Status(500),
    "503": Status(503),
    "429": Status(429, headers={"retry-after": "0.3"}),
}
FAULTY = 0.25
"""The share of the calls that have a fault, half of which goes away with another attempt."""
BURSTS = 0.1
"""The share of the calls whose answer comes at once."""
LIMITED = [f"limited-{number}" for number in range(4)]
REFUSED = [f"refused-{number}" for number in range(4)]
"""Models to which a 429 of the faults may happen: it pauses a model, and so the others are left alone."""
USUAL = [f"usual-{number}" for number in range(20)]


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of one call.

    Attributes:
        number: Of the call.
        reading: How it is read (see `readings`).
        leaving: How it is left (see `leavings`).
        model: The model's name; some are never used again.
        fault: What the server does.
        tokens: The length of the answer.
        after: Items after which it is left, from 1.
        seconds: Seconds after which it is left, where time decides.
        timeouts: Its deadlines.
        retry: When it is tried again.
        dice: From 0 to 1, for what else the ways decide.
    """

    number: int
    reading: str
    leaving: str
    model: str
    fault: str
    tokens: int
    after: int
    seconds: float
    timeouts: Timeouts
    retry: Retry
    dice: float

    @property
    def message(self) -> str:
        return f"{self.number} {self.tokens} {self.fault}"

    def text(self, choice: int = 0) -> str:
        """What the model says in one choice."""
        return "".join(tokens_of(self.number, choice, self.tokens))


def plan(seed: int, number: int, readings: Sequence[str], leavings: Sequence[str]) -> Plan:
    """Returns the plan of the call with this number."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.random()
    fault = rng.choice(list(FAULTS)) if kind < FAULTY else "burst" if kind < FAULTY + BURSTS else "none"
    models = REFUSED if fault == "429" else LIMITED if rng.random() < 0.05 else USUAL
    return Plan(
        number=number,
        reading=rng.choice(readings),
        leaving=rng.choice(leavings),
        model=f"fresh-{number}" if models is USUAL and rng.random() < 0.2 else rng.choice(models),
        fault=fault,
        tokens=rng.randrange(1, 60),
        after=rng.randrange(1, 8),
        seconds=rng.uniform(0, 1.2) ** 2,
        timeouts=Timeouts(
            connect=rng.uniform(1, 10),
            first_token=rng.uniform(0.8, 3),
            idle=rng.uniform(0.5, 2),
            total=rng.choice((None, rng.uniform(1, 10))),
            queue=rng.uniform(0.3, 6),
        ),
        retry=Retry(
            attempts=rng.randrange(1, 5),
            base_delay=rng.uniform(0, 0.2),
            max_delay=0.5,
            max_retry_after=rng.choice((0.0, 1.0, 5.0)),
        ),
        dice=rng.random(),
    )


def tokens_of(number: int, choice: int, size: int) -> tuple[str, ...]:
    """The tokens of one choice of an answer."""
    return (f"{number}.{choice}", *(f" {place}" for place in range(1, size)))


# ------------------------------------------------------------------------------------------------------ for the server


def script(request: Any) -> Any:
    """The answer to a request; one with a schema gets a value that fits it."""
    if request.response_format is not None:
        return None
    number, size, _ = request.messages[-1]["content"].split()
    return [Reply(tokens_of(int(number), choice, int(size))) for choice in range(request.n or 1)]


def faults(request: Any) -> Any:
    """What happens to a request: with even numbers always, with odd ones half of the time."""
    number, _, name = request.messages[-1]["content"].split()
    return Chance(0.5, FAULTS[name]) if int(number) % 2 else FAULTS[name]


def account() -> Account:
    """The account of the server: few models are limited."""
    return Account(per_model=dict.fromkeys(LIMITED, Rate(requests_per_second=4)))
