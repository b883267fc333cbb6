"""Errors that only this package raises; apart from `transport` and `response`, which load aiohttp."""

from __future__ import annotations

import errno
import re
import socket
from typing import Final

from together_async.errors import APIConnectionError

NO_DESCRIPTOR: Final = (
    "no file descriptor is left; raise the limit (ulimit -n), or send less at once with Limits(concurrency=...)"
)
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""The process may open no more descriptors, or the whole system may not."""
_SEVERAL_ERRORS: Final = re.compile(rf"\[Errno ({errno.EMFILE}|{errno.ENFILE})\]")
"""A host with several addresses may fail with an error for each; aiohttp makes one of all texts, without errno."""


class ClientClosedError(APIConnectionError):
    """The client was closed; make a new one, or close it later."""

    transient = False


class InflationError(APIConnectionError):
    """A compressed body inflates beyond reason, which is likely an attack.

    Users do not see it: `calls` makes a StreamProtocolError of it, `read_all` an APIResponseValidationError.
    """


class DescriptorsExhaustedError(APIConnectionError):
    """No socket could be opened, because the process or the system has no file descriptor left; nothing was sent.

    The call waits for a descriptor, so users see this only if there was none for a minute. Raise the limit (`ulimit
    -n`, `LimitNOFILE` of a service), or send less at once: `Limits(concurrency=...)`.
    """


def is_exhaustion(error: BaseException) -> bool:
    """Returns whether no connection could be opened because there was no file descriptor left.

    Args:
        error: What aiohttp raised instead of opening a connection.
    """
    cause: object = getattr(error, "os_error", error)
    if not isinstance(cause, OSError):
        return False
    if cause.errno in _EXHAUSTED:
        return True
    if isinstance(cause, socket.gaierror):
        return _has_no_descriptor()  # a resolver may report the files it could not open as a name it does not know
    return cause.errno is None and _SEVERAL_ERRORS.search(str(cause)) is not None


def _has_no_descriptor() -> bool:
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno in _EXHAUSTED
    return False
