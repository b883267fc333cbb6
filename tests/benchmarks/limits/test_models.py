"""What many models cost."""

import asyncio
import gc
import time

from benchmarks.limits import models
from together_async.testing import EmulatorServer


async def test_the_longest_callback_is_found_and_the_loop_left_as_it_was() -> None:
    def busy() -> None:
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    run = asyncio.Handle._run  # type: ignore[attr-defined]  # asyncio's own
    with models.longest_callback() as longest:
        asyncio.get_running_loop().call_soon(busy)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert longest[0] >= 0.01
    assert asyncio.Handle._run is run  # type: ignore[attr-defined]  # as above


async def test_a_callback_is_not_charged_with_the_collection_of_garbage() -> None:
    objects = [[] for _ in range(200_000)]
    started = time.thread_time()
    gc.collect()
    took_s = time.thread_time() - started
    with models.longest_callback() as longest:
        asyncio.get_running_loop().call_soon(gc.collect)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert longest[0] < took_s / 2
    assert len(objects) == 200_000
    assert not [each for each in gc.callbacks if each.__module__ == models.__name__]


async def test_each_model_gets_its_calls() -> None:
    async with EmulatorServer("Hello!") as server:
        job = {"base_url": server.base_url, "places": 4, "models": 5}
        assert (await models.measure(models, job))["longest_ms"] > 0
        assert server.journal.total == 15


async def test_events_while_models_wait_cost_something_and_leave_nothing_waiting() -> None:
    assert await models.place_event_us(4, 30) > 0
    assert await models.rate_event_us(4, 30) > 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
