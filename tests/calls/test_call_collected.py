"""`Call`: streams that the garbage collector ends, in the middle of anything and in any thread."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from support.calls import QUICK, counted
from support.garbage import collected_at_steps, collected_in_a_thread, in_a_cycle, no_collection
from support.leaks import open_sockets
from support.leaving import ENDLESS
from support.survival import KEY, MODEL, PROMPT
from together_async import AsyncTogether, Limits, RateLimiter, Timeouts
from together_async.flow.broadcast import tee
from together_async.flow.buffered import buffered
from together_async.relay import sse
from together_async.testing import EmulatorServer

LOOPS = ["asyncio", "asyncio debug", "uvloop", "uvloop debug"]
pytestmark = pytest.mark.usefixtures("no_leaks")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name.startswith("asyncio"):
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = pytest.importorskip("uvloop").new_event_loop
    return factory


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was raised where nobody can catch it, or given to the loop's exception handler; nothing must be."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: found.append((args.exc_value, args.object)))
    return found


@pytest.fixture
def server() -> Iterator[EmulatorServer]:
    """An emulator in a thread of its own, whose answers never end."""
    with EmulatorServer(ENDLESS, tokens_per_second=50) as running:
        yield running


def run(name: str, main: Coroutine[Any, Any, None], foreign: list[Any]) -> None:
    """Runs a test in a loop of this name; fails for anything that nobody could catch."""
    with asyncio.Runner(loop_factory=loop_factory(name), debug=name.endswith("debug")) as runner:
        loop = runner.get_loop()
        loop.slow_callback_duration = 60.0
        loop.set_exception_handler(lambda _, context: foreign.append(context))
        runner.run(main)
    assert foreign == []


async def idle(client: AsyncTogether) -> None:
    """Waits until no place is taken: nothing but the loop itself wakes it."""
    async with asyncio.timeout(10):
        while counted(client) != (0, 0):  # noqa: ASYNC110 - the limiter has no event for it
            await asyncio.sleep(0.002)


async def closed(client: AsyncTogether) -> None:
    async with asyncio.timeout(10):
        await client.aclose()


def client_of(server: EmulatorServer, **options: Any) -> AsyncTogether:
    return AsyncTogether(KEY, base_url=server.base_url, retry=QUICK, **options)


async def stream_begun(client: AsyncTogether) -> Any:
    stream = client.stream(PROMPT, model=MODEL)
    await anext(stream)
    return stream


async def iterator_begun(client: AsyncTogether) -> Any:
    texts = aiter(client.stream(PROMPT, model=MODEL).text())
    await anext(texts)
    return texts


async def buffered_begun(client: AsyncTogether) -> Any:
    chunks = buffered(client.stream(PROMPT, model=MODEL))
    await anext(chunks)
    return chunks


async def tee_begun(client: AsyncTogether) -> Any:
    first, second = tee(client.stream(PROMPT, model=MODEL))
    await anext(first)
    await anext(second)
    return first, second


async def map_begun(client: AsyncTogether) -> Any:
    results = client.map([PROMPT] * 2, model=MODEL, max_tokens=1)
    await anext(results)
    return results


async def relay_begun(client: AsyncTogether) -> Any:
    data = sse(client.stream(PROMPT, model=MODEL))
    await anext(data)
    return data


async def lost_task_begun(client: AsyncTogether) -> Any:
    """A task that waits for what nobody will bring, in the middle of a stream, and that nobody holds."""
    begun = asyncio.Event()

    async def waits() -> None:
        async with client.stream(PROMPT, model=MODEL) as stream:
            await anext(stream)
            begun.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(waits())
    await begun.wait()
    return task


BEGUN = [stream_begun, iterator_begun, buffered_begun, tee_begun, map_begun, relay_begun]


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("begin", [*BEGUN, lost_task_begun])
def test_collected_in_another_thread(
    begin: Callable[[AsyncTogether], Coroutine[Any, Any, Any]], name: str, server: EmulatorServer, foreign: list[Any]
) -> None:
    """Connection and place are free at once, though nothing else wakes the loop, and the client can be closed."""

    async def main() -> None:
        client = client_of(server, limits=Limits(concurrency=4))
        for _ in range(2):
            with no_collection():
                in_a_cycle(await begin(client))
                await asyncio.to_thread(gc.collect)
                await idle(client)
        await closed(client)

    run(name, main(), foreign if begin is not lost_task_begun else Expected(foreign))


class Expected(list[Any]):
    """What asyncio says of a task that was lost while it waited is expected."""

    def __init__(self, _: list[Any]) -> None:
        super().__init__()

    def append(self, found: Any) -> None:
        if "Task was destroyed" not in str(found):
            super().append(found)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("/together_async/", name) for name in LOOPS),
        ("/aiohttp/connector", "asyncio"),
        ("/aiohttp/connector", "uvloop"),
        ("/asyncio/", "asyncio"),
    ],
)
def test_collected_at_any_step(part: str, name: str, server: EmulatorServer, foreign: list[Any]) -> None:
    """Streams in cycles, collected at random lines while others are opened, read, left and closed."""
    rng = random.Random(0)

    async def life(client: AsyncTogether, number: int) -> None:
        begun = await BEGUN[number % len(BEGUN)](client)
        if number % 4:
            in_a_cycle(begun)

    async def main() -> None:
        client = client_of(server, limits=Limits(concurrency=30))
        share = 0.005 if part != "/aiohttp/connector" else 0.02
        with collected_at_steps(part, share=share, rng=rng) as places:
            for _ in range(2):
                async with asyncio.timeout(60):
                    await asyncio.gather(*(life(client, number) for number in range(12)))
        assert len(set(places)) > 5
        gc.collect()
        await idle(client)
        await closed(client)

    run(name, main(), foreign)


@pytest.mark.parametrize("name", LOOPS)
def test_a_thread_that_collects_all_the_time(name: str, server: EmulatorServer, foreign: list[Any]) -> None:
    """80 streams dropped in cycles, while a thread collects and drops last references itself."""
    shared: list[Any] = []

    def drop() -> None:
        shared.clear()
        gc.collect(0)

    async def life(client: AsyncTogether, number: int) -> None:
        begun = await BEGUN[number % len(BEGUN)](client)
        if number % 2:
            shared.append(begun)
        else:
            in_a_cycle(begun)

    async def main() -> None:
        client = client_of(server, limits=Limits(concurrency=25))
        with no_collection(), collected_in_a_thread(drop):
            async with asyncio.timeout(60):
                await asyncio.gather(*(life(client, number) for number in range(80)))
        gc.collect()
        await idle(client)
        await closed(client)

    run(name, main(), foreign)


@pytest.mark.parametrize("thread", [False, True], ids=["this thread", "another thread"])
@pytest.mark.parametrize("name", LOOPS)
def test_an_unclosed_client_that_is_collected(
    name: str, thread: bool, server: EmulatorServer, foreign: list[Any]
) -> None:
    """One warning of ours, none of aiohttp's, and its connections are closed by the loop."""

    async def main() -> None:
        before = open_sockets()
        client = client_of(server)
        stream = client.stream(PROMPT, model=MODEL, max_tokens=2)
        await stream.completion()  # leaves a connection in the pool
        with no_collection(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            in_a_cycle((client, await stream_begun(client)))
            del client, stream
            await (asyncio.to_thread(gc.collect) if thread else asyncio.sleep(0, gc.collect()))
            async with asyncio.timeout(10):
                while open_sockets() - before:  # noqa: ASYNC110 - nothing else is left to wait for
                    await asyncio.sleep(0.002)
        assert [warning.category for warning in caught] == [ResourceWarning], [str(w.message) for w in caught]
        assert "unclosed AsyncTogether" in str(caught[0].message)

    run(name, main(), foreign)


@pytest.mark.parametrize("name", LOOPS)
def test_collected_after_the_loop(name: str, server: EmulatorServer, foreign: list[Any]) -> None:
    """Nobody is left to hand it over to: places and sockets are freed at once."""
    before = open_sockets()
    kept: list[AsyncTogether] = []

    async def main() -> None:
        client = client_of(server, limits=Limits(concurrency=2))
        kept.append(client)
        in_a_cycle(await stream_begun(client))
        in_a_cycle(await iterator_begun(client))

    with no_collection():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "unclosed resource", ResourceWarning)  # uvloop's, of what it closes
            run(name, main(), foreign)
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join(10)
        assert counted(kept[0]) == (0, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept.clear()
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    until = time.monotonic() + 10
    while open_sockets() - before:  # the emulator closes its own in its own thread
        assert time.monotonic() < until
        time.sleep(0.002)
    assert foreign == []


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("dialling", [False, True], ids=["before the head", "while dialling"])
def test_calls_that_their_closed_loop_left_half_sent(
    dialling: bool, name: str, foreign: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are destroyed in the middle of the next loop's limiter, and nobody hears of it."""
    limiter = RateLimiter(Limits(concurrency=4))
    loop = loop_factory(name)()
    loop.set_exception_handler(lambda _, __: None)  # it says that tasks were destroyed while they were pending
    with socket.create_server(("127.0.0.1", 0)) as server, no_collection():
        scheme = "https" if dialling else "http"
        base_url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/v1"

        async def leave_half_sent() -> None:
            client = AsyncTogether(KEY, base_url=base_url, limits=limiter)
            calls = [asyncio.ensure_future(client.create(PROMPT, model=MODEL)) for _ in range(3)]
            await asyncio.to_thread(lambda: server.accept()[0].recv(1))
            for call in calls:
                in_a_cycle(call)

        async def go_on() -> None:
            with collected_at_steps("/ratelimit/", share=1.0, rng=random.Random(0)):
                limiter.release(await limiter.acquire(MODEL))
            await asyncio.sleep(0)
            assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of the client, and uvloop's of what it closes
            loop.run_until_complete(leave_half_sent())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            asyncio.run(go_on())
            gc.collect()
    assert foreign == []


@pytest.mark.parametrize("name", LOOPS)
def test_collected_while_its_request_is_sent(name: str, foreign: list[Any]) -> None:
    """A loop's iterator that is dropped while another task opens the stream."""
    with EmulatorServer(ENDLESS, first_token_s=30) as server:

        async def main() -> None:
            client = client_of(server, timeouts=Timeouts(first_token=20))
            stream = client.stream(PROMPT, model=MODEL)
            opening = asyncio.ensure_future(stream.open())
            with no_collection():
                in_a_cycle(aiter(stream))
                while not len(server.journal):  # noqa: ASYNC110 - in another thread
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(gc.collect)
            await stream.aclose()
            await asyncio.wait((opening,), timeout=10)
            assert opening.exception() is None or "closed" in str(opening.exception())
            await idle(client)
            await closed(client)

        run(name, main(), foreign)
