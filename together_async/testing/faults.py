"""The faults: values that each edit the plan of a response. Rules choose among them, `+` combines them.

    Stall(after_token=3)                                     # silence after three tokens
    Cut(at_byte=170) + Split(every=1)                        # both at once
    InTurn(Status(429), Status(429))                         # refused twice, then fine
    ByModel({"slow-model": Drip()})                          # for that model only
    Chance(0.1, Cut(after_token=5))                          # one request in ten
    lambda request: Status(500) if request.n else None       # a function of the request

Pure: the values are frozen; they change nothing but the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import attrs

from together_async.testing import validators
from together_async.testing.dialect import DONE, ErrorShape, error_body, error_event
from together_async.testing.fault import Fault, PlacedFault
from together_async.testing.response import FIRST_FIELD, ConnectionEnd, Framing, Piece, Position, ResponsePlan
from together_async.wire import codec
from together_async.wire.sse import encode_event

_BLOCK = 65_536
"""Bytes written at once where a fault sends many."""
PING = b": ping\n\n"
"""A comment of an event stream, which is not an event."""


# ------------------------------------------------------------------------------------------------------------ responses


@attrs.frozen(repr=False)
class Status(Fault):
    """An HTTP status in place of the model's answer, with headers and any body.

    Args:
        code: The status, 200 to 599.
        body: None for the body that Together sends with this status; a dict is sent as JSON, a str as plain text or
            HTML, bytes as they are.
        headers: Further headers, such as `{"retry-after": "2"}`.
        message: The message of the JSON body; None for the usual one. Only without a `body`.
    """

    code: int = attrs.field(validator=validators.status)
    body: Mapping[str, Any] | str | bytes | None = attrs.field(default=None, hash=False)
    headers: Mapping[str, str] = attrs.field(factory=dict, hash=False, validator=validators.mapping)
    message: str | None = None

    def apply(self, response: ResponsePlan) -> bool:
        """Replaces the response."""
        response.status = self.code
        response.think_s = 0.0
        match self.body:
            case str() as text:
                data, kind = text.encode(), "text/html" if text.lstrip().startswith("<") else "text/plain"
            case bytes() as data:
                kind = "application/octet-stream"
            case body:
                request_id = response.headers.get("x-request-id", "")
                given = error_body(self.code, self.message, id=request_id) if body is None else body
                data, kind = codec.encode(given), "application/json"
        response.replace_body(data, kind)
        response.headers.update({name.lower(): value for name, value in self.headers.items()})
        return True


@attrs.frozen(repr=False)
class Headers(Fault):
    """Headers added to the response or replacing its own.

    Args:
        headers: Names, in any case, with their values; None removes the header.
    """

    headers: Mapping[str, str | None] = attrs.field(hash=False, validator=validators.mapping)

    def apply(self, response: ResponsePlan) -> bool:
        """Changes the headers."""
        for name, value in self.headers.items():
            response.headers.pop(name.lower(), None)
            if value is not None:
                response.headers[name.lower()] = value
        return True


@attrs.frozen(repr=False)
class Redirect(Fault):
    """A redirect.

    Args:
        location: A path or a URL; by default another path of the emulator, which answers without faults.
        code: The status: 307 and 308 repeat the request, 301 to 303 make a GET of it.
    """

    location: str = "/redirected/v1/chat/completions"
    code: int = attrs.field(default=307, validator=validators.status)

    def apply(self, response: ResponsePlan) -> bool:
        """Replaces the response."""
        response.status = self.code
        response.think_s = 0.0
        response.replace_body(b"", "text/plain")
        response.headers["location"] = self.location
        return True


@attrs.frozen(repr=False)
class Raw(Fault):
    """Any bytes in place of the whole response, head included; then the connection is closed.

    Args:
        data: What is sent.
    """

    data: bytes = attrs.field(validator=validators.data)

    def apply(self, response: ResponsePlan) -> bool:
        """Replaces the response."""
        response.replaced_by = self.data
        return True


# ---------------------------------------------------------------------------------------------------------------- time


@attrs.frozen(kw_only=True, repr=False)
class Stall(PlacedFault):
    """Silence: before the first byte, in the head, after a token or at a byte (see `Position`).

    Args:
        seconds: How long, 0 to infinity. Infinite by default: until the client leaves or `EmulatorServer.release()` is
            called.
        ping_every: Seconds between pings meanwhile; 0 sends as many as the client reads, None sends none. Only in a
            body.
        ping: The bytes of a ping.
    """

    seconds: float = attrs.field(default=math.inf, validator=validators.seconds)
    ping_every: float | None = attrs.field(default=None, validator=validators.optional_seconds)
    ping: bytes = attrs.field(default=PING, validator=validators.data)

    def __attrs_post_init__(self) -> None:
        place = self.place
        if self.ping_every is not None and place in (Position(), Position(self.in_head)):
            raise ValueError("ping_every: pings go into a body; say where, as after_token=0")

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts the wait."""
        if self.ping_every is not None and response.framing == "length":
            response.framing = "chunked"  # the number of pings isn't known beforehand
        if self.ping_every is None or not self.ping:
            return response.insert(self.place, Piece(wait_s=self.seconds, stall=True))
        # Without a pause, pings are sent in blocks: only how many go out matters.
        ping = self.ping if self.ping_every else self.ping * max(1, _BLOCK // len(self.ping))
        pings = Piece(ping, wait_s=self.ping_every, times=math.inf, for_s=self.seconds, stall=True)
        return response.insert(self.place, pings)


@attrs.frozen(repr=False)
class Drip(Fault):
    """The body comes slowly, a few bytes at a time.

    Args:
        size: Bytes at a time, at least 1.
        every_s: Seconds between two pieces, at least 0.
    """

    size: int = attrs.field(default=1, validator=validators.whole(1))
    every_s: float = attrs.field(default=0.01, validator=validators.seconds)

    def apply(self, response: ResponsePlan) -> bool:
        """Cuts the body into drops."""
        response.split_at(range(self.size, _size(response), self.size), pause_s=self.every_s)
        return True


@attrs.frozen(repr=False)
class EndlessHeaders(Fault):
    """A head that does not end: one header after another, for as long as the client reads.

    Args:
        size: Bytes in the value of each header, at least 1.
    """

    size: int = attrs.field(default=1_000, validator=validators.whole(1))

    def apply(self, response: ResponsePlan) -> bool:
        """Puts the headers before the empty line."""
        line = b"x-endless: " + b"a" * self.size + b"\r\n"
        block = line * max(1, _BLOCK // len(line))
        response.head_pieces.append((FIRST_FIELD, Piece(block, times=math.inf)))
        return True


# --------------------------------------------------------------------------------------------------------------- pieces


@attrs.frozen(kw_only=True, repr=False)
class Split(Fault):
    """The same bytes in other pieces, each sent by itself.

    Args:
        every: Bytes in each piece, at least 1; None leaves this out.
        at: Offsets in the body at which a piece ends.
        inside: `utf-8` cuts every character of several bytes, `crlf` every CR LF; None cuts neither.
    """

    every: int | None = attrs.field(default=None, validator=validators.whole(1))
    at: tuple[int, ...] = attrs.field(default=(), converter=tuple, validator=validators.offsets)
    inside: Literal["utf-8", "crlf"] | None = attrs.field(
        default=None, validator=validators.one_of(None, "utf-8", "crlf")
    )

    def apply(self, response: ResponsePlan) -> bool:
        """Splits the body."""
        offsets: list[int] = [*self.at]
        if self.every is not None:
            offsets += range(self.every, _size(response), self.every)
        if self.inside is not None:
            offsets += _inside(b"".join(piece.data for piece in response.body if not piece.raw), self.inside)
        response.split_at(offsets)
        return True


def _inside(data: bytes, what: Literal["utf-8", "crlf"]) -> list[int]:
    if what == "crlf":
        return [at for at in range(1, len(data)) if data[at - 1 : at + 1] == b"\r\n"]
    return [at for at in range(1, len(data)) if data[at] & 0xC0 == 0x80 and data[at - 1] & 0xC0 == 0xC0]


def _size(response: ResponsePlan) -> int:
    return sum(len(piece.data) for piece in response.body if not piece.raw and piece.times == 1)


@attrs.frozen(repr=False)
class LineEndings(Fault):
    """Another line ending in the event stream. Put it before faults that count bytes.

    Args:
        ending: CR LF, CR or LF.
    """

    ending: Literal["\r\n", "\r", "\n"] = attrs.field(default="\r\n", validator=validators.one_of("\r\n", "\r", "\n"))

    def apply(self, response: ResponsePlan) -> bool:
        """Replaces the line feeds of a stream."""
        if response.streamed:
            for piece in response.body:
                piece.data = piece.data.replace(b"\n", self.ending.encode())
        return True


@attrs.frozen(repr=False)
class Frame(Fault):
    """How the end of the body is marked.

    Args:
        framing: `chunked`, `length` (a content-length), or `close` (the connection's end).
    """

    framing: Framing = attrs.field(validator=validators.one_of("chunked", "length", "close"))

    def apply(self, response: ResponsePlan) -> bool:
        """Sets the framing; a compressed body stays chunked, since its length isn't known beforehand."""
        if not (response.gzip and self.framing == "length"):
            response.framing = self.framing
        return True


@attrs.frozen(repr=False)
class Gzip(Fault):
    """The body is compressed, each piece flushed."""

    def apply(self, response: ResponsePlan) -> bool:
        """Turns compression on; the compressed size isn't known beforehand, so the framing becomes chunked."""
        response.gzip = True
        if response.framing == "length":
            response.framing = "chunked"
        return True


@attrs.frozen(repr=False)
class WrongLength(Fault):
    """A content-length that is wrong.

    Args:
        by: Bytes by which it is too large (above 0: the connection ends too early) or too small (below 0).
    """

    by: int = attrs.field(validator=validators.whole(None))

    def apply(self, response: ResponsePlan) -> bool:
        """Sets a content-length that is off."""
        response.framing = "length"
        response.length_off_by = self.by
        response.keep_alive, response.announce_close = False, False
        return True


# ------------------------------------------------------------------------------------------------------------------ end


@attrs.frozen(kw_only=True, repr=False)
class Cut(PlacedFault):
    """The response breaks off: before its first byte, in the head, after a token or at a byte (see `Position`).

    Args:
        how: `reset` (RST), `close` (FIN, with the body unfinished), `chunk` (FIN inside a piece whose size was
            announced), or `end` (the HTTP body ends in good order; only its content shows that something is missing).
    """

    how: Literal["reset", "close", "chunk", "end"] = attrs.field(
        default="reset", validator=validators.one_of("reset", "close", "chunk", "end")
    )

    def apply(self, response: ResponsePlan) -> bool:
        """Ends the plan there."""
        if self.how == "end":
            return response.cut(self.place, None)
        if response.framing == "length":
            # The content-length announces the whole body.
            whole = _size(response)
            placed = response.cut(self.place, ConnectionEnd.RESET if self.how == "reset" else ConnectionEnd.CLOSE)
            response.length_off_by += whole - _size(response)
            return placed
        end = ConnectionEnd.RESET if self.how == "reset" else ConnectionEnd.CLOSE
        return response.cut(self.place, end, inside_chunk=self.how == "chunk")


@attrs.frozen(repr=False)
class CloseAfter(Fault):
    """The connection is closed after the response; unless that is announced, the next request finds it stale.

    Args:
        seconds: The time between the two, at least 0.
        announce: Whether the response has the header `connection: close`.
    """

    seconds: float = attrs.field(default=0.0, validator=validators.seconds)
    announce: bool = False

    def apply(self, response: ResponsePlan) -> bool:
        """Sets the end of the connection."""
        response.keep_alive = False
        response.announce_close = self.announce
        response.close_after_s = self.seconds
        return True


@attrs.frozen(repr=False)
class WithoutDone(Fault):
    """A stream that ends without `data: [DONE]`; with all finish reasons, it is complete all the same."""

    def apply(self, response: ResponsePlan) -> bool:
        """Removes the event."""
        kept = [piece for piece in response.body if piece.data.replace(b"\r\n", b"\n") != DONE]
        changed = len(kept) != len(response.body)
        response.body = kept
        return changed


@attrs.frozen(repr=False)
class WithoutFinishReason(Fault):
    """A stream whose choices have no finish reason."""

    def apply(self, response: ResponsePlan) -> bool:
        """Sets the finish reasons to null."""
        changed = False
        for piece in response.body:
            without = _without_reason(piece.data)
            changed = changed or without != piece.data
            piece.data = without
        return changed


def _without_reason(data: bytes) -> bytes:
    payload = data.removeprefix(b"data: ").strip()
    try:
        body = codec.decode_json(payload)
    except codec.JSONError:
        return data
    choices = body.get("choices") if isinstance(body, dict) else None
    if not choices or all(choice.get("finish_reason") is None for choice in choices):
        return data
    for choice in choices:
        choice["finish_reason"] = None
    return data.replace(payload, codec.encode(body))


# -------------------------------------------------------------------------------------------------------------- content


@attrs.frozen(kw_only=True, repr=False)
class ErrorInStream(PlacedFault):
    """The server sends an error inside the stream, and ends it.

    Args:
        shape: How it is written (see `ErrorShape`).
        message: The error's message.
        code: Its `code`: an HTTP status, a word, or None for null.
        done: Whether `[DONE]` follows, as some servers send it.
    """

    shape: ErrorShape = attrs.field(default="object", validator=validators.one_of(*get_args(ErrorShape)))
    message: str = "the model broke off"
    code: int | str | None = None
    done: bool = False
    default_position: ClassVar[Position] = Position(after_token=0)

    def apply(self, response: ResponsePlan) -> bool:
        """Puts the error there, and nothing after it."""
        if not response.cut(self.place, None):
            return False
        response.body.append(Piece(error_event(self.shape, self.message, code=self.code)))
        if self.done:
            response.body.append(Piece(DONE))
        return True


@attrs.frozen(kw_only=True, repr=False)
class Garbage(PlacedFault):
    """An event that is not of this protocol is put into the stream.

    Args:
        data: The event's data; by default JSON that breaks off.
    """

    data: bytes = attrs.field(default=b'{"id":"x","choices":[{"ind', validator=validators.data)
    default_position: ClassVar[Position] = Position(after_token=0)

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts the event."""
        return response.insert(self.place, Piece(encode_event(self.data)))


@attrs.frozen(kw_only=True, repr=False)
class Insert(PlacedFault):
    """Any bytes are put into the response, also into its head.

    Args:
        data: The bytes.
        times: How often, 1 to infinity; infinite until the client leaves.
    """

    data: bytes = attrs.field(validator=validators.data)
    times: float = attrs.field(default=1.0, validator=validators.times)

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts them."""
        if math.isinf(self.times) and response.framing == "length":
            response.framing = "chunked"  # an endless body has no length
        return response.insert(self.place, Piece(self.data, times=self.times))


@attrs.frozen(kw_only=True, repr=False)
class HugeLine(PlacedFault):
    """A very long line in an event.

    Args:
        size: Bytes of the line, at least 1.
    """

    size: int = attrs.field(default=64 * 1024 * 1024, validator=validators.whole(1))
    default_position: ClassVar[Position] = Position(after_token=0)

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts the line, as an event of its own."""
        blocks, remainder = divmod(self.size, _BLOCK)
        return response.insert(
            self.place,
            Piece(b'data: {"x":"'),
            Piece(b"a" * _BLOCK, times=blocks),
            Piece(b"a" * remainder + b'"}\n\n'),
        )
