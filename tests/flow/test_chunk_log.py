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
from support.sources import texts
from together_async.flow.chunk_log import ChunkLog
from together_async.models import ChatCompletionChunk
from together_async.wire.codec import decode_chunk


def log_of(chunks: list[ChatCompletionChunk], window: int, *, closed: bool = False) -> ChunkLog:
    log = ChunkLog(window)
    for piece in chunks:
        log.add(piece)
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
    """A token with a log probability of 0."""
    document = delta(text)
    document["choices"][0]["logprobs"] = 0.0
    return decode_chunk(encoded(document))


def assert_adds_up(got: list[ChatCompletionChunk], expected: list[ChatCompletionChunk]) -> None:
    """Both add up to one completion. Empty values may be absent: of a text chunk only the text is kept."""
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
    """A reader with the first p chunks as they came, and the others from the log, has the completion."""
    log = log_of(chunks, window, closed=closed)
    assert log.last == len(chunks)
    for position in range(len(chunks) + 1):
        pieces = log.since(position)
        assert_adds_up([*chunks[:position], *(piece for _, piece in pieces)], chunks)
        check_positions(pieces, position, len(chunks))
        following = [piece for _, piece in pieces]
        unknown = with_unknown_content(chunks[position:])
        assert [id(piece) for piece in with_unknown_content(following)] == [id(piece) for piece in unknown]
        at = {id(piece): place for place, piece in pieces}
        assert all(chunks[at[id(piece)] - 1] is piece for piece in unknown)


@given(streams(), windows, st.booleans())
@settings(max_examples=150)
@example([chunk("a"), *map(chunk, "bcd")], 12, False)
@example([with_usage("a", 1), with_usage("b", 2), chunk("c"), chunk("d")], 2, False)
@example([with_seed("a", 1), with_seed("b", 2), with_seed("c", 1), chunk("d")], 2, False)
@example([chunk("a", index=1, role="tool"), chunk("b", role="tool"), chunk("c")], 12, False)
@example([chunk("a"), chunk("b", annotations=["x"]), chunk("c")], 12, True)
def test_merged_it_adds_up_to_the_same(chunks: list[ChatCompletionChunk], window: int, closed: bool) -> None:
    """Whether or not the log has all chunks as they came: merging never makes more chunks, and no unknown key is
    lost."""
    log = log_of(chunks, window, closed=closed)
    for position in range(len(chunks) + 1):
        pieces = log.since(position, merged=True)
        following = [piece for _, piece in pieces]
        assert_adds_up([*chunks[:position], *following], chunks)
        check_positions(pieces, position, len(chunks))
        assert len(following) <= len(log.since(position))
        unknown = with_unknown_content(chunks[position:])
        assert [id(piece) for piece in with_unknown_content(following)] == [id(piece) for piece in unknown]


@pytest.mark.parametrize("window", [0, 2, 20])
def test_merged_is_one_chunk(window: int) -> None:
    """However few chunks there are, and however many of them are kept as they came."""
    chunks = [chunk("", role="assistant"), *map(chunk, "abcdef"), chunk(finish="stop")]
    log = log_of(chunks, window)
    for position in range(len(chunks)):
        ((at, piece),) = log.since(position, merged=True)
        assert (at, texts([piece])) == (8, ["abcdef"[max(0, position - 1) :]])
    assert log.since(8, merged=True) == []


def check_positions(pieces: list[tuple[int, ChatCompletionChunk]], position: int, last: int) -> None:
    """They increase, and the last is the newest."""
    positions = [position, *(at for at, _ in pieces)]
    assert positions == sorted(set(positions))
    assert positions[-1] == last


@given(streams(), windows, st.lists(st.integers(0, 12), max_size=6))
@settings(max_examples=120)
def test_a_reader_who_comes_and_goes_has_the_completion(
    chunks: list[ChatCompletionChunk], window: int, visits: list[int]
) -> None:
    """It asks the log at any moments for the chunks since the last time, while the log grows and at its end."""
    log, had, position = ChunkLog(window), list[ChatCompletionChunk](), 0

    def ask() -> int:
        pieces = log.since(position)
        had.extend(piece for _, piece in pieces)
        return pieces[-1][0] if pieces else position

    for number, piece in enumerate(chunks):
        log.add(piece)
        if number in visits:
            position = ask()
    log.close()
    position = ask()
    assert position == len(chunks)
    assert_adds_up(had, chunks)


@given(streams(), windows)
@settings(max_examples=100)
def test_asking_changes_nothing(chunks: list[ChatCompletionChunk], window: int) -> None:
    """What a reader gets does not depend on what others were given before."""
    log, other = log_of(chunks, window), log_of(chunks, window)
    for position in range(len(chunks) + 1):
        log.since(position)
    assert [(at, piece.to_dict()) for at, piece in log.since(0)] == [
        (at, piece.to_dict()) for at, piece in other.since(0)
    ]
    assert log.size == other.size


@pytest.mark.parametrize("window", [1, 3, 10])
def test_who_keeps_up_gets_the_chunks_as_they_came(window: int) -> None:
    """The last `window` chunks are the very objects; a reader that is one further behind gets one chunk for all."""
    chunks = [chunk(str(i)) for i in range(10)]
    log = log_of(chunks, window)
    for behind in range(window + 1):
        pieces = log.since(10 - behind)
        assert [at for at, _ in pieces] == list(range(11 - behind, 11))
        assert all(piece is chunks[at - 1] for at, piece in pieces)
    if window < 10:
        ((at, piece),) = log.since(9 - window)
        assert at == 10
        assert texts([piece]) == ["".join(str(i) for i in range(9 - window, 10))]


def test_who_lags_gets_one_chunk_with_the_facts_of_the_first() -> None:
    """Only the texts were kept; id and model are those of the stream, and the role does not come again."""
    log = log_of([chunk("a", role="assistant"), *map(chunk, "bcdef")], 2)
    ((at, piece),) = log.since(2)
    assert (at, piece.to_dict()) == (
        6,
        {**delta(), "choices": [{"index": 0, "delta": {"content": "cdef"}, "finish_reason": None}]},
    )


@pytest.mark.parametrize("first", [{}, {"system_fingerprint": "fp"}])
def test_a_fact_that_came_empty_is_kept(first: dict[str, Any]) -> None:
    """If no chunk before had it, an empty value differs from an absent one."""
    log = log_of([with_fact("a", **first), with_fact("b", system_fingerprint=""), chunk("c")], 0)
    ((_, piece),) = log.since(0)
    assert (texts([piece]), piece.to_dict().get("system_fingerprint")) == (["abc"], first.get("system_fingerprint", ""))


def test_an_end_is_kept_with_its_usage_and_reason() -> None:
    """They are merged into the same chunk, and not lost when the log is closed."""
    end = decode_chunk(encoded({**delta(finish="stop"), "usage": {"total_tokens": 3}}))
    log = log_of([chunk("a"), chunk("b"), chunk("c"), end], 0, closed=True)
    ((at, piece),) = log.since(1)
    assert (at, texts([piece]), piece.choices[0].finish_reason) == (4, ["bc"], "stop")
    assert piece.usage is not None
    assert piece.usage.total_tokens == 3


@pytest.mark.parametrize("position", [-1, 4, 10**9])
def test_a_position_outside_of_the_log(position: int) -> None:
    """A position that never was gives an error, not an empty list."""
    log = log_of([chunk(x) for x in "abc"], 2)
    with pytest.raises(ValueError, match=rf"position: got {position}, expected one from 0 to 3"):
        log.since(position)


def test_an_empty_log() -> None:
    """It has nothing since position 0."""
    log = ChunkLog(4)
    assert (log.last, log.size, log.since(0)) == (0, 0, [])
    log.close()
    assert log.since(0) == []
    assert repr(log) == "<ChunkLog of 0 chunks, 0 bytes>"


@pytest.mark.parametrize("text", ["word", "x" * 1000, "文字" * 100, "😀" * 50], ids=["word", "long", "wide", "wider"])
def test_the_size_is_about_what_it_takes(text: str) -> None:
    """The estimate is close to what the interpreter allocates, for small and large chunks, kept as they came or as
    text: it can bound memory."""
    raws = [encoded(delta(f"{text}{i}")) for i in range(400)]
    for window in (400, 0):
        tracemalloc.start()
        log = log_of([decode_chunk(bytes(bytearray(raw))) for raw in raws], window)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken / 2.5 <= log.size <= taken * 4, window


def test_text_alone_is_kept_of_what_is_old() -> None:
    """It takes a twentieth of the chunks' memory; closing the log does the same to the last chunks."""
    chunks = [chunk("word") for _ in range(1000)]
    log = log_of(chunks, 1000)
    kept = log.size
    log.close()
    assert log.size < kept / 15
    assert log.size < 100 * 1000


def calls_of(log: ChunkLog, chunks: list[ChatCompletionChunk]) -> int:
    """How many calls it takes to add these chunks."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for piece in chunks:
            log.add(piece)
    finally:
        sys.setprofile(before)
    return count


def test_the_work_for_a_chunk_does_not_grow() -> None:
    """The five-thousandth chunk costs what the hundredth did."""
    log = log_of([chunk("a") for _ in range(100)], 16)
    some = [chunk("b") for _ in range(100)]
    first = calls_of(log, some)
    for _ in range(50):
        for piece in some:
            log.add(piece)
    assert calls_of(log, some) == first
