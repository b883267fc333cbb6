"""A response as a plan: which bytes are sent, when, in which pieces, and how the connection ends. Pure.

The server makes the plan, faults edit it, and a connection carries it out. A plan has a head and a body of pieces; a
`Position` names a place in it. Edits apply to the body before compression and before HTTP's framing, so a byte or token
is at the same place however the body is transferred.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Literal

import attrs


class ConnectionEnd(enum.Enum):
    """How a connection is ended before the response is complete."""

    CLOSE = "close"
    """FIN: the peer sees the end of the connection."""
    RESET = "reset"
    """RST: the peer sees an error."""


@attrs.define
class Piece:
    """Some bytes of a response, and what happens around them.

    Args:
        data: The bytes.
        tokens: The number of tokens that end in them.
        wait_s: Seconds before they are sent; infinite until the client leaves or the stall is released.
        times: How often they are sent, each time after the wait; infinite until the client leaves.
        for_s: Seconds after which the repetition ends, however often they have been sent.
        stall: Whether the wait is that of a fault, which `EmulatorServer.release` ends.
        flush: Whether they are written by themselves, with a turn of the event loop before the next.
        end: How the connection is ended after them; None keeps it.
        raw: Whether they are outside of HTTP's framing.
    """

    data: bytes = b""
    tokens: int = 0
    wait_s: float = 0.0
    times: float = 1
    for_s: float = math.inf
    stall: bool = False
    flush: bool = False
    end: ConnectionEnd | None = None
    raw: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is only bytes: no wait, no repetition, no end."""
        return not (self.wait_s or self.end or self.stall or self.flush or self.raw) and self.times == 1


@attrs.frozen
class Position:
    """A place in a response, given by at most one of the three; before its first byte when all are None.

    Args:
        in_head: After this many bytes of the head, at least 0.
        after_token: After this many tokens, at least 0; 0 is right after the head. In a whole response, after the
            corresponding share of the body.
        at_byte: After this many bytes of the body before compression, at least 0.

    Raises:
        ValueError: More than one is given, or one is out of its range.
    """

    in_head: int | None = None
    after_token: int | None = None
    at_byte: int | None = None

    def __attrs_post_init__(self) -> None:
        given = {name: value for name, value in attrs.asdict(self).items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"got {' and '.join(given)}, expected at most one of them")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}: got {value!r}, expected an int of at least 0")


FIRST_FIELD = -1
"""In `ResponsePlan.head_pieces`: after the status line, however long that is."""

Framing = Literal["chunked", "length", "close"]
"""How the end of the body is marked: chunked transfer coding, a content-length, or the connection's end."""


@attrs.define
class ResponsePlan:
    """The plan of one response.

    Args:
        status: The HTTP status.
        headers: Headers, names in lower case, without those of the framing.
        body: The body's pieces in order.
        framing: How the end of the body is marked.
        length_off_by: Added to the content-length, to make it wrong.
        gzip: Whether the body is compressed.
        keep_alive: Whether the connection is kept for another request.
        announce_close: Whether the head has `connection: close` when the connection is not kept.
        close_after_s: Seconds for which a connection that is not kept stays open after the response.
        think_s: Seconds of work before the first byte.
        head_pieces: Pieces put into the head, each with its offset in the head's bytes.
        replaced_by: Bytes that are sent in place of the whole response; None for the response.
    """

    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    body: list[Piece] = attrs.field(factory=list)
    framing: Framing = "length"
    length_off_by: int = 0
    gzip: bool = False
    keep_alive: bool = True
    announce_close: bool = True
    close_after_s: float = 0.0
    think_s: float = 0.0
    head_pieces: list[tuple[int, Piece]] = attrs.field(factory=list)
    replaced_by: bytes | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens in the body."""
        return sum(piece.tokens for piece in self.body)

    @property
    def streamed(self) -> bool:
        """Whether the body is an event stream."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    # ----------------------------------------------------------------------------------------------------------- edits

    def replace_body(self, data: bytes, content_type: str) -> None:
        """Makes the body these bytes in one piece."""
        self.body = [Piece(data)]
        self.headers["content-type"] = content_type
        self.framing = "length"

    def insert(self, place: Position, *pieces: Piece) -> bool:
        """Puts pieces at a place; returns whether the response has such a place."""
        if place.after_token is None and place.at_byte is None:
            at = place.in_head or 0
            self.head_pieces += ((at, piece) for piece in pieces)
            return True
        index = self._index(place)
        if index is None:
            return False
        self.body[index:index] = pieces
        return True

    def cut(self, place: Position, end: ConnectionEnd | None, *, inside_chunk: bool = False) -> bool:
        """Ends the response at a place.

        Args:
            place: The place.
            end: How the connection is ended; None ends the body in good order.
            inside_chunk: Whether the framing has announced more bytes by then.

        Returns:
            Whether the response has such a place.
        """
        if place.after_token is None and place.at_byte is None:
            return self.insert(place, Piece(end=end or ConnectionEnd.CLOSE))
        index = self._index(place)
        if index is None:
            return False
        del self.body[index:]
        if end is not None:
            self.body.append(Piece(b"7f\r\n" if inside_chunk and self.framing == "chunked" else b"", end=end, raw=True))
        return True

    def _index(self, place: Position) -> int | None:
        """Returns the index of a place in the body, where need be by splitting a piece; None beyond the end."""
        if place.at_byte is not None:
            return self._index_of_byte(place.at_byte)
        wanted = place.after_token or 0
        if wanted == 0:
            return 0
        if not self.streamed and wanted < self.tokens:
            size = sum(len(piece.data) for piece in self.body)
            return self._index_of_byte(size * wanted // self.tokens)
        seen = 0
        for index, piece in enumerate(self.body):
            seen += piece.tokens
            if seen >= wanted:
                return index + 1
        return None

    def _index_of_byte(self, wanted: int) -> int | None:
        seen = 0
        for index, piece in enumerate(self.body):
            if seen == wanted:
                return index
            if seen + len(piece.data) > wanted and not piece.raw:
                self._split(index, wanted - seen)
                return index + 1
            seen += 0 if piece.raw else len(piece.data)
        return len(self.body) if seen == wanted else None

    def _split(self, index: int, at: int) -> None:
        """Splits a piece in two. The tokens and the end of the connection go to the second."""
        piece = self.body[index]
        if piece.times != 1:
            raise ValueError(f"a place inside a piece that is sent {piece.times} times; put that fault last")
        first = attrs.evolve(piece, data=piece.data[:at], tokens=0, end=None)
        second = attrs.evolve(piece, data=piece.data[at:], wait_s=0.0, stall=False)
        self.body[index : index + 1] = (first, second)

    def split_at(self, offsets: Iterable[int], *, pause_s: float = 0.0) -> None:
        """Splits the body at these offsets; each piece is sent by itself, `pause_s` seconds after the one before."""
        cuts = sorted(set(offsets))
        at = 0
        pieces: list[Piece] = []
        seen = 0
        for piece in self.body:
            if piece.raw or piece.times != 1:
                pieces.append(piece)
                continue
            inside: list[int] = []
            while at < len(cuts) and cuts[at] < seen + len(piece.data):
                if cuts[at] > seen:
                    inside.append(cuts[at] - seen)
                at += 1
            pieces += _parts(piece, inside, pause_s)
            seen += len(piece.data)
        self.body = pieces

    # ------------------------------------------------------------------------------------------------------- rendering

    def head(self) -> bytes:
        """Returns the bytes of the head."""
        fields = dict(self.headers)
        if self.gzip:
            fields["content-encoding"] = "gzip"
        if self.framing == "chunked":
            fields["transfer-encoding"] = "chunked"
        elif self.framing == "length":
            fields["content-length"] = str(self._length() + self.length_off_by)
        if self.framing == "close" or (not self.keep_alive and self.announce_close):
            fields["connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {self.status} {_reason(self.status)}\r\n{lines}\r\n".encode("latin-1", "replace")

    def _length(self) -> int:
        size = sum(len(piece.data) * piece.times for piece in self.body if not piece.raw)
        if not math.isfinite(size):
            raise ValueError("a body without an end has no content-length; use Frame('chunked')")
        return int(size)

    def pieces_of_head(self) -> Iterator[Piece]:
        """Yields the head, with the pieces that were put into it."""
        head = self.head()
        sent = 0
        pieces = [(head.index(b"\r\n") + 2 if at == FIRST_FIELD else at, piece) for at, piece in self.head_pieces]
        for at, piece in sorted(pieces, key=lambda pair: pair[0]):
            yield Piece(head[sent:at], flush=True)
            yield piece
            sent = min(at, len(head))
        yield Piece(head[sent:])


def _parts(piece: Piece, inside: Sequence[int], pause_s: float) -> list[Piece]:
    edges = (0, *inside, len(piece.data))
    parts = [Piece(piece.data[a:b], flush=True, wait_s=pause_s) for a, b in itertools.pairwise(edges)]
    parts[0].wait_s, parts[0].stall = max(piece.wait_s, pause_s), piece.stall
    parts[-1].tokens, parts[-1].end = piece.tokens, piece.end
    return parts


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
