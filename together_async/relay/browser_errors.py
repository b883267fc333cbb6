"""What a browser is told when an answer fails: a status, a JSON object in the shape of the API's errors.

It is told what it can use. What concerns the app and its account alone (its key, its bill, the address of the server
behind it) stays in the app's log.
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

_MOST: Final = 500
"""Characters of a message."""


class ServerShutdownError(TogetherError):
    """The app's server is told to stop, and the answer was not finished by then."""


class NotKeptError(TogetherError, LookupError):
    """No completion is kept under this id: there never was one, it was stopped, or its time is over."""


class IdError(TogetherError, ValueError):
    """No completion can be kept under an id: there is one already, or no event's id can hold it.

    Attributes:
        status_code: 409 or 400, for the page that chose it.
    """

    def __init__(self, message: str, *, status_code: int) -> None:
        self.status_code = status_code
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), status_code=self.status_code), self.args


class TooLargeError(QueueFullError):
    """A completion is larger than a hub may keep; it was stopped."""


class StoppedError(TogetherError):
    """The completion was stopped before its end: by a stop button, or because nobody read it any more."""


class AllReadError(TogetherError):
    """A client came back that has had everything. A relay answers 204, which ends a browser's attempts."""


CANNOT_RESUME: Final = "the client comes back to what can't be resumed"
_APP: Final = "the service behind this app refuses its requests; its operator has to see to it"
_LOST: Final = "the service behind this app can't be reached, or the connection to it was lost; try again"
_LATE: Final = "the service behind this app took too long; try again"
_WRONG: Final = "the service behind this app gave an answer that is not understood"
_OURS: Final = {
    401: _APP,
    402: _APP,
    403: _APP,
    404: "the service behind this app does not have what it asks for; its operator has to see to it",
    429: "too many requests are under way; try again later",
}
_TABLE: Final[tuple[tuple[type[TogetherError], int | None, str | None], ...]] = (
    # the first that fits; a status of None is the error's own, a message of None too
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
    """Returns the HTTP status for an answer that failed before its first event: the service's own, else 5xx."""
    for cls, status, _ in _TABLE:
        if isinstance(error, cls):
            own = status if status is not None else getattr(error, "status_code", None)
            return own if isinstance(own, int) and (400 <= own <= 599 or own == status) else 502
    return 500


def error_for_browser(error: BaseException) -> dict[str, Any]:
    """Returns what a browser is told: `message`, `type` (the error's class), `code` (the service's, else a status)."""
    status = status_of(error)
    said = next((text for cls, _, text in _TABLE if isinstance(error, cls)), _UNKNOWN)
    code: str | int = status
    if said is None:
        facts = error_facts(getattr(error, "body", None))
        if facts is not None and facts.code is not None:
            code = facts.code
        said = _said_by_the_service(error, getattr(error, "status_code", None))
    return {"message": said[:_MOST], "type": type(error).__name__, "param": None, "code": code}


def _said_by_the_service(error: BaseException, status: int | None) -> str:
    """Returns its words where they are about the request; in the others are accounts, links and addresses."""
    if status in _OURS and not isinstance(error, ContextLengthError):
        return _OURS[status]
    if status is not None and not 400 <= status <= 499:
        return _FAILED
    return str(error).removeprefix(f"{status}: ")


def headers_of(error: BaseException) -> Mapping[str, str]:
    """Returns the headers of such a response: when to come back, where that is known."""
    wait_s = getattr(error, "retry_after", None)
    if wait_s is None and isinstance(error, (QueueFullError, ServerShutdownError)):
        wait_s = 1.0
    return {} if wait_s is None else {"retry-after": str(max(0, math.ceil(wait_s)))}
