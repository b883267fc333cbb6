"""What tests of `map` and `merge` share: a server that counts, a clock that jumps, and the ways to leave a loop.

Most of these tests run in a loop whose clock jumps, with the emulator at the other end of real sockets:
`await asyncio.sleep(1)` waits until nothing more can happen by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest

from support import virtual_time
from support.leaks import open_sockets
from support.servers import KEY
from together_async import (
    AsyncTogether,
    ChatCompletionRequest,
    Limits,
    MapResult,
    RateLimiter,
    Retry,
)
from together_async.testing import (
    EmulatorServer,
)

TEXT = "one two three"


SECRET = "Nobody may read this prompt of mine."


QUICK = Retry(base_delay=0.01, max_delay=0.02)


ONE = Retry(attempts=1)


KINDS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


ORDERS = pytest.mark.parametrize("ordered", [False, True], ids=["as they finish", "in order"])


SOURCES = pytest.mark.parametrize("kind", ["list", "generator", "async generator"])


def tidy(test: Callable[..., Any]) -> Callable[..., None]:
    """Runs a test in a loop whose clock jumps, and checks that it leaves no task, socket or failed callback."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        before = open_sockets()
        failed: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
            await test(*args, **kwargs)
            await asyncio.sleep(0.01)  # transports close a turn or two after `close()`
            await asyncio.get_running_loop().shutdown_asyncgens()

        virtual_time.run(main())
        assert not failed, failed
        assert not open_sockets() - before, "sockets left open"

    return run


def _echo(request: ChatCompletionRequest) -> str:
    return f"You said: {request.messages[-1]['content']}"


class Server(EmulatorServer):
    """An emulator that repeats the prompt, and knows how many requests it had at once.

    Attributes:
        peak: The most requests that were under way at once.
    """

    def __init__(self, script: Any = None, **options: Any) -> None:
        self.peak = self._under_way = 0
        super().__init__(_echo if script is None else script, on_end=self._one_less, **options)

    def answer(self, *args: Any) -> Any:
        self._under_way += 1
        self.peak = max(self.peak, self._under_way)
        return super().answer(*args)

    def _one_less(self, _: Any) -> None:
        self._under_way -= 1

    @property
    def prompts(self) -> list[str]:
        """What was asked, in the order of arrival."""
        return [entry.request.messages[-1]["content"] for entry in self.journal if entry.request is not None]


def client_of(server: Any, limits: Limits | None = None, **options: Any) -> AsyncTogether:
    """A client on the running loop's clock."""
    limiter = RateLimiter(limits, clock=virtual_time.now)
    return AsyncTogether(KEY, base_url=server.base_url, proxy="", limits=limiter, **options)


@contextlib.asynccontextmanager
async def emulated(
    script: Any = None, limits: Limits | None = None, client: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Server, AsyncTogether]]:
    """A server and a client of it; at its end nothing may be under way."""
    async with Server(script, **options) as server, client_of(server, limits, **(client or {})) as the_client:
        yield server, the_client
        check_idle(the_client)


def children() -> list[str]:
    """The running tasks of maps and merges."""
    names = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
    return [name for name in names if name.startswith(("MapGroup.", "MergeGroup."))]


def check_idle(client: AsyncTogether) -> None:
    """No reservation, no waiting call, no open response and no running task."""
    state = client.limits
    assert (state.in_flight, state.queued) == (0, 0), state
    transport = client._connections.current
    assert transport is None or not transport.openings
    assert transport is None or not transport._deadlines._waiting
    assert not children()


def source_of(kind: str, items: Iterable[Any], read: list[Any] | None = None) -> Any:
    """The items as the given kind of input; the list `read` gets those that were read."""
    read = [] if read is None else read
    if kind == "list":
        return list(items)

    def generate() -> Iterator[Any]:
        for item in items:
            read.append(item)
            yield item

    async def generate_async() -> AsyncIterator[Any]:
        for item in generate():
            yield item

    return generate() if kind == "generator" else generate_async()


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


async def all_of(results: Any) -> list[MapResult[Any]]:
    return [result async for result in results]


def check_complete(results: list[MapResult[Any]], given: list[Any]) -> None:
    """Each request has one result, which is its own."""
    assert sorted(result.index for result in results) == list(range(len(given)))
    for result in results:
        assert result.request is given[result.index] or result.request == given[result.index]
        assert (result.completion is None) is (result.error is not None)
        if result.completion is not None:
            assert result.completion.text == f"You said: {result.request}"
            assert result.usage is not None


class Mine(Exception):  # noqa: N818 - a caller's own
    """A caller's own error."""


async def leave(way: str, results: Any) -> None:  # noqa: C901 - a table
    """Leaves a loop over results in one of the ways."""
    match way:
        case "break":
            async for _ in results:
                break
        case "return":
            await _returns(results)
        case "exception":
            with pytest.raises(Mine):  # noqa: PT012 - the loop is what is tested
                async for _ in results:
                    raise Mine
        case "block":
            async with results as entered:
                async for _ in entered:
                    break
        case "block, exception":
            with pytest.raises(Mine):  # noqa: PT012 - the loop is what is tested
                async with results:
                    async for _ in results:
                        raise Mine
        case "aclose":
            await anext(results)
            await results.aclose()
            await results.aclose()
        case "cancelled in anext":
            await anext(results)
            task = asyncio.ensure_future(all_of(results))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        case "cancelled in the body":
            task = asyncio.ensure_future(_stays(results))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        case "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await all_of(results)
        case "generator":
            generator = _passes_on(results)
            await anext(generator)
            await generator.aclose()
        case "dropped":
            await anext(results)


async def _returns(results: Any) -> Any:
    async for result in results:
        return result
    raise AssertionError("no result")


async def _stays(results: Any) -> None:
    async for _ in results:
        await asyncio.sleep(1_000)


async def _passes_on(results: Any) -> AsyncIterator[Any]:
    async for result in results:
        yield result


WAYS = (
    "break",
    "return",
    "exception",
    "block",
    "block, exception",
    "aclose",
    "cancelled in anext",
    "cancelled in the body",
    "timeout",
    "generator",
    "dropped",
)


IMMEDIATE = {"block", "block, exception", "aclose", "cancelled in anext", "timeout"}
"""The ways after which nothing is under way any more. After the others the calls are being cancelled."""


async def counted(count: int | None, turns: int = 1, made: list[Any] | None = None) -> AsyncIterator[int]:
    """An endless or long stream that needs no network."""
    for number in range(count) if count is not None else itertools.count():
        for _ in range(turns):
            await asyncio.sleep(0)
        if made is not None:
            made.append(number)
        yield number


async def broken(error: BaseException, after: int = 0) -> AsyncIterator[int]:
    for number in range(after):
        yield number
    await asyncio.sleep(0)
    raise error
