"""What can go wrong, as values: each edits the plan of a response. Rules choose among them, a sum combines them.

    Stall(after_token=3)                                     # silence after three tokens
    Cut(at_byte=170) + Split(every=1)                        # both at once
    InTurn(Status(429), Status(429))                         # twice refused, then fine
    ByModel({"slow-model": Drip()})                          # that model only
    Chance(0.1, Cut(after_token=5))                          # one request in ten
    lambda request: Status(500) if request.n else None       # a function of the request

Pure: the values are frozen; what a rule has to remember is kept by the server.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import attrs

from together_async.request import ChatCompletionRequest
from together_async.testing.dialect import DONE, ErrorShape, error_body, error_event
from together_async.testing.response import FIRST_FIELD, ConnectionEnd, Framing, Piece, Position, ResponsePlan
from together_async.wire import codec
from together_async.wire.sse import encode_event

_BLOCK = 65_536
PING = b": ping\n\n"


@attrs.frozen(repr=False)
class Fault:
    """Something that goes wrong with a response."""

    def apply(self, response: ResponsePlan) -> bool:
        """Edits the plan; returns False when it had no place in this response, which was shorter."""
        raise NotImplementedError

    def __add__(self, other: Fault) -> Faults:
        return Faults((*members(self), *members(other)))

    def __repr__(self) -> str:
        # What differs from the defaults is what the author wrote.
        told = (
            (field.name, getattr(self, field.name))
            for field in attrs.fields(type(self))
            if getattr(self, field.name) != _default_of(field)
        )
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in told)})"


def _default_of(field: attrs.Attribute[Any]) -> Any:
    factory = getattr(field.default, "factory", None)
    return field.default if factory is None else factory()


@attrs.frozen(repr=False)
class Faults(Fault):
    """Several faults of one response, applied in order. Made by `+`."""

    members: tuple[Fault, ...] = ()

    def apply(self, response: ResponsePlan) -> bool:
        """Applies each; False when one had no place."""
        placed = [fault.apply(response) for fault in self.members]  # each, also after one that had no place
        return all(placed)


def members(fault: Fault) -> tuple[Fault, ...]:
    """Returns what a fault is the sum of: itself, if it is none."""
    if not isinstance(fault, Fault):
        raise TypeError(f"got {type(fault).__name__}, expected a fault to add; a rule goes around the sum")
    return fault.members if isinstance(fault, Faults) else (fault,)


@attrs.frozen(kw_only=True, repr=False)
class _Placed(Fault):
    """A fault with a place (see `Position`): before the first byte, in the head, after a token, or at a byte.

    What only makes sense in a body has the body's start for a default.
    """

    in_head: int | None = None
    after_token: int | None = None
    at_byte: int | None = None
    _default: ClassVar[Position] = Position()

    def __attrs_post_init__(self) -> None:
        if self.place.in_head is not None and self._default != Position():
            raise ValueError(f"in_head: {type(self).__name__} goes into a body; use after_token or at_byte")

    @property
    def place(self) -> Position:
        """Where it happens."""
        given = Position(self.in_head, self.after_token, self.at_byte)
        return self._default if given == Position() else given

    def apply(self, response: ResponsePlan) -> bool:
        raise NotImplementedError


def _seconds(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{attribute.name}: got {value!r}, expected seconds, at least 0")


def _data(_: Any, attribute: attrs.Attribute[bytes], value: bytes) -> None:
    if not isinstance(value, bytes):
        raise ValueError(f"{attribute.name}: got a {type(value).__name__}, expected bytes")


def _whole(least: int | None) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """Checks an int, of at least so much; None is passed."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least)
        ):
            raise ValueError(
                f"{attribute.name}: got {value!r}, expected an int{'' if least is None else f' of at least {least}'}"
            )

    return check


def _one_of(*choices: Any) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise ValueError(f"{attribute.name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")

    return check


def _times(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise ValueError(f"{attribute.name}: got {value!r}, expected a number of at least 1")


def _mapping(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{attribute.name}: got a {type(value).__name__}, expected a mapping")


def _offsets(_: Any, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    for at in value:
        _whole(0)(_, attribute, at)


def _probability(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name}: got {value!r}, expected a number, 0 to 1")


def _status(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
    if not isinstance(value, int) or not 200 <= value <= 599:
        raise ValueError(f"{attribute.name}: got {value!r}, expected an HTTP status, 200 to 599")


def _optional_seconds(_: Any, attribute: attrs.Attribute[float | None], value: float | None) -> None:
    if value is not None:
        _seconds(_, attribute, value)  # type: ignore[arg-type]  # only its name is read


# ------------------------------------------------------------------------------------------------------------ responses


@attrs.frozen(repr=False)
class Status(Fault):
    """Another answer than the model's: an HTTP status with headers and any body.

    Args:
        code: The status, 200 to 599.
        body: None for the body that Together sends with this status; a dict is sent as JSON, a str as plain text or
            HTML, bytes as they are.
        headers: Further headers, such as `{"retry-after": "2"}`.
        message: In place of the usual message of the JSON body.
    """

    code: int = attrs.field(validator=_status)
    body: Mapping[str, Any] | str | bytes | None = attrs.field(default=None, hash=False)
    headers: Mapping[str, str] = attrs.field(factory=dict, hash=False, validator=_mapping)
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
    """Headers added to the response, or in place of its own; None removes one."""

    headers: Mapping[str, str | None] = attrs.field(hash=False, validator=_mapping)

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
        location: Where to, a path or a URL; by default another path of the emulator, which answers.
        code: The status: 307 and 308 repeat the request, 301 to 303 make a GET of it.
    """

    location: str = "/redirected/v1/chat/completions"
    code: int = attrs.field(default=307, validator=_status)

    def apply(self, response: ResponsePlan) -> bool:
        """Replaces the response."""
        response.status = self.code
        response.think_s = 0.0
        response.replace_body(b"", "text/plain")
        response.headers["location"] = self.location
        return True


@attrs.frozen(repr=False)
class Raw(Fault):
    """Any bytes in place of the response, head included; then the connection is closed."""

    data: bytes = attrs.field(validator=_data)

    def apply(self, response: ResponsePlan) -> bool:
        """Replaces the response."""
        response.replaced_by = self.data
        return True


# ---------------------------------------------------------------------------------------------------------------- time


@attrs.frozen(kw_only=True, repr=False)
class Stall(_Placed):
    """Silence: before the first byte, in the head, after a token or at a byte (see `Position`).

    Args:
        seconds: How long; without end by default, until the client leaves or `EmulatorServer.release()` is called.
        ping_every: Seconds between pings while it lasts, 0 for as many as the client takes; None sends none. Only in
            a body.
        ping: What a ping is.
    """

    seconds: float = attrs.field(default=math.inf, validator=_seconds)
    ping_every: float | None = attrs.field(default=None, validator=_optional_seconds)
    ping: bytes = attrs.field(default=PING, validator=_data)

    def __attrs_post_init__(self) -> None:
        place = self.place
        if self.ping_every is not None and place in (Position(), Position(self.in_head)):
            raise ValueError("ping_every: pings go into a body; say where, as after_token=0")

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts the wait."""
        if self.ping_every is not None and response.framing == "length":
            response.framing = "chunked"  # how many pings there will be is not known
        if self.ping_every is None or not self.ping:
            return response.insert(self.place, Piece(wait_s=self.seconds, stall=True))
        # As many as the client takes go out in blocks; the pings' sum is what counts.
        ping = self.ping if self.ping_every else self.ping * max(1, _BLOCK // len(self.ping))
        pings = Piece(ping, wait_s=self.ping_every, times=math.inf, for_s=self.seconds, stall=True)
        return response.insert(self.place, pings)


@attrs.frozen(repr=False)
class Drip(Fault):
    """The body comes slowly, a few bytes at a time.

    Args:
        size: Bytes at a time, at least 1.
        every_s: Seconds between them.
    """

    size: int = attrs.field(default=1, validator=_whole(1))
    every_s: float = attrs.field(default=0.01, validator=_seconds)

    def apply(self, response: ResponsePlan) -> bool:
        """Cuts the body into drops."""
        response.split_at(range(self.size, _size(response), self.size), pause_s=self.every_s)
        return True


@attrs.frozen(repr=False)
class EndlessHeaders(Fault):
    """A head that does not end: one header after another, for as long as the client reads."""

    size: int = attrs.field(default=1_000, validator=_whole(1))

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
        every: Pieces of this many bytes.
        at: The bytes of the body at which a piece ends.
        inside: `utf-8` cuts every character of several bytes in two, `crlf` every CR LF.
    """

    every: int | None = attrs.field(default=None, validator=_whole(1))
    at: tuple[int, ...] = attrs.field(default=(), converter=tuple, validator=_offsets)
    inside: Literal["utf-8", "crlf"] | None = attrs.field(default=None, validator=_one_of(None, "utf-8", "crlf"))

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
    """The event stream's lines end in CR LF, or CR, instead of LF. Comes before what counts bytes."""

    ending: Literal["\r\n", "\r", "\n"] = attrs.field(default="\r\n", validator=_one_of("\r\n", "\r", "\n"))

    def apply(self, response: ResponsePlan) -> bool:
        """Replaces the line feeds of a stream."""
        if response.streamed:
            for piece in response.body:
                piece.data = piece.data.replace(b"\n", self.ending.encode())
        return True


@attrs.frozen(repr=False)
class Frame(Fault):
    """How the body's end is told: `chunked`, `length` (a content-length), or `close` (the connection's end)."""

    framing: Framing = attrs.field(validator=_one_of("chunked", "length", "close"))

    def apply(self, response: ResponsePlan) -> bool:
        """Sets the framing; what is compressed has no length beforehand and stays chunked."""
        if not (response.gzip and self.framing == "length"):
            response.framing = self.framing
        return True


@attrs.frozen(repr=False)
class Gzip(Fault):
    """The body is compressed, each piece flushed."""

    def apply(self, response: ResponsePlan) -> bool:
        """Turns compression on. The compressed size is not known before, so the framing is chunked."""
        response.gzip = True
        if response.framing == "length":
            response.framing = "chunked"
        return True


@attrs.frozen(repr=False)
class WrongLength(Fault):
    """A content-length that lies.

    Args:
        by: How many bytes more (positive: the connection ends too early) or fewer than there are.
    """

    by: int = attrs.field(validator=_whole(None))

    def apply(self, response: ResponsePlan) -> bool:
        """Sets a content-length that is off."""
        response.framing = "length"
        response.length_off_by = self.by
        response.keep_alive, response.announce_close = False, False
        return True


# ------------------------------------------------------------------------------------------------------------------ end


@attrs.frozen(kw_only=True, repr=False)
class Cut(_Placed):
    """The response breaks off: before its first byte, in the head, after a token or at a byte (see `Position`).

    Args:
        how: `reset` (RST), `close` (FIN, with the body unfinished), `chunk` (FIN inside a piece whose size was
            promised), or `end` (the HTTP body ends in good order, which only its content tells to be too short).
    """

    how: Literal["reset", "close", "chunk", "end"] = attrs.field(
        default="reset", validator=_one_of("reset", "close", "chunk", "end")
    )

    def apply(self, response: ResponsePlan) -> bool:
        """Ends the plan there."""
        if self.how == "end":
            return response.cut(self.place, None)
        if response.framing == "length":
            # The promise that is broken was made for the whole body.
            whole = _size(response)
            done = response.cut(self.place, ConnectionEnd.RESET if self.how == "reset" else ConnectionEnd.CLOSE)
            response.length_off_by += whole - _size(response)
            return done
        end = ConnectionEnd.RESET if self.how == "reset" else ConnectionEnd.CLOSE
        return response.cut(self.place, end, inside_chunk=self.how == "chunk")


@attrs.frozen(repr=False)
class CloseAfter(Fault):
    """The connection is closed after the response: without a word, the next request finds it stale.

    Args:
        seconds: How long after.
        announce: Whether the response says `connection: close`.
    """

    seconds: float = attrs.field(default=0.0, validator=_seconds)
    announce: bool = False

    def apply(self, response: ResponsePlan) -> bool:
        """Sets the end of the connection."""
        response.keep_alive = False
        response.announce_close = self.announce
        response.close_after_s = self.seconds
        return True


@attrs.frozen(repr=False)
class WithoutDone(Fault):
    """A stream that ends without `data: [DONE]`, and is complete all the same if it has its finish reasons."""

    def apply(self, response: ResponsePlan) -> bool:
        """Takes the event out."""
        kept = [piece for piece in response.body if piece.data.replace(b"\r\n", b"\n") != DONE]
        changed = len(kept) != len(response.body)
        response.body = kept
        return changed


@attrs.frozen(repr=False)
class WithoutFinishReason(Fault):
    """A stream whose choices have no finish reason."""

    def apply(self, response: ResponsePlan) -> bool:
        """Takes the finish reasons away."""
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
class ErrorInStream(_Placed):
    """The server sends an error inside the stream, and ends it.

    Args:
        shape: How it is written (see `ErrorShape`).
        message: What it says.
        code: The code it carries: an HTTP status, a word, or none.
        done: Whether `[DONE]` comes after it, as some servers do.
    """

    shape: ErrorShape = attrs.field(default="object", validator=_one_of(*get_args(ErrorShape)))
    message: str = "the model broke off"
    code: int | str | None = None
    done: bool = False
    _default = Position(after_token=0)

    def apply(self, response: ResponsePlan) -> bool:
        """Puts the error there, and nothing after it."""
        if not response.cut(self.place, None):
            return False
        response.body.append(Piece(error_event(self.shape, self.message, code=self.code)))
        if self.done:
            response.body.append(Piece(DONE))
        return True


@attrs.frozen(kw_only=True, repr=False)
class Garbage(_Placed):
    """An event that is none of the protocol's is put into the stream.

    Args:
        data: Its data; by default JSON that breaks off.
    """

    data: bytes = attrs.field(default=b'{"id":"x","choices":[{"ind', validator=_data)
    _default = Position(after_token=0)

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts the event."""
        return response.insert(self.place, Piece(encode_event(self.data)))


@attrs.frozen(kw_only=True, repr=False)
class Insert(_Placed):
    """Any bytes are put into the response; in the head too.

    Args:
        data: The bytes.
        times: How often.
    """

    data: bytes = attrs.field(validator=_data)
    times: float = attrs.field(default=1.0, validator=_times)

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts them."""
        if math.isinf(self.times) and response.framing == "length":
            response.framing = "chunked"  # what has no end has no length
        return response.insert(self.place, Piece(self.data, times=self.times))


@attrs.frozen(kw_only=True, repr=False)
class HugeLine(_Placed):
    """A line of an event that does not end for a long while.

    Args:
        size: Bytes of it.
    """

    size: int = attrs.field(default=64 * 1024 * 1024, validator=_whole(1))
    _default = Position(after_token=0)

    def apply(self, response: ResponsePlan) -> bool:
        """Inserts the line, as an event of its own."""
        blocks, rest = divmod(self.size, _BLOCK)
        return response.insert(
            self.place,
            Piece(b'data: {"x":"'),
            Piece(b"a" * _BLOCK, times=blocks),
            Piece(b"a" * rest + b'"}\n\n'),
        )


# ---------------------------------------------------------------------------------------------------------------- rules

Rule: TypeAlias = "Fault | Chooser | Sequence[Rule] | Callable[[ChatCompletionRequest], Rule] | None"
"""What an emulator takes as `faults`: a fault, one of the choosers below, several of both, a function of the request
that returns such, or None."""


class Chooser:
    """A rule that chooses another for each request."""

    __slots__ = ()

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:
        """Returns what happens to this request (arguments as for `choose`)."""
        raise NotImplementedError


@attrs.frozen(init=False)
class InTurn(Chooser):
    """One after the other, a request each; then nothing, or what `then` says. Of faults, or of scripts.

    Args:
        *rules: For the first request, the second, and so on; None for none.
        then: For all later ones.
    """

    rules: tuple[Any, ...]
    then: Any

    def __init__(self, *rules: Any, then: Any = None) -> None:
        object.__setattr__(self, "rules", rules)
        object.__setattr__(self, "then", then)

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Any:  # noqa: ARG002
        """Returns whose turn it is, and counts on."""
        turn = turns.get(id(self), 0)
        turns[id(self)] = turn + 1
        return self.rules[turn] if turn < len(self.rules) else self.then


@attrs.frozen
class ByModel(Chooser):
    """What happens to the requests for a model.

    Args:
        rules: By the model's name.
        other: For all other models.
    """

    rules: Mapping[str, Rule] = attrs.field(hash=False, validator=_mapping)
    other: Rule = None

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:  # noqa: ARG002
        """Returns the model's rule."""
        return self.rules.get(request.model, self.other)


@attrs.frozen
class Chance(Chooser):
    """Happens to one request in so many.

    Args:
        probability: 0 to 1.
        rule: What happens.
    """

    probability: float = attrs.field(validator=_probability)
    rule: Rule

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:  # noqa: ARG002
        """Returns the rule, or nothing."""
        return self.rule if rng.random() < self.probability else None


@attrs.frozen(init=False)
class OneOf(Chooser):
    """One of several at random, each as likely as the other; None among them for a request that goes well."""

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        if not rules:
            raise ValueError("OneOf: got nothing, expected at least one rule or None")
        object.__setattr__(self, "rules", rules)

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:  # noqa: ARG002
        """Returns one of them."""
        return rng.choice(self.rules)


def choose(rule: Rule, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> list[Fault]:
    """Returns the faults which a rule chooses for a request.

    Args:
        rule: What to choose by.
        request: The request.
        rng: All chance.
        turns: How many requests each `InTurn` has seen, by its identity; it is counted on.

    Raises:
        TypeError: Something that is no rule.
    """
    if rule is None:
        return []
    if isinstance(rule, Fault):
        return [*members(rule)]
    if isinstance(rule, Chooser):
        return choose(rule.next(request, rng, turns), request, rng, turns)
    if callable(rule):
        return choose(rule(request), request, rng, turns)
    if isinstance(rule, (str, bytes, Mapping)) or not isinstance(rule, Iterable):
        raise TypeError(f"got {type(rule).__name__} among the faults, expected a fault, a rule, a function or None")
    return [fault for member in rule for fault in choose(member, request, rng, turns)]
