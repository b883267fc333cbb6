"""The one tree of errors: facts as attributes, and a text computed from them.

No exception of aiohttp, asyncio or a JSON library escapes this package; where one was the cause it is the
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
│  ├─ InsufficientQuotaError     429 of an empty account: a PaymentRequiredError and a RateLimitError
├─ APIResponseValidationError    a response of the wrong shape
└─ StreamError                   a stream that began and broke; .partial is what had been delivered
   ├─ IncompleteStreamError   StreamConnectionError   StreamTimeoutError   StreamAPIError   StreamProtocolError
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from together_async.models import ChatCompletion, Retried

TimeoutPhase: TypeAlias = Literal["connect", "first_token", "idle", "total", "queue"]
"""Which of the timeouts ran out; the names are the fields of `Timeouts`."""

E = TypeVar("E", bound="TogetherError")

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
        attempts: How many HTTP requests the call made; 0 when nothing was sent.
        retries: The attempts that failed before the last one, in order; empty when there was only one.
        request_id: The server's `x-request-id` (or `cf-ray`), to quote to its operator; None without a response.
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


def unsent(error: E) -> E:
    """Returns an error of a call for which no HTTP request was sent: its `attempts` is 0."""
    error.attempts = 0
    return error


class APIConnectionError(TogetherError):
    """No response came back: refused, unresolvable, reset, a TLS failure, or the client was closed meanwhile.

    Check the address, the network and the proxy; the `__cause__` has the details.

    Attributes:
        transient: Whether another attempt may succeed. False when the client is closed, and for endless redirects.
    """

    transient: bool = True


class APITimeoutError(APIConnectionError, TimeoutError):
    """Time ran out before anything came back. Raise the limit in `Timeouts`, or ask for less.

    Attributes:
        phase: The limit that ran out, a field of `Timeouts`: connect, first_token, idle, total or queue.
        seconds: The value of that limit.
    """

    def __init__(self, *, phase: TimeoutPhase, seconds: float, request_id: str | None = None) -> None:
        self.phase: TimeoutPhase = phase
        self.seconds = seconds
        super().__init__(f"timed out: {phase} took longer than {seconds:g} s; {_REMEDY[phase]}", request_id=request_id)


class QueueFullError(TogetherError):
    """Too many calls are waiting for their turn (`Limits.max_queued`); nothing was sent.

    Shed the load, for instance with a 503 to your own client, or raise the limit.

    A call in the body of a loop over a stream, or in `on_chunk` of `map`, also gets it if it would wait for ever: if
    such streams hold all places of `Limits.concurrency`. Make the call after the stream has ended, or raise the number.
    """

    attempts: int = 0


class APIStatusError(TogetherError):
    """The server answered with an error status, or with an error object under status 200.

    Attributes:
        status_code: The HTTP status; for an error object under status 200 the code it carries, if any.
        headers: The response's headers, names in lower case.
        body: The decoded JSON body, or its text when it was not JSON.
        retry_after: Seconds the server asked to wait, at most a day (`retry-after`, `retry-after-ms`, on a 429 also
            `x-ratelimit-reset` and other services' names for it); None when it did not ask, or its value makes no
            sense.
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
    """400: the request is wrong. Sending it again can't help; the message says what to change."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or revoked. Set TOGETHER_API_KEY or pass `api_key=`."""


class PaymentRequiredError(APIStatusError):
    """402: the account's spending limit is reached; every other call fails the same way until it is raised."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this; ask the account's owner."""


class ContextLengthError(APIStatusError):
    """Prompt and max_tokens exceed the model's context (403 at Together, 400 at other servers): shorten either."""


class NotFoundError(APIStatusError):
    """404: no such model or path; check `model` and `base_url`."""


class UnprocessableEntityError(APIStatusError):
    """422: the request's shape is wrong; the message names the field."""


class RateLimitError(APIStatusError):
    """429: the account's rate is exceeded; `.retry_after` has the seconds to wait, if the server sent them.

    The client waits and retries by itself. This is raised when the wait would be too long: longer than
    `Retry.max_retry_after`, or than a time limit allows. Send less, or raise the limits.
    """


class InsufficientQuotaError(PaymentRequiredError, RateLimitError):
    """429 of an account without credit: waiting does not help. Add credit, or raise the account's spending limit.

    Services without a 402 answer so, and name the cause in the body's code, as `insufficient_quota`. It is handled as a
    402: the call is not made again, and other calls fail the same way until there is credit.
    """


class InternalServerError(APIStatusError):
    """500 and above: the server's fault, or its overload (503). Try again later."""


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
    """The response does not follow the protocol: not JSON, or a value of the wrong type. Check `base_url`.

    Attributes:
        path: Where in the body, as `$.choices[0].message.content`; `$` is the body itself.
        body: The body, as text or decoded; None when it was not kept.
    """

    def __init__(self, message: str, *, path: str = "$", body: object = None, request_id: str | None = None) -> None:
        self.path = path
        self.body = body
        super().__init__(message, request_id=request_id)


class StreamError(TogetherError):
    """A stream that began and did not reach its end.

    Attributes:
        partial: The completion of what had been delivered. Its finish reasons are the server's or None, never invented.
    """

    def __init__(self, message: str, *, partial: ChatCompletion, request_id: str | None = None) -> None:
        self.partial = partial
        super().__init__(message, request_id=request_id)


class IncompleteStreamError(StreamError):
    """The stream ended before `data: [DONE]` and before every choice had a finish reason.

    `.partial` is not the whole completion: make the call again, or mark it as cut off.
    """


class StreamConnectionError(StreamError):
    """The connection was lost in the middle of the stream, or the client was closed."""


class StreamTimeoutError(StreamError, TimeoutError):
    """The first token came, then silence (pings are not tokens), or the time for the whole call ran out.

    Attributes:
        phase: The limit that ran out: `idle` or `total`.
        seconds: The value of that limit.
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
        status_code: The HTTP status that the error object carried as its `code` or `status`; None without one.
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
    """The body is not a stream of this protocol: not an event stream, broken JSON, or an event above the size cap.

    Check that `base_url` leads to a server of this protocol; the message says what came.
    """
