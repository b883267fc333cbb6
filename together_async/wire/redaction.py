"""Keeps keys and prompts out of errors and logs. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final


class Secret(str):
    """A text whose repr does not show it, so that tracebacks with locals, debuggers and logs of headers do not."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[secret]'"


_MOST_BLANKS: Final = 8
"""A secret up to this many times as long as a text may be in it, as runs of blanks may have become single ones."""


def redact(text: str, secrets: Iterable[str]) -> str:
    """Returns the text with every secret replaced; servers often repeat keys and prompts in their errors.

    A secret of several lines is also found as one line, and in the escapes of JSON and Python, in any case: a host name
    or a media type comes back in lower case.

    Args:
        text: Any text.
        secrets: Texts to replace; empty ones are ignored.
    """
    folded = _folded(text)
    forms = {
        form
        # A long prompt is not escaped in five ways for a short text that can't hold it.
        for secret in secrets
        if secret and len(secret) <= _MOST_BLANKS * len(text)
        for form in (
            secret,
            " ".join(secret.split()),
            json.dumps(secret)[1:-1],
            repr(secret)[1:-1],
            repr(secret.encode("utf-8", "replace"))[2:-1],
        )
        if form and _folded(form) in folded
    }
    # A NUL comes first, or a short secret would be found in the replacement of a longer one.
    for form in sorted(forms, key=len, reverse=True):
        text = _without(text, _folded(form))
    return text.replace("\0", "[redacted]")


def _folded(text: str) -> str:
    """Returns the text without differences of case, each character in its place."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(small if len(small := character.casefold()) == 1 else character for character in text)


def _without(text: str, secret: str) -> str:
    """Returns the text with a NUL for each occurrence of a folded secret."""
    # By hand: `re` would keep the secret, which may be a long prompt, in its cache of patterns.
    folded, pieces, start = _folded(text), list[str](), 0
    while (found := folded.find(secret, start)) >= 0:
        pieces.append(text[start:found])
        start = found + len(secret)
    return "\0".join((*pieces, text[start:]))


def secrets_of(api_key: str, messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns what no error's text may repeat: the key, and the texts of the messages.

    Texts of fewer than 8 characters are left out: they are words that any error may use.
    """
    texts = [api_key]
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, (list, tuple)) else [{"text": content}]
        texts += [text for part in parts if isinstance(text := part.get("text"), str) and len(text) >= 8]
    return texts


def scrub(error: BaseException, secrets: Sequence[str]) -> None:
    """Removes the secrets from an error's message, and cuts off causes that repeat one.

    HTTP libraries quote data that they could not parse, which may hold a key or a prompt.

    Args:
        error: The error, which is changed in place.
        secrets: Texts to remove.
    """
    if error.args and isinstance(error.args[0], str):
        error.args = (redact(error.args[0], secrets), *error.args[1:])
    link: BaseException = error
    while (cause := link.__cause__ or link.__context__) is not None:
        shown = f"{cause} {cause!r}"
        if redact(shown, secrets) != shown:
            link.__cause__ = link.__context__ = None
            return
        link = cause
