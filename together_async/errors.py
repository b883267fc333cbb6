"""The one tree of errors: facts as attributes, and a text computed from them.

No exception of aiohttp, asyncio or a JSON library escapes this package; where one was the reason it is the
`__cause__`. Cancellation is not an error and passes through untouched. No text holds an API key or a prompt.

```
TogetherError
├─ APIConnectionError            nothing came back
│  └─ APITimeoutError            also a TimeoutError
├─ QueueFullError                load shed before sending
├─ APIStatusError                the server answered with an error status
│  ├─ BadRequestError 400   AuthenticationError 401   PaymentRequiredError 402   PermissionDeniedError 403
│  ├─ ContextLengthError         prompt + max_tokens exceed the context
│  ├─ NotFoundError 404   UnprocessableEntityError 422   RateLimitError 429   InternalServerError >= 500
├─ APIResponseValidationError    an answer of the wrong shape
└─ StreamError                   a stream that began and broke; .partial is what had been delivered
   ├─ IncompleteStreamError   StreamConnectionError   StreamTimeoutError   StreamAPIError   StreamProtocolError
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from together_async.models import ChatCompletion, Retried

TimeoutPhase: TypeAlias = Literal["connect", "first_token", "idle", "total", "queue"]
"""Which of the timeouts ran out; the names are the fields of `Timeouts`."""

_REMEDY: Mapping[str, str] = {
    "connect": "no connection was made; check the address, the network and the proxy, or raise Timeouts.connect",
    "first_token": "nothing was generated in that time; raise Timeouts.first_token if the model needs longer",
    "idle": "the stream went silent (comments and pings are not content); raise Timeouts.idle if the model pauses",
    "total": "the whole call took longer than it may; raise Timeouts.total",
    "queue": "the call waited for its turn longer than it may; raise Timeouts.queue or the limits",
}


class TogetherError(Exception):
    """Base of every error this package raises, programming errors (`ValueError`, `TypeError`) excepted.

    Attributes:
        attempts: How many HTTP requests were made for the call, 0 when none was.
        retries: Why there was more than one, in order; empty when there was not.
        request_id: The server's `x-request-id` (or `cf-ray`), for a question to its operator; None when unknown.
    """

    attempts: int = 1
    retries: tuple[Retried, ...] = ()
    request_id: str | None = None

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        # The subclasses take keywords, which Exception's own pickling would lose.
        return _restore, (type(self), self.args, self.__dict__.copy())


def _restore(cls: type[TogetherError], args: tuple[Any, ...], state: dict[str, Any]) -> TogetherError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class APIConnectionError(TogetherError):
    """No response came back: refused, unresolvable, reset, TLS failure, or the client was closed meanwhile.

    Attributes:
        transient: Whether asking again might help. It can't when the client is closed, or the redirects lead nowhere.
    """

    transient: bool = True


class APITimeoutError(APIConnectionError, TimeoutError):
    """Time ran out before anything came back.

    Attributes:
        phase: Which timeout it was: connect, first_token, idle, total or queue.
        seconds: Its limit.
    """

    def __init__(self, *, phase: TimeoutPhase, seconds: float, request_id: str | None = None) -> None:
        self.phase: TimeoutPhase = phase
        self.seconds = seconds
        super().__init__(f"timed out: {phase} took longer than {seconds:g} s; {_REMEDY[phase]}", request_id=request_id)


class QueueFullError(TogetherError):
    """Too many calls wait for their turn (`Limits.max_queued`); nothing was sent. Shed load, or raise the limit."""

    attempts: int = 0


class APIStatusError(TogetherError):
    """The server answered with an error status (or with an error object under status 200).

    Attributes:
        status_code: The HTTP status.
        headers: The response's headers, names in lower case.
        body: The decoded JSON body, or its text when it was not JSON.
        retry_after: Seconds which the server asked to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status_code = status_code
        self.headers: Mapping[str, str] = dict(headers or {})
        self.body = body
        self.retry_after = retry_after
        super().__init__(message, request_id=request_id)


class BadRequestError(APIStatusError):
    """400: the request is wrong; sending it again can't help."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or revoked. Set TOGETHER_API_KEY or pass `api_key=`."""


class PaymentRequiredError(APIStatusError):
    """402: the account's spending limit is reached; every other call will fail the same way."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this."""


class ContextLengthError(APIStatusError):
    """Prompt and max_tokens exceed the model's context (403 at Together, 400 at other servers): shorten either."""


class NotFoundError(APIStatusError):
    """404: no such model or path; check `model` and `base_url`."""


class UnprocessableEntityError(APIStatusError):
    """422: the request's shape is wrong."""


class RateLimitError(APIStatusError):
    """429: faster than the account may go; `.retry_after` says how long to wait, when the server told."""


class InternalServerError(APIStatusError):
    """500 and above: the server's fault, or its overload (503)."""


STATUS_ERRORS: Mapping[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    404: NotFoundError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error_class(status: int) -> type[APIStatusError]:
    """Returns the class for an HTTP status: the table's, InternalServerError from 500, else the base."""
    return STATUS_ERRORS.get(status) or (InternalServerError if status >= 500 else APIStatusError)


class APIResponseValidationError(TogetherError):
    """The answer is not what the protocol says: not JSON, or a value of the wrong type.

    Attributes:
        path: Where in the body, as `$.choices[0].message.content`; `$` is the body itself.
        body: The body's text.
    """

    def __init__(self, message: str, *, path: str = "$", body: object = None, request_id: str | None = None) -> None:
        self.path = path
        self.body = body
        super().__init__(message, request_id=request_id)


class StreamError(TogetherError):
    """A stream that began and did not reach its end.

    Attributes:
        partial: What had been delivered, assembled. Its finish reasons are the server's or None, never invented.
    """

    def __init__(self, message: str, *, partial: ChatCompletion, request_id: str | None = None) -> None:
        self.partial = partial
        super().__init__(message, request_id=request_id)


class IncompleteStreamError(StreamError):
    """The stream ended before `data: [DONE]` and before every choice had a finish reason."""


class StreamConnectionError(StreamError):
    """The connection was lost in the middle of the stream, or the client was closed."""


class StreamTimeoutError(StreamError, TimeoutError):
    """The first token came, then silence (pings are not tokens), or the whole call's time ran out.

    Attributes:
        phase: `idle` or `total`.
        seconds: The limit.
    """

    def __init__(
        self, *, phase: TimeoutPhase, seconds: float, partial: ChatCompletion, request_id: str | None = None
    ) -> None:
        self.phase: TimeoutPhase = phase
        self.seconds = seconds
        message = f"stream timed out: {phase} took longer than {seconds:g} s; {_REMEDY[phase]}"
        super().__init__(message, partial=partial, request_id=request_id)


class StreamAPIError(StreamError):
    """The server sent an error inside the stream.

    Attributes:
        status_code: The HTTP status the error object carried as its `code` or `status`, or None.
        body: The error object as it came.
    """

    def __init__(
        self,
        message: str,
        *,
        partial: ChatCompletion,
        status_code: int | None = None,
        body: object = None,
        request_id: str | None = None,
    ) -> None:
        self.status_code = status_code
        self.body = body
        super().__init__(message, partial=partial, request_id=request_id)


class StreamProtocolError(StreamError):
    """What came is not a stream of this protocol: not an event stream, broken JSON, an event above the size cap."""
