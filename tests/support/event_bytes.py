"""Cuts the bytes of an event stream in pieces, and tells whether they end with an event."""

import itertools
from collections.abc import Sequence

from together_async.wire.sse import EventStreamParser


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The bytes cut at these places, taken modulo their number."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def is_whole(data: bytes) -> bool:
    """Whether an event stream ends where an event does. (Of the CRLF of its last line the LF may be missing.)"""
    parser = EventStreamParser()
    parser.feed(data)
    return repr(parser).startswith("<EventStreamParser 0 bytes pending")
