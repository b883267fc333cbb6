"""Keeps a batch within its budget of tokens and US dollars. Pure.

A request begins only if its expected usage fits into what is left. While other requests are in flight, one that does
not fit waits for them: they may use less than expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

from together_async.pricing import Price

Room: TypeAlias = Literal["now", "later", "never"]


class Budget:
    """What has been spent, and what is reserved for requests in flight.

    Args:
        max_tokens: Prompt and completion tokens that may be spent; None sets no limit.
        max_cost: US dollars that may be spent; None sets no limit.

    Attributes:
        prices: By model. Without `max_cost` they may be set at any time; with it, before the first request.
        prompt_tokens: Prompt tokens spent so far.
        completion_tokens: Completion tokens spent so far.
    """

    def __init__(self, max_tokens: float | None, max_cost: float | None) -> None:
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._max_cost = math.inf if max_cost is None else max_cost
        self.prices: Mapping[str, Price] = {}
        self.prompt_tokens = self.completion_tokens = 0
        self._spent: dict[str, tuple[int, int]] = {}
        self._reserved: dict[int, tuple[float, float]] = {}
        self._reserved_tokens = self._reserved_cost = 0.0

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return min(self._max_tokens, self._max_cost) < math.inf

    @property
    def limits(self) -> str:
        """The options that set a limit, for messages."""
        limits = (("max_tokens_total", self._max_tokens), ("max_cost", self._max_cost))
        return " or ".join(name for name, most in limits if most < math.inf)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens spent so far."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def models(self) -> tuple[str, ...]:
        """The models that used tokens, in the order of their first use."""
        return tuple(self._spent)

    @property
    def cost(self) -> float:
        """US dollars spent so far; models without a known price count as 0."""
        return sum(price.of(*spent) for model, spent in self._spent.items() if (price := self.prices.get(model)))

    @property
    def known_cost(self) -> float | None:
        """US dollars spent so far; None if the price of a model that was used is not known."""
        return self.cost if self.prices and self._spent.keys() <= self.prices.keys() else None

    def spend(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts the tokens of a result."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        prompt, completion = self._spent.get(model, (0, 0))
        self._spent[model] = (prompt + prompt_tokens, completion + completion_tokens)

    def room(self, model: str, prompt_tokens: float, completion_tokens: float) -> Room:
        """Returns when a request may begin that is expected to use these tokens.

        Returns:
            "now"; "later", if it may fit once requests in flight have ended; "never", if nothing is in flight and it
            does not fit.
        """
        tokens, cost = self._expected(model, prompt_tokens, completion_tokens)
        if (
            self.tokens + self._reserved_tokens + tokens <= self._max_tokens
            and self.cost + self._reserved_cost + cost <= self._max_cost
        ):
            return "now"
        return "later" if self._reserved else "never"

    def reserve(self, key: int, model: str, prompt_tokens: float, completion_tokens: float) -> None:
        """Reserves the expected usage of a request that begins.

        Args:
            key: Identifies the request for `release`.
            model: Its model.
            prompt_tokens: Expected tokens of its prompt.
            completion_tokens: Expected tokens of its completion.
        """
        if self.is_set:
            tokens, cost = self._reserved[key] = self._expected(model, prompt_tokens, completion_tokens)
            self._reserved_tokens += tokens
            self._reserved_cost += cost

    def release(self, key: int) -> None:
        """Gives back the reservation of a request that has ended; without one nothing happens."""
        tokens, cost = self._reserved.pop(key, (0.0, 0.0))
        self._reserved_tokens -= tokens
        self._reserved_cost -= cost
        if not self._reserved:  # or rounding errors would add up
            self._reserved_tokens = self._reserved_cost = 0.0

    def _expected(self, model: str, prompt_tokens: float, completion_tokens: float) -> tuple[float, float]:
        price = self.prices.get(model)
        cost = 0.0 if price is None else price.of(prompt_tokens, completion_tokens)
        return prompt_tokens + completion_tokens, cost
