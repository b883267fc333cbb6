"""Watches the bytes of a stream that is passed on unchanged, decoding as little of it as possible. Pure.

The beginning of a stream shows whether it is one at all, or an error; its end shows whether it is complete, what it
cost, and what went wrong. So the first events are decoded, and the last ones, which are kept until others follow. The
bytes in between are only cut at the ends of events, and their chunks counted.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

from together_async.wire.chunks import ChunkDecoder, ProtocolError
from together_async.wire.sse import DEFAULT_MAX_EVENT_SIZE

_KEPT: Final = 8192
"""The least number of bytes of the stream's end that are kept: several events with usage, finish reasons, warnings."""
_FEW: Final = 4096
"""Data below this size came token by token, and is searched for errors. To search more would cost as much as decoding
it."""
_EDGE: Final = 3
"""How many of the bytes before the new ones may belong to an empty line."""
_DONE: Final = re.compile(rb"\n?data: ?\[DONE\] *(?:\r\n|\n|\r)?")
_EMPTY_LINE: Final = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r)")
"""The end of a line and that of an empty one, each of them LF, CRLF or CR."""


class RawEventDecoder(ChunkDecoder):
    """A `ChunkDecoder` that returns only the payloads that matter, and collects the bytes to pass on.

    Args:
        media_type: The response's, without parameters; empty when it named none.
        max_event_size: The most bytes of one event, or of a JSON document in a stream's place.
        every: Decode every event, which is needed where several choices end at different times.

    Attributes:
        passed: Whole events as they came, to be passed on; the reader empties the list.
        events: How many events with data came and were not decoded, since the reader last set this to 0.
    """

    __slots__ = ("_event_size", "_every", "_kept", "_kept_size", "_tail", "_tail_size", "events", "passed")

    def __init__(
        self,
        *,
        media_type: str = "text/event-stream",
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
        every: bool = False,
    ) -> None:
        super().__init__(media_type=media_type, max_event_size=max_event_size)
        self._every = every
        self._tail: list[bytes] = []  # the data of an unfinished event
        self._tail_size = 0
        self._kept: deque[bytes] = deque()
        self._kept_size = 0
        self.passed: list[bytes] = []
        self._event_size = _FEW
        self.events = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes of the body; returns the payloads of events that have to be looked at.

        Raises:
            ProtocolError: Not an event stream, or an event above the size cap.
        """
        if not self._sniffed:
            self._sniff(data)
        if self._document is not None:
            data, self._tail, self._tail_size = b"".join((*self._tail, data)), [], 0
            return super().feed(data)
        data = self._whole_events(data) if self._sniffed else self._held(data)
        if not data:
            return []
        self.passed.append(data)
        if self._every or not self._has_event:
            payloads = super().feed(data)
            self._event_size = max(1, len(data) // max(1, len(payloads)))
            return payloads
        self._keep(data)
        # Among many events an error is only found at the end of the stream, where it belongs. Not `in`: CPython raises
        # and clears an error for each. Of `find` and `rfind`, the one that is quicker in chunks.
        if data.rfind(b"[DONE]", -_FEW) >= 0 or (
            len(data) < _FEW and (data.rfind(b'"error"') >= 0 or data.find(b"event:") >= 0)
        ):
            return self._look()
        return []

    def _whole_events(self, data: bytes) -> bytes:
        """Returns the whole events among the held bytes and the new ones; holds the rest.

        The end of an event is searched in the new bytes only, so that the work is linear, however long an event is.
        """
        if data[-2:] == b"\n\n" and not self._tail:
            return data
        edge = b"".join([piece[-_EDGE:] for piece in self._tail[-_EDGE:]])[-_EDGE:]
        end = _end_of_events(edge + data) - len(edge)
        if end <= 0:
            return self._held(data)
        whole = b"".join((*self._tail, data[:end])) if self._tail or end < len(data) else data
        self._tail, self._tail_size = [], 0
        self._held(data[end:])
        return whole

    def _held(self, data: bytes) -> bytes:
        """Holds bytes until their event is whole; returns no bytes."""
        if data:
            self._tail.append(data)
            self._tail_size += len(data)
        if self._tail_size > self._max_size:
            raise ProtocolError(
                f"got a server-sent event of at least {self._tail_size} bytes, expected at most {self._max_size}; "
                "raise max_event_size unless this is an attack"
            )
        return b""

    def _keep(self, data: bytes) -> None:
        self.events += self._count(data)
        kept, size = self._kept, self._kept_size + len(data)
        kept.append(data)
        while size - len(kept[0]) >= _KEPT:
            size -= len(kept.popleft())
        self._kept_size = size

    def _look(self) -> list[bytes]:
        """Returns the payloads of the kept bytes, which are then forgotten."""
        data = b"".join(self._kept)
        self.events -= sum(map(self._count, self._kept))  # they are decoded now, and counted then
        self._kept.clear()
        self._kept_size = 0
        return super().feed(data)

    def _count(self, data: bytes) -> int:
        """Estimates how many chunks data holds: many by their size, few by `"choices"`, which a JSON ping lacks."""
        if len(data) >= _FEW:
            return max(1, len(data) // self._event_size)
        return data.count(b'"choices"')

    def unterminated_done(self) -> bytes:
        """Returns a `[DONE]` after which the body ended without an empty line; else no bytes.

        By the standard it is not an event, but clients wait for it. Other unfinished events are not part of the answer.
        """
        data = b"".join(self._tail)
        self._tail, self._tail_size = [], 0
        return data if _DONE.fullmatch(data) else b""

    def kept_payloads(self) -> list[bytes]:
        """Returns the payloads of the last events, when no more bytes will come."""
        return self._look() if self._kept else []

    def end(self) -> list[bytes]:
        """Notes the end of the body; returns the payloads of the last events."""
        return self.kept_payloads() or super().end()


def _end_of_events(data: bytes) -> int:
    """Returns where the last whole event ends: after an empty line; 0 without one."""
    if data.endswith(b"\n\n"):
        return len(data)
    if b"\r" not in data:
        found = data.rfind(b"\n\n")
        return found + 2 if found >= 0 else 0
    end = 0
    for empty in _EMPTY_LINE.finditer(data):
        end = empty.end()
    return end
