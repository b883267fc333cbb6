"""`Coalescer`: fewer chunks that say the same, proved against the accumulator."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.any_chunks import (
    assert_same,
    chunk,
    encoded,
    streams,
    with_unknown_content,
)
from support.servers import delta
from together_async.models import ChatCompletionChunk, text_of
from together_async.wire.coalesce import Coalescer
from together_async.wire.codec import decode_chunk, decode_chunk_strictly

# ----------------------------------------------------------------------------------------- what servers send, any of it


def calls(*pieces: dict[str, Any]) -> list[ChatCompletionChunk]:
    """A chunk for each piece of a tool call."""
    return [chunk(tool_calls=[piece]) for piece in pieces]


# ------------------------------------------------------------------------------------------------------ what it adds to


def merged(chunks: Iterable[ChatCompletionChunk]) -> list[tuple[int, ChatCompletionChunk]]:
    coalescer = Coalescer()
    for each in chunks:
        coalescer.add(each)
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
    """Chunks may be cut into groups anywhere; the merged groups add up to what the chunks do."""
    groups = [merged(group) for group in grouped(chunks, cuts)]
    got = [result for group in groups for _, result in group]
    assert_same(got, chunks)
    assert sum(count for group in groups for count, _ in group) == len(chunks)


@given(streams(), ends, ends)
@settings(max_examples=120)
def test_what_is_merged_can_be_merged_again(
    chunks: list[ChatCompletionChunk], cuts: set[int], others: set[int]
) -> None:
    """A buffer behind a broadcast merges what was merged there."""
    once = [result for group in grouped(chunks, cuts) for _, result in merged(group)]
    twice = [result for group in grouped(once, others) for _, result in merged(group)]
    assert_same(twice, chunks)


@given(streams(), ends)
@settings(max_examples=120)
def test_unknown_keys_come_through_exactly_and_in_their_place(
    chunks: list[ChatCompletionChunk], cuts: set[int]
) -> None:
    """A delta that says something this package has no name for is the chunk it was, between what came around it."""
    unknown = with_unknown_content(chunks)
    for group in grouped(chunks, cuts):
        came = 0
        for count, result in merged(group):
            came += count
            if any(result is other for other in unknown):
                assert count == 1
                assert group[came - 1] is result
    got = [result for group in grouped(chunks, cuts) for _, result in merged(group)]
    assert [id(result) for result in with_unknown_content(got)] == [id(result) for result in unknown]


@given(streams())
@settings(max_examples=100)
def test_a_lone_chunk_is_handed_on_as_it_came(chunks: list[ChatCompletionChunk]) -> None:
    """There is nothing to merge, so nothing is lost, unknown keys and bytes included."""
    for each in chunks:
        ((count, got),) = merged([each])
        assert count == 1
        assert got is each


@given(streams())
@settings(max_examples=100)
def test_a_merged_chunk_has_one_choice_of_an_index_and_survives_the_wire(chunks: list[ChatCompletionChunk]) -> None:
    """What a relay writes of it and a client reads adds up to the same, so it is a chunk as any other."""
    groups = [result for _, result in merged(chunks)]
    read = [decode_chunk(encoded(result.to_dict())) for result in groups]
    assert_same(read, chunks)
    for count, result in merged(chunks):
        indices = [choice.index for choice in result.choices]
        assert count == 1 or len(indices) == len(set(indices))


# ---------------------------------------------------------------------------------------------------------------- cases


def test_texts_of_every_choice_are_one_chunk() -> None:
    """The plain case, by hand: one chunk, the texts of each choice joined, the facts of the first chunk."""
    ((count, result),) = merged([chunk("a", role="assistant"), chunk("x", index=1), chunk("b"), chunk("y", index=1)])
    assert count == 4
    assert [(choice.index, text_of(choice)) for choice in result.choices] == [(0, "ab"), (1, "xy")]
    assert result.choices[0].delta.role == "assistant"
    assert (result.id, result.model, result.created) == ("c1", delta()["model"], 1)


def test_what_was_absent_stays_absent_and_a_finish_reason_is_null() -> None:
    """The merged chunk has the wire's shape: no seed, no logprobs, no tool call where none came."""
    ((_, result),) = merged([chunk("a"), chunk("b")])
    assert result.to_dict() == {
        **delta("ab"),
        "choices": [{"index": 0, "delta": {"content": "ab"}, "finish_reason": None}],
    }


def test_arguments_of_a_call_become_one_piece() -> None:
    """A hundred pieces of arguments are one, which is what merging them is for."""
    begin = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": str(i)}} for i in range(100)]
    ((_, result),) = merged(calls(begin, *more))
    (piece,) = result.choices[0].delta.tool_calls or ()
    assert piece.function is not None
    assert (piece.index, piece.id, piece.type, piece.function.name) == (0, "a", "function", "f")
    assert piece.function.arguments == "".join(str(i) for i in range(100))


def test_usage_without_choices_is_merged_too() -> None:
    """The last chunk of a stream, which has usage alone, goes into the same chunk."""
    last = decode_chunk(encoded({**delta(), "choices": [], "usage": {"total_tokens": 3}}))
    ((count, result),) = merged([chunk("a"), chunk(finish="stop"), last])
    assert count == 3
    assert result.usage is not None
    assert result.usage.total_tokens == 3
    assert result.choices[0].finish_reason == "stop"


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
    ((_, result),) = coalescer.take()
    assert text_of(result.choices[0]) == "c"


def test_what_is_known_of_a_text_alone_is_merged_in_its_place() -> None:
    """`add_text` stands for a chunk whose other facts are known from `add_facts`."""
    coalescer = Coalescer()
    coalescer.add_facts(chunk("not this"))
    for text in "abc":
        coalescer.add_text(text)
    coalescer.add(chunk("d"))
    ((count, result),) = coalescer.take()
    assert count == 4
    assert (result.id, text_of(result.choices[0])) == ("c1", "abcd")


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
    """Ten times the chunks take ten times as many function calls, for every kind of chunk."""
    chunks = [KINDS[kind](i) for i in range(3000)]
    few, many = work_of(chunks[:300]), work_of(chunks)
    assert few * 9 < many + 1000
    assert many < few * 11
