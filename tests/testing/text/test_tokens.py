"""Tokens: where a text is cut, their ids, and the pieces of arguments."""

from __future__ import annotations

import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.testing.text.tokens import VOCABULARY, argument_pieces, token_id, tokens_of

rngs = st.integers(0, 2**32).map(Random)

HARD_TEXTS = st.text(st.sampled_from(" \t\r\n\u00a0\u2028aéZ_09½.,{}\"'\u0301\u200d😀👩中文かな한\U00020000ก็\x00"))


@given(st.text() | HARD_TEXTS | st.text(st.characters(codec=None)))
def test_tokens_are_the_text(text):
    """Joined they are the text, none is empty, none is long: any letters, emoji, combining marks, surrogates even."""
    tokens = tokens_of(text)
    assert "".join(tokens) == text
    assert all(1 <= len(token) <= 9 for token in tokens)
    assert (tokens == []) == (text == "")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Why is the sky blue?", ["Why", " is", " the", " sky", " blue", "?"]),
        ("one\n\ntwo", ["one", "\n\n", "two"]),
        ("a   b", ["a", "  ", " b"]),
        ('{"city": "Paris"}', ['{"', "city", '":', ' "', "Paris", '"}']),
        ("photosynthesis", ["photo", "synth", "esis"]),
        ("你好吗 中", ["你好", "吗", " 中"]),
        ("in 12345", ["in", " 123", "45"]),
        ("snake_case", ["snake", "_", "case"]),
        (" naïve", [" naïve"]),
        ("\r\n", ["\r\n"]),
    ],
)
def test_where_tokens_end(text, tokens):
    """Words carry the space before them, long ones come in pieces, line breaks stand alone."""
    assert tokens_of(text) == tokens


@pytest.mark.parametrize(
    "piece", [" ", "a", "é", "\n ", "!", "中", "😀", "e\u0301", "a_", "_", "0", "aaaaaaaa_", " \u00a0", "\t"], ids=ascii
)
def test_tokens_of_a_hostile_text(piece):
    """A million characters of one kind take well under a second: no repetition is without a bound."""
    text = piece * (1_000_000 // len(piece))
    before = time.process_time()
    tokens = tokens_of(text)
    assert time.process_time() - before < 2
    assert len(tokens) >= len(text) // 9


@given(st.text() | st.text(st.characters(codec=None)))
def test_token_ids(token):
    """Ids are within the vocabulary."""
    assert 0 <= token_id(token) < VOCABULARY


def test_token_ids_are_stable():
    """An id is the same in every process and release."""
    assert [token_id(token) for token in (" sky", "", "中")] == [100_831, 0, 67_211]


@given(st.text(), rngs)
def test_argument_pieces(text, rng):
    """Joined they are the text; each has a few characters."""
    pieces = argument_pieces(text, rng)
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= 8 for piece in pieces)
