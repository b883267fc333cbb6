"""Chunks: every chunk, choice and delta gives back what came, however the stream is read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from calls.test_reading import Response, stream_of
from support.paths import SAMPLES
from together_async import TogetherError
from together_async.flow.broadcast import Broadcast, tee
from together_async.flow.buffer import Buffer
from together_async.flow.buffered import buffered
from together_async.models import NO_DELTA, ChatCompletionChunk, ChunkChoice, Delta, link, make, text_of
from together_async.request import ChatCompletionRequest
from together_async.testing import DIALECTS, Call, Dialect, Reply
from together_async.testing.dialect import Generation, events
from together_async.testing.script import generate_choices
from together_async.wire.sse import EventStreamParser

ANSWERS = (
    Reply("It is blue 🌊.", finish_reason="length"),
    Reply("It is 4.", reasoning="We need 2 and 2."),
    Reply(tool_calls=[Call("get_weather", {"city": "Oslo"}, id="call_1")]),
)


def dialect_body(dialect: Dialect, answer: Any) -> bytes:
    """A stream of two choices with everything that a request can ask for."""
    fields: dict[str, Any] = {"n": 2, "logprobs": 1, "echo": True, "stream_options": {"include_usage": True}}
    request = ChatCompletionRequest(messages="Why is the sky blue?", model="m", **fields)
    generation = Generation(
        id="em-1",
        created=1763880000,
        model="m",
        choices=generate_choices(answer, request, seed=0),
        prompt_tokens=9,
        logprobs=1,
        echo="Why is the sky blue?",
        include_usage=True,
    )
    return b"".join(event.data for event in events(dialect, generation))


BODIES = {path.stem: path.read_bytes() for path in sorted(SAMPLES.glob("*.sse"))} | {
    f"{name}-{number}": dialect_body(dialect, answer)
    for name, dialect in DIALECTS.items()
    for number, answer in enumerate(ANSWERS)
}
WAYS: dict[str, Any] = {
    "chunks": aiter,
    "batches": lambda stream: stream.batches(),
    "tee": lambda stream: aiter(tee(stream, 1, on_slow="block")[0]),
    "broadcast": lambda stream: aiter(Broadcast(stream, on_slow="block").subscribe()),
    "buffered": lambda stream: aiter(buffered(stream, Buffer(64, on_full="block"))),
}


def documents_of(body: bytes) -> list[dict[str, Any]]:
    """The JSON of the events that are chunks."""
    payloads = [event.data for event in EventStreamParser().feed(body) if event.event != "error"]
    documents = [json.loads(payload) for payload in payloads if payload.startswith(b"{")]
    return [document for document in documents if "choices" in document and not document.get("error")]


async def all_chunks(loop: AsyncIterator[Any]) -> list[ChatCompletionChunk]:
    chunks: list[ChatCompletionChunk] = []
    try:
        async for item in loop:
            chunks += item if isinstance(item, list) else [item]
    except TogetherError:
        pass  # the sample ends in an error, after these chunks
    return chunks


@pytest.mark.parametrize("size", [None, 1, 97], ids=["whole", "byte by byte", "in pieces"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BODIES)
async def test_to_dict_is_what_came(name: str, way: str, size: int | None) -> None:
    """Of every chunk, choice and delta: each sample and dialect, cut in each way, read in each way."""
    body = BODIES[name]
    pieces = [body] if size is None else [body[i : i + size] for i in range(0, len(body), size)]
    stream = stream_of(Response(pieces))
    async with stream:
        chunks = await all_chunks(WAYS[way](stream))
    for chunk, document in zip(chunks, documents_of(body), strict=True):
        assert chunk.to_dict() == document
        assert json.loads(chunk.raw_json or b"") == document
        for choice, part in zip(chunk.choices, document["choices"], strict=True):
            assert choice.to_dict() == part
            assert choice.delta.to_dict() == part.get("delta", {})


async def test_a_late_unknown_key_is_kept() -> None:
    """Also if the stream's first chunk had none."""
    documents = [
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]},
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "b"}}]},
        {"id": "c", "model": "m", "x": 1, "choices": [{"index": 0, "y": 2, "delta": {"content": "c", "z": 3}}]},
    ]
    body = b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents)
    chunks = await all_chunks(aiter(stream_of(Response([body + b"data: [DONE]\n\n"]))))
    assert [chunk.to_dict() for chunk in chunks] == documents
    assert chunks[2].choices[0].delta.to_dict() == {"content": "c", "z": 3}


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (ChunkChoice(text="x"), "x"),
        (ChunkChoice(text=""), ""),
        (ChunkChoice(), ""),
        (ChunkChoice(text="x", delta=Delta()), ""),
        (ChunkChoice(text="x", delta=Delta(content="y")), "y"),
        (make(ChunkChoice, text="x"), "x"),
    ],
)
def test_text_counts_where_no_delta_came(choice: ChunkChoice, text: str) -> None:
    """A choice that is made without a delta is one of the older shape; an empty delta is a delta."""
    assert text_of(choice) == text


def test_the_shared_default_is_never_linked() -> None:
    chunk = make(ChatCompletionChunk, choices=(make(ChunkChoice, index=0), make(ChunkChoice, index=1)))
    link(chunk, b'{"choices":[{"index":0,"delta":{"x":1}},{"index":1}]}')
    assert chunk.choices[0].delta is NO_DELTA
    assert NO_DELTA.to_dict() == {}
