"""The ways of leaving, on a loop of numbers."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.life import leavings
from benchmarks.life.collecting import Collector
from benchmarks.life.leavings import LEAVINGS, WrongError
from benchmarks.life.plan import Plan
from together_async import Retry, Timeouts

PLAN = Plan(7, "raw", "end", "m", "none", 3, 2, 0.01, Timeouts(), Retry(), 0.5)


class Numbers:
    """A loop of many numbers, which can be entered and closed."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def aclose(self) -> None: ...

    def __aiter__(self) -> AsyncIterator[int]:
        return self._numbers()

    async def _numbers(self) -> AsyncIterator[int]:
        for number in range(50):
            await asyncio.sleep(0)
            yield number


@pytest.mark.parametrize("way", LEAVINGS)
async def test_nothing_is_kept_of_what_was_left(way: str) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # reports of the lost tasks
    loop = Numbers()
    reference = weakref.ref(loop)
    with Collector(seed=1) as collector:
        work, loop = LEAVINGS[way](loop, PLAN, collector), None  # type: ignore[assignment]  # no other reference
        await work
        del work
        for _ in range(100):
            await asyncio.sleep(0.01)
            gc.collect()
            if reference() is None:
                break
    assert reference() is None


async def test_a_closing_that_does_not_return_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(leavings, "CLOSING_S", 0.01)
    with pytest.raises(WrongError, match=r"aclose\(\) did not return") as caught:
        await leavings.within(never(), "aclose()")
    assert "never" in caught.value.details
    assert "Event.wait" in caught.value.details


async def test_a_reader_that_survives_its_cancellation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    released = asyncio.Event()
    monkeypatch.setattr(leavings, "CLOSING_S", 0.01)
    task: asyncio.Task[Any] = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(WrongError, match="waits for more than"):
        await leavings.ended(task)
    released.set()
    await task
