"""What a response reports about the account's limits, in its headers and in the body of a 429. Pure.

| headers | limit | reset | source |
|---|---|---|---|
| `x-ratelimit-{limit,remaining,reset}`, `x-tokenlimit-{limit,remaining}`, each with `-dynamic` | per second; `-dynamic` holds now, the other may be reached with steady traffic | seconds until there is enough for the same request again | Together: docs.together.ai/docs/serverless/rate-limits |
| the first three alone, with a date as reset, or a reset far away while some remain | of an unknown window: only the pair of remaining and reset is reported | Unix time, end of the window | gateways: slowapi, express-rate-limit |
| `x-ratelimit-limit: 100, 100;w=60` | per `w` seconds | seconds, end of the window | Envoy |
| `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` | per second, minute or day, or for any window of up to 120 s; which of them follows from the reset | Go's duration until the bucket is full; in another form it may be anything, and only the pair is reported | OpenAI, Groq, Azure, xAI |
| `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}` | per minute | RFC 3339, when the bucket is full | platform.claude.com/docs/en/api/rate-limits |
| `ratelimit: "a";r=50;t=30`, `ratelimit-policy: "a";q=100;w=60;qu="tokens"` | `q` per `w` seconds | `t` seconds, when there is more | draft-ietf-httpapi-ratelimit-headers, 8 to 10 |
| `ratelimit: limit=100, remaining=50, reset=30`, `ratelimit-policy: 100;w=60` | per `w` seconds | seconds, end of the window | the same, 7 |
| `ratelimit-{limit,remaining,reset}`, `ratelimit-limit: 100, 100;w=60` | per `w` seconds; without `w` only the pair | seconds, or Unix time | the same, to 6; GitLab |

If several limits of one kind are reported, the one with the least remaining counts: it stops the next request.
Nothing is believed that makes no sense: `header_values.seconds_to_wait` says which times do, `LEAST_RATE` and
`LARGEST` which numbers.
"""  # noqa: E501 - a table

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from together_async.wire.header_values import (
    ANTHROPIC_NAMES,
    DAY_S,
    DRAFT_NAMES,
    OPENAI_NAMES,
    TOGETHER_NAMES,
    ListItem,
    go_duration,
    is_date,
    list_items,
    seconds_to_wait,
)

Kind: TypeAlias = Literal["requests", "tokens"]
Clock: TypeAlias = Callable[[], float]
Get: TypeAlias = Callable[[str], str | None]

LARGEST: Final = 1e12
"""The most requests or tokens that are believed, per second or in all."""
LEAST_RATE: Final = 1 / DAY_S
"""The least limit per second that is believed. One of 0 would stop everything for ever because of one bad header."""
MINUTE_S: Final = 60.0
_PER_SECOND_RESET_S: Final = 2.0
"""A limit per second of which something remains is full again before that."""
_TOLERANCE: Final = 0.05
_RESOLUTION_S: Final = 0.001
"""How exact the durations of Go are in headers: services round them to milliseconds."""
_LONGEST_COMPUTED_S: Final = 120.0
"""A window that is computed and is neither a minute nor a day is believed up to this length."""
_REQUESTS: Final = (
    TOGETHER_NAMES.limit,
    f"{TOGETHER_NAMES.limit}-dynamic",
    TOGETHER_NAMES.remaining,
    f"{TOGETHER_NAMES.remaining}-dynamic",
)
_TOKENS: Final = tuple(f"x-tokenlimit-{end}" for end in ("limit", "limit-dynamic", "remaining", "remaining-dynamic"))
_BARE: Final = frozenset({*_REQUESTS[:3], *_TOKENS[:2]})
_OPENAI: Final = frozenset(names.remaining for names in OPENAI_NAMES.values())
_ANTHROPIC: Final = frozenset(ANTHROPIC_NAMES[what].limit for what in ("requests", "tokens", "input-tokens"))
_DRAFTS: Final = frozenset({"ratelimit", "ratelimit-policy", DRAFT_NAMES.remaining})
_OTHERS: Final = _OPENAI | _ANTHROPIC | _DRAFTS
_ANY: Final = _BARE | _OTHERS
"""A response without any of these headers reports nothing, which is the usual case."""
_TOKENS_IN_WORDS: Final = re.compile(
    r"\b(?:tokens?(?: usage)? per[ -](?:second|min|minute|hour|day)|token rate limit|number of request tokens"
    r"|(?-i:[IO]?TPM|TPD))\b",
    re.IGNORECASE,
)
_REQUESTS_IN_WORDS: Final = re.compile(
    r"\b(?:requests? per[ -](?:second|min|minute|hour|day)|request rate limit|(?-i:RPM|RPD|RPS))\b", re.IGNORECASE
)
_MAX_MESSAGE: Final = 500
"""The most characters of a message that are searched."""


class ReportedLimit(NamedTuple):
    """The limit of one kind, requests or tokens, as a response reports it.

    Attributes:
        limit: Requests or tokens per second; None when it is not reported, or for a window that is not known.
        remaining: How many of them are left; None when it is not reported.
        reset_s: Seconds until there is enough again for a request like the one just answered, or, for a limit of a
            window, until the window ends; 0 when not reported, and when something remains of a limit that refills
            steadily. At most a day.
        window_s: For how many seconds the service holds capacity: 1 for a limit per second, 60 for one per minute.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_s: float = 0.0
    window_s: float = 1.0


class AccountLimits(NamedTuple):
    """What a response reports about the account's limits, for its model.

    Attributes:
        requests: The limit on requests.
        tokens: The limit on tokens, of prompt and completion together.
    """

    requests: ReportedLimit = ReportedLimit()
    tokens: ReportedLimit = ReportedLimit()


NOTHING: Final = ReportedLimit()
UNKNOWN: Final = AccountLimits()


def read_limits(headers: Mapping[str, str], now: Clock = time.time) -> AccountLimits | None:
    """Returns the limits that a response's headers report; None if they report none.

    Args:
        headers: The headers; they are looked up by lower-case names.
        now: Returns the wall clock, in seconds since the epoch; asked only for a date.
    """
    names, get = headers.keys(), headers.get
    if names.isdisjoint(_ANY):
        return None
    reports: list[AccountLimits] = []
    if not names.isdisjoint(_BARE):
        reports.append(_bare(get, now))
    if names.isdisjoint(_OTHERS):
        return _known(reports[0])
    if not names.isdisjoint(_OPENAI):
        reports.append(AccountLimits(_openai(get, "requests", now), _openai(get, "tokens", now)))
    if not names.isdisjoint(_ANTHROPIC):
        reports.append(AccountLimits(_anthropic(get, "requests", now), _anthropic_tokens(get, now)))
    if not names.isdisjoint(_DRAFTS):
        reports += _drafts(get, now)
    return _known(reports[0] if len(reports) == 1 else _tightest(reports))


def _known(limits: AccountLimits) -> AccountLimits | None:
    return None if limits == UNKNOWN else limits


def _tightest(reports: list[AccountLimits]) -> AccountLimits:
    """Returns, of each kind, the limit of which the least remains."""
    return AccountLimits(
        min((report.requests for report in reports), key=_left), min((report.tokens for report in reports), key=_left)
    )


def _left(reported: ReportedLimit) -> float:
    if reported.remaining is not None:
        return reported.remaining
    return float("inf") if reported.limit is None else reported.limit * reported.window_s


# ------------------------------------------------------------------------------------------- Together's, and gateways'


def _bare(get: Get, now: Clock) -> AccountLimits:
    requests, tokens = _values(get, _REQUESTS), _values(get, _TOKENS)
    reset_text = get(TOGETHER_NAMES.reset) or ""
    reset_s = _reset(reset_text, now)
    limit, dynamic_limit, remaining, dynamic_remaining = requests
    if dynamic_limit is None and dynamic_remaining is None and tokens == (None, None, None, None):
        return AccountLimits(_gateway(limit or "", _amount(remaining), reset_s, dated=is_date(reset_text)))
    return AccountLimits(_together(requests, reset_s), _together(tokens, reset_s))


def _values(get: Get, names: tuple[str, ...]) -> tuple[str | None, ...]:
    limit, dynamic_limit, remaining, dynamic_remaining = names
    return get(limit), get(dynamic_limit), get(remaining), get(dynamic_remaining)


def _together(values: tuple[str | None, ...], reset_s: float) -> ReportedLimit:
    limit, dynamic_limit, remaining, dynamic_remaining = map(_amount, values)
    left = remaining if dynamic_remaining is None else dynamic_remaining
    return _windowed(dynamic_limit or limit, 1.0, left, reset_s)


def _gateway(limit: str, remaining: float | None, reset_s: float, *, dated: bool) -> ReportedLimit:
    """Reads the names of Together from a server that sends no others: it may be a gateway, which means other units."""
    amount = _amount(limit)
    if amount is None:
        items = list_items(limit)
        quota = _amount(items[0].value) if items else None
        return _windowed(quota, _window_of(items, quota), remaining, reset_s)
    if dated or (remaining is not None and remaining >= 1 and reset_s > _PER_SECOND_RESET_S):
        return _pair(remaining, reset_s)
    return _windowed(amount, 1.0, remaining, reset_s)


# ----------------------------------------------------------------------------------------- buckets that refill steadily


def _openai(get: Get, kind: Kind, now: Clock) -> ReportedLimit:
    """OpenAI's and Groq's: what was used comes back within the reset, which gives the rate, and with it the unit."""
    names = OPENAI_NAMES[kind]
    limit, remaining, reset = _amount(get(names.limit)), _amount(get(names.remaining)), get(names.reset) or ""
    full_in_s = go_duration(reset)
    if limit and remaining is not None and remaining < limit and full_in_s:
        window_s = _likely_window(limit * full_in_s / (limit - remaining), full_in_s)
        if window_s is not None:
            return _refilling(kind, limit, window_s, remaining)
    return _pair(remaining, _reset(reset, now))


def _likely_window(computed_s: float, full_in_s: float) -> float | None:
    """Returns the window that a computed one means; None for one that has no likely meaning.

    A fixed window whose reset is its end, under the same names, seldom gives a minute or a day here.
    """
    tolerance = min(0.5, _TOLERANCE + _RESOLUTION_S / full_in_s)
    for window_s in (1.0, MINUTE_S, DAY_S):
        if abs(computed_s / window_s - 1) <= tolerance:
            return window_s
    return computed_s if computed_s <= _LONGEST_COMPUTED_S else None


def _anthropic(get: Get, what: str, now: Clock) -> ReportedLimit:
    """Anthropic's: the limits are per minute, and refill steadily. `tokens` is the tightest of those on tokens."""
    names = ANTHROPIC_NAMES[what]
    limit, remaining = _amount(get(names.limit)), _amount(get(names.remaining))
    if not limit:
        return _pair(remaining, _reset(get(names.reset) or "", now))
    return _refilling("requests" if what == "requests" else "tokens", limit, MINUTE_S, remaining)


def _anthropic_tokens(get: Get, now: Clock) -> ReportedLimit:
    """Anthropic's limit on tokens, else those on input and output as one on both together, as ours is."""
    if get(ANTHROPIC_NAMES["tokens"].limit) is not None:
        return _anthropic(get, "tokens", now)
    sides = [_anthropic(get, side, now) for side in ("input-tokens", "output-tokens")]
    limits = [side.limit for side in sides if side.limit is not None]
    left = [side.remaining for side in sides if side.remaining is not None]
    if len(limits) < 2:
        return NOTHING
    return _refilling("tokens", sum(limits) * MINUTE_S, MINUTE_S, sum(left) if len(left) == 2 else None)


def _refilling(kind: Kind, amount: float, window_s: float, remaining: float | None) -> ReportedLimit:
    reported = _windowed(amount, window_s, remaining, 0.0)
    if kind == "requests" and reported.limit is not None and remaining is not None and remaining < 1:
        return reported._replace(reset_s=(1 - remaining) / reported.limit)
    return reported


# ---------------------------------------------------------------------------------------------------- the IETF's drafts


def _drafts(get: Get, now: Clock) -> Iterator[AccountLimits]:
    policies = list_items(get("ratelimit-policy") or "")
    services = list_items(get("ratelimit") or "")
    for service in services:
        named = [policy for policy in policies if policy.value == service.value] if service.value else policies[:1]
        yield _service_limit(named[0] if named else None, service, now)
    limits = list_items(get(DRAFT_NAMES.limit) or "")
    quota = _amount(limits[0].value) if limits else None
    reset_s = _reset(get(DRAFT_NAMES.reset) or "", now)
    window_s = _window_of([*limits, *policies], quota)
    yield AccountLimits(_windowed(quota, window_s, _amount(get(DRAFT_NAMES.remaining)), reset_s))
    if not services and quota is None:
        for policy in policies:
            yield _service_limit(policy, ListItem("", {}), now)


def _service_limit(policy: ListItem | None, service: ListItem, now: Clock) -> AccountLimits:
    """Returns what one item of `ratelimit` reports, with the policy that it is about."""
    ours, theirs = service.parameters, policy.parameters if policy is not None else {}
    # The name of the older policies is their quota.
    quota = _amount(theirs.get("q") or ours.get("limit") or (policy.value if policy is not None else None))
    remaining = _amount(ours.get("r", ours.get("remaining")))
    reset_s = _reset(ours.get("t", ours.get("reset", "")), now)
    reported = _windowed(quota, _amount(theirs.get("w")), remaining, reset_s)
    unit = theirs.get("qu", "requests").lower()
    if unit in ("tokens", "token"):
        return AccountLimits(tokens=reported)
    return AccountLimits(reported) if unit in ("requests", "request") else UNKNOWN


def _window_of(items: list[ListItem], quota: float | None) -> float | None:
    """Returns the seconds for which a quota holds, by the first policy of that size; None without one."""
    return next((_amount(item.parameters.get("w")) for item in items if _is_policy(item, quota)), None)


def _is_policy(item: ListItem, quota: float | None) -> bool:
    return "w" in item.parameters and quota in (_amount(item.value), _amount(item.parameters.get("q")))


# -------------------------------------------------------------------------------------------------------------- amounts


def _windowed(amount: float | None, window_s: float | None, remaining: float | None, reset_s: float) -> ReportedLimit:
    """Returns the limit of an amount per window; without one, or for one that is not believed, the pair alone."""
    if amount and window_s and window_s <= DAY_S and LEAST_RATE <= amount / window_s <= LARGEST:
        return ReportedLimit(amount / window_s, remaining, reset_s, window_s)
    return _pair(remaining, reset_s)


def _pair(remaining: float | None, reset_s: float) -> ReportedLimit:
    """What remains says something only together with the time for which it has to do."""
    return NOTHING if remaining is None or not reset_s else ReportedLimit(None, remaining, reset_s)


def _reset(text: str, now: Clock) -> float:
    return 0.0 if not text or text == "0" else seconds_to_wait(text, now) or 0.0


@functools.lru_cache(maxsize=1_024)  # most responses report what the last one did
def _amount(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number <= LARGEST else None


# ----------------------------------------------------------------------------------------------------------------- 429s


def limited_kind(body: Any) -> Kind | None:
    """Returns which limit a 429's body names as exceeded, None when it names neither, or both.

    Together's types are `dynamic_request_limited` and `dynamic_token_limited`, under `type` or `error_type`; OpenAI's
    and Groq's are `requests` and `tokens`. Other services name the kind in the message: "tokens per minute", "RPM".

    Args:
        body: The decoded body, of any type.
    """
    error = body.get("error") if isinstance(body, Mapping) else None
    places = [place for place in (body, error) if isinstance(place, Mapping)]
    for place in places:
        for key in ("error_type", "type"):
            kind = _kind_of_type(place.get(key))
            if kind is not None:
                return kind
    messages = [place.get("message") for place in places]
    text = " ".join(message[:_MAX_MESSAGE] for message in (*messages, error) if isinstance(message, str))
    tokens, requests = _TOKENS_IN_WORDS.search(text), _REQUESTS_IN_WORDS.search(text)
    if bool(tokens) is bool(requests):
        return None
    return "tokens" if tokens else "requests"


def _kind_of_type(error_type: Any) -> Kind | None:
    if not isinstance(error_type, str):
        return None
    if error_type == "tokens" or ("limit" in error_type and "token" in error_type):
        return "tokens"
    if error_type == "requests" or ("limit" in error_type and "request" in error_type):
        return "requests"
    return None
