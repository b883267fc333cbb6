"""A faster clock: a minute of rate limits passes in seconds.

Call `install` before anything takes a function from `time`. From `accelerate` on, every clock of the process runs
`speed` times as fast, and an event loop of `loop_factory` waits for as much less time, so that a client's own delays
keep their proportion to the account's limits. The processor is not scaled: a millisecond of work counts as `speed`
milliseconds. So work that comes all at once, before anything is sent, is better done before the clock is accelerated.
"""

import asyncio
import selectors
import time
from collections.abc import Callable

_speed = 1.0
_clocks: list["_Clock"] = []


class _Clock:
    """Replaces a function of `time`, without jumps."""

    def __init__(self, real: Callable[[], float], a_second: int) -> None:
        self._real = real
        self._whole = a_second > 1
        self._since = self._then = real()

    def __call__(self) -> float:
        now = self._then + (self._real() - self._since) * _speed
        return int(now) if self._whole else now

    def rebase(self) -> None:
        """Has to be called before the speed changes."""
        self._then, self._since = self(), self._real()


def install() -> None:
    """Replaces the clocks of this process; they run on at the same speed."""
    really_sleep = time.sleep
    time.sleep = lambda seconds: really_sleep(seconds / _speed)
    for name in ("monotonic", "time", "perf_counter"):
        for full_name, a_second in ((name, 1), (f"{name}_ns", 10**9)):
            clock = _Clock(getattr(time, full_name), a_second)
            _clocks.append(clock)
            setattr(time, full_name, clock)


def accelerate(speed: float) -> None:
    """Makes the clocks run `speed` times as fast from now on."""
    global _speed  # noqa: PLW0603 - a process has one clock speed
    for clock in _clocks:
        clock.rebase()
    _speed = speed


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout if timeout is None else timeout / _speed)


def loop_factory() -> asyncio.AbstractEventLoop:
    """Makes an event loop whose waits are shorter by the factor of the clock's speed."""
    return asyncio.SelectorEventLoop(_Selector())
