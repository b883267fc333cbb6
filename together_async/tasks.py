"""Tasks and those who wait for them: what several packages need of asyncio."""

from __future__ import annotations

import asyncio
from typing import Final

MISLEADING: Final = (asyncio.CancelledError, StopAsyncIteration, StopIteration)
"""Errors that must not reach the reader of a task's results as they are: its loop would take them for its own
cancellation, or for its end."""


class Waiter:
    """One coroutine that waits until it is woken.

    Args:
        busy: The text of the `RuntimeError` for a second coroutine that waits at the same time.
    """

    __slots__ = ("_busy", "_future")

    def __init__(self, busy: str) -> None:
        self._busy = busy
        self._future: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'waiting' if self.waiting else 'idle'}>"

    @property
    def waiting(self) -> bool:
        """Whether a coroutine waits, and has not been woken."""
        return self._future is not None and not self._future.done()

    async def wait(self) -> None:
        """Returns once `wake` is called.

        Raises:
            RuntimeError: Another coroutine waits already; nothing happens to it.
        """
        if self._future is not None:
            raise RuntimeError(self._busy)
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        """Lets the coroutine that waits go on; without one nothing happens."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


def error_of(task: asyncio.Task[None]) -> BaseException | None:
    """Returns what a finished task raised; None if it raised nothing, and None if it was cancelled.

    `Task.cancelled` tells the last two apart. A cancelled task is asked all the same: a cancellation that nobody
    retrieves keeps its traceback, and every frame in it, until the next garbage collection.
    """
    try:
        return task.exception()
    except asyncio.CancelledError:
        return None


def not_misleading(error: BaseException | None = None) -> RuntimeError:
    """Returns the error that a reader gets in place of a `MISLEADING` one, or of None for a task that was cancelled."""
    if error is None or isinstance(error, asyncio.CancelledError):
        failure = RuntimeError("a task of these results was cancelled, and not by their reader")
    else:
        failure = RuntimeError(f"{type(error).__name__} was raised where nothing of the kind is expected")
    failure.__cause__ = error
    return failure
