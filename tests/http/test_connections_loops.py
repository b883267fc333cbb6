"""`Connections`: one client in one event loop after the other, and in two at once."""

import asyncio
import gc
import os
import threading
import warnings
from typing import Any

import pytest

from support.clients import client_of
from support.servers import KEY, MODEL, hangs, starts_and_hangs, streams, threaded
from together_async import APIConnectionError, AsyncTogether, TogetherError

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("leave", ["finished", "live", "left", "opening"])
def test_one_client_in_one_loop_after_the_other(leave: str) -> None:
    """A second asyncio.run works without a warning, whatever the first left behind."""
    scripts = {"finished": streams("a"), "live": starts_and_hangs, "left": starts_and_hangs, "opening": hangs}
    with threaded(scripts[leave], streams("b")) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        client = client_of(server)
        kept: list[Any] = []

        async def first() -> None:
            stream = client.stream("Hi", model=MODEL)
            if leave == "opening":
                kept.append(asyncio.create_task(stream.completion()))
                while not server.calls:  # noqa: ASYNC110 - in another thread
                    await asyncio.sleep(0.001)
                return
            await anext(stream)
            if leave == "finished":
                await stream.completion()
            if leave == "live":
                kept.append(stream)

        async def second() -> str:
            async with client:
                return (await client.stream("Hi", model=MODEL).completion()).text

        asyncio.run(first())
        assert asyncio.run(second()) == "b"
        kept.clear()
        gc.collect()


def test_a_stream_of_a_loop_that_ended() -> None:
    """Reading on in another loop is a typed error at once, not 'Event loop is closed', and does not hang."""
    with threaded(starts_and_hangs) as server:
        client = client_of(server)
        kept = [client.stream("Hi", model=MODEL)]

        async def first() -> None:
            await anext(kept[0])
            await anext(kept[0])

        async def second() -> None:
            async with client:
                with pytest.raises(TogetherError):
                    await asyncio.wait_for(anext(kept[0]), 10)
                await kept[0].aclose()

        asyncio.run(first())
        asyncio.run(second())
        kept.clear()
        gc.collect()


def test_closing_in_another_loop() -> None:
    """aclose() in a second asyncio.run closes what the first had opened."""
    with threaded(streams("a")) as server:
        client = client_of(server)

        async def first() -> None:
            await client.stream("Hi", model=MODEL).completion()

        asyncio.run(first())
        asyncio.run(client.aclose())
        gc.collect()


def test_one_client_in_two_loops_at_once() -> None:
    """One clear error in the second loop; the first goes on, and may close."""
    with threaded(starts_and_hangs, streams("b")) as server:
        client = client_of(server)
        started, finish = threading.Event(), threading.Event()
        texts: list[str] = []

        async def first() -> None:
            async with client:
                async with client.stream("Hi", model=MODEL) as stream:
                    await anext(stream)
                    started.set()
                    await asyncio.to_thread(finish.wait, 5)
                texts.append((await client.stream("Hi", model=MODEL).completion()).text)

        async def second() -> None:
            with pytest.raises(APIConnectionError, match="another event loop") as caught:
                await client.create("Hi", model=MODEL)
            assert caught.value.attempts == 0
            with pytest.raises(APIConnectionError, match="another event loop"):
                await client.aclose()

        thread = threading.Thread(target=asyncio.run, args=(first(),))
        thread.start()
        assert started.wait(5)
        asyncio.run(second())
        finish.set()
        thread.join(5)
        assert texts == ["b"]


async def test_a_client_is_made_without_a_loop_and_used_in_one() -> None:
    """Making a client opens nothing."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts
    AsyncTogether(KEY)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
