"""What tokens cost, from the service's list of models. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

_TOKENS: Final = 1_000_000
"""The service's prices are for as many."""


@attrs.frozen
class Price:
    """US dollars for a million tokens.

    Attributes:
        prompt: Of the prompt.
        completion: That are generated.
    """

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Returns the US dollars for as many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / _TOKENS


def read_prices(listing: Any) -> dict[str, Price]:
    """Returns the prices by model, of those that have one.

    Args:
        listing: The answer of `GET /models`: a list, or an object with a list as its `data`, of objects with `id` and
            `pricing` (`input` and `output`, for a million tokens). Whatever is of another shape is left out.
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
    """Returns a price; some services write them as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if 0 <= amount < float("inf") else None
