"""An event loop whose clock jumps: real sockets, but nobody waits.

When nothing is ready and the network has nothing, the clock goes to the next timer at once. A stall of five minutes
takes a millisecond, and a timeout is exact, however busy the machine is. It holds where both ends of every connection
are in the loop, since bytes on loopback are there as soon as they are sent.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
GRACE_S = 0.0002
"""Real seconds in which the network may still bring something before the clock jumps."""
STUCK_S = 5.0
"""Real seconds after which a loop without any timer or byte counts as stuck."""


class StuckError(AssertionError):
    """Everybody waits for something that no timer and no byte will bring."""


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.jumped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        events = super().select(STUCK_S if timeout is None else min(timeout, GRACE_S))
        if not events:
            if timeout is None:
                raise StuckError(f"nothing happened for {STUCK_S} s and nothing is due")
            self.jumped_s += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        self._jumping = _Selector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Real time and all the jumps."""
        return super().time() + self._jumping.jumped_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a loop of its own; no task may be left at its end."""
    loop = VirtualTimeLoop()
    try:
        result = loop.run_until_complete(main)
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks left: {left}"
        return result
    finally:
        loop.close()
