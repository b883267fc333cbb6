"""Keys and prompts do not get into errors."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.wire.codec import encode
from together_async.wire.error_bodies import status_error
from together_async.wire.redaction import redact

SECRETS = ["key-1234567890", 'a "quoted"\nprompt — on two lines', "prompt", "red"]


@pytest.mark.parametrize("secret", SECRETS)
def test_keys_and_prompts_never_stand_in_the_text(secret):
    """However a server repeats a secret: as it is, in JSON, as Python writes it, or on one line."""
    for form in (secret, json.dumps(secret), repr(secret), " ".join(secret.split())):
        for body in (
            encode({"error": {"message": f"bad: {form}!"}}),
            f"bad: {form}!".encode(),
            f"<p>bad: {form}!</p>".encode(),
        ):
            error = status_error(400, {}, body, secrets=[secret])
            assert secret not in str(error).replace("[redacted]", "")
            assert form.strip("\"'") not in str(error).replace("[redacted]", "")
            assert "[redacted]" in str(error)


def test_redaction_comes_before_the_cut():
    """A secret at the place where the message is cut does not leave its first half."""
    error = status_error(400, {}, b"x" * 490 + b"key-1234567890", secrets=SECRETS)
    assert "key-" not in str(error)


@given(st.text(max_size=60), st.lists(st.text("acdert[] \0", max_size=3), max_size=8))
def test_redaction_is_once_through(text, secrets):
    """Every secret is gone, nothing is redacted twice, and the text does not grow beyond ten characters for one."""
    redacted = redact(text, secrets)
    assert len(redacted) <= 10 * len(text)
    for secret in filter(None, secrets):
        assert secret not in redacted.replace("[redacted]", "\uffff")


def test_secrets_may_be_empty():
    """An empty secret is no secret."""
    assert redact("abc", ["", "b"]) == "a[redacted]c"
    assert redact("abc", []) == "abc"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("got HOST.example", "host.EXAMPLE"),
        ("\u0130stanbul is HOST.example", "host.example"),
        ("STRASSE stra\u00dfe", "STRA\u00dfE"),
        ("\u03a3\u039f\u03a6\u039f\u03a3 x", "\u03c3\u03bf\u03c6\u03bf\u03c2"),
    ],
)
def test_case_does_not_hide_a_secret(text, secret):
    """Whatever the alphabet, and beside characters that are longer in the other case; all else stays as it is."""
    for around in ("", "\u0130\u00df: "):
        assert redact(around + text, [secret]) == around + redact(text, [secret])
    assert "[redacted]" in redact(text, [secret])


def test_no_cache_keeps_a_secret():
    """Neither that of regular expressions nor another one."""
    secret = "a long prompt " * 100_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert redact(f"bad: {secret}!", [secret]) == "bad: [redacted]!"
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 10_000
