"""What several packages need of asyncio: waiting, errors of tasks, iterators that own what they read, finalizers.

The rule for finalizers. Only the thread of an event loop may touch the loop, its connections and the limiter, and only
where no code is half done with them. A finalizer is a `__del__`, or the `finally` of a coroutine that is destroyed.
Python runs one when the last reference goes: at a place that we know, and a `break` closes a stream that way. But what
is in a reference cycle (the traceback of an exception that is kept is enough) is finalized by the garbage collector:
between any two instructions, and in any thread. So every method that ends something, and that a finalizer can reach,
begins with `handed_over`, which leaves the end to the loop. The coroutine of a request that is being sent needs no more
than that: its loop holds it, so it is destroyed only after the loop was closed.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

MISLEADING: Final = (asyncio.CancelledError, StopAsyncIteration, StopIteration)
"""Errors of a task that must not reach the reader of its results unchanged: the reader's loop would take them for its
own cancellation, or for its end."""


CALLBACK_TASK: Final[ContextVar[int]] = ContextVar("CALLBACK_TASK", default=0)
"""In a caller's callback, and in all tasks that it starts: the `id` of the task that awaits it; elsewhere 0."""
_collecting_thread = 0
"""The thread in which the garbage collector is at work; 0 if it is not."""


def _note_collection(phase: str, _info: dict[str, Any]) -> None:
    global _collecting_thread  # noqa: PLW0603 - there is one garbage collector
    _collecting_thread = threading.get_ident() if phase == "start" else 0
    if _collecting_thread:
        for loop in tuple(_held):
            if loop.is_closed():
                _held.pop(loop, None)


_held: Final[dict[asyncio.AbstractEventLoop, set[object]]] = {}
gc.callbacks.append(_note_collection)


def hold(loop: asyncio.AbstractEventLoop, thing: object) -> None:
    """Holds something until `drop_hold`, or until its loop is closed. Twice is fine.

    What has to be ended by us must not become garbage before. asyncio holds a task weakly: one that waits for its
    reader, and is referred to by nothing else, is garbage together with the reader, and would be destroyed in the
    middle of its work. And aiohttp's sessions close themselves when they are collected, wherever that happens.
    """
    _held.setdefault(loop, set()).add(thing)


def drop_hold(loop: asyncio.AbstractEventLoop, thing: object) -> None:
    """Ends what `hold` began. Twice is fine."""
    things = _held.get(loop)
    if things is not None:
        things.discard(thing)
        if not things:
            _held.pop(loop, None)


def handed_over(loop: asyncio.AbstractEventLoop | None, action: Callable[..., None], *args: Any) -> bool:
    """Hands an action to its event loop if it can't be run here and now (see the head of this module).

    ```python
    def leave(self) -> None:
        if handed_over(self._loop, self.leave):
            return
        ...
    ```

    Args:
        loop: The event loop of what the action touches; None if it has not been in one.
        action: What the loop calls, in its own thread, at its next turn.
        *args: The action's arguments.

    Returns:
        Whether it was handed over. If not, the caller goes on: it is in the right thread, at a place that we know; or
        the loop does not run, so that nothing of it is half done, and it may never run again.
    """
    if loop is None:
        return False
    # The running loop of this thread, or None; the public function raises instead, which takes ten times as long.
    running = asyncio._get_running_loop()  # noqa: SLF001 - in asyncio's __all__
    if running is loop:
        if _collecting_thread == 0 or _collecting_thread != threading.get_ident():
            return False
    elif not loop.is_running():
        return False
    try:
        loop.call_soon_threadsafe(action, *args)
    except RuntimeError:  # it is closed
        return False
    return True


class BusyError(RuntimeError):
    """Somebody else reads, opens or waits for the same thing already. Nothing has happened to either."""


class Waiter:
    """One coroutine that waits until it is woken.

    Args:
        busy: The text of the `BusyError` for a second coroutine that waits at the same time.
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
            BusyError: Another coroutine waits already; that one is not affected.
        """
        if self._future is not None:
            raise BusyError(self._busy)
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

    def hand_over(self) -> bool:
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
