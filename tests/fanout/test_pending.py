"""`PendingRequest`: a completion is the same however its response came, and however its stream was read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.fanout import all_of, check_idle, client_of, prompts, tidy
from support.servers import MODEL, ScriptedServer, answers, delta, response, sse, whole
from together_async import (
    TogetherError,
)


@pytest.mark.parametrize("pieces", [1, 2, 7])
@tidy
async def test_a_body_that_came_with_its_head(pieces: int) -> None:
    """It is read as one that comes in pieces is, and its connection is used again."""
    data = response(whole("Hello " * 500), extra=b"x-request-id: r1\r\n")
    step = len(data) // pieces + 1

    async def script(call: Any) -> None:
        for at in range(0, len(data), step):
            await call.send(data[at : at + step])
            if pieces > 1:
                await asyncio.sleep(0.01)

    async with ScriptedServer(script) as server, client_of(server) as client:
        for result in await all_of(client.map(prompts(5), model=MODEL, concurrency=1)):
            assert result.completion is not None
            assert result.completion.text == "Hello " * 500
            assert result.usage is not None
            assert (result.usage.total_tokens, result.attempts) == (3, 1)
        assert len(server.connections) == 1
        check_idle(client)


@pytest.mark.parametrize("body", [b"", b"  \n", b"{", b"<html>", b'{"error": {"message": "no", "code": 500}}'])
@tidy
async def test_a_body_at_hand_that_is_no_completion(body: bytes) -> None:
    """The result has one of our errors, and the connection is not leaked."""
    async with ScriptedServer(answers(response(body))) as server, client_of(server) as client:
        for result in await all_of(client.map(prompts(2), model=MODEL, concurrency=1)):
            assert isinstance(result.error, TogetherError)
        check_idle(client)


@tidy
async def test_a_body_at_hand_above_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, as one that comes slowly is."""
    from together_async.http.response import HTTPResponse

    monkeypatch.setattr(HTTPResponse.read_all, "__defaults__", (1_000,))
    async with ScriptedServer(answers(response(whole("x" * 2_000)))) as server, client_of(server) as client:
        (result,) = await all_of(client.map(prompts(1), model=MODEL))
        assert "expected at most 1000" in str(result.error)
        check_idle(client)


def with_choice(**fields: Any) -> dict[str, Any]:
    """A chunk whose one choice has these fields."""
    return {**delta(), "choices": [{"index": 0, **fields}]}


CHUNKS: dict[str, list[Any]] = {
    "plain": [delta("", role="assistant"), delta("a"), delta("b", finish="stop")],
    "choices": [delta("a"), delta("b", index=1), delta("c", finish="stop"), delta("d", index=1, finish="length")],
    "reasoning": [
        delta(None, reasoning="why"),
        delta("a", reasoning=None),
        delta("b", reasoning_content="c", finish="stop"),
    ],
    "refusal": [delta("a", refusal=None), delta(None, refusal="no"), delta("b", finish="stop")],
    "tools": [
        delta("a"),
        delta(None, tool_calls=[{"index": 0, "id": "t", "function": {"name": "f", "arguments": "{"}}]),
        delta("b", tool_calls=[{"index": 0, "function": {"arguments": "}"}}], finish="tool_calls"),
    ],
    "usage": [
        delta("a"),
        {**delta("b"), "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}},
        {**delta("c", finish="stop"), "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": []},
    ],
    "late facts": [delta("a"), {**delta("b"), "system_fingerprint": "fp"}, delta("c", finish="stop")],
    "warnings": [delta("a"), {**delta("b"), "warnings": [{"message": "w"}]}, delta("c", finish="stop")],
    "text": [with_choice(text="x", delta={"content": "a"}), delta("b", finish="stop")],
    "seed": [delta("a"), with_choice(delta={"content": "b"}, seed=5, finish_reason="stop")],
    "logprobs": [
        with_choice(delta={"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -1.0}]}),
        delta("b", finish="stop"),
    ],
}


@pytest.mark.parametrize("name", CHUNKS)
@tidy
async def test_a_completion_is_the_same_however_its_stream_was_read(name: str) -> None:
    """By `map`, which reads it as a text; chunk by chunk; by its text; and by `completion()` after a part of either."""
    data = b"".join(sse(chunk) for chunk in CHUNKS[name]) + sse(b"[DONE]")

    async def script(call: Any) -> None:
        await call.head(framing=str(len(data)))
        await call.send(data)

    async with ScriptedServer(script) as server, client_of(server) as client:
        async with client.stream("hi", model=MODEL) as stream:
            async for _ in stream:
                pass
            expected = (await stream.completion()).to_dict()
        (result,) = await all_of(client.map(["hi"], model=MODEL, stream=True))
        assert result.completion is not None
        assert result.completion.to_dict() == expected
        (result,) = await all_of(client.map(["hi"], model=MODEL, stream=True, on_chunk=lambda *_: None))
        assert result.completion is not None
        assert result.completion.to_dict() == expected
        async with client.stream("hi", model=MODEL) as stream:
            await anext(stream)
            assert (await stream.completion()).to_dict() == expected
        async with client.stream("hi", model=MODEL) as stream:
            await anext(stream.text(0))
            assert (await stream.completion()).to_dict() == expected
