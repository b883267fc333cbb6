"""The chat-completions protocol, without I/O: requests out, chunks in, and what each kind of failure means.

`build_request` turns a request value into the HTTP request. `ChunkDecoder` turns the response's bytes into payloads
and payloads into chunks. `status_error` turns an error response into its exception.

What a payload may be, and what becomes of it:

| payload | outcome |
|---|---|
| a chunk | the chunk |
| `[DONE]` | the end; whatever follows is ignored |
| an error object, in any of the shapes servers use, or an event named `error` | `ErrorEvent` |
| JSON of another shape without choices (a ping in JSON) | skipped |
| anything else | `NotTheProtocol` |
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final

import attrs

from together_async.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    ContextLengthError,
    status_error_class,
)
from together_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    make,
    set_raw,
)
from together_async.request import ChatCompletionRequest
from together_async.wire import codec
from together_async.wire.sse import DEFAULT_MAX_EVENT_SIZE, EventStreamParser, EventTooLargeError, ServerSentEvent

PATH: Final = "chat/completions"
_DONE: Final = b"[DONE]"
_TOO_LARGE: Final = b"\0"
"""Stands among the payloads, in its order, for an event above the size cap."""
_BLANK_OR_BOM: Final = b" \t\r\n\xef\xbb\xbf"
_NO_DELTA: Final = ChunkChoice().delta
"""The class's own default, which is what a choice without a delta has."""
_MAX_MESSAGE = 500
"""Characters of a server's text that an error message shows."""


# ------------------------------------------------------------------------------------------------------------ requests


@attrs.frozen
class HTTPRequest:
    """What goes out: the path below the base URL, the body, whether a stream is asked for, and the method."""

    path: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    stream: bool
    method: str = "POST"


MODELS_REQUEST: Final = HTTPRequest("models", b"", stream=False, method="GET")
"""Asks for the list of models and their prices: https://docs.together.ai/reference/models-1."""


def build_request(request: ChatCompletionRequest, *, stream: bool) -> HTTPRequest:
    """Returns the HTTP request of a chat-completion request.

    Raises:
        ValueError: Something in it has no JSON form; the text names its type.
    """
    body = request.to_dict()
    if stream:
        body["stream"] = True
    try:
        return HTTPRequest(PATH, codec.encode(body), stream)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # The JSON library's text may hold what it failed on, so its own words stay in __cause__... as a type only.
        raise ValueError(f"request: has no JSON form ({type(error).__name__}); expected plain JSON values") from None


# ----------------------------------------------------------------------------------------------------- error responses

_CONTEXT = re.compile(
    r"context.{0,20}(length(?!_exceeded_behavior)|window|size)|maximum context|exceed.{0,40}context"
    r"|tokens.{0,5}\+.{0,5}max_new_tokens",
    re.IGNORECASE,
)


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
        headers: Names in lower case.
        body: What came of it; JSON of any shape, text, HTML or nothing.
        secrets: Texts which must not appear in the message: the key, the prompt's parts.
        note: A remark for the end of the message.
        now: The wall clock, for a `retry-after` that is a date.
    """
    decoded = _body(body)
    facts = error_facts(decoded)
    said = facts.message if facts else _plain_text(decoded)
    secrets = tuple(secrets)
    message = redact(said, secrets)[:_MAX_MESSAGE] or "no message"
    cls = status_error_class(status)
    if status in (400, 403) and (
        (facts and facts.code == "context_length_exceeded") or _CONTEXT.search(said[:_MAX_MESSAGE])
    ):
        cls = ContextLengthError
    return cls(
        f"{status}: {message}{redact(note, secrets)}",
        status_code=status,
        headers=headers,
        body=decoded,
        request_id=request_id(headers),
        retry_after=retry_after(headers, status=status, now=now),
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    """Returns the response's id from its headers (names in lower case), None when it has none."""
    return headers.get("x-request-id") or headers.get("cf-ray")


def retry_after(headers: Mapping[str, str], *, status: int = 429, now: Callable[[], float]) -> float | None:
    """Returns the seconds a response asks to wait, None when it does not say (or not in numbers one can use).

    Args:
        headers: Names in lower case: `retry-after-ms`, `retry-after` (seconds or an HTTP date, RFC 9110 10.2.3),
            `x-ratelimit-reset` (seconds).
        status: Of the response. Every answer has the last of these headers; a 429's alone asks to wait for so long.
        now: The wall clock, in seconds since the epoch; asked only for a date.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0), ("x-ratelimit-reset", 1.0)):
        value = headers.get(name)
        if value is None or (name == "x-ratelimit-reset" and status != 429):
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - now()
            except (ValueError, TypeError, OverflowError):
                continue
        if 0 <= seconds < float("inf"):
            return seconds
        if seconds < 0:
            return 0.0
    return None


@attrs.frozen
class ErrorFacts:
    """What an error object says, whichever shape it has."""

    message: str
    code: str | int | None = None
    body: Any = attrs.field(default=None, repr=False)

    @property
    def status(self) -> int | None:
        """The HTTP status the object carries, as its code or beside it, or None."""
        beside = [self.body.get(name) for name in ("status", "status_code")] if isinstance(self.body, Mapping) else []
        for value in (self.code, *beside):
            number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{3}", value) else value
            if isinstance(number, int) and 400 <= number <= 599:
                return number
        return None


def error_facts(body: Any) -> ErrorFacts | None:
    """Returns what a decoded JSON body says as an error, None when it is none.

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
    """FastAPI's detail: a text, or a list of problems whose `input` (the prompt) is left out."""
    if isinstance(detail, str):
        return detail
    items = detail if isinstance(detail, list) else [detail]
    return "; ".join(filter(None, map(_problem, items))) or "no message"


def _problem(item: Any) -> str:
    if not isinstance(item, Mapping):
        return item if isinstance(item, str) else ""
    where = item.get("loc")
    said = _first_text(item, "msg", "message", "error", "type")
    return f"{'.'.join(map(str, where))}: {said or 'invalid'}" if isinstance(where, list) else said


def _body(body: bytes) -> Any:
    try:
        return codec.decode_json(body)
    except codec.JSONError:
        return body.decode("utf-8", "replace")


def _plain_text(body: Any) -> str:
    """The readable part of a body that is not an error object: text as it is, of HTML what stands between tags."""
    if isinstance(body, Mapping):  # {"message": "Forbidden"}: under an error status it is one
        return _first_text(body, "message", "msg", "title")
    if not isinstance(body, str):
        return ""
    if body.lstrip()[:1] == "<":
        # What is never closed goes to the end, or a hostile page of opening tags would take quadratic time.
        body = re.sub(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)|<[^<>]*>", " ", body[:20_000])
    return " ".join(body.split())


_MOST_BLANKS: Final = 8
"""How many times as long as a text a secret may be and yet, with its blanks run together, stand in it."""


def redact(text: str, secrets: Iterable[str]) -> str:
    """Returns the text with every secret replaced; servers like to repeat keys and prompts in their errors.

    A secret of several lines is also known as one line, and as JSON and Python write it, in whatever case: a host name
    or a media type comes back in lower case.
    """
    lower = text.lower()
    forms = {
        form
        # A long prompt is not spelt in five ways for the sake of a short text that can't hold it.
        for secret in secrets
        if secret and len(secret) <= _MOST_BLANKS * len(text)
        for form in (
            secret,
            " ".join(secret.split()),
            json.dumps(secret)[1:-1],
            repr(secret)[1:-1],
            repr(secret.encode("utf-8", "replace"))[2:-1],
        )
        if form and form.lower() in lower
    }
    # NUL stands in, or a short secret would be found again in what replaced a longer one.
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(re.escape(form), "\0", text, flags=re.IGNORECASE)
    return text.replace("\0", "[redacted]")


def scrub(error: BaseException, secrets: Sequence[str]) -> None:
    """Takes the secrets out of an error's own text, and cuts off causes that repeat one.

    HTTP libraries quote what they could not parse, and a server may have put a key or a prompt into that.
    """
    if error.args and isinstance(error.args[0], str):
        error.args = (redact(error.args[0], secrets), *error.args[1:])
    link: BaseException = error
    while (cause := link.__cause__ or link.__context__) is not None:
        shown = f"{cause} {cause!r}"
        if redact(shown, secrets) != shown:
            link.__cause__ = link.__context__ = None
            return
        link = cause


# -------------------------------------------------------------------------------------------------------------- stream


class InflationError(APIConnectionError):
    """A compressed body inflates beyond reason. Not for users: it becomes a protocol or a validation error."""


class NotTheProtocol(Exception):  # noqa: N818 - not for users: the stream turns it into StreamProtocolError
    """What came is no stream of this protocol; the text says what was got and expected."""


class ErrorEvent(Exception):  # noqa: N818 - not for users: the stream turns it into StreamAPIError
    """The server sent an error object inside the stream."""

    def __init__(self, facts: ErrorFacts) -> None:
        self.facts = facts
        super().__init__(facts.message)


class ChunkDecoder:
    """The protocol's side of one stream: bytes to payloads, payloads to chunks.

    Splitting and decoding are two steps, so that a consumer who is slow keeps bytes, not objects, waiting.

    Attributes:
        done: `data: [DONE]` has come.
    """

    __slots__ = ("_any", "_max_size", "_media_type", "_parser", "_sniffed", "_too_large", "_whole", "done")

    def __init__(self, *, media_type: str = "text/event-stream", max_event_size: int = DEFAULT_MAX_EVENT_SIZE) -> None:
        self._parser = EventStreamParser(max_event_size=max_event_size)
        self._max_size = max_event_size
        self._media_type = media_type
        self._any = False  # an event has come
        self._too_large: EventTooLargeError | None = None
        self._whole: bytearray | None = None  # the body is one JSON document
        self._sniffed = False
        self.done = False
        if media_type == "text/html":
            raise NotTheProtocol("got an HTML page (a proxy's or a wrong base_url's), expected an event stream")

    def __repr__(self) -> str:
        return f"<ChunkDecoder {'done' if self.done else 'open'} {self._parser!r}>"

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes of the body, returns the payloads they complete, in order.

        An event above the size cap is a payload too, which `decode` refuses: what came before it is not lost, and
        after `[DONE]` it does not matter.

        Raises:
            NotTheProtocol: Not an event stream.
        """
        if not self._sniffed:
            self._sniff(data)
        if self._whole is not None:
            return self._feed_whole(data)
        plain = self._parser.feed_plain(data)
        if plain is not None:
            self._any = True
            return plain
        try:
            events = self._parser.feed_any(data)
        except EventTooLargeError as error:
            self._too_large = error
            events = error.events
        self._any = self._any or bool(events)
        payloads = [payload for event in events if (payload := _payload(event)) is not None]
        return payloads if self._too_large is None else [*payloads, _TOO_LARGE]

    def _feed_whole(self, data: bytes) -> list[bytes]:
        assert self._whole is not None  # noqa: S101 - the caller has looked
        self._whole += data
        if len(self._whole) > self._max_size:
            self._whole = None
            raise NotTheProtocol(
                f"got a JSON document of more than {self._max_size} bytes, expected an event stream; "
                "raise max_event_size if this is no attack"
            )
        return []

    def _sniff(self, data: bytes) -> None:
        """Decides by the first byte which is not blank: servers do answer a stream request with JSON or HTML."""
        start = data.lstrip(_BLANK_OR_BOM)[:1]
        if not start:
            return
        self._sniffed = True
        if start == b"<":
            raise NotTheProtocol("got an HTML page (a proxy's or a wrong base_url's), expected an event stream")
        if start in b"{[":
            self._whole = bytearray()

    def end(self) -> list[bytes]:
        """Says that the body has ended; returns the payload of a body that was one JSON document.

        Raises:
            NotTheProtocol: No event came, and the body does not even call itself an event stream.
        """
        if (
            self._sniffed
            and not self._any
            and self._whole is None
            and self._media_type not in ("", "text/event-stream")
        ):
            raise NotTheProtocol(f"got a body of type {self._media_type!r} without an event, expected an event stream")
        whole, self._whole = self._whole, None
        self._any = self._any or bool(whole)
        return [bytes(whole).lstrip(_BLANK_OR_BOM)] if whole else []

    def rest(self) -> list[bytes]:
        """Returns the payloads that are kept back, when nothing more will come: here there are none."""
        return []

    def decode(self, payload: bytes) -> ChatCompletionChunk | None:
        """Returns the chunk of a payload; None for what is none: `[DONE]` (see `done`) and JSON without a meaning.

        Raises:
            ErrorEvent: An error object.
            NotTheProtocol: Anything else.
        """
        try:
            chunk = codec.decode_chunk_strictly(payload)
        except (ValueError, RecursionError):
            return self.decode_odd(payload)
        return self.accept(chunk, payload)

    def accept(self, chunk: ChatCompletionChunk, payload: bytes) -> ChatCompletionChunk | None:
        """Does what `decode` does, for a reader that has decoded the payload itself."""
        # A choice without a delta may be one of a whole completion.
        if chunk.choices and chunk.error is None and chunk.choices[0].delta is not _NO_DELTA:
            set_raw(chunk, payload)
            return chunk
        return self.decode_odd(payload)

    def decode_odd(self, payload: bytes) -> ChatCompletionChunk | None:
        """Does what `decode` does for what is no chunk with choices: the end, errors, usage alone, other shapes."""
        text = payload.strip()
        if text == _DONE:
            self.done = True
        if text in (_DONE, b""):
            return None
        if self._too_large is not None and payload == _TOO_LARGE:
            raise NotTheProtocol(f"got {self._too_large}; raise max_event_size if this is no attack")
        try:
            body = codec.decode_json(payload)
        except codec.JSONError as error:
            raise NotTheProtocol(f"got an event whose data is not JSON ({len(payload)} bytes: {error})") from error
        facts = error_facts(body)
        if facts is not None:
            raise ErrorEvent(facts)
        if not isinstance(body, dict):
            raise NotTheProtocol(f"got an event whose data is a JSON {type(body).__name__}, expected an object")
        return self._decode_object(payload, body)

    @staticmethod
    def _decode_object(payload: bytes, body: dict[str, Any]) -> ChatCompletionChunk | None:
        choices = body.get("choices")
        try:
            if isinstance(choices, list) and any(
                isinstance(c, dict) and c.get("message") and not c.get("delta") for c in choices
            ):
                return chunk_of(codec.decode_completion(payload))
            chunk = codec.decode_chunk(payload)
        except APIResponseValidationError as error:
            raise NotTheProtocol(f"got an event of another shape: {error}") from error
        # Neither content nor count nor identity: a ping in JSON's clothes.
        return chunk if chunk.choices or chunk.usage is not None or "choices" in body else None


def _payload(event: ServerSentEvent) -> bytes | None:
    """Returns what is to be decoded of an event, None for events that are not for us."""
    data = event.data
    if event.event == "message" or data.strip() == _DONE:
        return data or None
    if event.event == "error":
        # One shape for the decoder: {"error": ...} whatever the data is.
        body = _body(data)
        return data if error_facts(body) else codec.encode({"error": body or "no message"})
    # Some servers name their events; a ping has a name too, and no choices.
    return data if b'"choices"' in data or b'"error"' in data else None


def chunk_of(completion: ChatCompletion) -> ChatCompletionChunk:
    """Returns a whole completion as the one chunk of a stream that says the same."""
    choices = tuple(_chunk_choice(choice, position) for position, choice in enumerate(completion.choices))
    given = {name: value for name, value in vars(completion).items() if name not in ("object", "choices")}
    return make(ChatCompletionChunk, object="chat.completion.chunk", choices=choices, **given)


def _chunk_choice(choice: Choice, position: int) -> ChunkChoice:
    # vars() holds what the server sent: a choice without an index has that of its place, not the class's 0.
    given = {name: value for name, value in vars(choice).items() if name not in ("message", "text")}
    if given.get("index") is None:
        given["index"] = position
    return make(ChunkChoice, **given, delta=_delta_of(choice.message))


def _delta_of(message: ChatCompletionMessage) -> Delta:
    given = dict(vars(message))
    if given.get("tool_calls"):
        given["tool_calls"] = tuple(_call_delta(call, i) for i, call in enumerate(given["tool_calls"]))
    if given.get("function_call"):
        given["function_call"] = make(FunctionDelta, **vars(given["function_call"]))
    return make(Delta, **given)


def _call_delta(call: ToolCall, position: int) -> ToolCallDelta:
    given = {name: value for name, value in vars(call).items() if value is not None}
    if "function" in given:
        given["function"] = make(FunctionDelta, **vars(given["function"]))
    return make(ToolCallDelta, **{"index": position, **given})


def json_of(body: bytes) -> Any:
    """Returns the JSON value of a body.

    Raises:
        APIResponseValidationError: It is none.
    """
    try:
        return codec.decode_json(body)
    except codec.JSONError as error:
        raise APIResponseValidationError(f"got a body that is not JSON ({len(body)} bytes: {error})") from error


def plain_completion(body: bytes) -> ChatCompletion | None:
    """Returns the completion of a whole response if it is one; None for what `completion_of` has to look at."""
    try:
        completion = codec.decode_completion(body)
    except (codec.JSONError, APIResponseValidationError):
        return None
    return completion if completion.choices and not completion.error else None


def completion_of(
    body: bytes, *, status: int, headers: Mapping[str, str], secrets: Iterable[str] = ()
) -> ChatCompletion:
    """Returns the completion of a whole response.

    Raises:
        APIStatusError: The body is an error object in spite of its status; of the class of the code it carries.
        APIResponseValidationError: The body is empty, not JSON, or not a completion.
    """
    if not body.strip():
        raise APIResponseValidationError(
            f"got an empty body with status {status}, expected a completion", body="", request_id=request_id(headers)
        )
    try:
        completion = codec.decode_completion(body)
    except codec.JSONError as error:
        kind = "an HTML page" if body.lstrip()[:1] == b"<" else "a body that is not JSON"
        raise APIResponseValidationError(
            f"got {kind} ({len(body)} bytes: {error}), expected a completion",
            body=body.decode("utf-8", "replace"),
            request_id=request_id(headers),
        ) from error
    except APIResponseValidationError as error:
        error.request_id = request_id(headers)
        error.body = body.decode("utf-8", "replace")
        raise
    if completion.choices and not completion.error:
        return completion
    return _without_choices(completion, body, status=status, headers=headers, secrets=secrets)


def _without_choices(
    completion: ChatCompletion, body: bytes, *, status: int, headers: Mapping[str, str], secrets: Iterable[str]
) -> ChatCompletion:
    decoded = codec.decode_json(body)
    facts = error_facts(decoded)
    if facts is not None:
        raise status_error(facts.status or status, headers, body, secrets=secrets)
    if "choices" not in decoded:
        raise APIResponseValidationError(
            "$.choices: missing, expected a list", path="$.choices", body=decoded, request_id=request_id(headers)
        )
    return completion
