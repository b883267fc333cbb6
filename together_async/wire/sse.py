"""Server-sent events, by the standard (WHATWG HTML, section 9.2 "Server-sent events"), in bytes.

The parser takes the body in whatever pieces the network made of it and returns the same events for every split.
Its steps: line endings become LF (9.2.5: CR, LF and CRLF all end a line; a CR at the end of one piece ends its line
now and swallows an LF at the start of the next); one byte order mark at the very start is dropped; then lines are
fields (9.2.6), and an empty line dispatches the event.

Nearly every stream consists of plain events: one line `data: ...` and an empty line. `feed_plain` cuts a piece of such
a stream in a single pass and returns None for anything else, so that `feed` can parse the same bytes in full.
"""

from __future__ import annotations

import attrs

DEFAULT_MAX_EVENT_SIZE = 8 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_PLAIN_START = b"data: "
_PLAIN_BREAK = b"\n\ndata: "
_SMALL = 4096
"""Bytes below which data is likely a single event, and may be copied."""
_LF, _CR = b"\n\r"
"""As numbers: CPython looks for the number of a byte ten times faster than for a bytes object or for a count."""


@attrs.frozen
class ServerSentEvent:
    """One dispatched event.

    Attributes:
        data: The data lines, joined by LF.
        event: The event's type; `message` when the stream named none.
        id: The last event id at the time of dispatch; empty when there was none.
        retry: Milliseconds to wait before reconnecting, if the event set it; else None.
    """

    data: bytes
    event: str = "message"
    id: str = ""
    retry: int | None = None


class EventTooLargeError(ValueError):
    """An event, or a line of one, is longer than the parser accepts.

    Attributes:
        size: Bytes it has at least.
        limit: Bytes it may have.
        events: The events that the same call of `feed` had completed before it, so that they are not lost.
    """

    def __init__(self, size: int, limit: int, events: list[ServerSentEvent] | None = None) -> None:
        self.size = size
        self.limit = limit
        self.events = events or []
        super().__init__(f"a server-sent event of at least {size} bytes, expected at most {limit}")

    def __reduce__(self) -> tuple[type[EventTooLargeError], tuple[int, int, list[ServerSentEvent]]]:
        return type(self), (self.size, self.limit, self.events)


class EventStreamParser:
    """Incremental parser of an event stream: bytes in, events out.

    The work is linear in the input, whatever the split and however long a line. An event that the end of the body cuts
    off is never dispatched (9.2.6: "discard"), so there is no method for the end.

    ```python
    parser = EventStreamParser()
    for data in body:
        for event in parser.feed(data):
            print(event.event, event.data)
    ```

    Args:
        max_event_size: The most bytes of one event, its unfinished last line included; 8 MiB by default.

    Attributes:
        last_event_id: The id to send as `Last-Event-ID` when reconnecting; empty when the stream set none.

    Raises:
        ValueError: `max_event_size` is below 1.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_event",
        "_id",
        "_id_buffer",
        "_max_size",
        "_retry",
        "_size",
        "_started",
        "_tail",
        "_tail_size",
    )

    def __init__(self, *, max_event_size: int = DEFAULT_MAX_EVENT_SIZE) -> None:
        if max_event_size < 1:
            raise ValueError(f"max_event_size: got {max_event_size}, expected at least 1 byte")
        self._max_size = max_event_size
        self._started = False  # the byte order mark, if any, has been dropped
        self._after_cr = False  # an LF at the start of the next data belongs to the last line's CR
        self._tail: list[bytes] = []  # data not parsed yet; it begins at the start of a line
        self._tail_size = 0
        self._size = 0  # bytes of the event under way, 0 between events
        self._data: list[bytes] = []
        self._event = ""
        self._retry: int | None = None
        self._id_buffer = ""
        self._id = ""

    def __repr__(self) -> str:
        return f"<EventStreamParser {self._tail_size + self._size} bytes pending of at most {self._max_size}>"

    @property
    def last_event_id(self) -> str:
        """The id to send as `Last-Event-ID` when reconnecting; empty when the stream set none."""
        return self._id

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Takes the next bytes of the body, returns the events they complete.

        Args:
            data: Bytes, cut anywhere.

        Raises:
            EventTooLargeError: An event is above the cap; `.events` has those before it. Do not use the parser again.
        """
        plain = self.feed_plain(data)
        if plain is None:
            return self.feed_any(data)
        return [ServerSentEvent(payload, id=self._id) for payload in plain]

    # Quick path of feed_any; tests/wire/test_sse.py::test_quick_and_full_path_agree holds the two together.
    def feed_plain(self, data: bytes) -> list[bytes] | None:
        """Returns the payloads of `data` if it holds plain events only; else None, and nothing has changed.

        A plain event is `data: `, payload, LF, LF; the last one may be unfinished. After None, call `feed_any` with the
        same bytes.
        """
        if self._size or self._after_cr:
            return None
        tail = self._tail
        if tail:
            # A long unfinished line would be copied for every piece, which is quadratic; feed_any collects instead.
            if self._tail_size > len(data) + _SMALL:
                return None
            data = b"".join((*tail, data))
        if data[:6] != _PLAIN_START or _CR in data or len(data) > self._max_size:
            return None
        if data[-2:] == b"\n\n" and len(data) < _SMALL and _LF not in (payload := data[6:-2]):
            # A single event, as tokens come while they are generated.
            self._started = True
            if tail:
                self._tail, self._tail_size = [], 0
            return [payload]
        return self._split(data)

    def _split(self, data: bytes) -> list[bytes] | None:
        """Returns the payloads if there are only plain events, else None."""
        # From the end, because then CPython looks for the first byte of a break. That is an LF, which is rare; the last
        # is a space. Breaks do not overlap, so the pieces are the same.
        payloads = data.rsplit(_PLAIN_BREAK)
        payloads[0] = payloads[0][len(_PLAIN_START) :]
        last = payloads.pop()
        tail = b""
        if last.endswith(b"\n\n"):
            payloads.append(last[:-2])
        elif (end := last.find(b"\n\n")) >= 0:  # the start of another event follows, shorter than a break
            payloads.append(last[:end])
            tail = last[end + 2 :]
        else:
            tail = _PLAIN_START + last
        # Every LF must belong to a break, or some event has more than one line. The tail must have none either: only
        # the full path knows which lines of an unfinished event count towards its size.
        if _LF in tail or _LF in b"".join(payloads):
            return None
        self._started = True
        self._tail = [tail] if tail else []
        self._tail_size = len(tail)
        return payloads

    def feed_any(self, data: bytes) -> list[ServerSentEvent]:
        """Returns the events that the next bytes complete, of any event stream."""
        data = self._normalise(data)
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return []
        lines = b"".join((*self._tail, data[:end]))
        self._tail, self._tail_size = [], 0
        events: list[ServerSentEvent] = []
        try:
            for line in lines.split(b"\n"):
                if line:
                    self._process(line)
                elif self._size and (event := self._dispatch()) is not None:
                    events.append(event)
            self._keep(data[end + 1 :])
        except EventTooLargeError as error:
            error.events = events
            raise
        return events

    def _keep(self, tail: bytes) -> None:
        if tail:
            self._tail.append(tail)
            self._tail_size += len(tail)
            self._check_size(self._size + self._tail_size)

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            raise EventTooLargeError(size, self._max_size)

    def _normalise(self, data: bytes) -> bytes:
        """Returns the bytes with every line ending as LF and without the byte order mark."""
        if not self._started:
            data = b"".join((*self._tail, data))
            self._tail, self._tail_size = [], 0
            if len(data) < len(_BOM) and _BOM.startswith(data):
                return data  # too short to tell
            self._started = True
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _process(self, line: bytes) -> None:
        """Processes one line that is not empty (9.2.6, "process the field")."""
        name, colon, value = line.partition(b":")
        size = self._size + len(line) + 1
        self._check_size(size)
        if colon and not name:
            return  # a comment, which is not part of an event
        self._size = size
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id_buffer = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self._retry = int(value[:18])  # int() refuses more than 4,300 digits; 18 are 30 million years

    def _dispatch(self) -> ServerSentEvent | None:
        """Returns the event that an empty line ends; None without a data line (its type is forgotten then)."""
        data, event, retry = self._data, self._event, self._retry
        self._size = 0
        self._event = ""
        self._retry = None
        self._id = self._id_buffer
        if not data:
            return None
        self._data = []
        return ServerSentEvent(b"\n".join(data), event=event or "message", id=self._id, retry=retry)


def encode_event(
    data: bytes | str, *, event: str | None = None, id: str | None = None, retry: int | None = None
) -> bytes:
    """Returns one event as bytes of an event stream, which `EventStreamParser` reads back unchanged.

    Args:
        data: The payload. Every line of it (ended by LF, CR or CRLF) becomes a data line; an empty payload is kept.
        event: The event's type, one line; None leaves it out, which means `message`.
        id: The id a client would reconnect with, one line without NUL; the empty string clears it. None leaves it out.
        retry: Milliseconds a client should wait before it reconnects, at least 0; None leaves it out.

    Raises:
        ValueError: A line break in `event` or `id`, a NUL in `id`, a negative `retry`.
    """
    payload = data.encode() if isinstance(data, str) else data
    lines: list[bytes] = []
    for name, value in (("event", event), ("id", id)):
        if value is not None:
            if "\n" in value or "\r" in value or ("\0" in value and name == "id"):
                raise ValueError(f"{name}: must be one line, and an id without NUL")
            lines.append(f"{name}: {value}".encode())
    if retry is not None:
        if retry < 0:
            raise ValueError(f"retry: got {retry}, expected milliseconds, at least 0")
        lines.append(b"retry: %d" % retry)
    normalised = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines.extend(b"data: " + line for line in normalised.split(b"\n"))
    return b"\n".join(lines) + b"\n\n"
