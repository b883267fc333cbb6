"""One line of a batch's output: how a result is written, and how a line is read again. Pure.

A line has the format of Together's Batch API, `{"custom_id", "response": {"status_code", "body"}}` or `{"custom_id",
"error": {"message", "code"}}`, plus `"meta"`: a hash of the request body, so that an edited input line is sent again,
and the timing and attempts, for the report.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs
import msgspec

from together_async.errors import APIStatusError, APITimeoutError, TogetherError
from together_async.models import ChatCompletion
from together_async.ratelimit.estimator import Size, believed_counts
from together_async.wire import codec

_MOST_MESSAGE: Final = 2_000
_HASH_BYTES: Final = 8
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")

_canonical: Final = msgspec.json.Encoder(order="deterministic").encode


class RecordError(ValueError):
    """A line that is not a result."""


def body_hash(body: Mapping[str, Any]) -> str:
    """Returns a hash of a request body, 16 hexadecimal digits. The order of keys does not matter.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: The body has no JSON form.
    """
    return hashlib.blake2b(_canonical(body), digest_size=_HASH_BYTES).hexdigest()


# -------------------------------------------------------------------------------------------------------------- values


@attrs.frozen
class Record:
    """A result without the completion itself: one line of the output.

    Times come from this client, so lines written by other tools have none.

    Attributes:
        custom_id: The request's name.
        body_hash: Hash of the request body; empty in files of the Batch API.
        code: None for a completion; else the kind of error: an HTTP status, or a word such as "timeout_idle".
        message: The error's text, at most 2,000 characters; empty for a completion.
        model: The model that was asked for; in files of the Batch API, the one that answered.
        prompt_tokens: Counted by the server, else estimated; 0 for an error.
        completion_tokens: Counted by the server, else estimated; 0 for an error.
        sent_at: When the first attempt was sent, in seconds since 1970; None if there was none, or it is not known.
        queued_s: Seconds the request waited for the limits before its first attempt; None if not known.
        first_token_s: Seconds to the first token, counted from the beginning of that wait; None without streaming.
        total_s: Seconds to the end, counted from the beginning of that wait; None if not known.
        attempts: HTTP requests made for it; 0 if nothing was sent.
        retries: One pair for each further attempt: why it was made, and the seconds waited before it.
        counted: Whether the server counted the tokens; if not, they are estimated.
    """

    custom_id: str
    body_hash: str = ""
    code: str | None = None
    message: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    sent_at: float | None = None
    queued_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    attempts: int = 1
    retries: tuple[tuple[str, float], ...] = ()
    counted: bool = True

    @property
    def ok(self) -> bool:
        """Whether the result is a completion."""
        return self.code is None

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


# ------------------------------------------------------------------------------------------------------------- writing


def error_code(error: Exception) -> str:
    """Returns the kind of an error: an HTTP status, or a word such as `timeout_idle` or `incomplete_stream`."""
    if isinstance(error, APIStatusError):
        return str(error.status_code)
    if isinstance(error, APITimeoutError):
        return f"timeout_{error.phase}"
    if isinstance(error, TogetherError):
        name = type(error).__name__.removesuffix("Error").removeprefix("API")
        return _WORDS.sub("_", name).lower() or "error"
    return "invalid_request"


def error_record(record: Record, error: Exception) -> Record:
    """Returns the record with an error."""
    return attrs.evolve(record, code=error_code(error), message=str(error)[:_MOST_MESSAGE])


def completion_record(
    record: Record, completion: ChatCompletion, *, size: Size, expected_prompt_tokens: int = 0
) -> Record:
    """Returns the record with the tokens of a completion.

    Args:
        record: What else is known of the request.
        completion: Its completion.
        size: The request's size, which bounds the counts that are believed.
        expected_prompt_tokens: Used if the server did not count, or counted what is impossible; the completion is
            estimated at four characters a token then.
    """
    usage = completion.usage
    if usage is not None:
        prompt, generated, _ = believed_counts(size, usage.prompt_tokens, usage.completion_tokens, None)
        if prompt is not None or generated is not None:
            return attrs.evolve(record, prompt_tokens=prompt or 0, completion_tokens=generated or 0)
    characters = sum(len(choice.message.content or "") for choice in completion.choices)
    return attrs.evolve(
        record, prompt_tokens=expected_prompt_tokens, completion_tokens=-(-characters // 4), counted=False
    )


def encode_line(record: Record, completion: ChatCompletion | None = None) -> bytes:
    """Returns the output line of a result, with its line feed.

    Args:
        record: The result.
        completion: The completion, whose JSON is written as the server sent it; None for an error.
    """
    meta = {name: value for name in _META if (value := getattr(record, name)) not in (None, ())}
    meta["hash"] = record.body_hash
    if record.model and record.model != getattr(completion, "model", record.model):
        meta["model"] = record.model  # the price list has the name that was asked for
    if not record.counted:
        meta["tokens"] = (record.prompt_tokens, record.completion_tokens)
    line: dict[str, Any] = {"custom_id": record.custom_id}
    if record.code is None:
        raw: bytes | None = getattr(completion, "raw_json", None)
        # The server's own bytes, unless they span several lines: then keeping its blanks is not worth a broken line.
        body: Any = msgspec.Raw(raw) if raw is not None and b"\n" not in raw and b"\r" not in raw else _dict(completion)
        line["response"] = {"status_code": 200, "body": body}
    else:
        line["error"] = {"message": record.message, "code": record.code}
    line["meta"] = meta
    return codec.encode(line) + b"\n"


_META: Final = ("sent_at", "queued_s", "first_token_s", "total_s", "attempts", "retries")


def _dict(completion: ChatCompletion | None) -> dict[str, Any]:
    return {} if completion is None else completion.to_dict()


# ------------------------------------------------------------------------------------------------------------- reading


class _UsageField(msgspec.Struct, gc=False):
    """`usage` of a completion. The types are loose: a count that is not a number must not hide the completion."""

    prompt_tokens: Any = 0
    completion_tokens: Any = 0


class _BodyField(msgspec.Struct, gc=False):
    """`response.body`: what a batch needs of a completion."""

    model: Any = ""
    usage: _UsageField | None = None


class _ResponseField(msgspec.Struct, gc=False):
    """`response` of a line."""

    status_code: int | None = 200
    body: _BodyField | None = None


class _ErrorField(msgspec.Struct, gc=False):
    """`error` of a line."""

    message: Any = ""
    code: Any = None


class _MetaField(msgspec.Struct, gc=False):
    """`meta` of a line, which only lines written by this module have."""

    hash: str = ""
    sent_at: float | None = None
    queued_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    attempts: int = 1
    retries: tuple[tuple[str, float], ...] = ()
    model: str | None = None
    tokens: tuple[int, int] | None = None


_NO_META: Final = _MetaField()


class OutputLine(msgspec.Struct, gc=False):
    """A line of the output, parsed."""

    custom_id: str
    response: _ResponseField | None = None
    error: _ErrorField | None = None
    meta: _MetaField | None = None

    @property
    def failure(self) -> tuple[str | None, str]:
        """Code and text of the error; the code is None for a completion.

        The Batch API also reports errors as a `response` with an error status.
        """
        if self.error is not None:
            return ("error" if self.error.code is None else str(self.error.code)), str(self.error.message or "")
        status = self.response.status_code if self.response is not None else None
        return (None, "") if status is None or 200 <= status < 300 else (str(status), "")

    @property
    def model_and_tokens(self) -> tuple[str, int, int]:
        """The model of a completion, its prompt tokens and its completion tokens."""
        meta, body = self.meta or _NO_META, self.response.body if self.response is not None else None
        model = meta.model
        if model is None:
            model = body.model if body is not None and isinstance(body.model, str) else ""
        usage = body.usage if body is not None else None
        if meta.tokens is not None:
            return model, *meta.tokens
        if usage is None:
            return model, 0, 0
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        # Quick path of token_count; tests/batch/test_record.py::test_token_counts holds the two together.
        return (
            model,
            prompt if type(prompt) is int and prompt >= 0 else token_count(prompt),
            completion if type(completion) is int and completion >= 0 else token_count(completion),
        )


class _LooseResponseField(msgspec.Struct, gc=False):
    """`response` of a line written by another tool."""

    status_code: Any = 200
    body: Any = None


class _LooseOutputLine(msgspec.Struct, gc=False):
    """A line written by another tool: a field of an unexpected type must not hide the completion."""

    custom_id: str
    response: _LooseResponseField | None = None
    error: Any = None
    meta: Any = None


_decode_line: Final = msgspec.json.Decoder(OutputLine).decode
_decode_loosely: Final = msgspec.json.Decoder(_LooseOutputLine).decode


def decode_line(line: bytes) -> Record:
    """Returns the result in a line of the output.

    Args:
        line: The line, with its line feed or without.

    Raises:
        RecordError: The line is not a result, or is torn.
    """
    parsed = parse_line(line)
    meta = parsed.meta or _NO_META
    code, message = parsed.failure
    model, prompt, completion = parsed.model_and_tokens if code is None else (meta.model or "", 0, 0)
    return Record(
        custom_id=parsed.custom_id,
        body_hash=meta.hash,
        code=code,
        message=message,
        model=model,
        prompt_tokens=prompt,
        completion_tokens=completion,
        sent_at=meta.sent_at,
        queued_s=meta.queued_s,
        first_token_s=meta.first_token_s,
        total_s=meta.total_s,
        attempts=meta.attempts,
        retries=meta.retries,
        counted=meta.tokens is None,
    )


def parse_line(line: bytes) -> OutputLine:
    """Returns a line of the output, parsed; for those who need less than the whole `Record`.

    Raises:
        RecordError: The line is not a result, or is torn.
    """
    try:
        parsed = _decode_line(line)
    except msgspec.ValidationError:
        parsed = _parse_loosely(line)
    except (ValueError, RecursionError) as error:
        # The errors for broken UTF-8 and for broken JSON have different texts; neither repeats the line.
        raise RecordError(f"not a line of a batch's results ({error})") from None
    if parsed.response is None and parsed.error is None:
        raise RecordError("not a line of a batch's results (it has neither 'response' nor 'error')")
    return parsed


def _parse_loosely(line: bytes) -> OutputLine:
    """Returns a line, some of whose values do not have the expected types, without those values."""
    try:
        loose = _decode_loosely(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not a line of a batch's results ({error})") from None
    response, failure = loose.response, loose.error
    parsed = OutputLine(loose.custom_id)
    if response is not None:
        status = response.status_code
        parsed.response = _ResponseField(status if isinstance(status, int) else 200)
        if isinstance(response.body, dict):
            usage = response.body.get("usage")
            counts = usage if isinstance(usage, dict) else {}
            parsed.response.body = _BodyField(
                response.body.get("model"), _UsageField(counts.get("prompt_tokens"), counts.get("completion_tokens"))
            )
    if isinstance(failure, dict):
        parsed.error = _ErrorField(failure.get("message"), failure.get("code"))
    elif failure is not None:
        parsed.error = _ErrorField(str(failure))
    with contextlib.suppress(msgspec.ValidationError):
        parsed.meta = msgspec.convert(loose.meta, _MetaField | None)
    return parsed


def token_count(value: Any) -> int:
    """Returns a number of tokens from a server's `usage`, where some servers write a text; 0 if it is not a number."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return 0
    return int(value) if 0 <= value < 1e18 else 0
