"""Which errors say that the account is empty, by the bodies that services send."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.wire.quota import is_out_of_quota

OPENAI = "You exceeded your current quota, please check your plan and billing details."
XAI = "Your team t has either used all available credits or reached its monthly spending limit. Purchase more."
EMPTY: dict[str, Any] = {
    "openai": {"error": {"message": OPENAI, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}},
    "openai, the type alone": {"error": {"message": OPENAI, "type": "insufficient_quota", "code": None}},
    "openai, credits": {"error": {"message": "", "type": "insufficient_quota", "code": "credit_balance_exhausted"}},
    "openai, project": {"error": {"type": "insufficient_quota", "code": "project_spend_limit_exceeded"}},
    "openai, hard limit": {"error": {"message": "Billing hard limit", "code": "billing_hard_limit_reached"}},
    "openai, inactive": {"error": {"message": "Your account is not active", "code": "billing_not_active"}},
    "the error object alone": {"message": OPENAI, "type": "insufficient_quota"},
    "anthropic": {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "You have reached your API usage limits: you will regain access on 2026-09-01 at 00:00 UTC.",
            "details": {"error_code": "enforced_spend_limit_reached"},
        },
    },
    "moonshot": {
        "error": {
            "message": "Your account is suspended due to insufficient balance, please recharge your account",
            "type": "exceeded_current_quota_error",
        }
    },
    "zhipu": {"error": {"code": "1113", "message": "Insufficient balance or no resource package. Please recharge."}},
    "zhipu, a number": {"error": {"code": 1113, "message": "您的账户已欠费,请充值后重试"}},
    "xai": {"code": "Some resource has been exhausted", "error": XAI},
    "gemini": [
        {
            "error": {
                "code": 429,
                "message": "Your prepayment credits are depleted. Please go to AI Studio.",
                "status": "RESOURCE_EXHAUSTED",
            }
        }
    ],
    "one api": {"error": {"message": "user quota is not enough", "type": "new_api", "code": "insufficient_user_quota"}},
}
PASSES: dict[str, Any] = {
    "together": {"error": {"type": "dynamic_request_limited", "message": "Request was rejected due to request rate"}},
    "openai": {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}},
    "groq": {
        "error": {
            "message": "Rate limit reached on tokens per minute (TPM): Please try again in 51.48s. "
            "Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing",
            "type": "tokens",
            "code": "rate_limit_exceeded",
        }
    },
    "gemini": [
        {
            "error": {
                "code": 429,
                "message": f"{OPENAI} Quota exceeded for metric: requests, limit: 5. Please retry in 33.5s.",
                "status": "RESOURCE_EXHAUSTED",
            }
        }
    ],
    "gemini, no time": {"error": {"code": 429, "message": OPENAI, "status": "RESOURCE_EXHAUSTED"}},
    "alibaba, in openai's words": {
        "error": {
            "code": "insufficient_quota",
            "message": f"{OPENAI} For details, see: https://help.aliyun.com/zh/model-studio/error-code#token-limit",
            "param": None,
            "type": "insufficient_quota",
        }
    },
    "alibaba": {
        "code": "Throttling.AllocationQuota",
        "message": "Allocated quota exceeded, increase your quota.",
    },
    "moonshot": {"error": {"type": "rate_limit_reached_error", "message": "Your account reached max request"}},
    "moonshot, overload": {"error": {"type": "engine_overloaded_error", "message": "The engine is overloaded"}},
    "zhipu": {"error": {"code": "1302", "message": "Rate limit reached for requests"}},
    "zhipu, five hours": {"error": {"code": "1308", "message": "Usage limit reached. It will reset at 12:00"}},
    "anthropic": {"type": "error", "error": {"type": "rate_limit_error", "message": "Number of request tokens"}},
    "mistral": {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"},
    "azure": {"error": {"code": "429", "message": "Exceeded token rate limit. Please retry after 6 seconds."}},
    "openrouter": {"error": {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits to", "code": 429}},
    "text": "insufficient_quota",
    "nothing": None,
    "an empty list": [],
    "a list of texts": ["insufficient_quota"],
    "a code of another type": {"error": {"code": ["insufficient_quota"], "type": {}, "message": 5}},
}


@pytest.mark.parametrize("body", EMPTY.values(), ids=EMPTY)
def test_an_empty_account(body: Any) -> None:
    assert is_out_of_quota(body)


@pytest.mark.parametrize("body", PASSES.values(), ids=PASSES)
def test_a_rate_is_no_empty_account(body: Any) -> None:
    """These pass by waiting, whatever they say of quotas, credits and billing."""
    assert not is_out_of_quota(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda values: (
            st.lists(values, max_size=3)
            | st.dictionaries(st.sampled_from(["error", "code", "type", "message", "details"]), values, max_size=5)
        ),
    )
)
def test_any_body_is_judged(body: Any) -> None:
    assert is_out_of_quota(body) in (True, False)
