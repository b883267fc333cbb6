"""All the ways to leave a loop over a stream."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from support.survival import check_discreet, open_stream
from together_async import (
    AsyncTogether,
    IncompleteStreamError,
    StreamConnectionError,
    StreamError,
    TogetherError,
)

ENDLESS = " tok" * 3_000
"""More than anybody here reads, at 100 or 1,000 tokens a second."""


class LeftError(Exception):
    """What a loop's body raises."""


async def by_break(client: AsyncTogether) -> None:
    async for _ in open_stream(client):
        break


async def by_break_of_text(client: AsyncTogether) -> None:
    async for _ in open_stream(client).text():
        break


async def by_break_in_a_block(client: AsyncTogether) -> None:
    async with open_stream(client) as stream:
        async for _ in stream:
            break


async def by_return(client: AsyncTogether) -> None:
    async def first() -> str:
        async for text in open_stream(client).text():
            return text
        raise AssertionError

    assert await first() == "tok"


async def by_exception(client: AsyncTogether) -> None:
    # Caught inside: a traceback keeps the frames alive, and the loop's iterator with them.
    try:
        async for _ in open_stream(client):
            raise LeftError
    except LeftError:
        pass


async def by_exception_in_a_block(client: AsyncTogether) -> None:
    with contextlib.suppress(LeftError):
        async with open_stream(client) as stream:
            async for _ in stream.text():
                raise LeftError


async def by_cancelling(client: AsyncTogether) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async for _ in open_stream(client):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def by_timeout(client: AsyncTogether) -> None:
    async def read() -> None:
        async with asyncio.timeout(None) as limit:
            async for _ in open_stream(client):
                if limit.when() is None:  # it is not to run out before there is a stream to leave
                    limit.reschedule(asyncio.get_running_loop().time() + 0.05)

    with pytest.raises(TimeoutError) as caught:
        await read()
    assert not isinstance(caught.value, TogetherError)


async def by_aclose(client: AsyncTogether) -> None:
    stream = open_stream(client)
    await anext(stream)
    await stream.aclose()
    with pytest.raises(IncompleteStreamError) as caught:
        await stream.completion()
    assert (caught.value.partial.text or "").startswith("tok")


async def by_aclose_of_another_task(client: AsyncTogether) -> None:
    started = asyncio.Event()
    stream = open_stream(client)

    async def read() -> None:
        async for _ in stream:
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    await stream.aclose()
    with pytest.raises(StreamError) as caught:
        await task
    assert type(caught.value) in (IncompleteStreamError, StreamConnectionError)
    check_discreet(caught.value)


async def by_closing_a_generator(client: AsyncTogether) -> None:
    async def mine() -> AsyncGenerator[str, None]:
        async for text in open_stream(client).text():
            yield text

    texts = mine()
    assert await anext(texts) == "tok"
    await texts.aclose()


async def by_forgetting_a_generator(client: AsyncTogether) -> None:
    async def mine() -> AsyncGenerator[str, None]:
        async for text in open_stream(client).text():
            yield text

    texts = mine()
    assert await anext(texts) == "tok"
    del texts
    gc.collect()
    await asyncio.sleep(0)


async def by_garbage(client: AsyncTogether) -> None:
    holder: list[Any] = [open_stream(client)]
    holder.append(holder)  # a circle, which only the collector finds
    await anext(holder[0])
    del holder
    gc.collect()


async def by_dropping_a_block(client: AsyncTogether) -> None:
    stream = await open_stream(client).__aenter__()
    await anext(stream)
    del stream
    gc.collect()


WAYS = [
    by_break,
    by_break_of_text,
    by_break_in_a_block,
    by_return,
    by_exception,
    by_exception_in_a_block,
    by_cancelling,
    by_timeout,
    by_aclose,
    by_aclose_of_another_task,
    by_closing_a_generator,
    by_forgetting_a_generator,
    by_garbage,
    by_dropping_a_block,
]
