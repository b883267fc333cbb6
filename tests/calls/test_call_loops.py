"""`Call`: a limiter that is used in one event loop after the other, or in two at once."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from support.calls import CALLS, QUICK, counted, do_create, good, starts_only
from support.servers import response, threaded, whole
from support.survival import KEY, MODEL, PROMPT, TEXT, ask
from together_async import APIConnectionError, AsyncTogether, Limits, RateLimiter, TogetherError


def run_and_close(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine in a loop that is then closed, even if tasks still wait in it."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it would report the tasks that are dropped
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


@pytest.mark.parametrize("tidy", [True, False], ids=["asyncio.run", "a loop closed over waiting tasks"])
def test_calls_left_waiting_in_one_loop_do_not_count_in_the_next(tidy: bool) -> None:
    """A call ran and five waited when the loop ended: the next loop starts free, and knows the limits."""
    limiter = RateLimiter(Limits(concurrency=1))
    left: list[Any] = []

    async def slow(call: Any) -> None:
        await call.send(response(whole(TEXT), extra=b"x-ratelimit-limit: 500\r\n"))

    with threaded(slow, starts_only, slow) as server:

        async def first() -> None:
            client = AsyncTogether(KEY, base_url=server.base_url, limits=limiter)
            await do_create(client)
            stream = client.stream(PROMPT, model=MODEL)
            await anext(stream)
            tasks = [asyncio.create_task(make_call(client)) for make_call in CALLS]
            await asyncio.sleep(0)
            assert counted(client) == (1, 5)
            left.extend([client, stream, tasks])

        async def second() -> None:
            async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter) as client:
                async with asyncio.timeout(5):
                    assert await asyncio.gather(*(do_create(client) for _ in range(3))) == [TEXT] * 3
                assert counted(client) == (0, 0)
                assert limiter.state.models[MODEL].server_requests_per_minute == 30_000

        (asyncio.run if tidy else run_and_close)(first())
        assert limiter.state.queued == (0 if tidy else 5)
        asyncio.run(second())
        left[0]._connections.current.discard()
        left.clear()
        gc.collect()
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
        asyncio.run(second())


def test_a_limiter_in_use_in_another_loop_is_an_error_and_not_a_wait() -> None:
    """Two loops can't share a limiter at the same time; the error says so, and nothing was sent."""
    with threaded(starts_only, good) as server:

        async def main() -> None:
            limiter = RateLimiter()
            async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK) as client:
                stream = client.stream(PROMPT, model=MODEL)
                await anext(stream)

                def elsewhere() -> TogetherError:
                    async def other() -> TogetherError:
                        async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK) as second:
                            return (await ask(second, "create", alone=False)).error

                    return asyncio.run(other())

                error = await asyncio.to_thread(elsewhere)
                assert isinstance(error, APIConnectionError)
                assert "another event loop" in str(error)
                assert (error.attempts, error.retries) == (0, ())
                await stream.aclose()
                assert counted(client) == (0, 0)
                assert await do_create(client) == TEXT

        asyncio.run(main())
