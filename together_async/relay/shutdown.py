"""When the server is told to stop, streams end politely.

Servers wait for their responses, some for ever, and a stream of tokens may take minutes; others cut it. So while
anything is relayed, SIGINT and SIGTERM are heard here too, before whoever heard them so far, who is then called as
always. No handler of ours stays when nothing is relayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Protocol

DEFAULT_GRACE: Final = 2.0
"""Seconds an answer may go on when the server is told to stop. Servers that cut do it after three or more."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """What is told."""

    _loop: asyncio.AbstractEventLoop

    def shut_down(self) -> None:
        """The server is told to stop."""
        ...


_live: Final[set[Stoppable]] = set()


def enter(one: Stoppable) -> None:
    """Says that something is relayed."""
    _live.add(one)
    if threading.current_thread() is threading.main_thread():
        _listen()


def leave(one: Stoppable) -> None:
    """Says that it is not any more. Twice is fine."""
    _live.discard(one)
    if not _live and threading.current_thread() is threading.main_thread():
        _stop_listening()


def tell_all() -> None:
    """Tells everything that is relayed, as a signal does: for servers that are stopped in another way."""
    for one in tuple(_live):
        with contextlib.suppress(RuntimeError):  # its loop is closed
            one._loop.call_soon_threadsafe(one.shut_down)


class _SignalHandler:
    """A signal handler that stands before another one.

    Whoever takes its place may give it back at any time, even when nothing is relayed any more, as a second server in
    the process does when it stops. So each knows for itself whom to call.
    """

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        tell_all()
        self.before(number, frame)


def _listen() -> None:
    for number in _SIGNALS:
        before = signal.getsignal(number)
        # Where a signal ends the process, or nobody of Python's hears it, there is no server to be polite for.
        if callable(before) and before is not signal.default_int_handler and not isinstance(before, _SignalHandler):
            signal.signal(number, _SignalHandler(before))


def _stop_listening() -> None:
    for number in _SIGNALS:
        ear = signal.getsignal(number)
        if isinstance(ear, _SignalHandler):  # else somebody has taken our place
            signal.signal(number, ear.before)
