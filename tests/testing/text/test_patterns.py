"""Texts that match a pattern, and patterns that no text is found for."""

from __future__ import annotations

import builtins
import re
import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.testing.text import patterns
from together_async.testing.text.patterns import compiled, matching
from together_async.testing.text.schema import instance_of

rngs = st.integers(0, 2**32).map(Random)

PATTERNS = [
    r"^[A-Z]{3}-\d{4}$",
    r"[a-z]+(-[a-z]+)*",
    r"(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])",
    r'"[^"]*"',
    r"[^\x00-\x7f]{3}",
    r"[\u0000-\uffff]{20}",
    r"[\u4e00-\u9fff]+",
    r"\S+@\S+\.\w{2,}",
    r"(\w)\1\1",
    r"a{150,}",
    r"(?i)abc|def",
    r"\W\s\D.",
    r"[[a]",
    r"^(?=.*\d)(?=.*[a-z]).{8,}$",
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(10))
def test_matching(pattern, seed):
    """The whole text matches; it can be encoded, and unbounded repetitions stay short."""
    text = matching(pattern, Random(seed))
    assert compiled(pattern).fullmatch(text)
    text.encode()
    assert len(text) < 250


@given(st.text(st.sampled_from("ab01.*+?{},()[]^$\\dwsDWS|-:=!<P>")) | st.text(), rngs)
def test_matching_any_pattern(pattern, rng):
    """Whatever the pattern, there is a text that matches it or a `ValueError` that shows it."""
    try:
        text = matching(pattern, rng)
    except ValueError as error:
        assert str(error).startswith(("pattern ", "a pattern"))  # noqa: PT017 - either is right
    else:
        assert compiled(pattern).fullmatch(text)


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "a{99999999999999999999}", "(?P<a>", r"\p{L}", "(?<name>x)"])
def test_not_a_pattern(pattern):
    """A pattern that `re` doesn't accept is refused; the message quotes it."""
    with pytest.raises(ValueError, match=rf"^pattern {re.escape(repr(pattern))}: not a regular expression \("):
        matching(pattern, Random(1))


@pytest.mark.parametrize("pattern", ["a^b", "(?!x)x", r"(?>a)b", "((a{999}){999}){999}", r"[^\x00-\U0010ffff]"])
def test_no_text_for_a_pattern(pattern):
    """A pattern that matches nothing, is unknown to rstr or far too long soon ends in an error."""
    before = time.process_time()
    with pytest.raises(ValueError, match=r"use (a simpler one|fewer)"):
        matching(pattern, Random(1))
    assert time.process_time() - before < 1


def test_matching_without_rstr(monkeypatch):
    """The error of a missing library says how to install it; everything without a pattern works."""
    real = builtins.__import__

    def missing(name, *others):
        if name.partition(".")[0] == "rstr":
            raise ModuleNotFoundError("No module named 'rstr'", name="rstr")
        return real(name, *others)

    patterns._xeger_class.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    for call in (lambda: matching("a", Random(1)), lambda: instance_of({"pattern": "a"}, Random(1))):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'together-async\[testing\]'"):
            call()
    assert instance_of({"type": "null"}, Random(1)) is None
