"""Any interleaving of several readers of one stream, against a model of what each of them gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calls.test_reading import FakeCall, Response, check_legal
from support.servers import DONE, delta, sse
from support.sources import settle
from together_async import ChatCompletionStream, IncompleteStreamError
from together_async.models import ChatCompletionChunk, text_of

CHOICES = (0, 1)
READERS = {"a": 0, "a'": 0, "b": 1, "chunks": None}
"""The readers by name, with the choice whose text they read; None for all."""
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(st.sampled_from(CHOICES), max_size=5)),
        st.tuples(st.sampled_from(["step", "step", "step", "cancel", "drop"]), st.sampled_from(list(READERS))),
    ),
    max_size=40,
)

GIVES_UP_AND_COMES_BACK: list[tuple[str, Any]] = [
    ("step", "a"),
    ("send", [0]),
    ("step", "a"),
    ("step", "b"),
    ("cancel", "a"),
    ("step", "a'"),
    ("send", [0, 1, 0]),
    ("step", "a"),
]
"""The step of a cancelled loop has to claim again, although data has come that it could read at once."""


class GatedResponse(Response):
    """A response whose data comes when the test says so."""

    def __init__(self) -> None:
        super().__init__([])
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def _next(self) -> bytes:
        return await self.queue.get()


class Search:
    """The stream, its readers, and the model: what was sent, what was delivered, who has a claim."""

    def __init__(self, *, in_block: bool) -> None:
        self.response = GatedResponse()
        call: Any = FakeCall(self.response)
        self.stream = ChatCompletionStream(call, choices=2, time=lambda: 0.0, max_event_size=1 << 20)
        self.in_block = in_block
        self.readers: dict[str, AsyncIterator[Any]] = {}
        self.steps: dict[str, asyncio.Task[Any]] = {}
        self.claims: set[str] = set()
        self.sent: list[list[str]] = [[], []]
        self.got: list[list[str]] = [[], []]
        self.closed = False  # by the last loop that was left

    def note(self, item: str | ChatCompletionChunk, choice: int | None) -> None:
        """Adds what a reader got. Each piece of text is a letter and a number, so that a kept text can be cut again."""
        if isinstance(item, ChatCompletionChunk):
            for part in item.choices:
                self.got[part.index or 0] += [text for text in [text_of(part)] if text]
        else:
            assert choice is not None
            self.got[choice] += [f"{piece};" for piece in item.split(";") if piece]

    def send(self, choices: list[int]) -> None:
        data = b""
        for choice in choices:
            text = f"{'ab'[choice]}{len(self.sent[choice])};"
            self.sent[choice].append(text)
            data += sse(delta(text, index=choice))
        if data:
            self.response.queue.put_nowait(data)

    def refuses(self, name: str) -> bool:
        """Whether another plain loop goes against a step of this one."""
        if self.in_block or self.closed or name in self.claims:
            return False
        mine = READERS[name]
        return any(mine is None or READERS[other] in (None, mine) for other in self.claims)

    def waits_for(self, name: str) -> bool:
        """Whether a step of it may be refused in a block, because another one waits, and one of them reads chunks."""
        return any(READERS[name] is None or READERS[other] is None for other in self.steps)

    async def step(self, name: str) -> None:
        """Asks for the next item; the step goes on in the background if there is none yet."""
        if name in self.steps:
            return
        reader = self.readers.get(name)
        if reader is None:
            choice = READERS[name]
            reader = aiter(self.stream if choice is None else self.stream.text(choice))
            self.readers[name] = reader
        refused, may_wait = self.refuses(name), not self.waits_for(name)
        before = [list(got) for got in self.got], self.response.closed
        task = asyncio.ensure_future(anext(reader))
        self.steps[name] = task
        del reader
        await settle()
        if refused:
            with pytest.raises(RuntimeError, match="one loop reads a stream"):
                task.result()
            assert before == (self.got, self.response.closed)
            del self.steps[name]
        elif task.done() and isinstance(task.exception(), RuntimeError):
            assert self.in_block
            assert not may_wait
            del self.steps[name]
        elif not self.in_block and not self.closed:
            self.claims.add(name)

    async def cancel(self, name: str) -> None:
        task = self.steps.pop(name, None)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await settle()
            self.free(name)

    async def drop(self, name: str) -> None:
        if name not in self.steps and self.readers.pop(name, None) is not None:
            await settle()
            self.free(name)

    def free(self, name: str) -> None:
        if name in self.claims:
            self.claims.discard(name)
            self.closed = not self.claims

    def collect(self) -> None:
        """Takes the results of the steps that have ended."""
        for name, task in list(self.steps.items()):
            if task.done():
                del self.steps[name]
                try:
                    self.note(task.result(), READERS[name])
                except StopAsyncIteration:
                    pass
                except IncompleteStreamError:
                    assert self.closed

    def check(self) -> None:
        check_legal(self.stream._reading)
        assert self.response.closed == self.closed
        for sent, got in zip(self.sent, self.got, strict=True):
            assert len(set(got)) == len(got)
            assert set(got) <= set(sent)
            if not self.in_block:
                assert got == sent[: len(got)]

    async def act(self, what: str, how: Any) -> None:
        if what == "send":
            self.send(how)
        else:
            await getattr(self, what)(how)
        await settle()
        self.collect()
        self.check()

    async def finish(self) -> None:
        """Sends the end: who has a claim gets the rest, and in a block fresh readers do; nothing is missing."""
        self.response.queue.put_nowait(sse(delta(finish="stop")) + sse(delta(finish="stop", index=1)) + DONE)
        names = ["a", "b"] if self.in_block else sorted(self.claims)
        while not self.closed:
            before = self.got[0] + self.got[1], len(self.steps)
            for name in names:
                await self.step(name)
            await settle()
            self.collect()
            if (self.got[0] + self.got[1], len(self.steps)) == before:
                break
        if not self.closed:
            for name in names:
                for choice in CHOICES if READERS[name] is None else (READERS[name],):
                    assert set(self.got[choice or 0]) == set(self.sent[choice or 0])
        for task in self.steps.values():
            task.cancel()
        if self.steps:
            await asyncio.wait(self.steps.values())


@pytest.mark.parametrize("in_block", [False, True])
@settings(max_examples=300)
@given(ACTS)
@example(GIVES_UP_AND_COMES_BACK)
async def test_any_interleaving(in_block: bool, acts: list[tuple[str, Any]]) -> None:
    """Texts come whole and in order, each piece once, whoever reads it; refused loops change nothing; the last plain
    loop that is left closes the stream, and none before."""
    search = Search(in_block=in_block)
    if in_block:
        await search.stream.__aenter__()
    for act in acts:
        await search.act(*act)
    await search.finish()
    search.stream.leave()
