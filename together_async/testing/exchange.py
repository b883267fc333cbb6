"""One recorded exchange: a request, its response with the time of every piece, and their line in a file."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import attrs

from together_async.wire import codec
from together_async.wire.sse import EventStreamParser

VERSION = 1
"""The version of the file format, written into every line."""


@attrs.frozen
class RecordedExchange:
    """One exchange.

    Args:
        status: The response's status, 200 to 599.
        headers: The response's headers, names in lower case.
        pieces: The pieces of the body in order, each as the seconds since the request and its bytes.
        request: The request's body; without messages and other texts unless prompts were kept. Empty when it was not a
            JSON object.
        complete: Whether the body came to its end; False when the connection broke or the client left.
        began_s: When the head had arrived, in seconds since the request.
        ended_s: When the body had ended or broken off, in seconds since the request; None when that was with the last
            piece.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(hash=False)
    pieces: tuple[tuple[float, bytes], ...]
    request: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)
    complete: bool = True
    began_s: float = 0.0
    ended_s: float | None = None

    def __repr__(self) -> str:
        # Without the content, which must stay out of logs.
        state = "complete" if self.complete else "broken off"
        return f"<RecordedExchange {self.status} {state}, {self.size} bytes in {len(self.pieces)} pieces>"

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(len(data) for _, data in self.pieces)

    @property
    def model(self) -> str:
        """The model in the request; empty when it is not known."""
        return str(self.request.get("model", ""))

    @functools.cached_property
    def tokens(self) -> tuple[int, ...]:
        """The number of tokens that end in each piece."""
        if not self.pieces:
            return ()
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            parser = EventStreamParser(max_event_size=max(1, self.size))
            return tuple(sum(_tokens_in_chunk(event.data) for event in parser.feed(data)) for _, data in self.pieces)
        body = json_object(b"".join(data for _, data in self.pieces))
        counted = (body.get("usage") or {}).get("completion_tokens")
        return (*[0] * (len(self.pieces) - 1), counted if isinstance(counted, int) else 0)

    def to_line(self) -> bytes:
        """Returns the exchange as a line of a recording."""
        body = {
            "recording": VERSION,
            "request": self.request,
            "status": self.status,
            "headers": self.headers,
            "began": round(self.began_s, 6),
            "data": [[round(at, 6), _text_or_base64(data)] for at, data in self.pieces],
            "ended": None if self.ended_s is None else round(self.ended_s, 6),
            "complete": self.complete,
        }
        return codec.encode(body) + b"\n"

    @classmethod
    def from_line(cls, line: bytes, where: str) -> Self:
        """Reads a line of a recording.

        Args:
            line: The line.
            where: Its place, for error messages.

        Raises:
            ValueError: Not a line of a recording; the message begins with `where`.
        """
        try:
            body = codec.decode_json(line)
            if not isinstance(body, dict) or "recording" not in body:
                raise ValueError('expected an object with the key "recording"')
            if body["recording"] != VERSION:
                raise ValueError(f"got version {body['recording']!r}, expected {VERSION}")
            ended = body.get("ended")
            return cls(
                status=_member("status", body, int, lambda status: 200 <= status <= 599),
                headers={name.lower(): _member(name, body["headers"], str) for name in _member("headers", body, dict)},
                pieces=tuple((_seconds(at), _bytes(data)) for at, data in _member("data", body, list)),
                request=_member("request", body, dict),
                complete=_member("complete", body, bool),
                began_s=_seconds(body.get("began", 0.0)),
                ended_s=None if ended is None else _seconds(ended),
            )
        except KeyError as error:
            raise ValueError(f"{where}: not a line of a recording: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a line of a recording: {error}") from error


def _member(name: str, body: Mapping[str, Any], kind: type, check: Callable[[Any], bool] | None = None) -> Any:
    value = body[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or (check and not check(value)):
        raise ValueError(f"{name}: unexpected {type(value).__name__} {str(value)[:40]!r}")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"got {str(value)[:40]!r}, expected seconds, at least 0")
    return float(value)


def _text_or_base64(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:  # a piece that ends inside a character
        return {"base64": base64.b64encode(data).decode()}


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, dict) and isinstance(data.get("base64"), str):
        return base64.b64decode(data["base64"], validate=True)
    raise ValueError(f'got {type(data).__name__} among the data, expected a text or {{"base64": ...}}')


def json_object(data: bytes) -> dict[str, Any]:
    """Returns the JSON object that the bytes hold; an empty one if they hold anything else."""
    try:
        value = codec.decode_json(data)
    except codec.JSONError:
        return {}
    return value if isinstance(value, dict) else {}


def _tokens_in_chunk(data: bytes | str) -> int:
    """Returns how many choices of a chunk have a delta with content, which stands for a token each."""
    choices = json_object(data.encode() if isinstance(data, str) else data).get("choices")
    deltas = (
        [choice.get("delta") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    keys = ("content", "reasoning", "reasoning_content", "tool_calls")
    return sum(any(delta.get(key) for key in keys) for delta in deltas if isinstance(delta, dict))
