"""Sources that yield the chunks a test scripts, and helpers to read them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from support.any_chunks import chunk
from support.servers import (
    LAST_CHUNK,
    Call,
    say,
)
from together_async import (
    Broadcast,
    Buffer,
    StreamConnectionError,
)
from together_async.models import ChatCompletion, ChatCompletionChunk, text_of
from together_async.wire.accumulator import ChatCompletionAccumulator

BROKEN = StreamConnectionError("lost", partial=ChatCompletion())


class Tap:
    """A source that gives chunks when the test says so: a str is a batch with a chunk for each letter."""

    def __init__(self, *batches: str) -> None:
        self.position = 0
        self.opened = 0
        self.reads = 0
        self.left = False
        self.refusal: Exception | None = None
        self.held = asyncio.Event()  # `open` waits for it
        self.held.set()
        self._queue: asyncio.Queue[list[ChatCompletionChunk] | Exception] = asyncio.Queue()
        self._had = ChatCompletionAccumulator()
        for batch in batches:
            self.give(batch)

    def give(self, letters: str | list[ChatCompletionChunk]) -> None:
        self._queue.put_nowait([chunk(letter) for letter in letters] if isinstance(letters, str) else letters)

    def end(self, error: Exception | None = None) -> None:
        self._queue.put_nowait([] if error is None else error)

    async def open(self) -> None:
        self.opened += 1
        await self.held.wait()
        if self.refusal is not None:
            raise self.refusal

    async def read(self) -> list[ChatCompletionChunk]:
        self.reads += 1
        batch = await self._queue.get()
        if isinstance(batch, Exception):
            raise batch
        self.position += len(batch)
        for item in batch:
            self._had.add(item)
        return list(batch)

    def leave(self) -> None:
        self.left = True

    def so_far(self) -> ChatCompletion:
        return self._had.completion()

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        raise NotImplementedError


def texts(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [text_of(choice) for item in chunks for choice in item.choices]


def text(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(texts(chunks))


async def settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def rest_of(reader: Any, received: list[str] | None = None) -> list[str]:
    """The texts of the chunks until the end; `received` gets those before an error too."""
    received = [] if received is None else received
    async with asyncio.timeout(2):
        while batch := await reader.read():
            received.extend(texts(batch))
    return received


@contextlib.asynccontextmanager
async def doing(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that has run until it waits; it is cancelled at the end if it still does."""
    task = asyncio.create_task(work)
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


class Upstream:
    """An async generator of chunks that shows how far it got.

    It yields a chunk for each of `letters`; then it waits for ever if it `hangs`, raises `error`, or ends.
    """

    def __init__(self, letters: str = "", *, hangs: bool = False, error: BaseException | None = None) -> None:
        self.letters, self.hangs, self.error = letters, hangs, error
        self.given = 0
        self.began = False
        self.closed = asyncio.Event()

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        self.began = True
        try:
            for letter in self.letters:
                self.given += 1
                yield chunk(letter)
            if self.hangs:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


async def rest_as_text(source: Any, received: list[str] | None = None) -> str:
    """The text until the end; `received` gets what came before an error too."""
    received = [] if received is None else received
    while batch := await source.read():
        received.append(text(batch))
        await asyncio.sleep(0)
    return "".join(received)


BUFFERS: dict[str, Callable[[], Buffer | None]] = {
    "block": lambda: Buffer(4),
    "one": lambda: Buffer(1),
    "coalesce": lambda: Buffer(4, "coalesce"),
    "default": lambda: None,
}


WORDS = [f"w{i} " for i in range(300)]


async def big(call: Call) -> None:
    """A stream of 300 tokens, at once."""
    await call.head()
    await call.chunk(say(*WORDS))
    await call.send(LAST_CHUNK)


async def settle_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def closing(broadcast: Broadcast) -> AsyncIterator[Broadcast]:
    try:
        yield broadcast
    finally:
        await broadcast.aclose()
