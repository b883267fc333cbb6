"""Two small plans of responses, a stream and a whole body, and questions about them."""

from __future__ import annotations

from together_async.testing.dialect import DONE
from together_async.testing.response import Piece, ResponsePlan

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
"""The size of the stream after so many events."""


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
    """The bytes before a piece."""
    index = next(at for at, piece in enumerate(response.body) if piece is special)
    return b"".join(piece.data for piece in response.body[:index])


def only(response: ResponsePlan, what: str) -> Piece:
    """The one piece that stalls, or ends the connection."""
    (piece,) = [piece for piece in response.body if getattr(piece, what)]
    return piece
