"""Sources that give what the test says, and helpers to read them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from support.any_chunks import chunk
from together_async import (
    StreamConnectionError,
)
from together_async.models import ChatCompletion, ChatCompletionChunk, text_of
from together_async.wire.accumulator import ChatCompletionAccumulator

BROKEN = StreamConnectionError("lost", partial=ChatCompletion())


class Tap:
    """A source that gives what the test says, when it says so: a str is a batch of a chunk for each letter."""

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

    def give(self, said: str | list[ChatCompletionChunk]) -> None:
        self._queue.put_nowait([chunk(one) for one in said] if isinstance(said, str) else said)

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
        for one in batch:
            self._had.add(one)
        return list(batch)

    def leave(self) -> None:
        self.left = True

    def so_far(self) -> ChatCompletion:
        return self._had.completion()

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        raise NotImplementedError


def texts(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [text_of(choice) for one in chunks for choice in one.choices]


def text(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(texts(chunks))


async def settle() -> None:
    """Lets everybody go on until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def rest_of(reader: Any, said: list[str] | None = None) -> list[str]:
    """The texts of chunks until the end; in `said` also those before an error."""
    said = [] if said is None else said
    async with asyncio.timeout(2):
        while batch := await reader.read():
            said.extend(texts(batch))
    return said


@contextlib.asynccontextmanager
async def doing(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that has got as far as it can; it is cancelled at the end if it still waits."""
    task = asyncio.create_task(work)
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))
