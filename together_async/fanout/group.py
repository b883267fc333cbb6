"""A group of tasks that bring something, and one reader who takes it: what `map` and `merge` have in common.

The tasks know the group, and only the reader's iterator knows that it is its own; so the iterator is dropped when its
loop is left, and ends them all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from together_async.tasks import MISLEADING, not_misleading

T = TypeVar("T")


class Group(Generic[T]):
    """Tasks that bring something, and what they have brought."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self.over = False  # nothing more is brought

    def _start(self) -> None:
        """Starts the first tasks; called once, in the event loop."""

    def _taken(self) -> None:
        """Something has been taken away."""

    def _all_brought(self) -> bool:
        return not self._tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task, which calls `_begun` first and `_ended` last.

        That is cheaper than a callback for its end, and each request has a task; the callback is for those that are
        cancelled before they begin.
        """
        assert self._loop is not None  # noqa: S101 - started
        task = self._loop.create_task(work)
        if not task.done():  # as it may be where tasks begin at once (`asyncio.eager_task_factory`)
            self._tasks.add(task)
            task.add_done_callback(self._never_began)
        return task

    def _begun(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is not None:
            task.remove_done_callback(self._never_began)

    def _never_began(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fail(not_misleading())
        self._wake()

    def _ended(self, error: BaseException | None = None) -> None:
        """The running task ends, by an error or without."""
        task: asyncio.Task[None] | None = asyncio.current_task(self._loop)
        if task is None:
            return  # destroyed, long after its loop
        task.remove_done_callback(self._never_began)  # of a task that began at once it was added afterwards
        self._tasks.discard(task)
        if error is not None:
            self._fail(not_misleading(error) if isinstance(error, MISLEADING) else error)
        if error is not None or self._all_brought():
            self._wake()

    def _fail(self, error: BaseException) -> None:
        """The first error ends all other tasks; the reader gets it after what has come."""
        if self._failure is None and not self.over:
            self._failure = error
            self._cancel()

    def _cancel(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def take(self, *, owner: bool) -> T:
        """Returns what came next.

        Raises:
            StopAsyncIteration: There is nothing more.
            Exception: What ended a task. All others have ended by then.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None and not self.over:
            self._loop = loop
            self._start()
        if self._loop is not loop and not self.over:
            raise RuntimeError("these results belong to another event loop; read them where they were begun")
        while not self._ready:
            if self._failure is not None or self.over or self._all_brought():
                await self.aclose()
                failure, self._failure = self._failure, None
                raise failure or StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("two tasks read the same results; let one of them read")
            waiter = self._waiter = loop.create_future()
            try:
                await waiter
            except BaseException:
                if owner:
                    await self.aclose()
                raise
            finally:
                self._waiter = None
        one = self._ready.popleft()
        self._taken()
        return one

    def leave(self) -> None:
        """Tells all tasks to end."""
        self.over = True
        self._ready.clear()
        if self._loop is not None and not self._loop.is_closed():
            self._cancel()

    async def aclose(self) -> None:
        """Ends all tasks. They have ended when it returns."""
        self.leave()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            return  # that of another loop, which has ended or will see to it
        while self._tasks:
            done, _ = await asyncio.wait(tuple(self._tasks))
            self._tasks -= done  # those that were cancelled before they began
        self._wake()


class Results(Generic[T]):
    """What both give back: an async iterator, and an async context manager whose end ends everything.

    In a plain `async for` the loop's own iterator is the owner: when the loop is left by `break`, an error or a
    cancellation, it is dropped, and every task is told to end at once. `async with` waits until they have.
    """

    __slots__ = ("__weakref__", "_group", "_is_loop", "_owner")

    def __init__(self, group: Group[T], *, owner: bool = True, is_loop: bool = False) -> None:
        self._group = group
        self._owner = owner
        self._is_loop = is_loop

    def __aiter__(self) -> AsyncIterator[T]:
        owner, self._owner = self._owner, False
        return type(self)(self._group, owner=owner, is_loop=True)

    async def __anext__(self) -> T:
        # What is called by hand may be called again after a timeout; a loop that is cancelled has ended.
        return await self._group.take(owner=self._owner and self._is_loop)

    async def __aenter__(self) -> Self:
        self._owner = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._group.aclose()

    async def aclose(self) -> None:
        """Ends all that is under way. It has ended when this returns; twice is fine."""
        await self._group.aclose()

    def __del__(self) -> None:
        if getattr(self, "_owner", False):
            self._group.leave()
