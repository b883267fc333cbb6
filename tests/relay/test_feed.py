"""What can be relayed and what can't: the error says so before anything is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.relay_doors import PROMPT, TEXT
from support.servers import MODEL
from together_async import AsyncTogether, ChatCompletionChunk
from together_async.relay import EventSourceResponse, Hub, sse
from together_async.testing import EmulatorServer, WithoutDone

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("format", ["json", "", None, 3])
def test_an_unknown_format_is_refused_when_the_response_is_made(format: Any) -> None:
    """And not when half of the answer has been sent."""
    with pytest.raises(ValueError, match=r"format: got .*, expected 'chunks', 'text' or a function"):
        EventSourceResponse(Hub().join("x"), format=format)


@pytest.mark.parametrize("make", [EventSourceResponse, sse])
async def test_an_async_function_as_a_format_is_refused(make: Any) -> None:
    """Its result would never be awaited."""

    async def later(chunk: ChatCompletionChunk) -> str:
        return chunk.choices[0].delta.content or ""

    with pytest.raises(TypeError, match="format: got an async function"):
        make(Hub().join("x"), format=later)


async def test_what_is_no_stream_is_refused(client: AsyncTogether) -> None:
    """The most likely mistake, an awaitable of a completion, is closed, so that no warning follows."""
    with pytest.raises(TypeError, match=r"expected what `client\.stream"):
        EventSourceResponse(client.create(PROMPT, model=MODEL))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match="got a str"):
        EventSourceResponse("text")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("of", ["text", "raw", "batches"])
async def test_what_a_stream_makes_of_its_chunks_is_refused_unasked(
    door: Any, client: AsyncTogether, upstream: EmulatorServer, of: str
) -> None:
    """The most likely first call, `client.stream(...).text()`: the error says what to pass; nothing is requested."""
    with pytest.raises(TypeError, match=r"got a \w+ where chunks are needed; hand over .* itself .*format='text'"):
        await door(getattr(client.stream(PROMPT, model=MODEL), of)())
    assert upstream.journal.total == 0


async def test_an_iterator_of_texts_is_refused(door: Any) -> None:
    """A user's own iterator: its type shows with its first item."""

    async def texts() -> AsyncIterator[str]:
        yield "a"

    with pytest.raises(TypeError, match=r"got a async_generator with a str where chunks are needed.*format='text'"):
        await door(texts())


async def test_a_stream_that_was_read_to_its_end_is_an_error(door: Any, client: AsyncTogether) -> None:
    """And not an empty answer that ends as if it were complete."""
    stream = client.stream(PROMPT, model=MODEL)
    await stream.completion()
    with pytest.raises(RuntimeError, match="read to its end already"):
        await door(stream)


async def test_a_stream_that_is_whole_without_done_is_ended_with_it(
    door: Any, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """Some servers end with a finish reason and never send `[DONE]`; clients of the relay wait for it."""
    upstream.faults = WithoutDone()
    answer = await door(client.stream(PROMPT, model=MODEL))
    assert answer.text == TEXT
    assert answer.events[-1].data == b"[DONE]"
