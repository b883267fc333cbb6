"""`HTTPResponse`: the process stands still for longer than the small limits, and what they wait for comes meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from support.clients import served, text_of, transport_of
from support.late_loops import LateVirtualTimeLoop
from support.servers import DONE, LAST_CHUNK, MODEL, Call, delta, say, sse
from support.virtual_time import run
from together_async import RateLimitError, StreamTimeoutError, Timeouts

STOP_S = 100.0


def stop() -> None:
    """Stops the process after the callback that runs now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LateVirtualTimeLoop)
    loop.suspend(STOP_S)


def run_late(main: Coroutine[Any, Any, None]) -> None:
    run(main, LateVirtualTimeLoop())


def test_the_end_of_a_stream_that_comes_late_keeps_its_connection() -> None:
    """The end of the body after `[DONE]`: the connection goes back to the pool."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(say("a"))
        await read.wait()
        await call.send(LAST_CHUNK)
        stop()

    read = asyncio.Event()

    async def main() -> None:
        async with served(script) as (server, client):
            for _ in range(2):
                assert await text_of(client) == "a"
                read.set()
                while transport_of(client).responses:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(1)
                read.clear()
            assert len(server.connections) == 1

    run_late(main())


def test_the_body_of_an_error_that_comes_late_is_read() -> None:
    """It says why the request was refused."""

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 429 X\r\ncontent-length: 100\r\n\r\nslow ")
        await asyncio.sleep(1)
        await call.send(b"down".ljust(95))
        stop()

    async def main() -> None:
        async with served(script) as (_, client):
            with pytest.raises(RateLimitError, match="slow down"):
                await client.create("Hi", model=MODEL)

    run_late(main())


@pytest.mark.parametrize("total", [None, 50.0, 150.0])
def test_a_token_that_comes_late_is_no_silence_but_the_whole_call_has_its_limit(total: float | None) -> None:
    """`idle` takes a second look, `total` does not, and ends a stream that would be whole a turn later."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a")))
        await asyncio.sleep(1)
        await call.chunk(sse(delta("b", finish="stop")), DONE)
        await call.send(LAST_CHUNK)
        stop()

    async def main() -> None:
        async with served(script, timeouts=Timeouts(idle=30, total=total)) as (_, client):
            if total is None or total > STOP_S:
                assert await text_of(client) == "ab"
                return
            with pytest.raises(StreamTimeoutError) as caught:
                await text_of(client)
            assert caught.value.phase == "total"

    run_late(main())


@pytest.mark.parametrize("away_s", [0.0, 0.5, 5.0])
def test_a_caller_who_is_away_during_the_second_look_loses_nothing(away_s: float) -> None:
    """The process stands still, the caller gets a chunk without content, and is away until the look has ended."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        await asyncio.sleep(1)
        await call.chunk(sse(delta("", role="assistant")))
        stop()
        await away.wait()
        await call.chunk(sse(delta("b", finish="stop")), DONE)
        await call.send(LAST_CHUNK)

    away = asyncio.Event()

    async def main() -> None:
        texts = []
        async with served(script, timeouts=Timeouts(first_token=30, idle=30)) as (_, client):
            async for chunk in client.stream("Hi", model=MODEL):
                texts.append(chunk.choices[0].delta.content)
                if texts[1:] == [""]:
                    away.set()
                    await asyncio.sleep(away_s)
        assert texts == ["a", "", "b"]

    run_late(main())
