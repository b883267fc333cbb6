"""Ends relayed answers with an event of their own when the server is told to stop.

Servers wait for their responses, some for ever, and a stream of tokens may take minutes; other servers cut it. So while
anything is relayed, this package handles SIGINT and SIGTERM too, and then calls the handler that was there before. When
nothing is relayed, no handler of this package is installed.
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
"""Seconds an answer may go on after the server was told to stop. Servers that cut do so after three or more."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """An answer that is relayed."""

    loop: asyncio.AbstractEventLoop
    """The event loop in which `shut_down` is called."""

    def shut_down(self) -> None:
        """Notes that the server was told to stop."""
        ...


_live: Final[set[Stoppable]] = set()


def register(answer: Stoppable) -> None:
    """Notes that an answer is relayed from now on."""
    _live.add(answer)
    if threading.current_thread() is threading.main_thread():
        _install_handlers()


def unregister(answer: Stoppable) -> None:
    """Notes that an answer is no longer relayed. Twice is fine."""
    _live.discard(answer)
    if not _live and threading.current_thread() is threading.main_thread():
        _remove_handlers()


def shut_down() -> None:
    """Ends all relayed answers as a signal does, each after its `grace`: for servers that are stopped in another way.

    It may be called from any thread, and returns at once.
    """
    for answer in tuple(_live):
        with contextlib.suppress(RuntimeError):  # its loop is closed
            answer.loop.call_soon_threadsafe(answer.shut_down)


class _SignalHandler:
    """A signal handler that calls `shut_down`, and then the handler that was there before it.

    Someone may replace it and put it back at any time, even when nothing is relayed any more, as a second server in the
    process does when it stops. So each one keeps the handler that it calls.
    """

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        shut_down()
        self.before(number, frame)


def _install_handlers() -> None:
    for number in _SIGNALS:
        before = signal.getsignal(number)
        # Where a signal ends the process, or no Python handler gets it, there is no server to be polite for.
        if callable(before) and before is not signal.default_int_handler and not isinstance(before, _SignalHandler):
            signal.signal(number, _SignalHandler(before))


def _remove_handlers() -> None:
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if isinstance(handler, _SignalHandler):  # else someone has replaced it
            signal.signal(number, handler.before)
