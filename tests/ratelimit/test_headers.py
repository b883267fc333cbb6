"""What headers and the bodies of 429s report."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from together_async.ratelimit.headers import NOTHING, AccountLimits, ReportedLimit, limited_kind, read_limits
from together_async.testing import Account, Dynamic, Rate


def test_headers_without_limits_report_nothing() -> None:
    assert read_limits({}) is None
    assert read_limits({"x-ratelimit-reset": "3", "content-type": "a/b"}) is None
    assert read_limits({"x-ratelimit-remaining": "5"}) is None  # without a time it says nothing
    assert read_limits({"x-ratelimit-limit": "0", "x-ratelimit-remaining": "5"}) is None


def test_headers_of_a_fixed_rate() -> None:
    reported = read_limits(
        {
            "x-ratelimit-limit": "10",
            "x-ratelimit-remaining": "4",
            "x-tokenlimit-limit": "1000.5",
            "x-tokenlimit-remaining": "700",
        }
    )
    assert reported is not None
    assert (reported.requests.limit, reported.requests.remaining) == (10, 4)
    assert (reported.tokens.limit, reported.tokens.remaining) == (1000.5, 700)


def test_what_holds_now_is_preferred_to_what_it_may_rise_to() -> None:
    reported = read_limits(
        {
            "x-ratelimit-limit": "100",
            "x-ratelimit-limit-dynamic": "7",
            "x-ratelimit-remaining": "93",
            "x-ratelimit-remaining-dynamic": "2",
        }
    )
    assert reported is not None
    assert (reported.requests.limit, reported.requests.remaining) == (7, 2)
    assert (reported.tokens.limit, reported.tokens.remaining) == (None, None)


@pytest.mark.parametrize(
    "garbage",
    ["", " ", "x", "-1", "-0.1", "nan", "inf", "-inf", "1e999", "1e13", "10 per second", "5,000", "0x10"],
)
def test_garbage_in_one_header_spoils_no_other(garbage: str) -> None:
    reported = read_limits(
        {
            "x-ratelimit-limit": garbage,
            "x-ratelimit-remaining": "4",
            "x-tokenlimit-limit": "1000",
            "x-tokenlimit-remaining": garbage,
        }
    )
    assert reported is not None
    assert reported.requests.limit is None
    assert (reported.tokens.limit, reported.tokens.remaining) == (1000, None)


@pytest.mark.parametrize("dynamic", ["", "nonsense", "0"])
def test_unusable_dynamic_limit_leaves_the_bare_one(dynamic: str) -> None:
    reported = read_limits({"x-ratelimit-limit": "100", "x-ratelimit-limit-dynamic": dynamic})
    assert reported is not None
    assert reported.requests.limit == 100


def test_limit_of_zero_reports_nothing() -> None:
    """One bad header would stop a model for ever. 0 remaining is possible, and passes."""
    reported = read_limits({"x-ratelimit-limit": "0", "x-tokenlimit-limit": "5", "x-tokenlimit-remaining": "0"})
    assert reported is not None
    assert reported.requests.limit is None
    assert reported.tokens.limit == 5
    assert reported.tokens.remaining == 0


# ------------------------------------------------------------------------------------------------ other services' names

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def read(headers: dict[str, str]) -> AccountLimits | None:
    return read_limits(headers, lambda: NOW)


def openai(limit: object, remaining: object, reset: str, kind: str = "requests") -> dict[str, str]:
    values = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
    return {f"x-ratelimit-{what}-{kind}": value for what, value in values.items()}


def anthropic(what: str, limit: object, remaining: object, reset: str = "2023-11-14T22:13:50Z") -> dict[str, str]:
    values = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
    return {f"anthropic-ratelimit-{what}-{end}": value for end, value in values.items()}


def bare(limit: object, remaining: object, reset: str) -> dict[str, str]:
    return {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(remaining), "x-ratelimit-reset": reset}


def older(limit: object, remaining: object, reset: str, **others: str) -> dict[str, str]:
    values = {"limit": str(limit), "remaining": str(remaining), "reset": reset, **others}
    return {f"ratelimit-{what}": value for what, value in values.items()}


TWO_POLICIES = '"min";q=60;w=60,"day";q=1000;w=86400'
REQUESTS = {
    # Together: per second, whatever the reset
    "together, dynamic": (bare(10, 4, "7") | {"x-ratelimit-limit-dynamic": "5"}, ReportedLimit(5, 4, 7)),
    "together, tokens too": (bare(10, 4, "7") | {"x-tokenlimit-limit": "0"}, ReportedLimit(10, 4, 7)),
    "together, used up": (bare(10, 0, "7"), ReportedLimit(10, 0, 7)),
    "together, full": (bare(10, 10, "0"), ReportedLimit(10, 10)),
    "together, reset without sense": (bare(10, 0, "-5"), ReportedLimit(10, 0)),
    "together, reset beyond a day": (bare(10, 0, "100000"), ReportedLimit(10, 0)),
    # gateways: the reset is the end of a window of unknown length
    "slowapi": (bare(60, 59, f"{NOW + 42.5}"), ReportedLimit(None, 59, 42.5)),
    "slowapi, used up": (bare(60, 0, f"{NOW + 42}"), ReportedLimit(None, 0, 42)),
    "express, milliseconds": (bare(60, 0, f"{(NOW + 42) * 1000:.0f}"), ReportedLimit(None, 0, 42)),
    "an HTTP date": (bare(60, 5, "Tue, 14 Nov 2023 22:13:50 GMT"), ReportedLimit(None, 5, 30)),
    "a window that has ended": (bare(60, 5, f"{NOW - 3:.0f}"), NOTHING),
    "a window far ahead": (bare(60, 5, f"{NOW + 200_000:.0f}"), NOTHING),
    "seconds until the end of a window": (bare(60, 59, "42"), ReportedLimit(None, 59, 42)),
    "envoy": (bare("100, 100;w=60", 99, "42"), ReportedLimit(100 / 60, 99, 42, 60)),
    "envoy, two windows": (bare("10, 10;w=1, 600;w=3600", 9, "1"), ReportedLimit(10, 9, 1, 1)),
    "a pair alone": ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "9"}, ReportedLimit(None, 3, 9)),
    # OpenAI, Groq: the time until full gives the rate
    "openai, a minute": (openai(60, 59, "1s"), ReportedLimit(1, 59, 0, 60)),
    "openai, milliseconds": (openai(30_000, 29_999, "2ms"), ReportedLimit(500, 29_999, 0, 60)),
    "openai, rounded": (openai(10_000, 9_997, "17ms"), ReportedLimit(10_000 / 60, 9_997, 0, 60)),
    "openai, used up": (openai(60, 0, "1m0s"), ReportedLimit(1, 0, 1, 60)),
    "groq, a day": (openai(14_400, 14_370, "2m59.56s"), ReportedLimit(14_400 / 86_400, 14_370, 0, 86_400)),
    "groq, a day used up": (openai(1_000, 0, "24h0m0s"), ReportedLimit(1_000 / 86_400, 0, 86.4, 86_400)),
    "another window": (openai(1_000, 900, "10s"), ReportedLimit(10, 900, 0, 100)),
    "a fixed window": (openai(60, 59, "59s"), ReportedLimit(None, 59, 59)),
    "a fixed window of many": (openai(1_000, 999, "59s"), ReportedLimit(None, 999, 59)),
    "plain seconds": (openai(60, 59, "42"), ReportedLimit(None, 59, 42)),
    "a date": (openai(60, 59, f"{NOW + 42:.0f}"), ReportedLimit(None, 59, 42)),
    "full": (openai(60, 60, "0s"), NOTHING),
    "no reset": ({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}, NOTHING),
    "more left than there is": (openai(60, 61, "5s"), ReportedLimit(None, 61, 5)),
    "limit of nothing": (openai(0, 0, "5s"), ReportedLimit(None, 0, 5)),
    # Anthropic: per minute
    "anthropic": (anthropic("requests", 50, 49), ReportedLimit(50 / 60, 49, 0, 60)),
    "anthropic, used up": (anthropic("requests", 120, 0), ReportedLimit(2, 0, 0.5, 60)),
    "anthropic, no limit": (anthropic("requests", "", 0), ReportedLimit(None, 0, 30)),
    # the drafts
    "draft 10": (
        {"ratelimit": '"default";r=50;t=30', "ratelimit-policy": '"default";q=100;w=60'},
        ReportedLimit(100 / 60, 50, 30, 60),
    ),
    "draft 10, used up": (
        {"ratelimit": '"default";r=0;t=30', "ratelimit-policy": '"default";q=100;w=60;pk=:cHsdsRa894==:'},
        ReportedLimit(100 / 60, 0, 30, 60),
    ),
    "the one of which the least remains": (
        {
            "ratelimit": '"day";r=900;t=9000, "min";r=50;t=30',
            "ratelimit-policy": '"min";q=60;w=60,"day";q=1000;w=86400',
        },
        ReportedLimit(1, 50, 30, 60),
    ),
    "the day's, when it ends": (
        {"ratelimit": '"day";r=2;t=9000, "min";r=50;t=30', "ratelimit-policy": TWO_POLICIES},
        ReportedLimit(1000 / 86_400, 2, 9_000, 86_400),
    ),
    "no policy": ({"ratelimit": '"default";r=50;t=30'}, ReportedLimit(None, 50, 30)),
    "another policy": (
        {"ratelimit": '"default";r=50;t=30', "ratelimit-policy": '"other";q=100;w=60'},
        ReportedLimit(None, 50, 30),
    ),
    "no window": ({"ratelimit": '"a";r=50;t=30', "ratelimit-policy": '"a";q=100'}, ReportedLimit(None, 50, 30)),
    "a policy alone": ({"ratelimit-policy": '"a";q=120;w=60'}, ReportedLimit(2, None, 0, 60)),
    "a week": ({"ratelimit": '"a";r=5;t=9', "ratelimit-policy": '"a";q=9;w=604800'}, ReportedLimit(None, 5, 9)),
    "bytes": ({"ratelimit": '"a";r=5;t=9', "ratelimit-policy": '"a";q=9;w=9;qu="content-bytes"'}, NOTHING),
    "at once": ({"ratelimit": '"a";r=5;t=9', "ratelimit-policy": '"a";q=9;w=9;qu="concurrent-requests"'}, NOTHING),
    "draft 7": (
        {"ratelimit": "limit=100, remaining=50, reset=30", "ratelimit-policy": "100;w=60"},
        ReportedLimit(100 / 60, 50, 30, 60),
    ),
    "draft 7, no policy": ({"ratelimit": "limit=100, remaining=50, reset=30"}, ReportedLimit(None, 50, 30)),
    "draft 6": (older(100, 50, "30", policy="100;w=60"), ReportedLimit(100 / 60, 50, 30, 60)),
    "draft 3": (older('100, 100;w=60;comment="a, b"', 50, "30"), ReportedLimit(100 / 60, 50, 30, 60)),
    "draft 3, two windows": (older("10, 10;w=1, 1000;w=3600", 5, "1"), ReportedLimit(10, 5, 1, 1)),
    "draft 3, no window": (older(100, 50, "30"), ReportedLimit(None, 50, 30)),
    "gitlab": (older(100, 50, f"{NOW + 30:.0f}"), ReportedLimit(None, 50, 30)),
    # several
    "a gateway before a service": (
        openai(60, 59, "1s") | {"ratelimit": '"a";r=5;t=9', "ratelimit-policy": '"a";q=9;w=9'},
        ReportedLimit(1, 5, 9, 9),
    ),
}
TOKENS = {
    "together": ({"x-tokenlimit-limit": "9", "x-tokenlimit-remaining": "0"}, ReportedLimit(9, 0)),
    "openai": (openai(150_000, 149_984, "6ms", "tokens"), ReportedLimit(2_500, 149_984, 0, 60)),
    "openai, used up": (openai(6_000, 0, "1m0s", "tokens"), ReportedLimit(100, 0, 0, 60)),
    "openai, nonsense": (openai(150_000, 149_984, "6m0s", "tokens"), ReportedLimit(None, 149_984, 360)),
    "anthropic": (anthropic("tokens", 80_000, 79_000), ReportedLimit(80_000 / 60, 79_000, 0, 60)),
    "anthropic, both directions": (
        anthropic("input-tokens", 40_000, 30_000) | anthropic("output-tokens", 8_000, 7_000),
        ReportedLimit(800, 37_000, 0, 60),
    ),
    "anthropic, one direction": (anthropic("input-tokens", 40_000, 30_000), NOTHING),
    "draft": (
        {"ratelimit": '"a";r=5;t=9, "b";r=7;t=3', "ratelimit-policy": '"a";q=60;w=60;qu="tokens", "b";q=9;w=1'},
        ReportedLimit(1, 5, 9, 60),
    ),
}


@pytest.mark.parametrize(("headers", "reported"), REQUESTS.values(), ids=REQUESTS)
def test_limits_on_requests(headers: dict[str, str], reported: ReportedLimit) -> None:
    assert_same((read(headers) or AccountLimits()).requests, reported)


@pytest.mark.parametrize(("headers", "reported"), TOKENS.values(), ids=TOKENS)
def test_limits_on_tokens(headers: dict[str, str], reported: ReportedLimit) -> None:
    assert_same((read(headers) or AccountLimits()).tokens, reported)


def assert_same(found: ReportedLimit, wanted: ReportedLimit) -> None:
    assert [value is None for value in found] == [value is None for value in wanted]
    assert [value or 0 for value in found] == pytest.approx([value or 0 for value in wanted], abs=1e-6)


def test_a_service_reports_both_kinds() -> None:
    """Each has a window of its own."""
    reported = read(openai(14_400, 14_370, "3m0s") | openai(6_000, 5_990, "100ms", "tokens"))
    assert reported is not None
    assert (reported.requests.window_s, reported.tokens.window_s) == (86_400, 60)


def test_names_in_any_case() -> None:
    """The headers of a response are found so."""
    headers = {name.title(): value for name, value in openai(60, 59, "1s").items()}
    assert read_limits(CIMultiDict(headers)) == AccountLimits(ReportedLimit(1, 59, 0, 60))


NAMES = [
    *(
        f"x-{kind}-{what}{ending}"
        for kind in ("ratelimit", "tokenlimit")
        for what in ("limit", "remaining", "reset")
        for ending in ("", "-dynamic")
    ),
    *openai(0, 0, ""),
    *openai(0, 0, "", "tokens"),
    *anthropic("requests", 0, 0),
    *anthropic("tokens", 0, 0),
    *anthropic("input-tokens", 0, 0),
    *anthropic("output-tokens", 0, 0),
    *older(0, 0, ""),
    "ratelimit",
    "ratelimit-policy",
]


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.text(max_size=12)
        | st.text('0123456789.dhmsuµ";=,rtqwu ', max_size=20)
        | st.floats().map(str)
        | st.integers().map(str)
        | st.integers(0, 100).map(str)
        | st.integers(0, 200).map("{}s".format)
        | st.integers(0, 200).map('"a";r=5;q=9;t={0};w={0}'.format),
    )
)
def test_any_header_is_read_or_ignored(headers: dict[str, str]) -> None:
    """Limits and windows that can be kept, resets within a day, and never NaN."""
    reported = read(headers)
    for capacity in reported or ():
        assert capacity.limit is None or 1 / 86_400 <= capacity.limit <= 1e12
        assert capacity.remaining is None or 0 <= capacity.remaining <= 1e12
        assert 0 <= capacity.reset_s <= 86_400
        assert 0 < capacity.window_s <= 86_400
        assert math.isfinite(capacity.window_s)
        assert capacity.limit is not None or capacity.remaining is None or capacity.reset_s


@pytest.mark.parametrize("dynamic", [None, Dynamic()])
def test_headers_of_the_emulators_account(dynamic: Dynamic | None) -> None:
    """They are the service's own, so emulator and client mean the same."""
    account = Account(Rate(10, 500, dynamic=dynamic), clock=lambda: 0.0)
    verdict = account.admit("m", 20)
    reported = read_limits(verdict.headers)
    state = account.state("m")
    assert reported is not None
    assert state.requests is not None
    assert state.tokens is not None
    assert reported.requests.limit == pytest.approx(state.requests.limit)
    assert reported.tokens.limit == pytest.approx(state.tokens.limit)
    assert reported.tokens.remaining == int(state.tokens.remaining)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"type": "dynamic_request_limited"}}, "requests"),
        ({"error": {"type": "dynamic_token_limited"}}, "tokens"),
        ({"error": {"error_type": "dynamic_token_limited", "type": "rate_limit"}}, "tokens"),
        ({"error_type": "dynamic_request_limited", "error": "slow down"}, "requests"),
        ({"type": "dynamic_token_limited"}, "tokens"),
        ({"error": {"type": "tokens", "code": "rate_limit_exceeded"}}, "tokens"),
        ({"error": {"type": "requests", "code": "rate_limit_exceeded"}}, "requests"),
        ({"error": {"message": "on tokens per min (TPM): Limit 10000, Requested 9", "code": "x"}}, "tokens"),
        ({"error": {"message": "Limit: 3 / min, requests per min. Please try again"}}, "requests"),
        ({"error": {"message": "organization max RPM: 3, please try again", "type": "rate_limit_reached"}}, "requests"),
        ({"error": {"message": "Requests have exceeded token rate limit of your tier"}}, "tokens"),
        ({"message": "your rate limit of 40,000 input tokens per minute", "type": "error"}, "tokens"),
        ({"error": "slow down: 5 requests per minute"}, "requests"),
        ({"error": {"message": "tokens per minute or requests per minute"}}, None),  # which?
        ({"error": {"message": "This request has 500 tokens, rpm and tpm"}}, None),
        ({"error": {"message": f"{'x' * 600} tokens per minute"}}, None),
        ({"error": {"message": ["tokens per minute"]}}, None),
        ({"error": {"type": "invalid_request_error"}}, None),  # not a limit
        ({"error": {"type": "invalid_token"}}, None),
        ({"error": {"type": 5}}, None),
        ({"error": "token limit"}, None),
        ({"error": None}, None),
        ("dynamic_token_limited", None),
        ([], None),
        (None, None),
    ],
)
def test_kind_of_a_429(body: Any, kind: str | None) -> None:
    assert limited_kind(body) == kind
