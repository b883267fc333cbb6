"""The calls, and the accounts under which they are made, which the emulator and the clients both know. Pure.

Everything is in account time; each run decides how fast that passes.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

from together_async.testing import Dynamic, Rate
from together_async.testing.ideal import ideal_seconds

MODEL = "limits/model"
REQUESTS_PER_MINUTE = 600
TOKENS_PER_MINUTE = 60_000
FIXED, DYNAMIC, DOWN = "fixed", "dynamic", "down"
WHOLE, SILENT, STRAY, DISTANCE = "whole5", "silent", "stray", "distance"
MAX_TOKENS = 120
"""Of every call; the answers average half of it. A single number, since not every client accepts one per call."""
MEAN_TOKENS = 100
"""Of a call, prompt and answer together."""

Strays: TypeAlias = Callable[[int, float, random.Random], bool]
"""Whether a request gets a 429 that has nothing to do with the account's use: by its number from 0, the seconds since
the first request, and a source of chance."""


def no_strays(_number: int, _seconds: float, _rng: random.Random) -> bool:
    return False


def first_stray(number: int, _seconds: float, _rng: random.Random) -> bool:
    return number == 0


def spell_of_strays(_number: int, seconds: float, _rng: random.Random) -> bool:
    return seconds < 5


def tenth_stray(_number: int, _seconds: float, rng: random.Random) -> bool:
    return rng.random() < 0.1


@dataclass(frozen=True, slots=True)
class Setting:
    """An account, how fast its models answer, and what lies between it and the client. Times are in account time.

    Attributes:
        part: The part of the benchmark that it belongs to.
        title: What the table says above its rows.
        speed: The most that the clocks may be accelerated; None for the speed that the command was given.
        first_token_s, tokens_per_second: How fast a model answers; no tokens per second means all at once.
        silent: Whether no response tells anything about the limits.
        strays: Which requests get a 429 without headers, whatever the account's use.
        round_trip_s: The distance. Above 0 the connections are TLS, and every one is a new client's.
        longest: A run ends after this many times the ideal; what was done by then counts.
    """

    name: str
    part: str
    title: str
    rate: Rate
    calls: int = 2_000
    quick_calls: int = 100
    speed: float | None = None
    first_token_s: float = 0.3
    tokens_per_second: float | None = 200.0
    silent: bool = False
    strays: Strays = no_strays
    round_trip_s: float = 0.0
    longest: float = 1.5

    def ideal_s(self, calls: int) -> float:
        """How long so many calls take at least."""
        return ideal_seconds(self.rate, calls, MEAN_TOKENS)


_TOLD = Rate.per_minute(REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE)
_RISING = Rate.per_minute(REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, dynamic=Dynamic())
# So short that the start is much of it, whose work can't be accelerated.
_stray = partial(Setting, part=STRAY, calls=150, quick_calls=60, speed=3, longest=8)
# What is found out in the start decides about minutes, and late timers count more when clocks are accelerated.
_silent = partial(Setting, part=SILENT, silent=True, speed=2, longest=1.6)

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(FIXED, FIXED, "fixed account", _TOLD),
        Setting(DYNAMIC, DYNAMIC, "dynamic account", _RISING),
        *(
            Setting(
                f"fixed, {ms} ms",
                DISTANCE,
                f"fixed account, TLS, {ms} ms away",
                _TOLD,
                speed=2,  # a handshake's own work can't be accelerated
                round_trip_s=ms / 1000,
            )
            for ms in (20, 50, 100)
        ),
        Setting(WHOLE, WHOLE, "dynamic account, answers of 5 s", _RISING, first_token_s=4.7, longest=2),
        _silent("silent, 60/s", title="silent account, 60/s", rate=Rate(60)),
        _silent("silent, 1/s", title="silent account, 1/s", rate=Rate(1), calls=200, quick_calls=20),
        *(
            _silent(
                f"silent, dynamic from {where}",
                title=f"silent dynamic account, from {where}",
                rate=Rate.per_minute(REQUESTS_PER_MINUTE, dynamic=Dynamic(start=start)),
                calls=1_000,
                speed=4,
                longest=4,
            )
            for where, start in (("a tenth", 0.1), ("its ceiling", 1.0))
        ),
        _stray("fresh", title="no stray 429, limits told", rate=_TOLD),
        _stray("first", title="a stray 429 first, limits told", rate=_TOLD, strays=first_stray),
        _stray("tenth", title="a tenth of all are stray 429s, limits told", rate=_TOLD, strays=tenth_stray),
        # Unlimited and at once, so that the client's own work counts: its clock can't be accelerated.
        Setting(
            "spell",
            STRAY,
            "5 s of 429s, then no limits",
            Rate(),
            calls=200,
            quick_calls=200,
            speed=1,
            first_token_s=0.0,
            tokens_per_second=None,
            silent=True,
            strays=spell_of_strays,
        ),
        Setting(DOWN, DOWN, "everything fails (503)", Rate(), calls=1_000),
    )
}


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
