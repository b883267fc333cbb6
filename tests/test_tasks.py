"""`Waiter`, `OwningIterator`, `handed_over`, and what takes the place of a task's misleading errors."""

import asyncio
import gc
import threading

import pytest

from together_async.tasks import MISLEADING, OwningIterator, Waiter, error_of, handed_over, not_misleading


async def test_a_waiter_waits_until_it_is_woken() -> None:
    waiter = Waiter("busy")
    waiting = asyncio.ensure_future(waiter.wait())
    await asyncio.sleep(0)
    assert waiter.waiting
    assert repr(waiter) == "<Waiter waiting>"
    waiter.wake()
    assert not waiter.waiting
    assert waiter.taken  # it was woken, and has not run since
    waiter.wake()  # twice is fine
    await waiting
    assert not waiter.taken
    assert repr(waiter) == "<Waiter idle>"
    waiter.wake()  # and so is a wake-up that nobody waits for: it is not kept
    waiting = asyncio.ensure_future(waiter.wait())
    await asyncio.sleep(0)
    assert waiter.waiting
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert not waiter.waiting


async def test_a_second_coroutine_is_refused_without_harm_to_the_first() -> None:
    waiter = Waiter("two tasks read; let one of them read")
    first = asyncio.ensure_future(waiter.wait())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="two tasks read; let one of them read"):
        await waiter.wait()
    assert waiter.waiting
    waiter.wake()
    await first


async def test_what_a_task_raised_is_told_apart_from_its_cancellation() -> None:
    async def fails() -> None:
        raise ValueError("no")

    failed, cancelled, done = (asyncio.ensure_future(work) for work in (fails(), asyncio.sleep(9), asyncio.sleep(0)))
    cancelled.cancel()
    await asyncio.wait((failed, cancelled, done))
    assert str(error_of(failed)) == "no"
    assert error_of(cancelled) is None
    assert cancelled.cancelled()
    assert error_of(done) is None


class Numbers(OwningIterator):
    """An iterator that notes when it was closed."""

    def __init__(self, closed: list[str], name: str, *, owner: bool) -> None:
        if name == "broken":
            raise ValueError
        super().__init__(owner=owner)
        self.closed = closed
        self.name = name

    def _drop(self) -> None:
        self.closed.append(self.name)


def test_an_owning_iterator_closes_what_it_reads_when_it_is_dropped() -> None:
    """Only the owner does, and the ownership is handed over once."""
    closed: list[str] = []
    first = Numbers(closed, "first", owner=True)
    loop = Numbers(closed, "loop", owner=first.hand_over())
    other = Numbers(closed, "other", owner=first.hand_over())
    del other
    assert closed == []
    del loop
    assert closed == ["loop"]
    del first
    assert closed == ["loop"]


@pytest.mark.filterwarnings("error")
def test_an_owning_iterator_that_could_not_be_made_closes_nothing() -> None:
    closed: list[str] = []
    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        Numbers(closed, "broken", owner=True)
    assert closed == []


@pytest.mark.parametrize("misleading", MISLEADING)
def test_a_misleading_error_becomes_the_cause_of_another(misleading: type[BaseException]) -> None:
    error = misleading()
    assert not_misleading(error).__cause__ is error
    assert not isinstance(not_misleading(error), MISLEADING)
    assert not_misleading().__cause__ is None


class Finalized:
    """Notes the thread in which its end was carried out."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None, ends: list[int]) -> None:
        self.loop = loop
        self.ends = ends

    def end(self) -> None:
        if not handed_over(self.loop, self.end):
            self.ends.append(threading.get_ident())

    def __del__(self) -> None:
        self.end()


def collect_a_cycle(loop: asyncio.AbstractEventLoop | None, ends: list[int]) -> None:
    cycle: list[object] = [Finalized(loop, ends)]
    cycle.append(cycle)
    del cycle
    gc.collect()


def drop(loop: asyncio.AbstractEventLoop | None, ends: list[int]) -> None:
    Finalized(loop, ends)


@pytest.mark.parametrize("debug", [False, True], ids=["usual", "debug"])
async def test_a_finalizer_runs_at_once_only_where_it_may(debug: bool) -> None:
    """At once for the last reference in the loop's thread; else in the loop, in its thread, at its next turn."""
    loop, here = asyncio.get_running_loop(), threading.get_ident()
    loop.set_debug(debug)
    ends: list[int] = []
    drop(loop, ends)
    assert ends == [here]
    collect_a_cycle(loop, ends)
    assert ends == [here]
    await asyncio.sleep(0)
    assert ends == [here] * 2
    for act in (drop, collect_a_cycle):
        await asyncio.to_thread(act, loop, ends)
        await asyncio.sleep(0)
    assert ends == [here] * 4


async def test_a_finalizer_of_what_was_in_no_loop_runs_at_once() -> None:
    ends: list[int] = []
    drop(None, ends)
    collect_a_cycle(None, ends)
    assert len(ends) == 2


def test_a_finalizer_of_a_loop_that_does_not_run() -> None:
    """At once: nothing of it is half done, and it may never run again."""
    loop = asyncio.new_event_loop()
    ends: list[int] = []
    drop(loop, ends)
    collect_a_cycle(loop, ends)
    assert len(ends) == 2
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    drop(loop, ends)
    collect_a_cycle(loop, ends)
    assert len(ends) == 4
