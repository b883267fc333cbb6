"""What a browser gets when an answer fails: a status, and a JSON object in the shape of the API's errors.

It gets what it can use. What concerns only the app and its account (its key, its bill, the address of the server behind
it) stays in the app's log.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Final

from together_async.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    ContextLengthError,
    IncompleteStreamError,
    QueueFullError,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    TogetherError,
)
from together_async.flow.broadcast import SlowConsumerError
from together_async.wire.error_bodies import error_facts

_MAX_MESSAGE_CHARS: Final = 500


class ServerShutdownError(TogetherError):
    """The app's server was told to stop, and the answer was not finished within `grace` seconds."""


class NotKeptError(TogetherError, LookupError):
    """No completion is kept under this id: there never was one, or it was forgotten (see `Hub`)."""


class IdError(TogetherError, ValueError):
    """A completion can't be kept under this id: there is one already, or an event's id can't hold it.

    Attributes:
        status_code: The HTTP status for the page that chose the id: 409 if it is taken, 400 if it can't be held.
    """

    def __init__(self, message: str, *, status_code: int) -> None:
        self.status_code = status_code
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), status_code=self.status_code), self.args


class TooLargeError(QueueFullError):
    """A completion became larger than a hub may keep, and was stopped."""


class StoppedError(TogetherError):
    """The completion was stopped before its end: by `Hub.stop`, or because it had no reader for too long."""


class AllReadError(TogetherError):
    """A client came back that has the whole answer, or can't resume it. A 204 ends a browser's attempts."""


CANNOT_RESUME: Final = "the client comes back to what can't be resumed"
_REFUSED: Final = "the service behind this app refuses its requests; its operator has to see to it"
_LOST: Final = "the service behind this app can't be reached, or the connection to it was lost; try again"
_LATE: Final = "the service behind this app took too long; try again"
_WRONG: Final = "the service behind this app gave an answer that is not understood"
_APP_ERRORS: Final = {
    401: _REFUSED,
    402: _REFUSED,
    403: _REFUSED,
    404: "the service behind this app does not have what it asks for; its operator has to see to it",
    429: "too many requests are under way; try again later",
}
"""Statuses that concern the app and its account, and the message in place of the service's own."""
_TABLE: Final[tuple[tuple[type[TogetherError], int | None, str | None], ...]] = (
    # class, status, message; the first class that fits. None takes the status or message from the error itself.
    (APIStatusError, None, None),
    (IdError, None, "no new answer can have this id; join the one that has it, or take another id"),
    (TooLargeError, 503, "this answer became larger than this app can keep; it was stopped"),
    (QueueFullError, 503, "too many requests wait for the service behind this app; try again later"),
    (APITimeoutError, 504, _LATE),
    (APIConnectionError, 502, _LOST),
    (APIResponseValidationError, 502, _WRONG),
    (StreamAPIError, None, None),
    (StreamTimeoutError, 504, _LATE),
    (StreamConnectionError, 502, _LOST),
    (IncompleteStreamError, 502, "the answer was cut off before its end; try again"),
    (StreamProtocolError, 502, _WRONG),
    (StreamError, 502, _LOST),
    (ServerShutdownError, 503, "this server is being restarted; try again"),
    (SlowConsumerError, 503, "this client read too slowly"),
    (NotKeptError, 410, "this answer is not kept any more; ask again"),
    (StoppedError, 410, "this answer was stopped"),
    (AllReadError, 204, ""),
)
_FAILED: Final = "the service behind this app failed; try again"
_UNKNOWN: Final = "something went wrong in this app"


def status_of(error: BaseException) -> int:
    """Returns the HTTP status for an answer that failed before its first event.

    Args:
        error: Any exception.

    Returns:
        The service's own status where it sent one, else the one that fits the error's class; 500 for an exception that
        is not of this package.
    """
    for cls, status, _ in _TABLE:
        if isinstance(error, cls):
            own = status if status is not None else getattr(error, "status_code", None)
            return own if isinstance(own, int) and (400 <= own <= 599 or own == status) else 502
    return 500


def error_for_browser(error: BaseException) -> dict[str, Any]:
    """Returns what a browser may know of an error, in the shape of the API's errors.

    Args:
        error: Any exception.

    Returns:
        `message` (at most 500 characters, without keys, prompts, accounts or addresses), `type` (the error's class),
        `param` (None), and `code` (the service's own, else the HTTP status).
    """
    status = status_of(error)
    message = next((text for cls, _, text in _TABLE if isinstance(error, cls)), _UNKNOWN)
    code: str | int = status
    if message is None:
        facts = error_facts(getattr(error, "body", None))
        if facts is not None and facts.code is not None:
            code = facts.code
        message = _service_message(error, getattr(error, "status_code", None))
    return {"message": message[:_MAX_MESSAGE_CHARS], "type": type(error).__name__, "param": None, "code": code}


def _service_message(error: BaseException, status: int | None) -> str:
    """Returns the service's own message if it is about the request: others hold accounts, links and addresses."""
    if status in _APP_ERRORS and not isinstance(error, ContextLengthError):
        return _APP_ERRORS[status]
    if status is not None and not 400 <= status <= 499:
        return _FAILED
    return str(error).removeprefix(f"{status}: ")


def headers_of(error: BaseException) -> Mapping[str, str]:
    """Returns the headers for an error's response: `retry-after`, in whole seconds, where it is known."""
    wait_s = getattr(error, "retry_after", None)
    if wait_s is None and isinstance(error, (QueueFullError, ServerShutdownError)):
        wait_s = 1.0
    return {} if wait_s is None else {"retry-after": str(max(0, math.ceil(wait_s)))}
