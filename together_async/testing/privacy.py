"""What must not be in a recording: credentials, and prompts unless they are to be kept."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from together_async.request import ChatCompletionRequest
from together_async.testing.exchange import RecordedExchange

_REMOVED = b"[removed]"
_MIN_KEY = 6
_MIN_TEXT = 8
_MIN_TEXT_IN_ERROR = 4
"""Shorter texts are ordinary words; removing them would shred answers. An error holds no answer, so there more goes."""
_WORDS = frozenset({"role", "type", "model", "object"})
"""Keys whose values are words of the protocol."""
_ANSWERED = frozenset({"name", "id", "tool_call_id", "enum", "const", "default", "required", "format"})
"""Keys whose values an answer has to repeat, as it calls a tool by its name."""
_KEPT: frozenset[str] = frozenset(field.name for field in attrs.fields(ChatCompletionRequest))
"""Members of a request that may stay, if their values are numbers or flags."""
_DEPTH = 4
"""How many levels of JSON within JSON are searched."""
_ESCAPE = re.compile(
    rb'\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|["\\/bfnrt])', re.ASCII
)
_ECHO = re.compile(rb'"prompt(?:_token_ids|_logprobs)?"\s*:\s*(?=[\["{])')

_Span = tuple[int, int, bytes]
"""Start, end, and the replacement."""


def without_private(recorded: RecordedExchange, credentials: Iterable[str], *, keep_prompts: bool) -> RecordedExchange:
    """Returns an exchange without its credentials, and without its prompts unless they are to be kept.

    Args:
        recorded: The exchange, with its whole request.
        credentials: Texts that are removed in any case.
        keep_prompts: Whether the request stays whole, and the texts of the response that repeat it.
    """
    secrets = {credential for credential in credentials if len(credential) >= _MIN_KEY}
    request = dict(recorded.request)
    if not keep_prompts:
        secrets.update(_texts(request, is_error=recorded.status >= 400))
        request = {
            name: value
            for name, value in request.items()
            if name in _KEPT | {"stream"} and (isinstance(value, (bool, int, float)) or name == "model")
        }
        if not isinstance(request.get("model", ""), str):
            del request["model"]
    whole = b"".join(data for _, data in recorded.pieces)
    spans = [*_spans(whole, secrets), *(() if keep_prompts else _echoes(whole))]
    pieces = _cut_out(recorded.pieces, _disjoint(spans)) if spans else recorded.pieces
    headers = {name: _plain_without(value, secrets) for name, value in recorded.headers.items()}
    return attrs.evolve(recorded, request=request, headers=headers, pieces=tuple(pieces))


def _texts(value: Any, *, is_error: bool, key: str = "") -> Iterator[str]:
    """Yields every text of a request that must not be in a recording."""
    if key in _WORDS and isinstance(value, str):
        return
    if key in _ANSWERED and not is_error and not isinstance(value, Mapping):
        return
    if isinstance(value, str):
        if len(value) >= (_MIN_TEXT_IN_ERROR if is_error else _MIN_TEXT):
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not name.isidentifier() or (is_error and key == "properties"):  # not a word of the protocol
                yield from _texts(name, is_error=is_error)
            yield from _texts(item, is_error=is_error, key=name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, is_error=is_error, key=key)


def _spans(whole: bytes, secrets: Iterable[str]) -> Iterator[_Span]:
    """Yields the places of the secrets: verbatim, and with JSON's escapes, also in JSON within JSON."""
    wanted = [secret.encode("utf-8", "surrogatepass") for secret in secrets]
    data, layers = whole, list[_Unescaped]()
    for _ in range(_DEPTH):
        for secret in wanted:
            at = data.find(secret)
            while at >= 0:
                span = (at, at + len(secret))
                for layer in reversed(layers):
                    span = (layer.outside(span[0]), layer.outside(span[1]))
                yield (*_beyond_escapes(whole, *span), _REMOVED)
                at = data.find(secret, at + len(secret))
        layer = _Unescaped(data)
        if layer.inside == data:
            return
        layers.append(layer)
        data = layer.inside


class _Unescaped:
    """Bytes with JSON's escapes resolved, and a map from their offsets to those of the escaped bytes."""

    def __init__(self, data: bytes) -> None:
        parts: list[bytes] = []
        self._inside_at, self._outside_at = [0], [0]
        done = size = 0
        for escape in _ESCAPE.finditer(data):
            start, end = escape.span()
            character = _character(escape[0])
            parts += (data[done:start], character)
            size += start - done
            self._inside_at += (size, size + len(character))
            self._outside_at += (start, end)
            size += len(character)
            done = end
        parts.append(data[done:])
        self.inside = b"".join(parts)

    def outside(self, at: int) -> int:
        """Returns the offset in the escaped bytes of an offset in the resolved ones."""
        mark = bisect_right(self._inside_at, at) - 1
        return self._outside_at[mark] + at - self._inside_at[mark]


def _character(escape: bytes) -> bytes:
    text = json.loads(b'"' + escape + b'"')
    return str(text).encode("utf-8", "surrogatepass")


def _beyond_escapes(whole: bytes, start: int, end: int) -> tuple[int, int]:
    """Returns the span, widened to whole escapes at its edges: half an escape would spoil the JSON."""
    for edge in (start, end):
        # An escape has at most 12 bytes; the run of backslashes before it decides which of them begins an escape.
        at = max(0, edge - 12)
        while at > 0 and whole[at - 1] == 0x5C:
            at -= 1
        for escape in _ESCAPE.finditer(whole, at, edge + 12):
            if escape.start() < edge < escape.end():
                start, end = min(start, escape.start()), max(end, escape.end())
    return start, end


def _echoes(whole: bytes) -> Iterator[_Span]:
    """Yields the places of an echoed prompt: as text, as tokens, or as their ids."""
    text = whole.decode("latin-1")  # a character for each byte
    for found in _ECHO.finditer(whole):
        start = found.end()
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        except ValueError:  # the response breaks off inside it
            end, value = len(whole), True
        if value:
            yield start, end, b"[]"


def _disjoint(spans: Iterable[_Span]) -> list[_Span]:
    """Returns the spans in order, with overlapping ones merged."""
    merged: list[_Span] = []
    for start, end, instead in sorted(spans, key=lambda span: (span[0], -span[1])):
        if merged and start < merged[-1][1]:
            first, last, note = merged[-1]
            merged[-1] = (first, max(last, end), note)
        else:
            merged.append((start, end, instead))
    return merged


def _cut_out(pieces: Iterable[tuple[float, bytes]], spans: Sequence[_Span]) -> Iterator[tuple[float, bytes]]:
    """Yields the pieces without the spans, which may lie across pieces; the replacement stands where a span begins."""
    start = index = 0
    for when, data in pieces:
        end, at = start + len(data), start
        kept: list[bytes] = []
        while index < len(spans) and spans[index][0] < end:
            first, last, instead = spans[index]
            if first >= start:
                kept += (data[at - start : first - start], instead)
            at = min(last, end)
            if last > end:
                break
            index += 1
        kept.append(data[at - start :])
        yield when, b"".join(kept)
        start = end


def _plain_without(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _REMOVED.decode())
    return text
