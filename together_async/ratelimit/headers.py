"""What a response's headers tell about the account's limits. Pure.

Together: https://docs.together.ai/docs/serverless/rate-limits. The limits are per second; those with `-dynamic` are
what holds now, the bare ones what it may rise to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["requests", "tokens"]

_LARGEST: Final = 1e12
_REQUESTS: Final = tuple(f"x-ratelimit-{end}" for end in ("limit", "limit-dynamic", "remaining", "remaining-dynamic"))
_TOKENS: Final = tuple(f"x-tokenlimit-{end}" for end in ("limit", "limit-dynamic", "remaining", "remaining-dynamic"))
_PER, _DYNAMIC_PER, _TOKENS_PER, _DYNAMIC_TOKENS_PER = (*_REQUESTS[:2], *_TOKENS[:2])
"""Without one of these there is nothing to tell, which is the usual case."""


class Capacity(NamedTuple):
    """What a response tells of one kind.

    Attributes:
        limit: Per second; None when it does not say.
        left: How much of it was left; None when it does not say.
        reset_s: Seconds until there is enough again for a request like the one that was answered.
    """

    limit: float | None = None
    left: float | None = None
    reset_s: float = 0.0


class AccountLimits(NamedTuple):
    """What a response tells about the account's limits."""

    requests: Capacity = Capacity()
    tokens: Capacity = Capacity()


def read_limits(headers: Mapping[str, str]) -> AccountLimits | None:
    """Returns what the headers tell, None when that is nothing.

    Args:
        headers: Of a response, to be asked for names in lower case.
    """
    if not (_PER in headers or _DYNAMIC_PER in headers or _TOKENS_PER in headers or _DYNAMIC_TOKENS_PER in headers):
        return None
    requests, tokens = _values(headers, _REQUESTS), _values(headers, _TOKENS)
    reset_s = _amount(headers.get("x-ratelimit-reset")) or 0.0
    return AccountLimits(_capacity(requests, reset_s), _capacity(tokens, reset_s))


def _values(headers: Mapping[str, str], names: tuple[str, ...]) -> tuple[str | None, ...]:
    get = headers.get
    limit, dynamic, left, left_dynamic = names
    return get(limit), get(dynamic), get(left), get(left_dynamic)


def _capacity(values: tuple[str | None, ...], reset_s: float) -> Capacity:
    limit, dynamic, left, left_dynamic = map(_amount, values)
    # A limit of 0 would stop everything for ever on one bad header, so it tells nothing.
    return Capacity(dynamic or limit or None, left if left_dynamic is None else left_dynamic, reset_s)


def _amount(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number <= _LARGEST else None


def limited_kind(body: Any) -> Kind | None:
    """Returns which of the limits a 429's body says was passed, None when it does not say.

    Together's types are `dynamic_request_limited` and `dynamic_token_limited`, under `type` or `error_type`.
    """
    for place in (body, body.get("error") if isinstance(body, Mapping) else None):
        if not isinstance(place, Mapping):
            continue
        for key in ("error_type", "type"):
            said = place.get(key)
            if isinstance(said, str) and "limit" in said:
                if "token" in said:
                    return "tokens"
                if "request" in said:
                    return "requests"
    return None
