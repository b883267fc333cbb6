"""The emulator's HTTP/1.1 parser: just enough to serve a client. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

MAX_HEAD = 65_536
"""The most bytes of a request's head."""
MAX_BODY = 256 * 1024 * 1024
"""The most bytes of a request's body."""
_DIGITS = 18
"""The most digits of a content-length; Python refuses to read very long ones."""
_TLS_HELLO = b"\x16\x03"


@attrs.frozen
class Incoming:
    """One request as it came over the wire.

    Attributes:
        method: The method, as sent.
        target: The path and query, or the URL.
        headers: Names in lower case; of a repeated header, the last.
        body: The body, without its framing.
        version: `HTTP/1.0` or `HTTP/1.1`.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    version: str = "HTTP/1.1"

    @property
    def wants_close(self) -> bool:
        """Whether the client asks for the connection to be closed after the response."""
        asked = self.headers.get("connection", "").lower()
        return "close" in asked or (self.version == "HTTP/1.0" and "keep-alive" not in asked)


class MalformedRequestError(Exception):
    """The bytes are not an HTTP request that can be answered; the connection is closed after the status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def take_request(buffer: bytearray, write: Callable[[bytes], None]) -> Incoming | None:
    """Takes one complete request out of the buffer.

    Args:
        buffer: The bytes that have come; those of the request are removed.
        write: Sends bytes to the client, for `100 Continue`.

    Returns:
        The request; None while it is not complete.

    Raises:
        MalformedRequestError: Not an HTTP/1 request, or above the size limits.
    """
    while buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: ignored before a request line
        del buffer[:2]
    if buffer.startswith(_TLS_HELLO):
        raise MalformedRequestError(400, "got a TLS handshake, expected plain HTTP/1.1; use http:// for this server")
    end = buffer.find(b"\r\n\r\n")
    if end > MAX_HEAD or (end < 0 and len(buffer) > MAX_HEAD):
        raise MalformedRequestError(431, f"a head of more than {MAX_HEAD} bytes")
    if end < 0:
        return None
    line, *fields = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise MalformedRequestError(400, "got no HTTP/1.1 request line; was HTTP/2 spoken to a plain HTTP/1.1 server?")
    headers: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        headers[name.strip().lower()] = value.strip()
    body, size = _body(buffer, end + 4, headers)
    if body is None:
        if headers.get("expect", "").lower() == "100-continue" and len(buffer) == end + 4:
            write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None
    del buffer[: end + 4 + size]
    return Incoming(parts[0], parts[1], headers, body, parts[2])


def _body(buffer: bytearray, start: int, headers: dict[str, str]) -> tuple[bytes | None, int]:
    """Returns the body that begins at `start`, and its bytes with the framing; None while it is not complete."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunked_body(buffer, start)
    length = headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]+", length):
        raise MalformedRequestError(400, "the content-length is no number")
    if len(length) > _DIGITS or int(length) > MAX_BODY:
        raise MalformedRequestError(413, f"a body above {MAX_BODY} bytes")
    size = int(length)
    return (bytes(buffer[start : start + size]), size) if len(buffer) >= start + size else (None, 0)


def _chunked_body(buffer: bytearray, start: int) -> tuple[bytes | None, int]:
    pieces: list[bytes] = []
    at = start
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None, 0
        field = bytes(buffer[at:line_end]).partition(b";")[0].strip(b" \t")
        if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", field):
            raise MalformedRequestError(400, "a chunk's size is no hexadecimal number")
        size = int(field, 16)
        at = line_end + 2
        if at + size > start + MAX_BODY:
            raise MalformedRequestError(413, f"a body above {MAX_BODY} bytes")
        if len(buffer) < at + size + 2:
            return None, 0
        pieces.append(bytes(buffer[at : at + size]))
        at += size + 2
        if size == 0:  # no client of this protocol sends trailers
            return b"".join(pieces), at - start
