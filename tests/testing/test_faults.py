"""Faults as edits of a response's plan, the rules that choose them, and the plan itself. No socket here."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from random import Random
from typing import Any

import pytest

from together_async.request import ChatCompletionRequest
from together_async.testing import (
    ByModel,
    Chance,
    CloseAfter,
    Cut,
    Drip,
    EndlessHeaders,
    ErrorInStream,
    Fault,
    Frame,
    Garbage,
    Gzip,
    Headers,
    HugeLine,
    Insert,
    InTurn,
    LineEndings,
    OneOf,
    Raw,
    Redirect,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
    WrongLength,
)
from together_async.testing.dialect import DONE
from together_async.testing.fault import Faults, members
from together_async.testing.response import ConnectionEnd, Piece, Position, ResponsePlan
from together_async.testing.rules import Rule, choose

EVENTS = [
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"c"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    DONE,
]
STREAM = b"".join(EVENTS)
BODY = b"0123456789"
ENDS = [sum(map(len, EVENTS[:count])) for count in range(len(EVENTS) + 1)]
"""The bytes of the stream after so many events."""


def stream() -> ResponsePlan:
    """Three tokens, a finish reason and `[DONE]`."""
    pieces = [Piece(data, tokens=1 if at < 3 else 0) for at, data in enumerate(EVENTS)]
    return ResponsePlan(headers={"content-type": "text/event-stream;charset=utf-8"}, body=pieces, framing="chunked")


def whole() -> ResponsePlan:
    """Ten bytes in one piece, which hold five tokens."""
    return ResponsePlan(headers={"content-type": "application/json"}, body=[Piece(BODY, tokens=5)])


def data(response: ResponsePlan) -> bytes:
    return b"".join(piece.data for piece in response.body if not piece.raw)


def before(response: ResponsePlan, special: Piece) -> bytes:
    """What is sent before a piece."""
    index = next(at for at, piece in enumerate(response.body) if piece is special)
    return b"".join(piece.data for piece in response.body[:index])


def only(response: ResponsePlan, what: str) -> Piece:
    """The one piece that stalls, or ends the connection."""
    (piece,) = [piece for piece in response.body if getattr(piece, what)]
    return piece


# --------------------------------------------------------------------------------------------------------------- places


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
def test_a_place_beyond_the_end_is_none(fault, place):
    """The response stays as it was, and the fault says that it had no place."""
    response = stream()
    assert not fault(**place).apply(response)
    assert response == stream()


def test_a_place_in_the_head_splits_it():
    """The pieces before and after are the head."""
    response = whole()
    assert Cut(in_head=7).apply(response)
    first, cut, rest = response.pieces_of_head()
    assert first.data + rest.data == response.head()
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
    ("place", "says"),
    [
        ({"after_token": -1}, "after_token: got -1, expected an int of at least 0"),
        ({"at_byte": 1.5}, "at_byte: got 1.5, expected an int of at least 0"),
        ({"in_head": True}, "in_head: got True, expected an int of at least 0"),
        ({"after_token": 1, "at_byte": 2}, "got after_token and at_byte, expected at most one of them"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [Position, Stall, Cut, ErrorInStream, Garbage], ids=lambda make: make.__name__)
def test_a_place_that_cannot_be_is_a_value_error(make, place, says):
    """At once, where the fault is written."""
    with pytest.raises(ValueError, match=says):
        make(**place)


# --------------------------------------------------------------------------------------------------- each fault's edit


def test_a_status_replaces_the_response():
    """The service's own body with the request's id, and length framing."""
    response = stream()
    response.headers["x-request-id"] = "em-1"
    assert Status(429, headers={"Retry-After": "2"}, message="slower").apply(response)
    body = json.loads(data(response))
    assert (response.status, response.framing, body["id"]) == (429, "length", "em-1")
    assert body["error"] == {
        "message": "slower",
        "type": "dynamic_request_limited",
        "param": None,
        "code": None,
    }
    assert response.headers["retry-after"] == "2"
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "sent", "kind"),
    [
        ({"error": "text"}, b'{"error":"text"}', "application/json"),
        ({}, b"{}", "application/json"),
        ("busy", b"busy", "text/plain"),
        (" <html>", b" <html>", "text/html"),
        ("", b"", "text/plain"),
        (b"\xff\x00", b"\xff\x00", "application/octet-stream"),
    ],
)
def test_the_body_of_a_status_may_be_anything(body, sent, kind):
    """JSON, text, HTML, nothing, or bytes, each with its content type."""
    response = stream()
    Status(500, body).apply(response)
    assert (data(response), response.headers["content-type"]) == (sent, kind)


def test_headers_are_added_replaced_and_removed():
    """Names in any case; None removes."""
    response = whole()
    response.headers["x-request-id"] = "em-1"
    Headers({"X-Request-ID": None, "Content-Type": "text/html", "X-New": "1"}).apply(response)
    assert response.headers == {"content-type": "text/html", "x-new": "1"}


def test_a_redirect_has_a_location_and_no_body():
    """307 to another path by default."""
    response = stream()
    Redirect().apply(response)
    assert (response.status, data(response)) == (307, b"")
    assert response.headers["location"] == "/redirected/v1/chat/completions"


@pytest.mark.parametrize(
    ("fault", "piece"),
    [
        (Stall(after_token=1), Piece(wait_s=math.inf, stall=True)),
        (Stall(after_token=1, seconds=2), Piece(wait_s=2, stall=True)),
        (
            Stall(after_token=1, seconds=2, ping_every=0.5),
            Piece(b": ping\n\n", wait_s=0.5, times=math.inf, for_s=2, stall=True),
        ),
        (Stall(after_token=1, ping_every=3, ping=b":\n"), Piece(b":\n", wait_s=3, times=math.inf, stall=True)),
    ],
)
def test_a_stall_is_a_wait_or_pings_for_so_long(fault, piece):
    """Without end unless seconds are given."""
    response = stream()
    fault.apply(response)
    assert response.body[1] == piece


def test_pings_at_once_go_out_in_blocks():
    """As many as the client takes: whole pings, 64 KiB at a time, without end."""
    response = stream()
    Stall(after_token=1, ping_every=0).apply(response)
    piece = response.body[1]
    assert math.isinf(piece.times)
    assert piece.data == b": ping\n\n" * (65_536 // 8)


@pytest.mark.parametrize(
    ("fault", "sizes"),
    [
        (Split(every=4), [4, 4, 2]),
        (Split(every=1), [1] * 10),
        (Split(every=100), [10]),
        (Split(at=(7, 3, 3, 0, 10, 99)), [3, 4, 3]),
        (Split(every=5, at=[1]), [1, 4, 5]),
        (Drip(size=3), [3, 3, 3, 1]),
    ],
)
def test_a_split_cuts_the_body_into_pieces(fault, sizes):
    """The same bytes, each piece by itself; the tokens end in the last."""
    response = whole()
    assert fault.apply(response)
    assert [len(piece.data) for piece in response.body] == sizes
    assert data(response) == BODY
    assert all(piece.flush for piece in response.body)
    assert [piece.tokens for piece in response.body] == [0] * (len(sizes) - 1) + [5]


def test_a_drip_waits_before_each_drop():
    """`every_s` seconds, the first too."""
    response = stream()
    Drip(size=50, every_s=0.25).apply(response)
    assert {piece.wait_s for piece in response.body} == {0.25}


def test_a_split_inside_utf8_cuts_characters_only():
    """The one character of two bytes."""
    response = stream()
    Split(inside="utf-8").apply(response)
    cut = STREAM.index(b"\xc3") + 1
    edges = [sum(len(p.data) for p in response.body[:at]) for at in range(1, len(response.body))]
    assert edges == sorted({*ENDS[1:-1], cut})


def test_a_split_inside_crlf_cuts_each():
    """Every line ending is cut between its two bytes."""
    response = stream()
    (LineEndings() + Split(inside="crlf")).apply(response)
    assert data(response) == STREAM.replace(b"\n", b"\r\n")
    assert not any(b"\r\n" in piece.data for piece in response.body)


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
def test_line_endings_of_a_stream(ending):
    """All of them; a whole response has none to replace."""
    response = stream()
    LineEndings(ending).apply(response)
    assert data(response) == STREAM.replace(b"\n", ending.encode())
    response = ResponsePlan(body=[Piece(b"{\n}")])
    LineEndings(ending).apply(response)
    assert data(response) == b"{\n}"


def test_without_done_and_without_finish_reason():
    """Each takes just its own away, and says when there was nothing to take."""
    response = stream()
    assert WithoutDone().apply(response)
    assert data(response) == STREAM[: ENDS[4]]
    assert not WithoutDone().apply(response)
    response = stream()
    assert WithoutFinishReason().apply(response)
    assert b"stop" not in data(response)
    assert data(response) == STREAM.replace(b'"stop"', b"null")
    assert not WithoutFinishReason().apply(response)


def test_a_whole_response_without_finish_reason():
    """In the JSON body too."""
    response = ResponsePlan(
        body=[Piece(b'{"choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]}', tokens=1)]
    )
    assert WithoutFinishReason().apply(response)
    assert data(response) == b'{"choices":[{"finish_reason":null},{"finish_reason":null}]}'


@pytest.mark.parametrize("shape", ["object", "text", "flat", "detail", "named", "named_text", "beside"])
@pytest.mark.parametrize("done", [False, True])
def test_an_error_in_a_stream_ends_it(shape, done):
    """Nothing of the answer follows, `[DONE]` only when asked for; the HTTP body ends in good order."""
    response = stream()
    assert ErrorInStream(after_token=2, shape=shape, message="broke off", done=done).apply(response)
    assert data(response).startswith(STREAM[: ENDS[2]])
    rest = data(response)[ENDS[2] :]
    assert b"broke off" in rest
    assert rest.endswith(b"\n\n")
    assert rest.endswith(DONE) is done
    assert rest.count(b"\n\n") == 1 + done
    assert not any(piece.end for piece in response.body)


def test_garbage_is_an_event_and_an_insert_any_bytes():
    """Put in between, with what follows unharmed."""
    response = stream()
    Garbage(after_token=1, data=b"no JSON").apply(response)
    Insert(at_byte=3, data=b"xyz", times=2).apply(response)
    text = data(response)
    assert text.startswith(b"datxyza: ")
    assert [piece.times for piece in response.body if piece.data == b"xyz"] == [2]
    assert text.replace(b"xyz", b"") == STREAM[: ENDS[1]] + b"data: no JSON\n\n" + STREAM[ENDS[1] :]


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 1_000_000])
def test_a_huge_line_is_one_event_of_that_size(size):
    """It takes no memory for what is repeated."""
    response = stream()
    HugeLine(size=size, after_token=1).apply(response)
    inserted = response.body[1:4]
    assert sum(len(piece.data) * piece.times for piece in inserted) == len(b'data: {"x":""}\n\n') + size
    assert inserted[0].data.startswith(b"data: {")
    assert inserted[-1].data.endswith(b"}\n\n")
    assert max(len(piece.data) for piece in inserted) <= 65_540


@pytest.mark.parametrize("how", ["reset", "close", "chunk", "end"])
def test_how_a_cut_ends(how):
    """RST, FIN, FIN inside a promised chunk, or the body's end in good order."""
    response = stream()
    Cut(after_token=1, how=how).apply(response)
    ends = [(piece.data, piece.end, piece.raw) for piece in response.body[1:]]
    assert (
        ends
        == {
            "reset": [(b"", ConnectionEnd.RESET, True)],
            "close": [(b"", ConnectionEnd.CLOSE, True)],
            "chunk": [(b"7f\r\n", ConnectionEnd.CLOSE, True)],
            "end": [],
        }[how]
    )


@pytest.mark.parametrize(("how", "told"), [("reset", 10), ("close", 10), ("chunk", 10), ("end", 4)])
def test_a_cut_of_a_body_with_a_length_breaks_the_promise_of_the_whole(how, told):
    """But with `end`, which makes a short body in good order."""
    response = whole()
    Cut(at_byte=4, how=how).apply(response)
    assert f"content-length: {told}\r\n".encode() in response.head()
    assert data(response) == BODY[:4]


def test_framing_faults():
    """Frame, Gzip, WrongLength, CloseAfter and Raw set what the plan says of the transfer."""
    response = stream()
    Frame("close").apply(response)
    assert b"connection: close\r\n" in response.head()
    assert b"chunked" not in response.head()
    response = whole()
    Gzip().apply(response)
    assert (response.gzip, response.framing) == (True, "chunked")
    assert b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n" in response.head()
    response = stream()
    WrongLength(-3).apply(response)
    assert f"content-length: {len(STREAM) - 3}\r\n".encode() in response.head()
    assert not response.keep_alive
    assert b"connection" not in response.head()
    response = whole()
    CloseAfter(0.5, announce=True).apply(response)
    assert b"connection: close\r\n" in response.head()
    assert response.close_after_s == 0.5
    response = whole()
    Raw(b"junk").apply(response)
    assert response.replaced_by == b"junk"


def test_endless_headers_are_put_after_the_status_line():
    """In blocks, without end."""
    response = stream()
    EndlessHeaders(size=10).apply(response)
    first, endless, rest = response.pieces_of_head()
    assert first.data == b"HTTP/1.1 200 OK\r\n"
    assert math.isinf(endless.times)
    assert endless.data.startswith(b"x-endless: aaaaaaaaaa\r\nx-endless: ")
    assert rest.data.endswith(b"\r\n\r\n")


def test_endless_headers_of_another_status_are_put_after_its_line():
    """Whatever its reason is."""
    response = stream()
    (Status(429) + EndlessHeaders()).apply(response)
    assert next(response.pieces_of_head()).data == b"HTTP/1.1 429 Too Many Requests\r\n"


# ------------------------------------------------------------------------------------------------------------ the plan


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


# ---------------------------------------------------------------------------------------------------------------- sums


def test_faults_add_up_in_order():
    """A sum of sums is flat; all are applied, and it says False when one had no place."""
    sum_ = (Split(every=3) + Gzip()) + (Frame("close") + Stall())
    assert members(sum_) == (Split(every=3), Gzip(), Frame("close"), Stall())
    assert isinstance(sum_, Faults)
    response = stream()
    assert not (Cut(after_token=99) + Gzip()).apply(response)
    assert response.gzip


@pytest.mark.parametrize("other", [None, Chance(0.5, Gzip()), "x", [Gzip()]], ids=repr)
def test_only_faults_add_up(other):
    """A rule goes around the sum, and the error says so."""
    with pytest.raises(TypeError, match="expected a fault to add"):
        _ = Gzip() + other


def test_a_fault_without_an_edit_is_not_one():
    """The base class is for subclasses."""
    with pytest.raises(NotImplementedError):
        Fault().apply(stream())


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Stall(), "Stall()"),
        (Stall(after_token=3, ping_every=0.5), "Stall(after_token=3, ping_every=0.5)"),
        (Cut(at_byte=0), "Cut(at_byte=0)"),
        (Status(429), "Status(code=429)"),
        (Status(500, "x", headers={"a": "b"}), "Status(code=500, body='x', headers={'a': 'b'})"),
        (HugeLine(), "HugeLine()"),
        (Split(at=[1, 2]), "Split(at=(1, 2))"),
        (Cut() + Gzip(), "Faults(members=(Cut(), Gzip()))"),
        (ErrorInStream(shape="flat"), "ErrorInStream(shape='flat')"),
    ],
)
def test_a_repr_says_what_was_written(fault, text):
    """What differs from the defaults."""
    assert repr(fault) == text


@pytest.mark.parametrize(
    "fault",
    [Stall(after_token=1), Status(429, headers={"a": "b"}), Split(at=[1]), Cut(at_byte=3), Headers({"a": None})],
    ids=repr,
)
def test_faults_are_values(fault):
    """Equal, hashable, picklable, frozen."""
    copy = pickle.loads(pickle.dumps(fault))  # noqa: S301 - our own
    assert copy == fault
    assert hash(copy) == hash(fault)
    with pytest.raises(AttributeError):
        fault.after_token = 2


ANY: Any = "1"  # what a checker of types would refuse
BAD: list[tuple[Any, str]] = [
    (lambda: Status(99), "code: got 99, expected an HTTP status, 200 to 599"),
    (lambda: Status(600), "code: got 600, expected"),
    (lambda: Status(ANY), "code: got '1', expected"),
    (lambda: Stall(seconds=-1), "seconds: got -1, expected seconds, at least 0"),
    (lambda: Stall(seconds=math.nan), "seconds: got nan, expected"),
    (lambda: Stall(seconds=ANY), "seconds: got '1', expected"),
    (lambda: Stall(ping_every=-0.5), "ping_every: got -0.5, expected"),
    (lambda: Stall(ping_every=True), "ping_every: got True, expected"),
    (lambda: Drip(every_s=-1), "every_s: got -1, expected"),
    (lambda: Drip(0), "size: got 0, expected an int of at least 1"),
    (lambda: Split(every=0), "every: got 0, expected an int of at least 1"),
    (lambda: HugeLine(size=0), "size: got 0, expected an int of at least 1"),
    (lambda: EndlessHeaders(0), "size: got 0, expected an int of at least 1"),
    (lambda: CloseAfter(-1), "seconds: got -1, expected"),
    (lambda: Chance(1.1, None), "probability: got 1.1, expected a number, 0 to 1"),
    (lambda: Chance(-0.1, None), "probability: got -0.1, expected a number, 0 to 1"),
    (lambda: Chance(math.nan, None), "probability: got nan, expected a number, 0 to 1"),
    (OneOf, "expected at least one rule or None"),
]


@pytest.mark.parametrize(("make", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_arguments_are_value_errors(make, says):
    """Name, value and expectation, where the fault is written."""
    with pytest.raises(ValueError, match=says):
        make()


MISTAKES: dict[str, Any] = {
    "framing": lambda: Frame("foo"),  # type: ignore[arg-type]
    "how": lambda: Cut(how="foo"),  # type: ignore[arg-type]
    "inside": lambda: Split(inside="utf8"),  # type: ignore[arg-type]
    "ending": lambda: LineEndings("x"),  # type: ignore[arg-type]
    "shape": lambda: ErrorInStream(shape="foo"),  # type: ignore[arg-type]
    "code": lambda: Redirect(code=9),
    "times": lambda: Insert(data=b"x", times=-1),
    "at": lambda: Split(at=(-1,)),
    "every": lambda: Split(every=1.5),  # type: ignore[arg-type]
    "by": lambda: WrongLength("x"),  # type: ignore[arg-type]
    "data": lambda: Insert(data="x"),  # type: ignore[arg-type]
    "in_head": lambda: ErrorInStream(in_head=3),
    "ping_every": lambda: Stall(ping_every=1.0),  # pings in front of the head
    "probability": lambda: Chance("x", None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("name", "make"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_of_every_kind_are_value_errors(name, make):
    """They are mistakes where they are written, not later."""
    with pytest.raises(ValueError, match=name):
        make()


# --------------------------------------------------------------------------------------------------------------- rules

GZIP, RESET, STALL = Gzip(), Cut(), Stall()


def request(model: str = "m", n: int = 1) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[{"role": "user", "content": "hi"}], model=model, n=n)


def chosen(rule: Rule, requests: int = 1, *, seed: int = 0, model: str = "m") -> list[list[Fault]]:
    """What a rule chooses for so many requests, one after the other."""
    turns: dict[int, int] = {}
    return [choose(rule, request(model), Random(f"{seed}/{number}"), turns) for number in range(requests)]


@pytest.mark.parametrize(
    ("rule", "faults"),
    [
        (None, []),
        (GZIP, [GZIP]),
        (GZIP + RESET, [GZIP, RESET]),
        ([GZIP, RESET], [GZIP, RESET]),
        ((GZIP, None, [RESET + STALL]), [GZIP, RESET, STALL]),
        (lambda asked: GZIP if asked.model == "m" else None, [GZIP]),
        (lambda _: None, []),
        (lambda _: [GZIP, InTurn(RESET)], [GZIP, RESET]),
        (Chance(1, GZIP + RESET), [GZIP, RESET]),
        (Chance(0, GZIP), []),
        (ByModel({"m": GZIP, "n": RESET}), [GZIP]),
        (ByModel({"n": RESET}, other=STALL), [STALL]),
        (ByModel({"n": RESET}), []),
        (OneOf(GZIP), [GZIP]),
        (OneOf(None), []),
        (ByModel({"m": InTurn([Chance(1, lambda _: OneOf(GZIP))])}), [GZIP]),
        ([], []),
    ],
)
def test_what_a_rule_chooses(rule, faults):
    """Faults, sums, lists, functions and choosers, in each other."""
    assert chosen(rule) == [faults]


def test_in_turn_goes_on_with_what_comes_then():
    """A request each, None for none, then `then`, without end."""
    assert chosen(InTurn(GZIP, None, RESET + STALL), 5) == [[GZIP], [], [RESET, STALL], [], []]
    assert chosen(InTurn(GZIP, then=RESET), 3) == [[GZIP], [RESET], [RESET]]
    assert chosen(InTurn(), 2) == [[], []]


def test_two_rules_in_turn_count_by_themselves():
    """Also when they are equal."""
    rule = [InTurn(GZIP, None), InTurn(None, RESET), InTurn(GZIP, None)]
    assert chosen(rule, 3) == [[GZIP, GZIP], [RESET], []]


def test_chance_and_one_of_repeat_with_the_seed():
    """The same seed picks the same requests, another seed others."""
    rule = [Chance(0.5, GZIP), OneOf(RESET, STALL, None)]
    assert chosen(rule, 50) == chosen(rule, 50)
    assert chosen(rule, 50) != chosen(rule, 50, seed=1)


def test_chance_happens_as_often_as_it_says():
    """A quarter of 4,000, within five standard deviations."""
    happened = sum(map(len, chosen(Chance(0.25, GZIP), 4_000)))
    assert abs(happened - 1_000) < 5 * math.sqrt(4_000 * 0.25 * 0.75)


def test_one_of_takes_each_as_often():
    """Thirds of 3,000, within five standard deviations."""
    counts = Counter(tuple(faults) for faults in chosen(OneOf(GZIP, RESET, None), 3_000))
    assert set(counts) == {(GZIP,), (RESET,), ()}
    assert all(abs(count - 1_000) < 5 * math.sqrt(3_000 * 2 / 9) for count in counts.values())


@pytest.mark.parametrize("rule", ["x", b"x", 5, {"m": GZIP}, [5], lambda _: "x", InTurn(5), Chance(1, ANY)], ids=repr)
def test_what_is_no_rule_is_a_type_error(rule):
    """The text says what came."""
    with pytest.raises(TypeError, match="among the faults, expected a fault"):
        chosen(rule)
