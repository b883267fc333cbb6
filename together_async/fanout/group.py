"""A group of tasks that produce items for one reader: what `map` and `merge` have in common.

The tasks refer to the group, and nothing refers to the reader's iterator but its loop. So the iterator is dropped when
the loop is left, and its `__del__` stops every task.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from together_async.calls.tracebacks import let_go
from together_async.errors import TogetherError
from together_async.tasks import (
    MISLEADING,
    BusyError,
    OwningIterator,
    Waiter,
    drop_hold,
    handed_over,
    hold,
    not_misleading,
)

T = TypeVar("T")

_TWO_READERS: Final = "two tasks read the same results; let one of them read"


class Group(Generic[T]):
    """Tasks that produce items, and the items that the reader has not taken yet.

    Attributes:
        stopped: Whether the tasks were told to end; no item comes any more.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: deque[T] = deque()
        self._reader = Waiter(_TWO_READERS)
        self._failure: BaseException | None = None
        self.stopped = False

    @property
    def task_count(self) -> int:
        """How many tasks are running."""
        return len(self._tasks)

    # ------------------------------------------------------------------------------------------- hooks for subclasses

    def _start(self) -> None:
        """Starts the first tasks; called once, inside the event loop."""

    def _note_taken(self) -> None:
        """The reader has taken an item."""

    def _is_complete(self) -> bool:
        """Returns whether no task will produce another item."""
        return not self._tasks

    # ------------------------------------------------------------------------------------------------------ the tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task, whose coroutine calls `_note_begun` first and `_note_ended` last.

        That is cheaper than a done callback, and each request has a task. The callback is only for tasks that are
        cancelled before they begin.
        """
        assert self._loop is not None  # noqa: S101 - started
        task = self._loop.create_task(work)
        if not task.done():  # an eager task (`asyncio.eager_task_factory`) may have ended already
            self._tasks.add(task)
            hold(self._loop, self)
            task.add_done_callback(self._note_never_begun)
        return task

    def _note_begun(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is not None:
            task.remove_done_callback(self._note_never_begun)

    def _forget(self, *tasks: asyncio.Task[None]) -> None:
        self._tasks.difference_update(tasks)
        if not self._tasks and self._loop is not None:
            drop_hold(self._loop, self)

    def _note_never_begun(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        self._fail(not_misleading())
        self._reader.wake()

    def _note_ended(self, error: BaseException | None = None) -> None:
        """The running task ends, with an error or without."""
        task: asyncio.Task[None] | None = asyncio.current_task(self._loop)
        if task is None:
            return  # its coroutine was destroyed long after the loop had ended
        task.remove_done_callback(self._note_never_begun)  # an eager task got it after it had begun
        self._forget(task)
        if error is not None:
            self._fail(not_misleading(error) if isinstance(error, MISLEADING) else error)
        if error is not None or self._is_complete():
            self._reader.wake()

    def _fail(self, error: BaseException) -> None:
        """Ends all other tasks after the first error; the reader gets it after the items that are ready."""
        if self._failure is None and not self.stopped:
            self._failure = error
            self._cancel_tasks()

    def _cancel_tasks(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()

    # ----------------------------------------------------------------------------------------------------- the reader

    def check_reader(self) -> None:
        """Raises BusyError if a task waits for an item."""
        if self._reader.taken:
            raise BusyError(_TWO_READERS)

    async def next_item(self, *, owner: bool) -> T:
        """Returns the next item; waits for it.

        Args:
            owner: Whether the reader is a loop that ends with its cancellation: it ends the group too.

        Raises:
            StopAsyncIteration: There are no more items.
            Exception: The error that ended a task. All others have ended by then.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None and not self.stopped:
            self._loop = loop
            self._start()
        if self._loop is not loop and not self.stopped:
            raise RuntimeError("these results belong to another event loop; read them where they were begun")
        while not self._ready:
            if self._failure is not None or self.stopped or self._is_complete():
                await self.aclose()
                failure, self._failure = self._failure, None
                raise failure or StopAsyncIteration
            try:
                await self._reader.wait()
            except BusyError:
                raise  # another task reads
            except GeneratorExit:
                if owner:
                    self.stop()  # its coroutine was destroyed, and can't wait
                raise
            except BaseException:
                if owner:
                    await self.aclose()
                raise
        item = self._ready.popleft()
        self._note_taken()
        return item

    def stop(self) -> None:
        """Tells all tasks to end."""
        if handed_over(self._loop, self.stop):
            return
        self.stopped = True
        self._ready.clear()
        if self._loop is not None and not self._loop.is_closed():
            self._cancel_tasks()

    async def aclose(self) -> None:
        """Ends all tasks. They have ended when it returns."""
        self.stop()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            return  # the tasks belong to another loop, which has ended or will run them
        while self._tasks:
            done, _ = await asyncio.wait(tuple(self._tasks))
            self._forget(*done)  # those that were cancelled before they began
        self._reader.wake()


class Results(OwningIterator, Generic[T]):
    """What `map` and `merge` return: an async iterator, and an async context manager whose end stops every task.

    A plain `async for` stops every task when it is left, without waiting for them; `async with` waits until they have
    ended.
    """

    __slots__ = ("__weakref__", "_group", "_is_loop", "_origin")

    def __init__(self, group: Group[T], *, origin: Results[T] | None = None) -> None:
        super().__init__(owner=origin is None)
        self._group = group
        self._is_loop = origin is not None
        self._origin = origin  # what a loop is over, until its first step

    def __aiter__(self) -> AsyncIterator[T]:
        return type(self)(self._group, origin=self)

    async def __anext__(self) -> T:
        if self._origin is not None:
            self._group.check_reader()  # a loop that is refused does not become the owner, whose end stops all tasks
            self._owner, self._origin = self._origin.hand_over(), None
        # A direct caller of `anext` may call it again after a timeout; a loop that is cancelled has ended.
        try:
            return await self._group.next_item(owner=self._owner and self._is_loop)
        except TogetherError as error:
            let_go(error)
            raise

    async def __aenter__(self) -> Self:
        self._owner = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is GeneratorExit:
            self._group.stop()  # its task was destroyed, and can't wait
        else:
            await self._group.aclose()

    async def aclose(self) -> None:
        """Stops every task. They have ended when this returns; calling it twice is fine."""
        await self._group.aclose()

    def _drop(self) -> None:
        self._group.stop()
