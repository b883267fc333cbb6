"""What an output holds: which of its lines count, which are damaged, and what is torn."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.batch_output import answer_line, failure_line
from support.servers import MODEL
from together_async.batch.record import (
    RecordError,
    decode_line,
)
from together_async.batch.standing import Standing


def standing_of(data: bytes) -> Standing:
    standing = Standing()
    for line in io.BytesIO(data):
        standing.add(line)
    return standing


def test_the_later_of_two_results_counts() -> None:
    standing = standing_of(failure_line("a", body_hash="1") + answer_line("b") + answer_line("a", body_hash="2"))
    assert standing.results == {"b": ("", True), "a": ("2", True)}
    assert standing.set_aside == [1]
    assert (standing.line_number("a"), standing.line_number("b")) == (3, 2)


def test_tokens_are_counted_by_model() -> None:
    assert standing_of(answer_line("a") + failure_line("b") + answer_line("c")).tokens == {MODEL: (2, 4)}


def test_a_torn_end_is_recognised_at_every_byte() -> None:
    """All before it stays; a whole line that lacks only its line feed counts."""
    head, line = answer_line("a") + failure_line("b"), answer_line("c", "Hällo")
    for size in range(len(line) + 1):
        standing = standing_of(head + line[:size])
        whole_line = size >= len(line) - 1
        assert list(standing.results) == ["a", "b", *(["c"] if whole_line else [])]
        assert standing.whole_size == (len(head) + size if whole_line else len(head))
        assert standing.torn_size == (0 if whole_line else size)
        assert standing.ends_open == (size == len(line) - 1)
        assert standing.set_aside == []


def test_a_torn_first_line_is_nobody_elses_file() -> None:
    """A crash during the very first write leaves the start of a line, or blocks without content."""
    for line in (answer_line("a"), failure_line("a")):
        for size in range(len(line) - 1):
            assert standing_of(line[:size]).torn_size == size
    assert standing_of(b"\0" * 5_000).whole_size == 0


def test_blocks_that_were_never_written_are_torn() -> None:
    """After a power cut a file may have its length but not its content."""
    standing = standing_of(answer_line("a") + answer_line("b")[:40] + b"\0" * 4_096)
    assert list(standing.results) == ["a"]
    assert standing.torn_size == 40 + 4_096


@pytest.mark.parametrize(
    "data",
    [
        b'{"custom_id": "a", "body": {"model": "m", "messages": []}}\n',
        b'{"custom_id":"a","body":{"model":"m","messages":[]}}\n',
        b'{"custom_id":"a","body":{"model":"m","messages":[]}}',
        b'{"custom_id": "a"}\n{"custom_id": "b"}\n',
        b"Dear diary,\n",
        b"Dear diary,",
        b'{"a": 1}\n',
        b"[1, 2]\n",
        b"custom_id,text\na,b\n",
        b"\x89PNG\r\n\x1a\n\0\0",
    ],
)
def test_another_kind_of_file_is_refused(data: bytes) -> None:
    """An input, a text, anything whose first line is neither a result nor a torn one."""
    with pytest.raises(RecordError, match="line 1"):
        standing_of(data)


@pytest.mark.parametrize(
    "tail",
    [
        b"my notes\n",
        b"my notes\nand more\n",
        b'{"custom_id": "z"}\n',
        b'{"custom_id": "z", "body": {}}\n{"custom_id": "y", "body": {}}\n',
    ],
)
def test_lines_that_end_are_not_torn(tail: bytes) -> None:
    """A line with a line feed was written completely: it is put aside, not cut off."""
    head = answer_line("a")
    standing = standing_of(head + tail)
    assert standing.set_aside == list(range(2, 2 + tail.count(b"\n")))
    assert standing.torn_size == 0


def test_damage_in_the_middle_is_put_aside() -> None:
    standing = standing_of(answer_line("a") + b"\0" * 20 + b"\n" + answer_line("b")[5:] + answer_line("c"))
    assert list(standing.results) == ["a", "c"]
    assert standing.set_aside == [2, 3]
    assert standing.torn_size == 0


LINE = st.one_of(
    st.builds(lambda name, hashed: answer_line(name, body_hash=hashed), st.sampled_from("abcd"), st.sampled_from("12")),
    st.builds(
        lambda name, hashed: failure_line(name, body_hash=hashed), st.sampled_from("abcd"), st.sampled_from("12")
    ),
    st.sampled_from([b"\n", b"garbage\n", b"\0\0\0\n", b'{"custom_id":"a","resp\n', b"{}\n", "\u2028ä\n".encode()]),
)


@given(lines=st.lists(LINE, max_size=8), cut=st.integers(0, 400))
def test_standing_against_a_plain_reading(lines: list[bytes], cut: int) -> None:
    """In any mixture of results, damage and a torn end the last whole line of each name counts, and stays."""
    data = answer_line("first") + b"".join(lines)
    data = data[: max(len(data) - cut, len(answer_line("first")))]
    wanted, places = dict[str, tuple[str, bool]](), dict[str, int]()
    whole_lines = set[int]()
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            record = decode_line(line)
        except RecordError:
            continue
        whole_lines.add(number)
        wanted[record.custom_id] = (record.body_hash, record.ok)
        places[record.custom_id] = number
    standing = standing_of(data)
    assert standing.results == wanted
    assert {name: standing.line_number(name) for name in wanted} == places
    assert whole_lines - set(standing.set_aside) == set(places.values())
    assert len(standing.set_aside) == len(set(standing.set_aside))
    assert standing.whole_size + standing.torn_size == len(data)
    torn = data[standing.whole_size :]
    assert not standing.ends_open or not torn
    *ended, _ = torn.split(b"\n")
    assert not any(line.strip(b"\0") for line in ended), "a line that somebody ended is cut off"
    for line in torn.split(b"\n"):
        with pytest.raises(RecordError):
            decode_line(line)
