"""Owners of the objects that the garbage collector tracks."""

import asyncio
from collections import Counter

from benchmarks.ratios.objects import owned, shares
from together_async import AsyncTogether
from together_async.wire.accumulator import ChatCompletionAccumulator


def test_a_dict_belongs_to_what_refers_to_it_at_any_distance() -> None:
    accumulator = ChatCompletionAccumulator()
    inner = [accumulator]
    counts = owned([accumulator, accumulator._choices, inner])
    assert counts["ours", "ChatCompletionAccumulator"] == 1
    assert counts["ours", "dict"] == 1
    assert counts["?", "list"] == 1, "what refers to an object of ours is not ours for that"


async def test_a_coroutine_belongs_to_the_file_of_its_code() -> None:
    """Methods too; and a task belongs to asyncio, whatever it runs."""
    client = AsyncTogether("k")
    closing = client.aclose()
    task = asyncio.create_task(asyncio.sleep(0))
    assert owned([closing, client.aclose, task]) == {
        ("ours", "coroutine"): 1,
        ("ours", "method"): 1,
        ("asyncio", "Task"): 1,
    }
    await closing
    await task


def test_what_is_not_there_for_each_stream_is_left_out() -> None:
    counts = Counter({("ours", "list"): 200, ("ours", "dict"): 100, ("asyncio", "set"): 3})
    assert shares(counts, 100) == {"ours": {"list": 2.0, "dict": 1.0}}
