"""Text cut into plausible model tokens, and tool-call arguments cut into streamed pieces."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

VOCABULARY = 128_000
"""The number of distinct token ids, 0 to 127,999; about the size of Llama 3's vocabulary."""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W\d_{_CJK}]"
_TOKEN = re.compile(
    # Every repetition is bounded, so no text takes more than a few steps per character.
    r" ?[A-Za-z]{1,8}+(?!\w)"  # the bulk of most text, with the cheapest test
    rf"| ?{_LETTER}{{1,8}}+(?!{_LETTER})"
    rf"| ?{_LETTER}{{5}}"  # a longer word, one piece at a time
    r"| ?\d{1,3}"
    r"| ?[^\w\s]{1,4}"
    rf"| ?[{_CJK}]{{1,2}}"
    r"|[\r\n]{1,8}"
    r"|\s{1,8}(?!\S)"  # leaves the last space to the word after it
    r"|.",
    re.DOTALL,
)


def tokens_of(text: str) -> list[str]:
    """Cuts a text into plausible model tokens: words with the space before them, pieces of long words, punctuation.

    Returns:
        Tokens of 1 to 9 characters; joined, they give the text back. An empty list for an empty text.
    """
    return _TOKEN.findall(text)


def token_id(token: str) -> int:
    """Returns a made-up id for a token, 0 to 127,999, the same in every process."""
    return zlib.crc32(token.encode("utf-8", "surrogatepass")) % VOCABULARY


def argument_pieces(arguments: str, rng: Random) -> list[str]:
    """Cuts a tool call's arguments into pieces of 1 to 8 characters, as a stream sends them; [] for an empty text."""
    pieces, start = [], 0
    while start < len(arguments):
        pieces.append(arguments[start : (start := start + rng.randint(1, 8))])
    return pieces
