"""Event loops whose clock jumps: real sockets, but no real waiting.

When nothing is ready and the network has nothing, the clock goes to the next timer at once. A stall of five minutes
takes a millisecond, and a timeout is exact, however busy the machine is. It holds where both ends of every connection
are in the loop, since bytes on loopback are there as soon as they are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
GRACE_S = 0.0002
"""Real seconds in which the network may still bring something before the clock jumps."""
SOON_S = 0.05
"""Virtual seconds of timers that may fire in addition to those which a test is about."""
START_S = 1_000.0
"""When a `FakeTimeLoop` begins."""
STUCK_S = 5.0
"""Real seconds after which a loop without any timer or byte counts as stuck."""


class StuckError(AssertionError):
    """All tasks wait, and no timer is set and no byte will come."""


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


class FakeTimeLoop(VirtualTimeLoop):
    """A loop in which no time passes but in the waits for timers: they are exact. For tests without sockets."""

    def time(self) -> float:
        """Seconds since the loop was made, and a number that is not 0."""
        return START_S + self._jumping.jumped_s


def now() -> float:
    """The time of the running loop, in seconds."""
    return asyncio.get_running_loop().time()


def timers(loop: asyncio.AbstractEventLoop | None = None) -> list[asyncio.TimerHandle]:
    """The timers that are set in a loop, by default the running one."""
    scheduled = (loop or asyncio.get_running_loop())._scheduled  # type: ignore[attr-defined] # asyncio has no public list of timers
    return [timer for timer in scheduled if not timer.cancelled()]


def run(main: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None) -> T:
    """Runs a coroutine in a loop of its own, by default one whose clock jumps; no task may be left at its end."""
    loop = loop or VirtualTimeLoop()
    try:
        result = loop.run_until_complete(main)
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks left: {left}"
        return result
    finally:
        loop.close()


def run_in_fake_time(main: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None) -> T:
    """The same in a `FakeTimeLoop`, or the loop given; no timer may be left either, and no callback may fail."""
    loop = loop or FakeTimeLoop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))

    async def watched() -> T:
        result = await main
        assert not timers(loop), f"timers left: {timers(loop)}"
        return result

    result = run(watched(), loop)
    assert not unhandled, f"in callbacks: {unhandled}"
    return result


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a test in a loop whose clock jumps: its minutes cost nothing, and a busy machine changes no outcome."""

    @functools.wraps(test)
    def in_virtual_time(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(10_000):  # a server that drips for ever would keep a broken client as long
                await test(*args, **kwargs)
            await asyncio.sleep(1)  # transports close a turn or two after `close()`

        run(main())

    return in_virtual_time


@contextlib.contextmanager
def lasts(seconds: float) -> Iterator[None]:
    """A block that takes so many virtual seconds, neither more nor less; what the machine needs does not count."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    began, jumped = loop.time(), loop._jumping.jumped_s
    yield
    assert loop.time() - began > seconds - 0.01
    assert loop._jumping.jumped_s - jumped < seconds + SOON_S
