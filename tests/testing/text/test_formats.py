"""Formats: every text is valid to jsonschema."""

from __future__ import annotations

from random import Random

import pytest
from jsonschema import Draft202012Validator

from together_async.testing.text.formats import FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    """Each text is of its format, and differs from seed to seed."""
    texts = [FORMATS[name](Random(seed)) for seed in range(25)]
    validator = Draft202012Validator({"format": name}, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for text in texts:
        validator.validate(text)
    assert len(set(texts)) > 1
