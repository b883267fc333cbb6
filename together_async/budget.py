"""What a batch may spend: tokens and US dollars. Pure.

Nothing begins that could exceed what is left, by what it is expected to use; while something is under way that may turn
out cheaper, whoever does not fit waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

from together_async.pricing import Price

Room: TypeAlias = Literal["now", "later", "never"]


class Budget:
    """What is spent, and what is promised to requests under way.

    Args:
        max_tokens: Most tokens of prompts and answers together; None for any number.
        max_cost: Most US dollars; None for any.
        prices: By model.

    Attributes:
        tokens: Spent so far.
        cost: The same in US dollars, as far as prices are known.
        unpriced: Whether tokens were spent of a model whose price is not known.
    """

    def __init__(self, max_tokens: float | None, max_cost: float | None, prices: Mapping[str, Price]) -> None:
        self._most = (math.inf if max_tokens is None else max_tokens, math.inf if max_cost is None else max_cost)
        self.prices = prices
        self.tokens = 0
        self.cost = 0.0
        self.unpriced = False
        self._promised: dict[int, tuple[float, float]] = {}

    def spend(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Enters what was used."""
        self.tokens += prompt_tokens + completion_tokens
        price = self.prices.get(model)
        if price is not None:
            self.cost += price.of(prompt_tokens, completion_tokens)
        elif prompt_tokens or completion_tokens:
            self.unpriced = True

    def room(self, model: str, prompt_tokens: float, completion_tokens: float) -> Room:
        """Returns whether a request that is expected to use as much may begin: now, later perhaps, or never."""
        tokens, cost = self._expected(model, prompt_tokens, completion_tokens)
        promised_tokens = sum(one for one, _ in self._promised.values()) if self._promised else 0.0
        promised_cost = sum(one for _, one in self._promised.values()) if self._promised else 0.0
        fits = (
            self.tokens + promised_tokens + tokens <= self._most[0]
            and self.cost + promised_cost + cost <= self._most[1]
        )
        return "now" if fits else "later" if self._promised else "never"

    @property
    def is_set(self) -> bool:
        """Whether there is anything to keep."""
        return min(self._most) < math.inf

    def promise(self, key: int, model: str, prompt_tokens: float, completion_tokens: float) -> None:
        """Sets aside what a request that begins is expected to use."""
        if self.is_set:
            self._promised[key] = self._expected(model, prompt_tokens, completion_tokens)

    def settle(self, key: int) -> None:
        """The request has ended."""
        self._promised.pop(key, None)

    def _expected(self, model: str, prompt_tokens: float, completion_tokens: float) -> tuple[float, float]:
        price = self.prices.get(model)
        cost = 0.0 if price is None else price.of(prompt_tokens, completion_tokens)
        return prompt_tokens + completion_tokens, cost
