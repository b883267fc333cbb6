"""Many requests at once: the tasks under `client.map`.

What is held at any moment is bounded on both sides: the requests that were read from the input, and whose results the
reader has not taken, are never more than `concurrency` (in order: twice that). So a slow reader slows the input.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from together_async.calls.tracebacks import let_go
from together_async.errors import TogetherError
from together_async.fanout.group import Group
from together_async.fanout.pending import PendingRequest, Requester
from together_async.fanout.results import MapResult, OnChunk, OnError
from together_async.tasks import MISLEADING, Waiter, not_misleading

if TYPE_CHECKING:
    from together_async.fanout.defaults import Defaults

R = TypeVar("R")


class _Input(Generic[R]):
    """The input of a `map`: an iterator or an async iterator, of which nothing is kept once it is exhausted.

    Raises:
        ValueError: The input is neither, or its elements cannot be requests.
    """

    __slots__ = ("async_items", "error", "exhausted", "items")

    def __init__(self, requests: Iterable[R] | AsyncIterable[R]) -> None:
        self.items: Iterator[R] | None = None
        self.async_items: AsyncIterator[R] | None = None
        self.exhausted = False
        self.error: Exception | None = None  # what it raised
        if isinstance(requests, AsyncIterable):
            self.async_items = aiter(requests)
        else:
            self.items = _iterator(requests)

    def close(self, error: Exception | None = None) -> None:
        """Reads no more of it and forgets it."""
        self.exhausted, self.items, self.async_items = True, None, None
        self.error = error


class _LimitWaits:
    """Which calls wait, and for how many seconds at least one of them has waited for the limits.

    Attributes:
        count: How many calls wait for the limits.
        idle: The tasks of calls of which no HTTP request is under way.
    """

    __slots__ = ("_since", "_total_s", "count", "idle", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.count = 0
        self.idle: set[asyncio.Task[Any] | None] = set()
        self._total_s = 0.0
        self._since = 0.0  # when `_total_s` was brought up to date

    def note_wait(self, change: int) -> None:
        """A call begins (1) or ends (-1) to wait for the limits."""
        assert self.loop is not None  # noqa: S101 - started
        now = self.loop.time()
        if self.count:
            self._total_s += now - self._since
        self._since = now
        self.count += change
        self.note_idle(change)

    def note_idle(self, change: int) -> None:
        """A call begins (1) or ends (-1) to wait while none of its HTTP requests is under way."""
        task = asyncio.current_task(self.loop)  # None where a coroutine is destroyed after the end of its loop
        if change > 0:
            self.idle.add(task)
        else:
            self.idle.discard(task)

    @property
    def total_s(self) -> float:
        """Seconds so far in which at least one call waited for the limits."""
        if not self.count or self.loop is None:
            return self._total_s
        return self._total_s + self.loop.time() - self._since


class _InOrder(Generic[R]):
    """Results that came before those of earlier requests."""

    __slots__ = ("_early", "_next")

    def __init__(self) -> None:
        self._early: dict[int, MapResult[R]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._early)

    def add(self, result: MapResult[R], ready: deque[MapResult[R]]) -> None:
        """Appends to `ready` all results whose turn has come with this one."""
        early = self._early
        early[result.index] = result
        while (following := early.pop(self._next, None)) is not None:
            self._next += 1
            ready.append(following)

    def clear(self) -> None:
        """Forgets them."""
        self._early.clear()


class MapGroup(Group[MapResult[R]]):
    """The tasks of one `map`: one for each request under way, and one that reads an async input.

    Args:
        requests: The input.
        requester: How each request is sent.
        defaults: Fields for the requests that leave them out.
        concurrency: How many requests may be under way at once.
        ordered: Whether results come in the order of the input.
        on_error: What happens to a result without a completion.
        on_chunk: Called with each chunk; None for no call.

    Attributes:
        read: How many requests were read from the input.
        taken: How many results the reader has taken.
        under_way: How many requests have begun and not ended.

    Raises:
        ValueError: `on_error` is something else, or `requests` cannot be an input (see `_iterator`).
    """

    def __init__(
        self,
        requests: Iterable[R] | AsyncIterable[R],
        requester: Requester,
        defaults: Defaults,
        *,
        concurrency: int,
        ordered: bool = False,
        on_error: OnError = "return",
        on_chunk: OnChunk | None = None,
    ) -> None:
        super().__init__()
        if on_error not in ("return", "raise") and not callable(on_error):
            raise ValueError(f"on_error: got {on_error!r}, expected 'return', 'raise' or a function of the result")
        self._input = _Input(requests)
        self._requester = requester
        self._defaults = defaults
        self._concurrency = concurrency
        self._in_order: _InOrder[R] | None = _InOrder() if ordered else None
        # In order, a slow request delays the results after it; others may begin meanwhile, up to this number.
        self._window = 2 * concurrency if ordered else concurrency
        self._on_error = on_error
        self._on_chunk = on_chunk
        self._waits = _LimitWaits()
        self._room = Waiter()  # of the task that reads an async input
        self._input_reader: asyncio.Task[None] | None = None
        self._filling = False
        self._drained = False
        self.read = 0
        self.taken = 0
        self.under_way = 0

    @property
    def waiting(self) -> int:
        """How many calls wait for the limits."""
        return self._waits.count

    @property
    def limited_s(self) -> float:
        """Seconds so far in which at least one call waited for the limits."""
        return self._waits.total_s

    # ----------------------------------------------------------------------------------------------------------- input

    def _start(self) -> None:
        self._waits.loop = self._loop
        if self._input.async_items is not None:
            self._input_reader = self._spawn(self._read_async(self._input.async_items))
        else:
            self._fill()

    def _has_room(self) -> bool:
        return (
            self.under_way < self._concurrency
            and self.read - self.taken < self._window
            and not self.stopped
            and self._failure is None
        )

    def _fill(self) -> None:
        """Begins as many requests as there is room for."""
        items = self._input.items
        if items is None:
            if self._room.waiting and self._has_room():
                self._room.wake()
            return
        if self._filling:  # eager tasks may begin, and even end, inside of this loop
            return
        self._filling = True
        while not self._input.exhausted and self._has_room():
            try:
                request = next(items)
            except StopIteration:
                self._input.close()
            except Exception as error:  # noqa: BLE001 - the reader gets it, after what is under way
                self._input.close(not_misleading(error) if isinstance(error, MISLEADING) else error)
            else:
                self._begin(request)
        self._filling = False

    async def _read_async(self, items: AsyncIterator[R]) -> None:
        self._note_begun()
        failure: BaseException | None = None
        try:
            while not self.stopped:
                if not self._has_room():
                    await self._room.wait()
                request = await anext(items)
                if not self.stopped:
                    self._begin(request)
        except StopAsyncIteration:
            self._input.close()
        except Exception as error:  # noqa: BLE001 - the reader gets it, after what is under way
            self._input.close(error)
        except BaseException as error:
            if not self._input.exhausted and self._failure is None:  # the group did not cancel it
                failure = error
            raise
        finally:
            self._note_ended(failure)
            self._input_reader = None
            del failure, items  # the traceback of an error holds this frame, which would hold the input

    def _is_complete(self) -> bool:
        if self._tasks or not self._input.exhausted:
            return False
        if self._input.error is not None:
            self._failure, self._input.error = self._input.error, None
        return True

    # ---------------------------------------------------------------------------------------------------- each request

    def _begin(self, request: R) -> None:
        index, self.read = self.read, self.read + 1
        self.under_way += 1
        self._spawn(self._run(index, request))

    async def _run(self, index: int, given: R) -> None:
        began = self._now()
        self._note_begun()
        pending, requester = PendingRequest(), self._requester
        failure: BaseException | None = None
        try:
            request = self._defaults.request(given)
            call = pending.call = requester.call(request)
            call.on_wait, call.on_backoff = self._waits.note_wait, self._waits.note_idle
            if requester.whole is not None:
                pending.completion = await requester.whole(call)
            else:
                pending.completion = await pending.read(index, requester.stream(call, request), self._on_chunk)
        except (TogetherError, ValueError) as error:
            let_go(error)
            pending.error = error
            failure = error if error is pending.callback_error else None
        except Exception as error:  # noqa: BLE001 - the reader gets it
            failure = error
        except BaseException as error:
            self._note_request_ended()
            self._note_ended(None if self._drained else error)
            raise
        self._note_request_ended()
        if failure is None:
            self._deliver(pending.result(index, given, began, self._now()))
        pending.error = pending.callback_error = None  # their tracebacks hold this frame
        self._note_ended(failure)

    def _note_request_ended(self) -> None:
        if not self.stopped:
            self.under_way -= 1

    def _now(self) -> float:
        return self._loop.time()  # type: ignore[union-attr]  # started

    # ---------------------------------------------------------------------------------------------------------- output

    def _deliver(self, result: MapResult[R]) -> None:
        if self.stopped:
            return
        if self._in_order is not None:
            self._in_order.add(result, self._ready)
            self._fill()
        else:
            self._ready.append(result)
        if self._ready:
            self._reader.wake()

    def _note_taken(self) -> None:
        self.taken += 1
        self._fill()

    async def next_item(self, *, owner: bool) -> MapResult[R]:
        """Returns the next result that `on_error` lets through."""
        while True:
            result = await super().next_item(owner=owner)
            on_error = self._on_error
            if result.error is None or on_error == "return":
                return result
            if on_error == "raise":
                await self.aclose()
                result.error.add_note(f"request {result.index} of the map, from 0")
                raise result.error
            try:
                replacement = on_error(result)  # pyright: ignore[reportCallIssue]  # mypy narrows it, pyright does not
                if inspect.isawaitable(replacement):
                    replacement = await replacement
            except BaseException as error:
                await self.aclose()
                if isinstance(error, StopAsyncIteration):
                    raise not_misleading(error) from error
                raise
            if replacement is not None:
                return cast("MapResult[R]", replacement)

    # ---------------------------------------------------------------------------------------------------------- ending

    def drain(self) -> None:
        """Stops reading the input and ends the calls that wait; the results of all others still come."""
        self._drained = True
        self._input.close()
        for task in (self._input_reader, *self._waits.idle):
            if task is not None:
                task.cancel()
        if self._is_complete():
            self._reader.wake()

    def _note_never_begun(self, task: asyncio.Task[None]) -> None:
        if self._drained:
            self._tasks.discard(task)
            if self._is_complete():
                self._reader.wake()
        else:
            super()._note_never_begun(task)

    def stop(self) -> None:
        """Tells all tasks to end, and forgets the input."""
        super().stop()
        self._input.close()
        if self._in_order is not None:
            self._in_order.clear()
        self.under_way = 0


def _iterator(requests: Any) -> Iterator[Any]:
    """Returns an iterator of the input of a `map`.

    Raises:
        ValueError: It is not iterable, or its elements cannot be requests.
    """
    if not isinstance(requests, (str, bytes, Mapping)):
        try:
            return iter(requests)
        except TypeError:
            pass
    raise ValueError(f"requests: got a {type(requests).__name__}, expected an iterable of requests, as [prompt]")
