"""Which errors say that the account is empty, under whatever status: waiting does not mend them. Pure.

| service | says, as `code`, `type` or `error_code` | source |
|---|---|---|
| OpenAI | `insufficient_quota`, `credit_balance_exhausted`, `organization_usage_limit_exceeded`, `billing_not_active`, `organization_spend_limit_exceeded`, `project_spend_limit_exceeded`, `billing_hard_limit_reached` | help.openai.com, 6614457 |
| Anthropic | `enforced_spend_limit_reached` in `error.details.error_code` | platform.claude.com, rate limits |
| Moonshot | `exceeded_current_quota_error` | platform.kimi.ai, errors |
| Zhipu, Z.ai | `1113` (in arrears), `1309` (the plan has expired) | docs.z.ai, errors |
| gateways (One API, New API, LiteLLM) | `insufficient_user_quota`, `insufficient_balance`, `insufficient_credits`, `budget_exceeded` | their sources |
| xAI, Gemini, DeepSeek | only a sentence; see `_SENTENCES` | reports of their users |

Together, DeepSeek, OpenRouter and Mistral answer with status 402, Groq with 400, Fireworks with 412; these need no table.

Not here, since they pass by waiting: `rate_limit_exceeded` (OpenAI, Groq), `rate_limit_reached_error` (Moonshot), Gemini's
`RESOURCE_EXHAUSTED`, Zhipu's `1302`, `1305` and `1308`, and Alibaba's limit of tokens per minute, which it calls
`insufficient_quota` with OpenAI's own words: only the link in it tells the two apart.
"""  # noqa: E501 - a table

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_CODES: Final = frozenset(
    {
        "1113",
        "1309",
        "billing_hard_limit_reached",
        "billing_not_active",
        "budget_exceeded",
        "credit_balance_exhausted",
        "enforced_spend_limit_reached",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "insufficient_credits",
        "insufficient_quota",
        "insufficient_user_quota",
        "organization_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "project_spend_limit_exceeded",
    }
)
_KEYS: Final = ("code", "type", "error_type", "error_code")
_SENTENCES: Final = re.compile(
    r"used all available credits|prepayment credits are depleted|monthly spending cap|suspended due to insufficient",
    re.IGNORECASE,
)
_PASSES: Final = re.compile(
    r"aliyun|alibabacloud|per[ -](?:second|minute|hour|day)|/min\b|(?:try again|retry) in\b", re.IGNORECASE
)
"""What a message has that is about a rate."""
_MAX_MESSAGE: Final = 500
"""The most characters of a message that are searched."""


def is_out_of_quota(body: Any) -> bool:
    """Returns whether an error says that the account's money or quota is used up, so that waiting does not help.

    Args:
        body: The decoded body of an error response, or an error object out of a body or a stream, of any type.
    """
    if isinstance(body, list):  # Gemini's
        body = body[0] if body else None
    messages, codes = [], set()
    for place in _places(body):
        message = place.get("message")
        messages.append(message if isinstance(message, str) else "")
        codes |= {str(place[key]).lower() for key in _KEYS if isinstance(place.get(key), (str, int))}
    if isinstance(body, Mapping) and isinstance(body.get("error"), str):
        messages.append(body["error"])
    text = " ".join(message[:_MAX_MESSAGE] for message in messages)
    return bool(not codes.isdisjoint(_CODES) or _SENTENCES.search(text)) and not _PASSES.search(text)


def _places(body: Any) -> Iterator[Mapping[str, Any]]:
    """The mappings in which a code may stand: the body, its error, and the details of either."""
    if not isinstance(body, Mapping):
        return
    for place in (body, body.get("error")):
        if isinstance(place, Mapping):
            yield place
            details = place.get("details")
            if isinstance(details, Mapping):
                yield details
