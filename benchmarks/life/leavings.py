"""The ways of leaving a loop: to its end, early, by an error, by a cancellation, and by dropping it anywhere.

Each takes what the loop goes over, and holds the only reference to it.
"""
# ruff: noqa: ARG001 - all ways have the same arguments

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benchmarks.life.collecting import Collector
from benchmarks.life.found import awaited
from benchmarks.life.plan import Plan
from benchmarks.life.readings import wrong_text
from together_async import TogetherError

LOST = "lost"
"""The name of the tasks that are lost on purpose: asyncio reports each."""
CLOSING_S = 10.0
"""Seconds within which everything has to end that was cancelled or closed."""


class LeftError(Exception):
    """What the body of a loop raises."""


class WrongError(Exception):
    """Something did not do what it has to.

    Args:
        what: What is wrong; equal for what is alike.
        details: More about this case.
    """

    def __init__(self, what: str, details: str) -> None:
        super().__init__(what, details)
        self.what, self.details = what, details


Leaving = Callable[[Any, Plan, Collector], Awaitable[None]]


async def to_the_end(loop: Any, plan: Plan, collector: Collector) -> None:
    items = [item async for item in loop]
    if wrong := wrong_text(plan, items):
        raise WrongError("something is silently lost", wrong)


async def to_the_end_of_a_block(loop: Any, plan: Plan, collector: Collector) -> None:
    if not hasattr(loop, "__aenter__"):
        await to_the_end(loop, plan, collector)
        return
    async with loop:
        await to_the_end(loop, plan, collector)


async def by_break(loop: Any, plan: Plan, collector: Collector) -> None:
    left = plan.after
    async for _ in loop:
        left -= 1
        if not left:
            break


async def by_break_in_a_block(loop: Any, plan: Plan, collector: Collector) -> None:
    if not hasattr(loop, "__aenter__"):
        await by_break(loop, plan, collector)
        return
    async with loop:
        await by_break(loop, plan, collector)


async def by_exception(loop: Any, plan: Plan, collector: Collector) -> None:
    left = plan.after
    with contextlib.suppress(LeftError):
        async for _ in loop:
            left -= 1
            if not left:
                raise LeftError


async def by_kept_exception(loop: Any, plan: Plan, collector: Collector) -> None:
    """The frame keeps the exception, whose traceback keeps the frame, and with it the open stream."""
    try:
        await some_of(iterator := aiter(loop), plan.after)  # noqa: F841 - the frame keeps it
        raise LeftError
    except LeftError as error:
        kept = error  # noqa: F841 - the cycle


async def by_aclose(loop: Any, plan: Plan, collector: Collector) -> None:
    iterator = aiter(loop)
    await some_of(iterator, plan.after)
    await closed(loop, iterator)


async def by_aclose_of_another_task(loop: Any, plan: Plan, collector: Collector) -> None:
    task = asyncio.create_task(read(loop))
    await asyncio.wait((task,), timeout=plan.seconds)
    if inspect.isasyncgen(loop) or not (hasattr(loop, "aclose") or hasattr(loop, "leave")):
        task.cancel()  # Python closes no generator that is running
    else:
        await closed(loop)
    await ended(task)


async def by_cancelling(loop: Any, plan: Plan, collector: Collector) -> None:
    task = asyncio.create_task(read(loop))
    del loop
    await asyncio.wait((task,), timeout=plan.seconds)
    task.cancel()
    await ended(task)


async def by_cancelling_a_block(loop: Any, plan: Plan, collector: Collector) -> None:
    async def read_in_a_block() -> None:
        async with loop if hasattr(loop, "__aenter__") else contextlib.nullcontext():
            await read(loop)

    task = asyncio.create_task(read_in_a_block())
    await asyncio.wait((task,), timeout=plan.seconds)
    task.cancel()
    await ended(task)


async def by_timeout(loop: Any, plan: Plan, collector: Collector) -> None:
    try:
        async with asyncio.timeout(plan.seconds):
            await read(loop)
    except TimeoutError as error:
        if isinstance(error, TogetherError):
            raise


async def by_dropping(loop: Any, plan: Plan, collector: Collector) -> None:
    await some_of(aiter(loop), plan.after)


async def in_a_cycle(loop: Any, plan: Plan, collector: Collector) -> None:
    cycle: list[Any] = [aiter(loop)]
    cycle.append(cycle)
    await some_of(cycle[0], plan.after)


async def in_a_thread(loop: Any, plan: Plan, collector: Collector) -> None:
    """The last reference is dropped in another thread."""
    dropped = [loop, aiter(loop)]
    del loop
    await some_of(dropped[1], plan.after)
    collector.take(dropped)


async def in_a_cycle_in_a_thread(loop: Any, plan: Plan, collector: Collector) -> None:
    cycle: list[Any] = [loop, aiter(loop)]
    cycle.append(cycle)
    await some_of(cycle[1], plan.after)
    collector.take([cycle])


async def by_losing_the_task(loop: Any, plan: Plan, collector: Collector) -> None:
    """A task waits, in the middle of its loop, for a future that nobody holds: only the collector ends it."""
    lose(read_and_wait(loop, plan.after), plan)


async def by_losing_the_task_in_a_block(loop: Any, plan: Plan, collector: Collector) -> None:
    async def read_in_a_block() -> None:
        async with loop:
            await read_and_wait(loop, plan.after)

    lose(read_in_a_block() if hasattr(loop, "__aenter__") else read_and_wait(loop, plan.after), plan)


async def half_a_generator(loop: Any, plan: Plan, collector: Collector) -> None:
    """A generator of the user's is left half way."""

    async def items() -> AsyncIterator[Any]:
        async for item in loop:
            yield item

    await some_of(items(), plan.after)


async def half_a_generator_in_a_cycle(loop: Any, plan: Plan, collector: Collector) -> None:
    async def items(of: list[Any]) -> AsyncIterator[Any]:
        async for item in loop:
            yield item
        of.clear()

    cycle: list[Any] = []
    cycle.append(items(cycle))
    await some_of(cycle[0], plan.after)


LEAVINGS: dict[str, Leaving] = {
    "end": to_the_end,
    "end-of-block": to_the_end_of_a_block,
    "break": by_break,
    "break-in-block": by_break_in_a_block,
    "exception": by_exception,
    "kept-exception": by_kept_exception,
    "aclose": by_aclose,
    "aclose-of-another-task": by_aclose_of_another_task,
    "cancel": by_cancelling,
    "cancel-block": by_cancelling_a_block,
    "timeout": by_timeout,
    "drop": by_dropping,
    "cycle": in_a_cycle,
    "thread": in_a_thread,
    "cycle-in-thread": in_a_cycle_in_a_thread,
    "lost-task": by_losing_the_task,
    "lost-task-in-block": by_losing_the_task_in_a_block,
    "half-generator": half_a_generator,
    "half-generator-in-cycle": half_a_generator_in_a_cycle,
}

# ---------------------------------------------------------------------------------------------------------------- steps


async def read(loop: Any) -> None:
    async for _ in loop:
        pass


async def read_and_wait(loop: Any, after: int) -> None:
    async for _ in loop:
        after -= 1
        if not after:
            await asyncio.get_running_loop().create_future()


async def some_of(iterator: Any, count: int) -> None:
    """Takes so many items, or all if there are fewer."""
    for _ in range(count):
        try:
            await anext(iterator)
        except StopAsyncIteration:
            return


async def closed(*closable: Any) -> None:
    """Closes what can be closed; raises WrongError if that does not return."""
    for each in closable:
        if hasattr(each, "aclose"):
            await within(each.aclose(), "aclose() of what was read")
        elif hasattr(each, "leave"):
            each.leave()


async def within(closing: Awaitable[None], what: str) -> None:
    """Waits for something that has to return soon; raises WrongError if it does not."""
    task = asyncio.ensure_future(closing)
    await asyncio.wait((task,), timeout=CLOSING_S)
    if not task.done():
        where = awaited(task.get_coro())
        task.cancel()
        raise WrongError(f"{what} did not return within {CLOSING_S:g} s", where)
    await task


async def ended(task: asyncio.Task[None]) -> None:
    """Waits for the end of a task that was cancelled, or whose stream was closed; raises what it raised."""
    await asyncio.wait((task,), timeout=CLOSING_S)
    if not task.done():
        what = f"a reader that was cancelled, or whose stream was closed, waits for more than {CLOSING_S:g} s"
        raise WrongError(what, awaited(task.get_coro()))
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


def lose(work: Any, plan: Plan) -> None:
    """Starts a task and forgets it."""

    async def quietly() -> None:
        with contextlib.suppress(TogetherError):
            await work

    asyncio.create_task(quietly(), name=LOST)  # noqa: RUF006 - lost on purpose
