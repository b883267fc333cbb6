"""`ChunkDecoder`: the bytes of a stream to payloads, and payloads to chunks. Pure.

A payload is the data of an event. What becomes of it:

| payload | outcome |
|---|---|
| a chunk | the chunk |
| `[DONE]` | the end; anything after it is ignored |
| an error object, in any of the shapes servers use, or an event named `error` | `ReportedError` |
| a JSON object of another shape without choices (a ping in JSON) | skipped |
| anything else | `ProtocolError` |
"""

from __future__ import annotations

from typing import Any, Final

from together_async.errors import APIResponseValidationError
from together_async.models import NO_DELTA, ChatCompletionChunk, link
from together_async.wire import codec
from together_async.wire.completions import chunk_of
from together_async.wire.error_bodies import ErrorFacts, decoded_body, error_facts
from together_async.wire.sse import DEFAULT_MAX_EVENT_SIZE, EventStreamParser, EventTooLargeError, ServerSentEvent

_DONE: Final = b"[DONE]"
_TOO_LARGE: Final = b"\0"
"""The payload that stands for an event above the size cap."""
_BLANK_OR_BOM: Final = b" \t\r\n\xef\xbb\xbf"


class ProtocolError(Exception):
    """The body is not a stream of this protocol; the text says what was got and what was expected.

    Users do not see it: the stream raises StreamProtocolError.
    """


class ReportedError(Exception):
    """The server reported an error inside the stream.

    Users do not see it: the stream raises StreamAPIError.

    Attributes:
        facts: The content of the error object.
    """

    def __init__(self, facts: ErrorFacts) -> None:
        self.facts = facts
        super().__init__(facts.message)


class ChunkDecoder:
    """Decodes one stream: bytes to payloads, payloads to chunks.

    Splitting and decoding are two steps, so that bytes wait for a slow consumer and not objects.

    Args:
        media_type: The response's, without parameters; empty when it named none.
        max_event_size: The most bytes of one event, or of a JSON document in a stream's place.

    Attributes:
        done: `data: [DONE]` has come.

    Raises:
        ProtocolError: The media type is HTML's.
    """

    __slots__ = ("_document", "_has_event", "_max_size", "_media_type", "_parser", "_sniffed", "_too_large", "done")

    def __init__(self, *, media_type: str = "text/event-stream", max_event_size: int = DEFAULT_MAX_EVENT_SIZE) -> None:
        self._parser = EventStreamParser(max_event_size=max_event_size)
        self._max_size = max_event_size
        self._media_type = media_type
        self._has_event = False
        self._too_large: EventTooLargeError | None = None
        self._document: bytearray | None = None  # of a body that is one JSON document
        self._sniffed = False
        self.done = False
        if media_type == "text/html":
            raise ProtocolError("got an HTML page (a proxy's or a wrong base_url's), expected an event stream")

    def __repr__(self) -> str:
        return f"<ChunkDecoder {'done' if self.done else 'open'} {self._parser!r}>"

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes of the body, returns the payloads they complete, in order.

        An event above the size cap gives a payload too, which `decode` refuses: so the payloads before it are not lost,
        and after `[DONE]` it does not matter.

        Raises:
            ProtocolError: Not an event stream.
        """
        if not self._sniffed:
            self._sniff(data)
        if self._document is not None:
            return self._feed_document(data)
        plain = self._parser.feed_plain(data)
        if plain is not None:
            self._has_event = True
            return plain
        try:
            events = self._parser.feed_any(data)
        except EventTooLargeError as error:
            self._too_large = error
            events = error.events
        self._has_event = self._has_event or bool(events)
        payloads = [payload for event in events if (payload := _payload(event)) is not None]
        return payloads if self._too_large is None else [*payloads, _TOO_LARGE]

    def _feed_document(self, data: bytes) -> list[bytes]:
        assert self._document is not None  # noqa: S101 - for type checkers; feed() checks it
        self._document += data
        if len(self._document) > self._max_size:
            self._document = None
            raise ProtocolError(
                f"got a JSON document of more than {self._max_size} bytes, expected an event stream; "
                "raise max_event_size unless this is an attack"
            )
        return []

    def _sniff(self, data: bytes) -> None:
        """Looks at the first byte that is not blank: servers do answer a stream request with JSON or HTML."""
        start = data.lstrip(_BLANK_OR_BOM)[:1]
        if not start:
            return
        self._sniffed = True
        if start == b"<":
            raise ProtocolError("got an HTML page (a proxy's or a wrong base_url's), expected an event stream")
        if start in b"{[":
            self._document = bytearray()

    def end(self) -> list[bytes]:
        """Notes the end of the body; returns its payload if it was one JSON document.

        Raises:
            ProtocolError: No event came, and the media type is not an event stream's either.
        """
        if (
            self._sniffed
            and not self._has_event
            and self._document is None
            and self._media_type not in ("", "text/event-stream")
        ):
            raise ProtocolError(f"got a body of type {self._media_type!r} without an event, expected an event stream")
        document, self._document = self._document, None
        self._has_event = self._has_event or bool(document)
        return [bytes(document).lstrip(_BLANK_OR_BOM)] if document else []

    def kept_payloads(self) -> list[bytes]:
        """Returns the payloads that were held back, when no more bytes will come; this class holds none."""
        return []

    def decode(self, payload: bytes) -> ChatCompletionChunk | None:
        """Returns the chunk of a payload; None for a payload without one: `[DONE]` (see `done`) or a ping in JSON.

        Raises:
            ReportedError: An error object.
            ProtocolError: The payload is none of the things above (see the table at the head of this module).
        """
        try:
            chunk = codec.decode_chunk_strictly(payload)
        except (ValueError, RecursionError):
            return self.decode_other(payload)
        return self.accept(chunk, payload)

    def accept(self, chunk: ChatCompletionChunk, payload: bytes) -> ChatCompletionChunk | None:
        """Does the same as `decode` for a chunk that the caller has decoded strictly from the payload."""
        # A choice without a delta may be a whole completion's.
        if chunk.choices and chunk.error is None and chunk.choices[0].delta is not NO_DELTA:
            link(chunk, payload)
            return chunk
        return self.decode_other(payload)

    def decode_other(self, payload: bytes) -> ChatCompletionChunk | None:
        """Does the same as `decode` for payloads that are not a chunk with choices: the end, errors, usage alone."""
        text = payload.strip()
        if text == _DONE:
            self.done = True
        if text in (_DONE, b""):
            return None
        if self._too_large is not None and payload == _TOO_LARGE:
            raise ProtocolError(f"got {self._too_large}; raise max_event_size unless this is an attack")
        try:
            body = codec.decode_json(payload)
        except codec.JSONError as error:
            raise ProtocolError(f"got an event whose data is not JSON ({len(payload)} bytes: {error})") from error
        facts = error_facts(body)
        if facts is not None:
            raise ReportedError(facts)
        if not isinstance(body, dict):
            raise ProtocolError(f"got an event whose data is a JSON {type(body).__name__}, expected an object")
        return self._decode_object(payload, body)

    @staticmethod
    def _decode_object(payload: bytes, body: dict[str, Any]) -> ChatCompletionChunk | None:
        choices = body.get("choices")
        try:
            if isinstance(choices, list) and any(
                isinstance(c, dict) and c.get("message") and not c.get("delta") for c in choices
            ):
                return chunk_of(codec.decode_completion(payload))
            chunk = codec.decode_chunk(payload)
        except APIResponseValidationError as error:
            raise ProtocolError(f"got an event of another shape: {error}") from error
        # Without choices and usage it is a ping in JSON.
        return chunk if chunk.choices or chunk.usage is not None or "choices" in body else None


def _payload(event: ServerSentEvent) -> bytes | None:
    """Returns the data of an event that has to be decoded; None for other events, such as named pings."""
    data = event.data
    if event.event == "message" or data.strip() == _DONE:
        return data or None
    if event.event == "error":
        # The decoder gets one shape, {"error": ...}, whatever the data is.
        body = decoded_body(data)
        return data if error_facts(body) else codec.encode({"error": body or "no message"})
    # Some servers name the events of chunks too; a named ping has no choices.
    return data if b'"choices"' in data or b'"error"' in data else None
