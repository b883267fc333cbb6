"""The calls and the accounts, which the emulator and the clients both know. Pure.

Everything is in account time; each run decides how fast that passes.
"""

import random
from dataclasses import dataclass
from functools import cache

from together_async.testing import Dynamic, Rate

MODEL = "limits/model"
REQUESTS_PER_MINUTE = 600
TOKENS_PER_MINUTE = 60_000
FIXED, DYNAMIC, DOWN = "fixed", "dynamic", "down"
RATES = {
    FIXED: Rate.per_minute(REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE),
    DYNAMIC: Rate.per_minute(REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, dynamic=Dynamic()),
    DOWN: Rate(),
}
"""By account: fixed limits; limits that rise from a tenth and fall on a 429; a platform that answers 503."""
FIRST_TOKEN_S, TOKENS_PER_SECOND = 0.3, 200.0
"""How fast the model answers: within about 0.6 s."""
MAX_TOKENS = 120
"""Of every call; the answers average half of it. A single number, since not every client accepts one per call."""


@dataclass(frozen=True, slots=True)
class Order:
    """A call: its text, and the length of the answer, which the caller can't know."""

    text: str
    reply_tokens: int


@cache
def orders(count: int, seed: int = 1) -> tuple[Order, ...]:
    """Returns the calls of a run, of about 100 tokens each; a text begins with its number."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        text = f"{number:06}" + " word" * rng.randint(4, 62)
        made.append(Order(text, rng.randint(20, 100)))
    return tuple(made)


def number_of(text: str) -> int:
    """Returns the number of the order that has this text."""
    return int(text[:6])
