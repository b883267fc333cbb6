"""The plan of a response: places in it, and splitting. No socket here."""

from __future__ import annotations

import pytest

from support.plans import BODY, ENDS, EVENTS, STREAM, before, data, only, stream, whole
from together_async.testing import (
    Cut,
    ErrorInStream,
    Garbage,
    HugeLine,
    Stall,
)
from together_async.testing.response import ConnectionEnd, Piece, Position, ResponsePlan


@pytest.mark.parametrize("tokens", range(4))
@pytest.mark.parametrize("fault", [Stall, Cut], ids=["stall", "cut"])
def test_a_place_after_so_many_tokens_of_a_stream(fault, tokens):
    """0 is before the first event; the last is before the finish reason."""
    response = stream()
    assert fault(after_token=tokens).apply(response)
    piece = only(response, "stall" if fault is Stall else "end")
    assert before(response, piece) == STREAM[: ENDS[tokens]]
    assert data(response) == (STREAM if fault is Stall else STREAM[: ENDS[tokens]])


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_a_place_at_each_byte_of_a_stream(at):
    """From before the first byte to after the last; a piece that lies across is split, and no token is lost."""
    response = stream()
    assert Stall(at_byte=at).apply(response)
    assert before(response, only(response, "stall")) == STREAM[:at]
    assert data(response) == STREAM
    assert response.tokens == 3
    response = stream()
    assert Cut(at_byte=at).apply(response)
    assert data(response) == STREAM[:at]
    # A token counts when the last byte of its event is out.
    assert response.tokens == sum(end <= at for end in ENDS[1:4])


@pytest.mark.parametrize(("tokens", "size"), [(0, 0), (1, 2), (2, 4), (4, 8), (5, 10)])
def test_a_place_after_so_many_tokens_of_a_whole_response_is_that_share_of_it(tokens, size):
    """Five tokens in ten bytes."""
    response = whole()
    assert Cut(after_token=tokens).apply(response)
    assert data(response) == BODY[:size]


@pytest.mark.parametrize(
    "place",
    [{"after_token": 4}, {"after_token": 1000}, {"at_byte": len(STREAM) + 1}, {"at_byte": 10**9}],
    ids=str,
)
@pytest.mark.parametrize("fault", [Stall, Cut, ErrorInStream, Garbage, HugeLine], ids=lambda fault: fault.__name__)
def test_a_place_beyond_the_end_changes_nothing(fault, place):
    """The response stays as it was, and `apply` returns False."""
    response = stream()
    assert not fault(**place).apply(response)
    assert response == stream()


def test_a_place_in_the_head_splits_it():
    """The pieces before and after are the head."""
    response = whole()
    assert Cut(in_head=7).apply(response)
    first, cut, remaining = response.pieces_of_head()
    assert first.data + remaining.data == response.head()
    assert (len(first.data), cut.end) == (7, ConnectionEnd.RESET)


def test_without_a_place_a_cut_or_a_stall_comes_before_the_first_byte():
    """At 0 of the head."""
    for fault in (Cut(), Stall()):
        response = stream()
        assert fault.apply(response)
        assert [at for at, _ in response.head_pieces] == [0]
        assert response.body == stream().body


@pytest.mark.parametrize("fault", [ErrorInStream, Garbage, HugeLine], ids=lambda fault: fault.__name__)
def test_without_a_place_what_belongs_into_a_body_comes_at_its_start(fault):
    """After no token."""
    response = stream()
    assert fault().apply(response)
    assert response.body[0].data != EVENTS[0]
    assert not response.head_pieces


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"after_token": -1}, "after_token: got -1, expected an int of at least 0"),
        ({"at_byte": 1.5}, "at_byte: got 1.5, expected an int of at least 0"),
        ({"in_head": True}, "in_head: got True, expected an int of at least 0"),
        ({"after_token": 1, "at_byte": 2}, "got after_token and at_byte, expected at most one of them"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [Position, Stall, Cut, ErrorInStream, Garbage], ids=lambda make: make.__name__)
def test_a_place_that_cannot_be_is_a_value_error(make, place, message):
    """At once, where the fault is written."""
    with pytest.raises(ValueError, match=message):
        make(**place)


@pytest.mark.parametrize(
    ("status", "line"),
    [(200, b"HTTP/1.1 200 OK\r\n"), (429, b"HTTP/1.1 429 Too Many Requests\r\n"), (599, b"HTTP/1.1 599 Unknown\r\n")],
)
def test_the_status_line(status, line):
    """Statuses without a phrase are unknown."""
    assert ResponsePlan(status=status).head().startswith(line)


def test_a_split_piece_keeps_what_happens_around_it():
    """The wait comes before the first part, the end and the tokens after the last."""
    response = ResponsePlan(body=[Piece(b"abcdef", tokens=2, wait_s=3, stall=True, end=ConnectionEnd.RESET)])
    assert response.insert(Position(at_byte=2), Piece(b"-"))
    assert response.body == [
        Piece(b"ab", wait_s=3, stall=True),
        Piece(b"-"),
        Piece(b"cdef", tokens=2, end=ConnectionEnd.RESET),
    ]


def test_a_place_inside_a_repeated_piece_is_a_value_error():
    """It says how to write it."""
    response = stream()
    HugeLine(size=1_000_000).apply(response)
    with pytest.raises(ValueError, match="put that fault last"):
        Cut(at_byte=100).apply(response)


def test_splitting_costs_as_much_as_there_are_bytes():
    """Pieces times places would be 400 million comparisons here: count the places looked at."""
    looked = 0

    class Counted(int):
        __slots__ = ()

        def __gt__(self, other: int) -> bool:
            nonlocal looked
            looked += 1
            return int(self) > other

    response = ResponsePlan(body=[Piece(b"0123456789") for _ in range(100)])
    response.split_at([Counted(at) for at in range(1, 1000)])
    assert len(response.body) == 1000
    assert looked < 20_000
