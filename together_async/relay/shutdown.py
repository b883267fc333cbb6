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
# Who heard each signal before. Who takes our place may give it back at any time, even when nothing is relayed any more
# (a second server in the process does), so this is forgotten only where it was put back.
_before: Final[dict[int, Callable[[int, FrameType | None], Any]]] = {}


def enter(one: Stoppable) -> None:
    """Says that something is relayed."""
    first = not _live
    _live.add(one)
    if first and threading.current_thread() is threading.main_thread():
        _listen()


def leave(one: Stoppable) -> None:
    """Says that it is not any more. Twice is fine."""
    _live.discard(one)
    if not _live and _before and threading.current_thread() is threading.main_thread():
        _stop_listening()


def tell_all() -> None:
    """Tells everything that is relayed, as a signal does: for servers that are stopped in another way."""
    for one in tuple(_live):
        with contextlib.suppress(RuntimeError):  # its loop is closed
            one._loop.call_soon_threadsafe(one.shut_down)


def _listen() -> None:
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if before is _hear:
            continue
        # Where a signal ends the process, or nobody of Python's hears it, there is no server to be polite for.
        if callable(before) and before is not signal.default_int_handler:
            _before[number] = before
            signal.signal(number, _hear)


def _stop_listening() -> None:
    for number, before in tuple(_before.items()):
        if signal.getsignal(number) is _hear:  # else somebody has taken our place
            signal.signal(number, before)
            del _before[number]


def _hear(number: int, frame: FrameType | None) -> None:
    before = _before.get(number)
    tell_all()
    if before is not None:
        before(number, frame)
