"""What a response reports about the account's limits, in its headers and in the body of a 429. Pure.

Together: https://docs.together.ai/docs/serverless/rate-limits. The limits are per second. Those with `-dynamic` hold
now; those without may be reached with steady traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["requests", "tokens"]

_LARGEST: Final = 1e12
_REQUESTS: Final = tuple(f"x-ratelimit-{end}" for end in ("limit", "limit-dynamic", "remaining", "remaining-dynamic"))
_TOKENS: Final = tuple(f"x-tokenlimit-{end}" for end in ("limit", "limit-dynamic", "remaining", "remaining-dynamic"))
_PER, _DYNAMIC_PER, _TOKENS_PER, _DYNAMIC_TOKENS_PER = (*_REQUESTS[:2], *_TOKENS[:2])
"""A response without any of these headers reports nothing, which is the usual case."""


class ReportedLimit(NamedTuple):
    """The limit of one kind, requests or tokens, as a response reports it.

    Attributes:
        limit: Requests or tokens per second; None when it is not reported.
        remaining: How many of them are left; None when it is not reported.
        reset_s: Seconds until there is enough again for a request like the one just answered; 0 when not reported.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_s: float = 0.0


class AccountLimits(NamedTuple):
    """What a response reports about the account's limits, for its model.

    Attributes:
        requests: The limit on requests.
        tokens: The limit on tokens, of prompt and completion together.
    """

    requests: ReportedLimit = ReportedLimit()
    tokens: ReportedLimit = ReportedLimit()


def read_limits(headers: Mapping[str, str]) -> AccountLimits | None:
    """Returns the limits that a response's headers report; None if they report none.

    Args:
        headers: The headers; they are looked up by lower-case names.
    """
    if not (_PER in headers or _DYNAMIC_PER in headers or _TOKENS_PER in headers or _DYNAMIC_TOKENS_PER in headers):
        return None
    requests, tokens = _values(headers, _REQUESTS), _values(headers, _TOKENS)
    reset_s = _amount(headers.get("x-ratelimit-reset")) or 0.0
    return AccountLimits(_reported(requests, reset_s), _reported(tokens, reset_s))


def _values(headers: Mapping[str, str], names: tuple[str, ...]) -> tuple[str | None, ...]:
    get = headers.get
    limit, dynamic_limit, remaining, dynamic_remaining = names
    return get(limit), get(dynamic_limit), get(remaining), get(dynamic_remaining)


def _reported(values: tuple[str | None, ...], reset_s: float) -> ReportedLimit:
    limit, dynamic_limit, remaining, dynamic_remaining = map(_amount, values)
    # A limit of 0 would stop everything for ever because of one bad header, so it is ignored.
    return ReportedLimit(
        dynamic_limit or limit or None, remaining if dynamic_remaining is None else dynamic_remaining, reset_s
    )


def _amount(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number <= _LARGEST else None


def limited_kind(body: Any) -> Kind | None:
    """Returns which limit a 429's body names as exceeded, None when it names neither.

    Together's types are `dynamic_request_limited` and `dynamic_token_limited`, under `type` or `error_type`.

    Args:
        body: The decoded body, of any type.
    """
    for place in (body, body.get("error") if isinstance(body, Mapping) else None):
        if not isinstance(place, Mapping):
            continue
        for key in ("error_type", "type"):
            error_type = place.get(key)
            if isinstance(error_type, str) and "limit" in error_type:
                if "token" in error_type:
                    return "tokens"
                if "request" in error_type:
                    return "requests"
    return None
