"""What several packages need of asyncio: waiting for a wake-up, errors of tasks, iterators that close what they own."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from typing import Final

MISLEADING: Final = (asyncio.CancelledError, StopAsyncIteration, StopIteration)
"""Errors of a task that must not reach the reader of its results unchanged: the reader's loop would take them for its
own cancellation, or for its end."""


class Waiter:
    """One coroutine that waits until it is woken.

    Args:
        busy: The text of the `RuntimeError` for a second coroutine that waits at the same time.
    """

    __slots__ = ("_busy", "_future")

    def __init__(self, busy: str = "two tasks wait for the same thing; let one of them wait") -> None:
        self._busy = busy
        self._future: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'waiting' if self.waiting else 'idle'}>"

    @property
    def taken(self) -> bool:
        """Whether a coroutine is inside `wait`: it waits, or was woken and has not run since."""
        return self._future is not None

    @property
    def waiting(self) -> bool:
        """Whether a coroutine waits, and has not been woken."""
        return self._future is not None and not self._future.done()

    async def wait(self) -> None:
        """Returns once `wake` is called.

        Raises:
            RuntimeError: Another coroutine waits already; that one is not affected.
        """
        if self._future is not None:
            raise RuntimeError(self._busy)
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        """Lets the waiting coroutine continue; does nothing if there is none."""
        if self._future is not None:
            wake(self._future)


def wake(future: asyncio.Future[None], error: BaseException | None = None) -> None:
    """Ends a wait, with an error if one is given; does nothing if the wait has ended, or its event loop is closed."""
    if future.done():
        return
    with contextlib.suppress(RuntimeError):  # its loop is closed
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class OwningIterator(abc.ABC):
    """An iterator that closes what it reads when it is dropped, if it is the owner.

    In a plain `async for` the loop's own iterator is the owner. Python drops that iterator as soon as the loop is left,
    by `break`, an error or a cancellation, even if the object that was looped over lives on.
    """

    __slots__ = ("_owner",)

    def __init__(self, *, owner: bool) -> None:
        self._owner = owner

    def __del__(self) -> None:
        if getattr(self, "_owner", False):  # not set where __init__ raised
            self._drop()

    def _hand_over(self) -> bool:
        """Gives up the ownership for the iterator of a loop; returns whether there was any to give."""
        owner, self._owner = self._owner, False
        return owner

    @abc.abstractmethod
    def _drop(self) -> None:
        """Closes what is read, without waiting."""


def error_of(task: asyncio.Task[None]) -> BaseException | None:
    """Returns what a finished task raised; None if it raised nothing or was cancelled.

    `Task.cancelled` tells the last two apart. `Task.exception` is called for a cancelled task too: a cancellation that
    nobody retrieves keeps its traceback, and every frame in it, until the next garbage collection.
    """
    try:
        return task.exception()
    except asyncio.CancelledError:
        return None


def not_misleading(error: BaseException | None = None) -> RuntimeError:
    """Returns the error that a reader gets in place of a `MISLEADING` one.

    Args:
        error: What the task raised; it becomes the `__cause__`. None for a task that was cancelled.
    """
    if error is None or isinstance(error, asyncio.CancelledError):
        failure = RuntimeError("a task of these results was cancelled, and not by their reader")
    else:
        failure = RuntimeError(f"{type(error).__name__} was raised where nothing of the kind is expected")
    failure.__cause__ = error
    return failure
