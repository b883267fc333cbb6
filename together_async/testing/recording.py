"""Recordings: files of exchanges, and their replay by the emulator.

A recording is a file of JSON lines, one for each exchange: the request without its private parts, the response's status
and headers, and the pieces of the body, each with the second at which it came. `Recorder` makes one.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import attrs

from together_async.request import ChatCompletionRequest
from together_async.testing.exchange import RecordedExchange
from together_async.testing.response import ConnectionEnd, Piece, Position, ResponsePlan
from together_async.wire import codec


@attrs.frozen
class Recording:
    """A recording: exchanges in the order in which they ended.

    Passed to an emulator as its script, it answers a request whose body was recorded (with its prompts) with that
    response, and every other request with the next response in turn, starting again after the last.

    Args:
        exchanges: At least one.

    Raises:
        ValueError: There is no exchange.
    """

    exchanges: tuple[RecordedExchange, ...]

    def __attrs_post_init__(self) -> None:
        if not self.exchanges:
            raise ValueError("an empty recording, expected at least one exchange")

    def __repr__(self) -> str:
        return f"<Recording of {len(self.exchanges)} exchanges>"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a recording from a file.

        Raises:
            OSError: The file can't be read.
            ValueError: The file is not a recording; the message names file and line.
        """
        lines = Path(path).read_bytes().split(b"\n")
        exchanges = [
            RecordedExchange.from_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
        ]
        if not exchanges:
            raise ValueError(f"{path}: an empty recording, expected at least one exchange")
        return cls(tuple(exchanges))

    def save(self, path: str | Path) -> None:
        """Writes the recording to a file, replacing its content.

        Raises:
            OSError: The file can't be written.
        """
        Path(path).write_bytes(b"".join(exchange.to_line() for exchange in self.exchanges))

    def choose(self, request: ChatCompletionRequest, turn: int, *, streamed: bool | None = None) -> RecordedExchange:
        """Returns the exchange that answers a request.

        Args:
            request: The request.
            turn: The number of requests before this one; requests recorded several times are answered in turn.
            streamed: Whether a stream is wanted; a response of that kind is preferred. None accepts either.
        """
        known = self._by_request.get(_question(request), ())
        candidates: Sequence[RecordedExchange] = known or self.exchanges
        at = turn % len(candidates)
        for exchange in (*candidates[at:], *candidates[:at]):
            if streamed is None or exchange.request.get("stream", False) is streamed:
                return exchange
        return candidates[at]

    @functools.cached_property
    def _by_request(self) -> dict[str, list[RecordedExchange]]:
        """The exchanges whose whole requests were kept, by question."""
        found: dict[str, list[RecordedExchange]] = {}
        for exchange in self.exchanges:
            with contextlib.suppress(ValueError):  # the messages were not kept
                question = _question(ChatCompletionRequest.from_dict(exchange.request))
                found.setdefault(question, []).append(exchange)
        return found


def _question(request: ChatCompletionRequest) -> str:
    """Returns a key that is equal for equal questions, whatever the order of keys, streamed or not."""
    body = json.loads(codec.encode(request.to_dict()))
    body.pop("stream_options", None)
    return json.dumps(body, sort_keys=True)


def replay(recorded: RecordedExchange, response: ResponsePlan, *, speed: float) -> None:
    """Turns a recorded response into a plan.

    Args:
        recorded: The exchange.
        response: The plan, changed in place.
        speed: The factor by which the replay is faster, above 0; infinite for without any wait.
    """
    response.status = recorded.status
    response.headers = dict(recorded.headers)
    response.framing = "chunked" if response.streamed or not recorded.complete else "length"
    times = (recorded.began_s, *(at for at, _ in recorded.pieces))
    waits = [max(0.0, at - before) / speed for before, at in zip((0.0, *times), times, strict=False)]
    if waits[0]:
        response.insert(Position(), Piece(wait_s=waits[0]))
    response.body = [
        Piece(data, tokens=tokens, wait_s=wait)
        for (_, data), tokens, wait in zip(recorded.pieces, recorded.tokens, waits[1:], strict=True)
    ]
    end = None if recorded.complete else ConnectionEnd.CLOSE
    last_wait_s = 0.0 if recorded.ended_s is None else max(0.0, recorded.ended_s - times[-1]) / speed
    if last_wait_s or end:
        response.body.append(Piece(wait_s=last_wait_s, end=end, raw=end is not None))
