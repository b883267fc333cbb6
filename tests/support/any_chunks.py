"""Streams of chunks of every kind that servers send, for generated tests, and what must be true of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from support.servers import delta
from together_async.models import ChatCompletion, ChatCompletionChunk
from together_async.wire.accumulator import ChatCompletionAccumulator
from together_async.wire.codec import decode_chunk, decode_chunk_strictly

_ABSENT: Any = object()


def fields(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects in which every field may be absent."""
    return st.fixed_dictionaries({}, optional=values)


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


words = some(None, "", "a", "bé", "\n", "c😀")


functions = fields(name=some(None, "", "f", "g"), arguments=some(None, "", "{", '"x":1}'))


pieces = fields(
    # (An empty id is no id; if it was the only one it is lost.)
    index=some(None, 0, 0, 1, 2),
    id=some(None, "one", "two"),
    type=some(None, "function"),
    function=functions,
)


deltas = fields(
    role=some(None, "", "assistant", "tool"),
    content=words,
    reasoning=words,
    reasoning_content=words,
    refusal=words,
    token_id=some(None, 7),
    tool_calls=st.none() | st.lists(pieces, max_size=3),
    function_call=st.none() | functions,
    annotations=some(None, "", [], "!", ["more"]),
)


def lists(size: int, *, ids: bool) -> dict[str, Any]:
    """Log probabilities as parallel lists, Together's own shape."""
    tokens = {"tokens": ["t"] * size, "token_logprobs": [None, -0.5, -1.5][:size]}
    return {**tokens, "token_ids": list(range(size))} if ids else tokens


logprobs = st.one_of(
    some(None, -0.25, 0, -0.0, -3),
    st.builds(lists, st.integers(0, 3), ids=st.booleans()),
    st.builds(lambda size: {"content": [{"token": "t", "logprob": -0.5}] * size}, st.integers(0, 2)),
    st.just({"refusal": [{"token": "no"}], "top_logprobs": [{"a": -1.0}]}),
)


choices = fields(
    index=some(0, 0, 1, 2),
    delta=deltas,
    text=words,  # alone: the older shape
    finish_reason=some(None, None, "", "stop", "length", "brand_new"),
    seed=some(None, 1, 2, 2**70, 1.5),
    logprobs=logprobs,
)


usages = st.none() | st.builds(lambda total: {"total_tokens": total}, st.integers(1, 3))


facts = {
    "id": some(None, "", "c1", "c2"),
    "object": some("chat.completion.chunk", "", None),
    "created": some(None, 0, 1, 2),
    "model": some(None, "m", "n"),
    "system_fingerprint": some(None, "", "fp"),
    "service_tier": some(None, "default"),
    "prompt": st.none() | some([], [{"text": "Hi"}]),
    "warnings": some(None, [], ["beware"], [{"code": 1}]),
    "usage": usages,
    "x_gateway": some("cf", None),
}


any_document = st.builds(
    lambda head, choices: {**head, "choices": choices}, fields(**facts), st.lists(choices, max_size=3)
)
"""Chunks of any kind."""


plain = st.builds(
    lambda text, seed, role, index, tier: {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        **({} if tier is _ABSENT else {"service_tier": tier}),
        "choices": [
            {
                "index": index,
                "delta": {"content": text, **({} if role is _ABSENT else {"role": role})},
                "finish_reason": None,
                **({} if seed is _ABSENT else {"seed": seed}),
            }
        ],
    },
    some("", "a", "bé", "c😀"),
    some(_ABSENT, _ABSENT, None, 1, 2),
    some(_ABSENT, "assistant", "", "tool"),
    some(0, 0, 0, 1),
    some(_ABSENT, _ABSENT, None, "default"),
)
"""A chunk of text and little else, as nearly all are."""


def one_choice(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Chunks of one choice with these fields."""
    return fields(**values).map(lambda choice: {"id": "c1", "choices": [choice]})


focused = [
    one_choice(delta=fields(tool_calls=st.lists(pieces, min_size=1, max_size=2))),
    one_choice(delta=fields(content=some("a", None), token_id=some(None, 7)), logprobs=logprobs, text=some("t", None)),
    one_choice(index=some(0, 1), seed=some(None, 1, 2), finish_reason=some(None, "", "stop", "length"), delta=deltas),
    fields(**facts).map(lambda head: {**head, "choices": []}),
]
"""Chunks with one kind of field, where merging depends on the chunks before."""


@st.composite
def streams(draw: st.DrawFn) -> list[ChatCompletionChunk]:
    """The chunks of a stream; with the bytes they came from, or without, as `async for` of plain text gives them."""
    kind = draw(st.sampled_from([st.one_of(plain, plain, any_document), any_document, *focused]))
    documents = draw(st.lists(kind, max_size=10))
    exact = draw(st.booleans())
    return [
        decode_chunk(encoded(document)) if exact else decode_chunk_strictly(encoded(document)) for document in documents
    ]


def encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def chunk(content: str | None = None, **more: Any) -> ChatCompletionChunk:
    """A chunk with one choice, with its bytes."""
    return decode_chunk(encoded(delta(content, **more)))


def accumulated(chunks: Iterable[ChatCompletionChunk]) -> ChatCompletionAccumulator:
    accumulator = ChatCompletionAccumulator()
    for each in chunks:
        accumulator.add(each)
    return accumulator


def completion_of(chunks: Iterable[ChatCompletionChunk]) -> ChatCompletion:
    return accumulated(chunks).completion()


def assert_same(got: Sequence[ChatCompletionChunk], expected: Sequence[ChatCompletionChunk]) -> None:
    """Both add up to the same completion, nulls included, and both are finished or neither is."""
    ours, theirs = accumulated(got), accumulated(expected)
    assert ours.completion().to_dict() == theirs.completion().to_dict()
    assert ours.completion() == theirs.completion()
    assert [ours.finished(n) for n in range(4)] == [theirs.finished(n) for n in range(4)]


def bare(value: Any) -> Any:
    """A JSON value without its nulls and empty values."""
    if isinstance(value, dict):
        return {name: kept for name, item in value.items() if (kept := bare(item)) not in (None, "", [], {})}
    return [bare(item) for item in value] if isinstance(value, list) else value


def with_unknown_content(chunks: Iterable[ChatCompletionChunk]) -> list[ChatCompletionChunk]:
    """The chunks whose delta has an unknown key with a value that is not empty."""
    return [each for each in chunks if any(c.get("delta", {}).get("annotations") for c in each.to_dict()["choices"])]
