"""Chunks: every chunk, choice and delta gives back what came, however the stream is read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from calls.test_reading import Response, stream_of
from support.paths import SAMPLES
from together_async import TogetherError
from together_async.models import NO_DELTA, ChatCompletionChunk, ChunkChoice, Delta, link, make, text_of
from together_async.wire.sse import EventStreamParser

STREAMS = sorted(SAMPLES.glob("*.sse"))


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The JSON of the events that are chunks."""
    payloads = [event.data for event in EventStreamParser().feed(body)]
    documents = [json.loads(payload) for payload in payloads if payload.startswith(b"{")]
    return [document for document in documents if document.get("choices") and "error" not in document]


async def all_chunks(loop: AsyncIterator[Any]) -> list[ChatCompletionChunk]:
    chunks: list[ChatCompletionChunk] = []
    try:
        async for item in loop:
            chunks += item if isinstance(item, list) else [item]
    except TogetherError:
        pass  # the sample ends in an error, after these chunks
    return chunks


@pytest.mark.parametrize("size", [None, 1, 97], ids=["whole", "byte by byte", "in pieces"])
@pytest.mark.parametrize("way", ["chunks", "batches", "in a block"])
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
async def test_to_dict_is_what_came(path: Any, way: str, size: int | None) -> None:
    body = path.read_bytes()
    pieces = [body] if size is None else [body[i : i + size] for i in range(0, len(body), size)]
    stream = stream_of(Response(pieces))
    if way == "in a block":
        async with stream:
            chunks = await all_chunks(aiter(stream))
    else:
        chunks = await all_chunks(stream.batches() if way == "batches" else aiter(stream))
    expected = [document for document in events_of(body) if document in [chunk.to_dict() for chunk in chunks]]
    assert expected
    read = [chunk for chunk in chunks if chunk.choices]
    for chunk, document in zip(read, expected, strict=True):
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
