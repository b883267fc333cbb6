"""`ChunkLog`: what any reader gets who comes late, from any position, adds up to the same completion."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.any_chunks import accumulated, bare, chunk, encoded, streams, with_unknown_content
from support.servers import delta
from together_async.flow.chunk_log import ChunkLog
from together_async.models import ChatCompletionChunk, text_of
from together_async.wire.codec import decode_chunk


def log_of(chunks: list[ChatCompletionChunk], window: int, *, closed: bool = False) -> ChunkLog:
    log = ChunkLog(window)
    for one in chunks:
        log.add(one)
    if closed:
        log.close()
    return log


def with_usage(text: str, total: int) -> ChatCompletionChunk:
    return decode_chunk(encoded({**delta(text), "usage": {"total_tokens": total}}))


def with_fact(text: str, **facts: Any) -> ChatCompletionChunk:
    return decode_chunk(encoded({**delta(text), **facts}))


def with_seed(text: str, seed: int, index: int = 0) -> ChatCompletionChunk:
    document = delta(text, index=index)
    document["choices"][0]["seed"] = seed
    return decode_chunk(encoded(document))


def certain(text: str) -> ChatCompletionChunk:
    """A token with the logarithm of one."""
    document = delta(text)
    document["choices"][0]["logprobs"] = 0.0
    return decode_chunk(encoded(document))


def texts(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [text_of(choice) for one in chunks for choice in one.choices]


def assert_adds_up(got: list[ChatCompletionChunk], expected: list[ChatCompletionChunk]) -> None:
    """Both add up to one completion. What came empty may be absent: of a text chunk the text alone is kept."""
    ours, theirs = accumulated(got), accumulated(expected)
    assert bare(ours.completion().to_dict()) == bare(theirs.completion().to_dict())
    assert [ours.finished(n) for n in range(4)] == [theirs.finished(n) for n in range(4)]


windows = st.integers(0, 12)


@given(streams(), windows, st.booleans())
@settings(max_examples=250)
@example([chunk("a"), *map(chunk, "bcd")], 0, False)
@example([with_usage("a", 1), with_usage("b", 2), chunk("c"), chunk("d")], 0, False)
@example([chunk("a"), certain("b"), chunk("c")], 0, False)
@example([with_seed("a", 1), with_seed("b", 2), with_seed("c", 1), chunk("d")], 0, False)
@example([with_seed("a", 1, index=1), with_seed("b", 1), chunk("c")], 0, False)
@example([chunk("a", index=1, role="tool"), chunk("b", role="tool"), chunk("c")], 0, False)
@example([chunk("a"), chunk("b", reasoning_content=""), chunk("c")], 0, False)
@example([chunk("a"), with_fact("b", system_fingerprint=""), chunk("c")], 0, False)
@example([chunk("a"), chunk("b", annotations=["x"]), chunk("c")], 0, True)
def test_from_any_position_it_adds_up_to_the_same(chunks: list[ChatCompletionChunk], window: int, closed: bool) -> None:
    """Who has had the first p chunks as they came, and gets the rest from the log, has the completion."""
    log = log_of(chunks, window, closed=closed)
    assert log.last == len(chunks)
    for position in range(len(chunks) + 1):
        pieces = log.since(position)
        assert_adds_up([*chunks[:position], *(one for _, one in pieces)], chunks)
        check_positions(pieces, position, len(chunks))
        rest = [one for _, one in pieces]
        unknown = with_unknown_content(chunks[position:])
        assert [id(one) for one in with_unknown_content(rest)] == [id(one) for one in unknown]
        at = {id(one): place for place, one in pieces}
        assert all(chunks[at[id(one)] - 1] is one for one in unknown)


@given(streams(), windows, st.booleans())
@settings(max_examples=150)
@example([chunk("a"), *map(chunk, "bcd")], 12, False)
@example([with_usage("a", 1), with_usage("b", 2), chunk("c"), chunk("d")], 2, False)
@example([with_seed("a", 1), with_seed("b", 2), with_seed("c", 1), chunk("d")], 2, False)
@example([chunk("a", index=1, role="tool"), chunk("b", role="tool"), chunk("c")], 12, False)
@example([chunk("a"), chunk("b", annotations=["x"]), chunk("c")], 12, True)
def test_merged_it_adds_up_to_the_same(chunks: list[ChatCompletionChunk], window: int, closed: bool) -> None:
    """Whether or not all of it is kept as it came: never more chunks than those, and no unknown key is lost."""
    log = log_of(chunks, window, closed=closed)
    for position in range(len(chunks) + 1):
        pieces = log.since(position, merged=True)
        rest = [one for _, one in pieces]
        assert_adds_up([*chunks[:position], *rest], chunks)
        check_positions(pieces, position, len(chunks))
        assert len(rest) <= len(log.since(position))
        unknown = with_unknown_content(chunks[position:])
        assert [id(one) for one in with_unknown_content(rest)] == [id(one) for one in unknown]


@pytest.mark.parametrize("window", [0, 2, 20])
def test_merged_is_one_chunk(window: int) -> None:
    """However little there is, and however much of it is kept as it came."""
    chunks = [chunk("", role="assistant"), *map(chunk, "abcdef"), chunk(finish="stop")]
    log = log_of(chunks, window)
    for position in range(len(chunks)):
        ((at, one),) = log.since(position, merged=True)
        assert (at, texts([one])) == (8, ["abcdef"[max(0, position - 1) :]])
    assert log.since(8, merged=True) == []


def check_positions(pieces: list[tuple[int, ChatCompletionChunk]], position: int, last: int) -> None:
    """Each is further than the one before it, and the last is the newest."""
    positions = [position, *(at for at, _ in pieces)]
    assert positions == sorted(set(positions))
    assert positions[-1] == last


@given(streams(), windows, st.lists(st.integers(0, 12), max_size=6))
@settings(max_examples=120)
def test_a_reader_who_comes_and_goes_has_the_completion(
    chunks: list[ChatCompletionChunk], window: int, visits: list[int]
) -> None:
    """At whatever moments somebody asks the log for what came since the last time, while it grows and at its end."""
    log, had, position = ChunkLog(window), list[ChatCompletionChunk](), 0

    def ask() -> int:
        pieces = log.since(position)
        had.extend(one for _, one in pieces)
        return pieces[-1][0] if pieces else position

    for number, one in enumerate(chunks):
        log.add(one)
        if number in visits:
            position = ask()
    log.close()
    position = ask()
    assert position == len(chunks)
    assert_adds_up(had, chunks)


@given(streams(), windows)
@settings(max_examples=100)
def test_asking_changes_nothing(chunks: list[ChatCompletionChunk], window: int) -> None:
    """Readers do not meet: what one is given does not depend on what others were given before."""
    log, other = log_of(chunks, window), log_of(chunks, window)
    for position in range(len(chunks) + 1):
        log.since(position)
    assert [(at, one.to_dict()) for at, one in log.since(0)] == [(at, one.to_dict()) for at, one in other.since(0)]
    assert log.size == other.size


@pytest.mark.parametrize("window", [1, 3, 10])
def test_who_keeps_up_gets_the_chunks_as_they_came(window: int) -> None:
    """The last `window` chunks are the very objects; who is one further behind gets one chunk for all."""
    chunks = [chunk(str(i)) for i in range(10)]
    log = log_of(chunks, window)
    for behind in range(window + 1):
        pieces = log.since(10 - behind)
        assert [at for at, _ in pieces] == list(range(11 - behind, 11))
        assert all(one is chunks[at - 1] for at, one in pieces)
    if window < 10:
        ((at, one),) = log.since(9 - window)
        assert at == 10
        assert texts([one]) == ["".join(str(i) for i in range(9 - window, 10))]


def test_who_lags_gets_one_chunk_with_the_facts_of_the_first() -> None:
    """The text alone was kept; id and model are those of the stream, and the role is not said again."""
    log = log_of([chunk("a", role="assistant"), *map(chunk, "bcdef")], 2)
    ((at, one),) = log.since(2)
    assert (at, one.to_dict()) == (
        6,
        {**delta(), "choices": [{"index": 0, "delta": {"content": "cdef"}, "finish_reason": None}]},
    )


@pytest.mark.parametrize("first", [{}, {"system_fingerprint": "fp"}])
def test_a_fact_that_came_empty_is_kept(first: dict[str, Any]) -> None:
    """Where no chunk before it had it, it is not the same as one that never came."""
    log = log_of([with_fact("a", **first), with_fact("b", system_fingerprint=""), chunk("c")], 0)
    ((_, one),) = log.since(0)
    assert (texts([one]), one.to_dict().get("system_fingerprint")) == (["abc"], first.get("system_fingerprint", ""))


def test_an_end_is_kept_with_its_usage_and_reason() -> None:
    """What is more than text is merged into the same chunk, and not lost when the log is closed."""
    end = decode_chunk(encoded({**delta(finish="stop"), "usage": {"total_tokens": 3}}))
    log = log_of([chunk("a"), chunk("b"), chunk("c"), end], 0, closed=True)
    ((at, one),) = log.since(1)
    assert (at, texts([one]), one.choices[0].finish_reason) == (4, ["bc"], "stop")
    assert one.usage is not None
    assert one.usage.total_tokens == 3


@pytest.mark.parametrize("position", [-1, 4, 10**9])
def test_a_position_that_is_none(position: int) -> None:
    """What was never given has nothing after it: an error, and no chunks."""
    log = log_of([chunk(x) for x in "abc"], 2)
    with pytest.raises(ValueError, match=rf"position: got {position}, expected one from 0 to 3"):
        log.since(position)


def test_an_empty_log() -> None:
    """Nothing came, so nothing came since the beginning."""
    log = ChunkLog(4)
    assert (log.last, log.size, log.since(0)) == (0, 0, [])
    log.close()
    assert log.since(0) == []
    assert repr(log) == "<ChunkLog of 0 chunks, 0 bytes>"


@pytest.mark.parametrize("text", ["word", "x" * 1000, "文字" * 100, "😀" * 50], ids=["word", "long", "wide", "wider"])
def test_the_size_is_about_what_it_takes(text: str) -> None:
    """The estimate is a good part of what the interpreter says, for small chunks and large, kept as they came or as
    text: who bounds memory by it has bounded it."""
    raws = [encoded(delta(f"{text}{i}")) for i in range(400)]
    for window in (400, 0):
        tracemalloc.start()
        log = log_of([decode_chunk(bytes(bytearray(raw))) for raw in raws], window)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken / 2.5 <= log.size <= taken * 4, window


def test_text_alone_is_kept_of_what_is_old() -> None:
    """Twenty times less than the chunks it was, and closing does the same for the rest."""
    chunks = [chunk("word") for _ in range(1000)]
    log = log_of(chunks, 1000)
    kept = log.size
    log.close()
    assert log.size < kept / 15
    assert log.size < 100 * 1000


def calls_of(log: ChunkLog, chunks: list[ChatCompletionChunk]) -> int:
    """How many calls it takes to add these."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for one in chunks:
            log.add(one)
    finally:
        sys.setprofile(before)
    return count


def test_the_work_for_a_chunk_does_not_grow() -> None:
    """The five-thousandth chunk costs what the hundredth did."""
    log = log_of([chunk("a") for _ in range(100)], 16)
    some = [chunk("b") for _ in range(100)]
    first = calls_of(log, some)
    for _ in range(50):
        for one in some:
            log.add(one)
    assert calls_of(log, some) == first
