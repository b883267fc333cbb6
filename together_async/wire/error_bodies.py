"""The meaning of an error response: its body, in any of the shapes that servers use, and its headers. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from together_async.errors import (
    APIResponseValidationError,
    APIStatusError,
    ContextLengthError,
    InsufficientQuotaError,
    status_error_class,
)
from together_async.wire import codec
from together_async.wire.header_values import (
    ANTHROPIC_NAMES,
    DRAFT_NAMES,
    OPENAI_NAMES,
    TOGETHER_NAMES,
    list_items,
    seconds_to_wait,
)
from together_async.wire.quota import is_out_of_quota
from together_async.wire.redaction import redact

_MAX_MESSAGE = 500
"""The most characters of a server's text that an error message shows."""
_CONTEXT = re.compile(
    r"context.{0,20}(length(?!_exceeded_behavior)|window|size)|maximum context|exceed.{0,40}context"
    r"|tokens.{0,5}\+.{0,5}max_new_tokens",
    re.IGNORECASE,
)
"""How servers word that prompt and max_tokens exceed the context."""
_OUT_OF_QUOTA = " (waiting does not help: add credit to the account or raise its spending limit)"
_RESETS: Final = (*OPENAI_NAMES.values(), *ANTHROPIC_NAMES.values(), DRAFT_NAMES)
"""Where services say when a single limit resets, and what remains of it until then."""


def status_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    secrets: Iterable[str] = (),
    note: str = "",
    now: Callable[[], float] = time.time,
) -> APIStatusError:
    """Returns the exception for an error response.

    Args:
        status: The HTTP status.
        headers: The response's headers, names in lower case.
        body: The body, or the part of it that arrived: JSON of any shape, text, HTML or nothing.
        secrets: Texts which must not appear in the message: the key, the prompt's parts.
        note: A remark for the end of the message.
        now: Returns the wall clock, in seconds since the epoch; asked only for a `retry-after` that is a date.
    """
    decoded = decoded_body(body)
    facts = error_facts(decoded)
    text = facts.message if facts else _plain_text(decoded)
    secrets = tuple(secrets)
    message = redact(text, secrets)[:_MAX_MESSAGE] or "no message"
    cls = status_error_class(status)
    if status in (400, 403) and (
        (facts and facts.code == "context_length_exceeded") or _CONTEXT.search(text[:_MAX_MESSAGE])
    ):
        cls = ContextLengthError
    elif status == 429 and is_out_of_quota(decoded):
        cls, note = InsufficientQuotaError, f"{_OUT_OF_QUOTA}{note}"
    return cls(
        f"{status}: {message}{redact(note, secrets)}",
        status_code=status,
        headers=headers,
        body=decoded,
        request_id=request_id(headers),
        retry_after=retry_after(headers, status=status, now=now),
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    """Returns the response's id from its headers (names in lower case); None when it has none."""
    return headers.get("x-request-id") or headers.get("cf-ray")


def retry_after(headers: Mapping[str, str], *, status: int = 429, now: Callable[[], float]) -> float | None:
    """Returns the seconds that a response asks to wait, at most a day; None when it asks for nothing sensible.

    Args:
        headers: Names in lower case: `retry-after-ms`, `retry-after` (RFC 9110 10.2.3); on a 429 also
            `x-ratelimit-reset`, and then the resets of single limits. Each may be seconds, a date or a duration; see
            `header_values.seconds_to_wait`.
        status: The response's. Every response has resets; only on a 429 they are a time to wait.
        now: Returns the wall clock, in seconds since the epoch; asked only for a date.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0), (TOGETHER_NAMES.reset, 1.0)):
        value = headers.get(name)
        if value is None or (name == TOGETHER_NAMES.reset and status != 429):
            continue
        seconds = seconds_to_wait(value, now, unit_s=unit_s)
        if seconds is not None:
            return seconds
    return _until_reset(headers, now) if status == 429 else None


def _until_reset(headers: Mapping[str, str], now: Callable[[], float]) -> float | None:
    """Returns the seconds until the limits that are used up reset.

    If none of them is, the request was too large for what remains of one of them. The first that resets may be it: a
    wait that is too short costs another 429, one that is too long is lost.
    """
    pairs = [(headers[names.reset], headers.get(names.remaining)) for names in _RESETS if names.reset in headers]
    for item in list_items(headers.get("ratelimit", "")):
        reset = item.parameters.get("t", item.parameters.get("reset"))
        if reset is not None:
            pairs.append((reset, item.parameters.get("r", item.parameters.get("remaining"))))
    waits = [(seconds_to_wait(reset, now), remaining) for reset, remaining in pairs]
    used_up = [seconds for seconds, remaining in waits if seconds is not None and (remaining or "").strip() == "0"]
    if used_up:
        return max(used_up)
    return min((seconds for seconds, _ in waits if seconds), default=None)


@attrs.frozen
class ErrorFacts:
    """The content of an error object, whichever shape it has.

    Attributes:
        message: The text; `no message` when there is none.
        code: The code, as `context_length_exceeded` or 503; None when there is none.
        body: The error object as it came.
    """

    message: str
    code: str | int | None = None
    body: Any = attrs.field(default=None, repr=False)

    @property
    def status(self) -> int | None:
        """The HTTP status in the object, as its code, `status` or `status_code`; None without one."""
        others = [self.body.get(name) for name in ("status", "status_code")] if isinstance(self.body, Mapping) else []
        for value in (self.code, *others):
            number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{3}", value) else value
            if isinstance(number, int) and 400 <= number <= 599:
                return number
        return None


def error_facts(body: Any) -> ErrorFacts | None:
    """Returns the content of a decoded JSON body that is an error object, else None.

    Shapes: `{"error": {"message", "type", "code"}}`, `{"error": "text"}`, `{"detail": ...}`, `{"message", "code"}`,
    `{"object": "error", ...}`.
    """
    if not isinstance(body, Mapping):
        return None
    error = body.get("error")
    if isinstance(error, Mapping) and (error or "choices" not in body):
        code = next((error[k] for k in ("code", "status", "status_code") if isinstance(error.get(k), (int, str))), None)
        return ErrorFacts(_first_text(error, "message", "detail", "type", "code") or "no message", code, error)
    if error:
        message = error if isinstance(error, str) else "no message"
    elif "choices" in body:
        return None
    elif body.get("detail"):
        message = _detail(body["detail"])
    elif body.get("object") == "error" or (isinstance(body.get("message"), str) and ("code" in body or "type" in body)):
        message = _first_text(body, "message", "type") or "no message"
    else:
        return None
    return ErrorFacts(message, _code(body), body)


def _code(body: Mapping[str, Any]) -> str | int | None:
    code = body.get("code", body.get("status"))
    return code if isinstance(code, (int, str)) else None


def _first_text(mapping: Mapping[str, Any], *names: str) -> str:
    return next((value for name in names if isinstance(value := mapping.get(name), str) and value), "")


def _detail(detail: Any) -> str:
    """FastAPI's detail: a text, or a list of validation errors, whose `input` (the prompt) is left out."""
    if isinstance(detail, str):
        return detail
    items = detail if isinstance(detail, list) else [detail]
    return "; ".join(filter(None, map(_validation_error, items))) or "no message"


def _validation_error(item: Any) -> str:
    if not isinstance(item, Mapping):
        return item if isinstance(item, str) else ""
    where = item.get("loc")
    text = _first_text(item, "msg", "message", "error", "type")
    return f"{'.'.join(map(str, where))}: {text or 'invalid'}" if isinstance(where, list) else text


def decoded_body(body: bytes) -> Any:
    """Returns the JSON value of an error's body; its text when it is not JSON."""
    try:
        return codec.decode_json(body)
    except codec.JSONError:
        return body.decode("utf-8", "replace")


def _plain_text(body: Any) -> str:
    """The readable part of a body that is not an error object: text as it is, HTML without its tags."""
    if isinstance(body, Mapping):  # under an error status {"message": "Forbidden"} is an error too
        return _first_text(body, "message", "msg", "title")
    if not isinstance(body, str):
        return ""
    if body.lstrip()[:1] == "<":
        # An unclosed tag extends to the end, or a hostile page of opening tags would take quadratic time.
        body = re.sub(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)|<[^<>]*>", " ", body[:20_000])
    return " ".join(body.split())


def json_of(body: bytes) -> Any:
    """Returns the JSON value of a body.

    Raises:
        APIResponseValidationError: The body is not JSON.
    """
    try:
        return codec.decode_json(body)
    except codec.JSONError as error:
        raise APIResponseValidationError(f"got a body that is not JSON ({len(body)} bytes: {error})") from error
