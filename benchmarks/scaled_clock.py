"""A clock that runs faster: a minute's rate limit can be kept, or passed, in seconds.

`install` has to come before anything that takes a function out of `time`. From `accelerate` on every clock of the
process runs `speed` times as fast, and an event loop of `loop_factory` waits as much shorter, so a client's own delays,
of half a second or a minute, keep their proportion to the account's limits. What isn't scaled is the processor: a
millisecond of work counts as `speed` milliseconds. Work that comes all at once, before anything is sent, is therefore
better done before the clock is accelerated.
"""

import asyncio
import selectors
import time
from collections.abc import Callable

_speed = 1.0
_clocks: list["_Clock"] = []


class _Clock:
    """One of the functions of `time`; it never jumps."""

    def __init__(self, real: Callable[[], float], a_second: int) -> None:
        self._real = real
        self._whole = a_second > 1
        self._since = self._then = real()

    def __call__(self) -> float:
        now = self._then + (self._real() - self._since) * _speed
        return int(now) if self._whole else now

    def rebase(self) -> None:
        """To be called before the speed changes."""
        self._then, self._since = self(), self._real()


def install() -> None:
    """Takes the place of the clocks of this process; they run on as they did."""
    really_sleep = time.sleep
    time.sleep = lambda seconds: really_sleep(seconds / _speed)
    for name in ("monotonic", "time", "perf_counter"):
        for full_name, a_second in ((name, 1), (f"{name}_ns", 10**9)):
            clock = _Clock(getattr(time, full_name), a_second)
            _clocks.append(clock)
            setattr(time, full_name, clock)


def accelerate(speed: float) -> None:
    """Lets the clocks run `speed` times as fast from now on."""
    global _speed  # noqa: PLW0603 - one process has one time
    for clock in _clocks:
        clock.rebase()
    _speed = speed


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout if timeout is None else timeout / _speed)


def loop_factory() -> asyncio.AbstractEventLoop:
    """Makes an event loop whose waits are as much shorter as its clock is faster."""
    return asyncio.SelectorEventLoop(_Selector())
