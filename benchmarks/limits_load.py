"""The work and the accounts of `limits`, which the emulator and the clients both know. Pure.

Everything is in the account's own time; how fast that passes is the run's business.
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
"""By account: a fixed one, one that rises from a tenth and falls on a 429, and one whose platform answers 503."""
FIRST_TOKEN_S, TOKENS_PER_SECOND = 0.3, 200.0
"""How fast the model answers: in about 0.6 s."""


MAX_TOKENS = 120
"""Of every call; the answers have half as many in the mean. One number, since not every client can be given several."""


@dataclass(frozen=True, slots=True)
class Order:
    """One call: its text, and how long the answer will be, which the caller can't know."""

    text: str
    reply_tokens: int


@cache
def orders(count: int, seed: int = 1) -> tuple[Order, ...]:
    """Returns the calls of a run, of about 100 tokens each; the first word of a text is its number."""
    luck = random.Random(seed)
    made = []
    for number in range(count):
        text = f"{number:06}" + " word" * luck.randint(4, 62)
        made.append(Order(text, luck.randint(20, 100)))
    return tuple(made)


def number_of(text: str) -> int:
    """Returns which of the orders has this text."""
    return int(text[:6])
