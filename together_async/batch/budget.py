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

    Attributes:
        prices: By model; they may come later, as long as no cost is to be kept.
        prompt_tokens: Spent so far.
        completion_tokens: Spent so far.
    """

    def __init__(self, max_tokens: float | None, max_cost: float | None) -> None:
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._max_cost = math.inf if max_cost is None else max_cost
        self.prices: Mapping[str, Price] = {}
        self.prompt_tokens = self.completion_tokens = 0
        self._spent: dict[str, tuple[int, int]] = {}
        self._promised: dict[int, tuple[float, float]] = {}
        self._promised_tokens = self._promised_cost = 0.0

    @property
    def is_set(self) -> bool:
        """Whether there is anything to keep."""
        return min(self._max_tokens, self._max_cost) < math.inf

    @property
    def limits(self) -> str:
        """The names of what is to be kept."""
        limits = (("max_tokens_total", self._max_tokens), ("max_cost", self._max_cost))
        return " or ".join(name for name, most in limits if most < math.inf)

    @property
    def tokens(self) -> int:
        """Spent so far."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def models(self) -> tuple[str, ...]:
        """What something was spent on."""
        return tuple(self._spent)

    @property
    def cost(self) -> float:
        """US dollars spent so far, of models whose price is known."""
        return sum(price.of(*spent) for model, spent in self._spent.items() if (price := self.prices.get(model)))

    @property
    def known_cost(self) -> float | None:
        """The same, None when something was spent that has no price, or nothing is known of prices."""
        return self.cost if self.prices and self._spent.keys() <= self.prices.keys() else None

    def spend(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Enters what was used."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        prompt, completion = self._spent.get(model, (0, 0))
        self._spent[model] = (prompt + prompt_tokens, completion + completion_tokens)

    def room(self, model: str, prompt_tokens: float, completion_tokens: float) -> Room:
        """Returns whether a request that is expected to use as much may begin: now, later perhaps, or never."""
        tokens, cost = self._expected(model, prompt_tokens, completion_tokens)
        if (
            self.tokens + self._promised_tokens + tokens <= self._max_tokens
            and self.cost + self._promised_cost + cost <= self._max_cost
        ):
            return "now"
        return "later" if self._promised else "never"

    def promise(self, key: int, model: str, prompt_tokens: float, completion_tokens: float) -> None:
        """Sets aside what a request that begins is expected to use."""
        if self.is_set:
            tokens, cost = self._promised[key] = self._expected(model, prompt_tokens, completion_tokens)
            self._promised_tokens += tokens
            self._promised_cost += cost

    def settle(self, key: int) -> None:
        """The request has ended."""
        tokens, cost = self._promised.pop(key, (0.0, 0.0))
        self._promised_tokens -= tokens
        self._promised_cost -= cost
        if not self._promised:  # what sums of fractions leave
            self._promised_tokens = self._promised_cost = 0.0

    def _expected(self, model: str, prompt_tokens: float, completion_tokens: float) -> tuple[float, float]:
        price = self.prices.get(model)
        cost = 0.0 if price is None else price.of(prompt_tokens, completion_tokens)
        return prompt_tokens + completion_tokens, cost
