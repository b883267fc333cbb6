"""Streams derived from a number, for a long run: the same on both sides of the connection."""

import random
from dataclasses import dataclass
from typing import Any

from together_async.testing import (
    CloseAfter,
    Cut,
    Gzip,
    Reply,
    Split,
)

WORDS = ("blue", "light", "schön", "Łódź", "日本", "😀", "why", "\u2028", '"', "\\n", "<b>", "scatter")


@dataclass(frozen=True, slots=True)
class Plan:
    """A stream derived from a number: its tokens, and where it is cut.

    Attributes:
        tokens: What the model generates.
        whole: How many tokens arrive: all, or those before the cut.
        how: How it is cut there; empty for a stream that is not cut.
        faults: The emulator's faults that cut or split it.
    """

    tokens: tuple[str, ...]
    whole: int
    how: str
    faults: Any

    @property
    def script(self) -> Reply:
        return Reply(self.tokens)

    @property
    def ours(self) -> str:
        """The class this library has to raise; empty when it has to complete."""
        return "" if not self.how else "IncompleteStreamError" if self.how == "end" else "StreamConnectionError"


def plan(name: str) -> Plan:
    """Returns the stream called `plain <number>` or `cut <number>`.

    Raises:
        ValueError: The name is neither.
    """
    kind, _, number = name.partition(" ")
    if kind not in ("plain", "cut") or not number.isdigit():
        raise ValueError(f"no stream is called {name!r}")
    rng = random.Random(name)
    # The text begins with the number, so it can't be mistaken for that of another stream.
    tokens = (number, *(f" {rng.choice(WORDS)}" for _ in range(rng.randrange(4, 60))))
    splits = rng.choice((None, None, None, Split(every=rng.randrange(1, 400)), Split(inside="utf-8"), Gzip()))
    if kind == "plain":
        if rng.random() < 0.02:
            # The next user of the connection finds it closed, perhaps with its request under way.
            return Plan(tokens, len(tokens), "", CloseAfter())
        return Plan(tokens, len(tokens), "", splits)
    how: Any = rng.choice(("reset", "close", "chunk", "end"))
    at = rng.randrange(len(tokens) + 1)
    cut = Cut(how=how, after_token=at)
    return Plan(tokens, at, how, cut if splits is None else splits + cut)
