"""The fault cases that never end or are far too large. They keep a core busy, so each runs alone."""

import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import attrs

from benchmarks.faults.case import EITHER, ERROR, TOKEN, Case
from together_async.testing import (
    EndlessHeaders,
    Fault,
    Frame,
    HugeLine,
    Insert,
    Stall,
    Status,
)
from together_async.testing.response import ResponsePlan

BOMB_BYTES = 256 * 1024 * 1024


@cache
def bomb() -> bytes:
    """256 MiB of blanks in 256 KiB of gzip."""
    squeeze = zlib.compressobj(wbits=31)
    block = b" " * (1 << 20)
    return b"".join(squeeze.compress(block) for _ in range(BOMB_BYTES >> 20)) + squeeze.flush()


@attrs.frozen(repr=False)
class Bomb(Fault):
    """The bomb as the body of a response that begins with `head`."""

    head: bytes

    def apply(self, response: ResponsePlan) -> bool:
        data = bomb()
        response.replaced_by = self.head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        return True


def floods() -> Iterator[Case]:
    def case(name: str, faults: Any, ours: str, **more: Any) -> Case:
        return Case(f"flood: {name}", faults, more.pop("right", ERROR), ours, flood=True, **more)

    # The line is an object without meaning: skipping it is right, and so is refusing it. Not coming back is not.
    yield case("a line of 64 MiB", HugeLine(after_token=TOKEN), "StreamProtocolError", right=EITHER)
    yield case("a line without end", Insert(data=b"a" * 65_536, times=float("inf"), after_token=TOKEN),
               "StreamProtocolError")  # table  # fmt: skip
    yield case("endless headers", EndlessHeaders(), "APIConnectionError")
    yield case("pings without end or pause", Stall(after_token=TOKEN, ping_every=0), "StreamTimeoutError")
    as_json = Stall(after_token=TOKEN, ping_every=0, ping=b'data: {"type":"ping"}\n\n')
    yield case("pings as JSON without end or pause", as_json, "StreamTimeoutError")
    yield case("pings before the first token", Stall(after_token=0, ping_every=0), "APITimeoutError")
    endless = Insert(data=b"a" * 65_536, times=float("inf"), at_byte=2)
    yield case("an error's body without end", Status(500, "no") + Frame("chunked") + endless, "InternalServerError",
               status=500)  # table  # fmt: skip
    stream_head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    yield case("a gzip bomb", Bomb(stream_head), "StreamProtocolError")
    yield case("a gzip bomb as an error", Bomb(b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\n"),
               "InternalServerError", status=500)  # table  # fmt: skip
