"""A batch's output, line by line: what is written of a result, and what a line says when it is read again. Pure.

A line is what Together's Batch API writes, `{"custom_id", "response": {"status_code", "body"}}` or `{"custom_id",
"error": {"message", "code"}}`, and beside it `"meta"`: a hash of the body that was asked, so that an edited line of the
input is asked again, and how it went, for the report.

What may be wrong with a file that a crash has left: its last line is torn. A line counts when it is whole, which a JSON
object is only with its last brace, so a whole last line without its line feed counts too. Lines that are none, before
others that are, are damage of another kind; the batch puts them aside and asks again.
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
from together_async.wire import codec

_MOST_MESSAGE: Final = 2_000
_HASH_BYTES: Final = 8
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")

_canonical: Final = msgspec.json.Encoder(order="deterministic").encode


class JournalError(ValueError):
    """A line that is no result."""


def body_hash(body: Mapping[str, Any]) -> str:
    """Returns what tells one body from another: 16 hexadecimal digits; the order of keys does not count."""
    return hashlib.blake2b(_canonical(body), digest_size=_HASH_BYTES).hexdigest()


# --------------------------------------------------------------------------------------------------------------- values


@attrs.frozen
class Record:
    """What a line of the output says, without the answer itself.

    Attributes:
        custom_id: The request's name.
        body_hash: Of the body that was asked; empty in files of the Batch API.
        code: None for an answer; else what kind of error it was: an HTTP status, or a word.
        message: The error's text.
        model: The model that was asked; of files of the Batch API, the one that answered.
        prompt_tokens: By the server's count, else estimated.
        completion_tokens: The same.
        sent_at: When the first attempt was sent, in seconds since 1970; None when none was, or nobody knows.
        queued_s: Seconds it waited for the limits before.
        first_token_s: Seconds from its begin to its first token, of streams.
        total_s: Seconds from its begin to its end.
        attempts: HTTP requests made for it.
        retries: Why there was more than one: reason, and seconds waited until the next.
        counted: Whether the tokens are the server's count.
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
        """Whether there is an answer."""
        return self.code is None

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


# -------------------------------------------------------------------------------------------------------------- writing


def error_code(error: Exception) -> str:
    """Returns what kind of error it is, in a word: an HTTP status, `timeout_idle`, `incomplete_stream`, ..."""
    if isinstance(error, APIStatusError):
        return str(error.status_code)
    if isinstance(error, APITimeoutError):
        return f"timeout_{error.phase}"
    if isinstance(error, TogetherError):
        name = type(error).__name__.removesuffix("Error").removeprefix("API")
        return _WORDS.sub("_", name).lower() or "error"
    return "invalid_request"


def error_record(record: Record, error: Exception) -> Record:
    """Returns the record of a request that has no answer."""
    return attrs.evolve(record, code=error_code(error), message=str(error)[:_MOST_MESSAGE])


def answer_record(record: Record, completion: ChatCompletion, *, expected_prompt_tokens: int = 0) -> Record:
    """Returns the record of a request that has an answer.

    Args:
        record: What else is told of it.
        completion: The answer.
        expected_prompt_tokens: What counts where the server did not count; four characters are a token then.
    """
    usage = completion.usage
    if usage is not None and (usage.prompt_tokens is not None or usage.completion_tokens is not None):
        return attrs.evolve(
            record, prompt_tokens=_count(usage.prompt_tokens), completion_tokens=_count(usage.completion_tokens)
        )
    characters = sum(len(choice.message.content or "") for choice in completion.choices)
    return attrs.evolve(
        record, prompt_tokens=expected_prompt_tokens, completion_tokens=-(-characters // 4), counted=False
    )


def encode_line(record: Record, completion: ChatCompletion | None = None) -> bytes:
    """Returns the line for a result, with its line feed.

    Args:
        record: What became of it.
        completion: The answer, which goes in as it came.
    """
    meta = {name: value for name in _META if (value := getattr(record, name)) not in (None, ())}
    meta["hash"] = record.body_hash
    if record.model and record.model != getattr(completion, "model", record.model):
        meta["model"] = record.model  # which has the price
    if not record.counted:
        meta["tokens"] = (record.prompt_tokens, record.completion_tokens)
    line: dict[str, Any] = {"custom_id": record.custom_id}
    if record.code is None:
        raw: bytes | None = getattr(completion, "raw_json", None)
        # As it came, unless it came in several lines: then its blanks are not worth a broken line.
        body: Any = msgspec.Raw(raw) if raw is not None and b"\n" not in raw and b"\r" not in raw else _dict(completion)
        line["response"] = {"status_code": 200, "body": body}
    else:
        line["error"] = {"message": record.message, "code": record.code}
    line["meta"] = meta
    return codec.encode(line) + b"\n"


_META: Final = ("sent_at", "queued_s", "first_token_s", "total_s", "attempts", "retries")


def _dict(completion: ChatCompletion | None) -> dict[str, Any]:
    return {} if completion is None else completion.to_dict()


# -------------------------------------------------------------------------------------------------------------- reading


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Any = 0  # servers' own; one that is no number must not hide an answer
    completion_tokens: Any = 0


class _Body(msgspec.Struct, gc=False):
    model: Any = ""
    usage: _Usage | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: int | None = 200
    body: _Body | None = None


class _LooseResponse(msgspec.Struct, gc=False):
    status_code: Any = 200
    body: Any = None


class _Error(msgspec.Struct, gc=False):
    message: Any = ""
    code: Any = None


class _Meta(msgspec.Struct, gc=False):
    hash: str = ""
    sent_at: float | None = None
    queued_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    attempts: int = 1
    retries: tuple[tuple[str, float], ...] = ()
    model: str | None = None
    tokens: tuple[int, int] | None = None


_NO_META: Final = _Meta()


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None
    meta: _Meta | None = None


class _LooseLine(msgspec.Struct, gc=False):
    """Of other hands: whatever is not as expected there must not make an answer none."""

    custom_id: str
    response: _LooseResponse | None = None
    error: Any = None
    meta: Any = None


_decode_line: Final = msgspec.json.Decoder(_Line).decode
_decode_loosely: Final = msgspec.json.Decoder(_LooseLine).decode


def decode_line(line: bytes) -> Record:
    """Returns what a line of the output says, with its line feed or without.

    Raises:
        JournalError: It is no result, or not all of one.
    """
    read = _parse(line)
    meta = read.meta or _NO_META
    code, message = _failure(read.response, read.error)
    model, prompt, completion = _use(read) if code is None else (meta.model or "", 0, 0)
    return Record(
        custom_id=read.custom_id,
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


def _parse(line: bytes) -> _Line:
    try:
        read = _decode_line(line)
    except msgspec.ValidationError:
        read = _read_loosely(line)
    except (ValueError, RecursionError) as error:
        # UTF-8 that is broken, and JSON that is none, have texts of their own; none of them repeats the line.
        raise JournalError(f"not a line of a batch's results ({error})") from None
    if read.response is None and read.error is None:
        raise JournalError("not a line of a batch's results (it has neither 'response' nor 'error')")
    return read


def _use(read: _Line) -> tuple[str, int, int]:
    """Returns the model of an answer, and its tokens."""
    meta, body = read.meta or _NO_META, read.response.body if read.response is not None else None
    model = meta.model
    if model is None:
        model = body.model if body is not None and isinstance(body.model, str) else ""
    usage = body.usage if body is not None else None
    if meta.tokens is not None:
        return model, *meta.tokens
    if usage is None:
        return model, 0, 0
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return (
        model,
        prompt if type(prompt) is int and prompt >= 0 else _count(prompt),
        completion if type(completion) is int and completion >= 0 else _count(completion),
    )


def _read_loosely(line: bytes) -> _Line:
    """Returns what can be made of a line whose values are not of the types expected."""
    try:
        read = _decode_loosely(line)
    except (ValueError, RecursionError) as error:
        raise JournalError(f"not a line of a batch's results ({error})") from None
    response, failure = read.response, read.error
    made = _Line(read.custom_id)
    if response is not None:
        status = response.status_code
        made.response = _Response(status if isinstance(status, int) else 200)
        if isinstance(response.body, dict):
            usage = response.body.get("usage")
            counts = usage if isinstance(usage, dict) else {}
            made.response.body = _Body(
                response.body.get("model"), _Usage(counts.get("prompt_tokens"), counts.get("completion_tokens"))
            )
    if isinstance(failure, dict):
        made.error = _Error(failure.get("message"), failure.get("code"))
    elif failure is not None:
        made.error = _Error(str(failure))
    with contextlib.suppress(msgspec.ValidationError):
        made.meta = msgspec.convert(read.meta, _Meta | None)
    return made


def _count(value: Any) -> int:
    """Returns a number of tokens; some servers write a text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18 else 0


def _failure(response: _Response | None, failure: _Error | None) -> tuple[str | None, str]:
    """Returns code and text of an error; the Batch API also puts error statuses into `response`."""
    if failure is not None:
        return ("error" if failure.code is None else str(failure.code)), str(failure.message or "")
    status = response.status_code if response is not None else None
    return (None, "") if status is None or 200 <= status < 300 else (str(status), "")


_BEGIN: Final = b'{"custom_id":'


@attrs.define
class Standing:
    """What a file of results holds: who is done, and what is to be put in order before more is added.

    Attributes:
        results: By custom_id: hash of the body, and whether there is an answer.
        lines: Lines read.
        whole_size: Bytes up to the end of the last whole line; what comes after it is torn.
        ends_open: Whether that line has no line feed yet.
        set_aside: Numbers of lines that don't count: damaged ones, and those whose custom_id came again later.
    """

    results: dict[str, tuple[str, bool]] = attrs.field(factory=dict)
    lines: int = 0
    whole_size: int = 0
    ends_open: bool = False
    set_aside: list[int] = attrs.field(factory=list)
    _tokens: dict[str, list[int]] = attrs.field(factory=dict)
    _places: dict[str, int] = attrs.field(factory=dict)
    _size: int = 0
    _unread: list[int] = attrs.field(factory=list)

    def add(self, line: bytes) -> None:
        """Takes the next line, with its line feed if it has one.

        Raises:
            JournalError: It is of another kind of file; nothing may be changed there.
        """
        self.lines += 1
        self._size += len(line)
        try:
            read = _parse(line)
        except JournalError as error:
            if _may_be_torn(line):
                self._unread.append(self.lines)  # unless something comes after it, it is the torn end
                return
            if not self.results:
                raise JournalError(f"line {self.lines}: {error}") from None
            self._keep(line)
            self.set_aside.append(self.lines)
            return
        self._keep(line)
        ok = _failure(read.response, read.error)[0] is None
        custom_id = read.custom_id
        if custom_id in self.results:
            self.set_aside.append(self._places[custom_id])
        self.results[custom_id] = ("" if read.meta is None else read.meta.hash, ok)
        self._places[custom_id] = self.lines
        if ok:
            model, prompt, completion = _use(read)
            tokens = self._tokens.setdefault(model, [0, 0])
            tokens[0] += prompt
            tokens[1] += completion

    @property
    def tokens(self) -> dict[str, tuple[int, int]]:
        """By model: tokens of prompts, and of completions."""
        return {model: (prompt, completion) for model, (prompt, completion) in self._tokens.items()}

    def _keep(self, line: bytes) -> None:
        """A line that is whole: what could not be read before it was no torn end."""
        if self._unread:
            self.set_aside += self._unread
            self._unread.clear()
        self.whole_size, self.ends_open = self._size, not line.endswith(b"\n")

    def place(self, custom_id: str) -> int:
        """Returns the number of the line that counts for a custom_id."""
        return self._places[custom_id]

    @property
    def torn_size(self) -> int:
        """Bytes after the last whole line."""
        return self._size - self.whole_size


def _may_be_torn(line: bytes) -> bool:
    """Whether a line that can't be read is the begin of one of ours, or blocks that a crash has left empty."""
    if b"\0" in line:
        return not line.strip(b"\0\n") or line.startswith(_BEGIN)
    if line.endswith(b"\n"):
        return False  # the line feed is written last
    try:
        codec.decode_json(line)
    except codec.JSONError:
        return line.startswith(_BEGIN) or _BEGIN.startswith(line)
    return False
