"""`Coalescer`: fewer chunks that say the same, proved against the accumulator."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import delta

from together_async.accumulator import ChatCompletionAccumulator
from together_async.coalesce import Coalescer
from together_async.codec import decode_chunk, decode_chunk_strictly
from together_async.models import ChatCompletion, ChatCompletionChunk, text_of

# ----------------------------------------------------------------------------------------- what servers send, any of it

_ABSENT: Any = object()


def fields(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects in which every field may be absent."""
    return st.fixed_dictionaries({}, optional=values)


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


words = some(None, "", "a", "bé", "\n", "c😀")
functions = fields(name=some(None, "", "f", "g"), arguments=some(None, "", "{", '"x":1}'))
pieces = fields(
    # (An id that is empty is none; it is lost where it was the only one.)
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
    """Native log probabilities, lists side by side."""
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
odd = st.builds(lambda head, said: {**head, "choices": said}, fields(**facts), st.lists(choices, max_size=3))
"""Anything."""
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
"""One thing many times, where what is merged depends on what came before."""


@st.composite
def streams(draw: st.DrawFn) -> list[ChatCompletionChunk]:
    """The chunks of a stream; with the bytes they came from, or without, as `async for` of plain text gives them."""
    kind = draw(st.sampled_from([st.one_of(plain, plain, odd), odd, *focused]))
    documents = draw(st.lists(kind, max_size=10))
    exact = draw(st.booleans())
    return [decode_chunk(encoded(one)) if exact else decode_chunk_strictly(encoded(one)) for one in documents]


def encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def chunk(content: str | None = None, **more: Any) -> ChatCompletionChunk:
    """A chunk with one choice, with its bytes."""
    return decode_chunk(encoded(delta(content, **more)))


def calls(*said: dict[str, Any]) -> list[ChatCompletionChunk]:
    """A chunk for each piece of a tool call."""
    return [chunk(tool_calls=[piece]) for piece in said]


# ------------------------------------------------------------------------------------------------------ what it adds to


def accumulated(chunks: Iterable[ChatCompletionChunk]) -> ChatCompletionAccumulator:
    accumulator = ChatCompletionAccumulator()
    for one in chunks:
        accumulator.add(one)
    return accumulator


def completion_of(chunks: Iterable[ChatCompletionChunk]) -> ChatCompletion:
    return accumulated(chunks).completion()


def assert_same(got: Sequence[ChatCompletionChunk], expected: Sequence[ChatCompletionChunk]) -> None:
    """Both add up to one completion, to the last null, and are through or not."""
    ours, theirs = accumulated(got), accumulated(expected)
    assert ours.completion().to_dict() == theirs.completion().to_dict()
    assert ours.completion() == theirs.completion()
    assert [ours.finished(n) for n in range(4)] == [theirs.finished(n) for n in range(4)]


def bare(value: Any) -> Any:
    """A JSON value without what is null or empty."""
    if isinstance(value, dict):
        return {name: kept for name, item in value.items() if (kept := bare(item)) not in (None, "", [], {})}
    return [bare(item) for item in value] if isinstance(value, list) else value


def says_more_of(chunks: Iterable[ChatCompletionChunk]) -> list[ChatCompletionChunk]:
    """Those with a key in a delta that is unknown here and not empty."""
    return [one for one in chunks if any(c.get("delta", {}).get("annotations") for c in one.to_dict()["choices"])]


def merged(chunks: Iterable[ChatCompletionChunk]) -> list[tuple[int, ChatCompletionChunk]]:
    coalescer = Coalescer()
    for one in chunks:
        coalescer.add(one)
    return coalescer.take()


def grouped(chunks: Sequence[ChatCompletionChunk], ends: Iterable[int]) -> list[list[ChatCompletionChunk]]:
    """The chunks cut at these places."""
    cuts = sorted({0, len(chunks), *(end for end in ends if end < len(chunks))})
    return [list(chunks[a:b]) for a, b in itertools.pairwise(cuts)]


ends = st.sets(st.integers(0, 12), max_size=5)
CALL_BY_NAME = calls({"function": {"name": "f"}}, {"function": {"arguments": "{"}}, {"function": {"name": "f"}})


@given(streams(), ends)
@settings(max_examples=300)
@example(CALL_BY_NAME, {1})
@example(CALL_BY_NAME, {2})
@example(calls({"index": 0, "id": "a"}, {"index": 1, "id": "b"}, {"index": 0}, {}, {"index": 0, "id": "c"}, {}), {2})
@example(
    calls(*({**at, "function": {"arguments": x}} for at, x in (({"index": 0}, "a"), ({}, "b"), ({"index": 0}, "c")))),
    set(),
)
def test_any_partition_adds_up_to_the_same_completion(chunks: list[ChatCompletionChunk], cuts: set[int]) -> None:
    """Whatever is merged with what, and whatever comes before and after it."""
    groups = [merged(group) for group in grouped(chunks, cuts)]
    got = [one for group in groups for _, one in group]
    assert_same(got, chunks)
    assert sum(count for group in groups for count, _ in group) == len(chunks)


@given(streams(), ends, ends)
@settings(max_examples=120)
def test_what_is_merged_can_be_merged_again(
    chunks: list[ChatCompletionChunk], cuts: set[int], others: set[int]
) -> None:
    """A buffer behind a broadcast merges what was merged there."""
    once = [one for group in grouped(chunks, cuts) for _, one in merged(group)]
    twice = [one for group in grouped(once, others) for _, one in merged(group)]
    assert_same(twice, chunks)


@given(streams(), ends)
@settings(max_examples=120)
def test_unknown_keys_come_through_exactly_and_in_their_place(
    chunks: list[ChatCompletionChunk], cuts: set[int]
) -> None:
    """A delta that says something this package has no name for is the chunk it was, between what came around it."""
    said = says_more_of(chunks)
    for group in grouped(chunks, cuts):
        came = 0
        for count, one in merged(group):
            came += count
            if any(one is other for other in said):
                assert count == 1
                assert group[came - 1] is one
    got = [one for group in grouped(chunks, cuts) for _, one in merged(group)]
    assert [id(one) for one in says_more_of(got)] == [id(one) for one in said]


@given(streams())
@settings(max_examples=100)
def test_a_lone_chunk_is_handed_on_as_it_came(chunks: list[ChatCompletionChunk]) -> None:
    """There is nothing to merge, so nothing is lost, unknown keys and bytes included."""
    for one in chunks:
        ((count, got),) = merged([one])
        assert count == 1
        assert got is one


@given(streams())
@settings(max_examples=100)
def test_a_merged_chunk_has_one_choice_of_an_index_and_survives_the_wire(chunks: list[ChatCompletionChunk]) -> None:
    """What a relay writes of it and a client reads adds up to the same, so it is a chunk as any other."""
    groups = [one for _, one in merged(chunks)]
    read = [decode_chunk(encoded(one.to_dict())) for one in groups]
    assert_same(read, chunks)
    for count, one in merged(chunks):
        indices = [choice.index for choice in one.choices]
        assert count == 1 or len(indices) == len(set(indices))


# ---------------------------------------------------------------------------------------------------------------- cases


def test_texts_of_every_choice_are_one_chunk() -> None:
    """The plain case, by hand: one chunk, the texts of each choice joined, the facts of the first chunk."""
    ((count, one),) = merged([chunk("a", role="assistant"), chunk("x", index=1), chunk("b"), chunk("y", index=1)])
    assert count == 4
    assert [(choice.index, text_of(choice)) for choice in one.choices] == [(0, "ab"), (1, "xy")]
    assert one.choices[0].delta.role == "assistant"
    assert (one.id, one.model, one.created) == ("c1", delta()["model"], 1)


def test_what_was_absent_stays_absent_and_a_finish_reason_is_null() -> None:
    """The merged chunk has the wire's shape: no seed, no logprobs, no call where none came."""
    ((_, one),) = merged([chunk("a"), chunk("b")])
    assert one.to_dict() == {
        **delta("ab"),
        "choices": [{"index": 0, "delta": {"content": "ab"}, "finish_reason": None}],
    }


def test_arguments_of_a_call_become_one_piece() -> None:
    """A hundred pieces of arguments are one, which is what merging them is for."""
    begin = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": str(i)}} for i in range(100)]
    ((_, one),) = merged(calls(begin, *rest))
    (piece,) = one.choices[0].delta.tool_calls or ()
    assert piece.function is not None
    assert (piece.index, piece.id, piece.type, piece.function.name) == (0, "a", "function", "f")
    assert piece.function.arguments == "".join(str(i) for i in range(100))


def test_usage_without_choices_is_merged_too() -> None:
    """The last chunk of a stream, which has usage alone, goes into the same chunk."""
    last = decode_chunk(encoded({**delta(), "choices": [], "usage": {"total_tokens": 3}}))
    ((count, one),) = merged([chunk("a"), chunk(finish="stop"), last])
    assert count == 3
    assert one.usage is not None
    assert one.usage.total_tokens == 3
    assert one.choices[0].finish_reason == "stop"


def test_take_begins_anew() -> None:
    """What was taken is not given again, and an empty coalescer gives nothing."""
    coalescer = Coalescer()
    assert coalescer.take() == []
    coalescer.add(chunk("a"))
    coalescer.add(chunk("b"))
    assert (coalescer.count, repr(coalescer)) == (2, "<Coalescer of 2 chunks>")
    assert [count for count, _ in coalescer.take()] == [2]
    assert coalescer.count == 0
    assert coalescer.take() == []
    coalescer.add(chunk("c"))
    ((_, one),) = coalescer.take()
    assert text_of(one.choices[0]) == "c"


def test_what_is_known_of_a_text_alone_is_merged_in_its_place() -> None:
    """`add_text` stands for a chunk whose other facts are known from `say`."""
    coalescer = Coalescer()
    coalescer.say(chunk("not this"))
    for text in "abc":
        coalescer.add_text(text)
    coalescer.add(chunk("d"))
    ((count, one),) = coalescer.take()
    assert count == 4
    assert (one.id, text_of(one.choices[0])) == ("c1", "abcd")


def work_of(chunks: Sequence[ChatCompletionChunk]) -> int:
    """How many calls, Python's and C's, it takes to merge these."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        merged(chunks)
    finally:
        sys.setprofile(before)
    return count


KINDS = {
    "text": lambda i: chunk(f"t{i}"),
    "reasoning": lambda i: chunk(reasoning=f"t{i}"),
    "arguments": lambda i: calls({"index": i % 3, "function": {"arguments": "x"}})[0],
    "logprobs": lambda i: decode_chunk_strictly(
        encoded({"choices": [{"index": 0, "delta": {"content": "a", "token_id": i}, "logprobs": -0.5}]})
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_for_a_chunk_does_not_grow(kind: str) -> None:
    """Ten times the chunks are ten times the work, in calls, whatever they hold."""
    chunks = [KINDS[kind](i) for i in range(3000)]
    few, many = work_of(chunks[:300]), work_of(chunks)
    assert few * 9 < many + 1000
    assert many < few * 11
