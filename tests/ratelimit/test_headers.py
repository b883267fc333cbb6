"""What headers and the bodies of 429s report."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.ratelimit.headers import limited_kind, read_limits
from together_async.testing import Account, Dynamic, Rate


def test_headers_without_limits_report_nothing() -> None:
    assert read_limits({}) is None
    assert read_limits({"x-ratelimit-reset": "3", "x-ratelimit-remaining": "5", "content-type": "a/b"}) is None


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


@given(
    st.dictionaries(
        st.sampled_from(
            [
                f"x-{kind}-{what}{ending}"
                for kind in ("ratelimit", "tokenlimit")
                for what in ("limit", "remaining", "reset")
                for ending in ("", "-dynamic")
            ]
        ),
        st.one_of(st.text(max_size=12), st.floats().map(str), st.integers().map(str)),
    )
)
def test_any_header_is_read_or_ignored(headers: dict[str, str]) -> None:
    """Limits above 0, what is left from minus an hour's worth on, and never NaN."""
    reported = read_limits(headers)
    for capacity in reported or ():
        assert capacity.limit is None or 0 < capacity.limit <= 1e12
        assert capacity.remaining is None or math.isfinite(capacity.remaining)


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
