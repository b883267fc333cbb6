"""The prices of tokens, from the service's list of models. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

_TOKENS: Final = 1_000_000
"""The number of tokens that a price is for."""


@attrs.frozen
class Price:
    """A model's prices, in US dollars per million tokens.

    Attributes:
        prompt: The price of the prompt's tokens.
        completion: The price of generated tokens.
    """

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Returns the price of a number of tokens, in US dollars.

        Args:
            prompt_tokens: Tokens of prompts.
            completion_tokens: Generated tokens.
        """
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / _TOKENS


def read_prices(listing: Any) -> dict[str, Price]:
    """Returns the prices by model's name, of the models that have one.

    Args:
        listing: The response of `GET /models`, see https://docs.together.ai/reference/models-1: a list, or an object
            with a list as its `data`, of objects with `id` and `pricing` (`input` and `output`, per million tokens).
            Items of another shape are left out.
    """
    models: Iterable[Any] = listing.get("data") or () if isinstance(listing, Mapping) else listing
    if isinstance(models, (str, bytes)) or not isinstance(models, Iterable):
        return {}
    return {
        model["id"]: price
        for model in models
        if isinstance(model, Mapping) and isinstance(model.get("id"), str) and (price := _price(model.get("pricing")))
    }


def _price(pricing: Any) -> Price | None:
    if not isinstance(pricing, Mapping):
        return None
    prompt, completion = (_amount(pricing.get(name)) for name in ("input", "output"))
    return None if prompt is None or completion is None else Price(prompt, completion)


def _amount(value: Any) -> float | None:
    """Returns a price, which some services send as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if 0 <= amount < float("inf") else None
