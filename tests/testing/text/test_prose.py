"""Prose: exact numbers of tokens, sentences that read well, single-token words."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.testing.text import prose
from together_async.testing.text.prose import (
    plausible_length,
    plausible_text,
    sentences_of,
    shortest_and_longest,
    words_of,
)
from together_async.testing.text.tokens import tokens_of

rngs = st.integers(0, 2**32).map(Random)


@given(rngs, st.integers(0, 700))
def test_text_of_so_many_tokens(rng, tokens):
    """The number of tokens is met exactly, whatever it is; a full stop ends the text."""
    text = plausible_text(rng, tokens)
    assert len(tokens_of(text)) == tokens
    assert text.endswith(".") or tokens < 2


@pytest.mark.parametrize("tokens", range(300))
def test_text_of_every_length(tokens):
    """No length is left out: sentences, paragraphs, and anything shorter."""
    assert [len(tokens_of(plausible_text(Random(seed), tokens))) for seed in range(5)] == [tokens] * 5


def test_sentences_have_every_length():
    """The plan of a paragraph relies on it: a sentence of each number of tokens from the shortest to the longest."""
    shortest, longest = shortest_and_longest()
    assert all(sentences_of(tokens) for tokens in range(shortest, longest + 1))
    assert longest // 2 >= shortest
    assert shortest == len(prose._SHORT)


def test_words_are_single_tokens_and_regular():
    """Sentences count on words of one token, and put an `s` behind things and verbs, and `a` before things."""
    for topic in range(len(prose._TOPICS)):
        for gap, words in words_of(topic).items():
            ending = "s" if gap in ("thing", "do", "touch") else ""
            assert [len(tokens_of(f" {word}{ending}")) for word in words] == [1] * len(words)
            assert not ending or not re.search(r"(s|x|z|ch|sh|o|[^aeiou]y)\b", " ".join(words))
            assert gap not in ("thing", "quality", "idea") or not re.search(r"\b[aeiou]", " ".join(words))


def test_text_is_varied_and_reads_like_prose():
    """Sentences begin with capitals, paragraphs stand apart, no word is missing, hundreds of words are used."""
    text = plausible_text(Random(1), 5000)
    sentences = re.split(r"(?<=\.)\s+", text)
    assert all(re.fullmatch(r"[A-Z][a-z]*[,:]?( [a-z]+[,:]?)+\.", sentence) for sentence in sentences)
    assert len(text.split("\n\n")) > 30
    assert len(set(re.findall(r"[a-z]+", text.lower()))) > 300
    assert Counter(sentences).most_common(1)[0][1] <= 5


def test_text_of_less_than_nothing():
    """A negative number of tokens is refused."""
    with pytest.raises(ValueError, match=r"^tokens: got -1, expected 0 or more"):
        plausible_text(Random(1), -1)


def test_plausible_lengths():
    """Between 8 and 400 tokens, half of them up to about 60."""
    rng = Random(1)
    lengths = [plausible_length(rng) for _ in range(4000)]
    assert min(lengths) >= 8
    assert max(lengths) <= 400
    assert 55 < statistics.median(lengths) < 65
    assert len(set(lengths)) > 150
