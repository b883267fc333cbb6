"""Each fault's edit of a plan. No socket here."""

from __future__ import annotations

import json
import math

import pytest

from support.plans import BODY, ENDS, STREAM, data, stream, whole
from together_async.testing import (
    CloseAfter,
    Cut,
    Drip,
    EndlessHeaders,
    ErrorInStream,
    Frame,
    Garbage,
    Gzip,
    Headers,
    HugeLine,
    Insert,
    LineEndings,
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
from together_async.testing.response import ConnectionEnd, Piece, ResponsePlan


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
    """Each removes only its own part, and returns False if there was none."""
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
    """Nothing of the answer follows, `[DONE]` only on request; the HTTP body ends in good order."""
    response = stream()
    assert ErrorInStream(after_token=2, shape=shape, message="broke off", done=done).apply(response)
    assert data(response).startswith(STREAM[: ENDS[2]])
    remaining = data(response)[ENDS[2] :]
    assert b"broke off" in remaining
    assert remaining.endswith(b"\n\n")
    assert remaining.endswith(DONE) is done
    assert remaining.count(b"\n\n") == 1 + done
    assert not any(piece.end for piece in response.body)


def test_garbage_is_an_event_and_an_insert_any_bytes():
    """They are put in between, and the rest is unchanged."""
    response = stream()
    Garbage(after_token=1, data=b"no JSON").apply(response)
    Insert(at_byte=3, data=b"xyz", times=2).apply(response)
    text = data(response)
    assert text.startswith(b"datxyza: ")
    assert [piece.times for piece in response.body if piece.data == b"xyz"] == [2]
    assert text.replace(b"xyz", b"") == STREAM[: ENDS[1]] + b"data: no JSON\n\n" + STREAM[ENDS[1] :]


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 1_000_000])
def test_a_huge_line_is_one_event_of_that_size(size):
    """Repeated blocks take no memory."""
    response = stream()
    HugeLine(size=size, after_token=1).apply(response)
    inserted = response.body[1:4]
    assert sum(len(piece.data) * piece.times for piece in inserted) == len(b'data: {"x":""}\n\n') + size
    assert inserted[0].data.startswith(b"data: {")
    assert inserted[-1].data.endswith(b"}\n\n")
    assert max(len(piece.data) for piece in inserted) <= 65_540


@pytest.mark.parametrize("how", ["reset", "close", "chunk", "end"])
def test_how_a_cut_ends(how):
    """RST, FIN, FIN inside an announced chunk, or the body's end in good order."""
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


@pytest.mark.parametrize(("how", "length"), [("reset", 10), ("close", 10), ("chunk", 10), ("end", 4)])
def test_a_cut_of_a_body_with_a_length_breaks_the_promise_of_the_whole(how, length):
    """Except with `end`, which makes a short body in good order."""
    response = whole()
    Cut(at_byte=4, how=how).apply(response)
    assert f"content-length: {length}\r\n".encode() in response.head()
    assert data(response) == BODY[:4]


def test_framing_faults():
    """Frame, Gzip, WrongLength, CloseAfter and Raw change the plan's transfer."""
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
    first, endless, remaining = response.pieces_of_head()
    assert first.data == b"HTTP/1.1 200 OK\r\n"
    assert math.isinf(endless.times)
    assert endless.data.startswith(b"x-endless: aaaaaaaaaa\r\nx-endless: ")
    assert remaining.data.endswith(b"\r\n\r\n")


def test_endless_headers_of_another_status_are_put_after_its_line():
    """Whatever its reason is."""
    response = stream()
    (Status(429) + EndlessHeaders()).apply(response)
    assert next(response.pieces_of_head()).data == b"HTTP/1.1 429 Too Many Requests\r\n"
