"""Error responses: the class, the message, and the wait that they ask for."""

import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.paths import SAMPLES
from together_async.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    InsufficientQuotaError,
    InternalServerError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from together_async.wire.codec import encode
from together_async.wire.error_bodies import ErrorFacts, request_id, retry_after, status_error

CLASSES = {
    400: BadRequestError,
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: APIStatusError,
    409: APIStatusError,
    415: APIStatusError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    500: InternalServerError,
    503: InternalServerError,
    524: InternalServerError,
}
BODIES = {
    "json": (b'{"error":{"message":"why","type":"t"}}', "why", dict),
    "error text": (b'{"error":"why"}', "why", dict),
    "message": (b'{"message":"why"}', "why", dict),
    "json text": (b'"why"', "why", str),
    "text": (b"why\n", "why", str),
    "html": (b"<html><style>p{}</style><title>why</title><script>x()</script></html>", "why", str),
    "empty": (b"", "no message", str),
    "empty json": (b"{}", "no message", dict),
    "bytes": (b"\xff", "\ufffd", str),
    "list": (b"[1]", "no message", list),
}


@pytest.mark.parametrize(("status", "cls"), CLASSES.items())
@pytest.mark.parametrize(("body", "message", "kind"), BODIES.values(), ids=BODIES)
def test_status_error_for_each_status_and_body(status, cls, body, message, kind):
    """The status decides the class, any body gives the text; the facts are attributes."""
    headers = {"x-request-id": "r-1", "retry-after": "1.5"}
    error = status_error(status, headers, body, note=" (note)")
    assert type(error) is cls
    assert str(error) == f"{status}: {message} (note)"
    assert (error.status_code, error.request_id, error.retry_after, error.headers) == (status, "r-1", 1.5, headers)
    assert type(error.body) is kind


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "the request exceeds the available context size, try increasing it",
        "The input (1000 tokens) is longer than the model's context length (500 tokens).",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 1 `inputs` tokens",
        "The prompt does not fit the context window",
    ],
)
def test_context_length_by_its_words(message):
    """The servers' own words for it, under 400 and 403, in JSON or as plain text; under 429 it is another error."""
    for body in (encode({"error": {"message": message}}), encode({"error": message}), message.encode()):
        assert type(status_error(403, {}, body)) is ContextLengthError
        assert type(status_error(400, {}, body)) is ContextLengthError
        assert type(status_error(429, {}, body)) is RateLimitError


def test_context_length_by_its_code():
    """The code alone will do."""
    assert (
        type(status_error(400, {}, b'{"error":{"message":"no","code":"context_length_exceeded"}}'))
        is ContextLengthError
    )


@pytest.mark.parametrize(
    "message",
    [
        "context_length_exceeded_behavior must be one of error, truncate",
        "`max_new_tokens` must be strictly positive",
        "You may not use this model in this context",
        "no access",
    ],
)
def test_other_errors_are_not_context_length(message):
    """Words that only look like it: a wrong parameter, a forbidden model."""
    assert type(status_error(400, {}, encode({"error": {"message": message}}))) is BadRequestError
    assert type(status_error(403, {}, encode({"error": {"message": message}}))) is PermissionDeniedError


def test_long_texts_are_cut():
    """A message is a message, not a page; `.body` has all of it."""
    error = status_error(500, {}, b"x" * 100_000)
    assert len(str(error)) < 600
    assert len(error.body) == 100_000


@pytest.mark.parametrize("piece", [b"<", b"<script>", b"<style>x", b"<a ", b"exceed ", b"context ", b"tokens + "])
def test_a_hostile_page_takes_no_longer_than_its_size(piece):
    """Ten times the page is not a hundred times the work: a bounded part is searched, once."""

    def seconds(size: int) -> float:
        body = b"<p>" + piece * (size // len(piece))
        began = time.perf_counter()
        status_error(400, {}, body)
        return time.perf_counter() - began

    assert min(seconds(20_000) for _ in range(5)) < 30 * min(seconds(2_000) for _ in range(5)) + 0.02


def test_the_samples_of_error_bodies():
    """The bodies as servers send them."""
    for name, status, cls, message in (
        ("error_llama_cpp", 400, ContextLengthError, "the request exceeds"),
        ("error_together_401", 401, AuthenticationError, "Invalid API key provided."),
        ("error_together_429", 429, RateLimitError, "Request was rejected"),
        ("error_fastapi_422", 422, UnprocessableEntityError, "body.model: Field required"),
    ):
        error = status_error(status, {}, (SAMPLES / f"{name}.json").read_bytes())
        assert type(error) is cls
        assert str(error).startswith(f"{status}: {message}")
        assert "my prompt" not in str(error)


# ------------------------------------------------------------------------------------------------------------- headers

NOW = 1_700_000_000.0


def at(seconds: float) -> str:
    return email.utils.formatdate(NOW + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": at(30)}, 30.0),
        ({"retry-after": at(-30)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 99 Jan 2026 00:00:00 GMT"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"x-ratelimit-reset": "0.5"}, 0.5),
        ({"retry-after": "3", "x-ratelimit-reset": "0.5"}, 3.0),
        ({"retry-after": "soon", "x-ratelimit-reset": "0.5"}, 0.5),
        ({"x-ratelimit-limit": "10"}, None),
        # A number of the size of a date is one, and what is more than a day ahead has no sense.
        ({"retry-after": f"{NOW + 20:.0f}"}, 20.0),
        ({"retry-after": f"{(NOW + 20) * 1_000:.0f}"}, 20.0),
        ({"retry-after-ms": f"{(NOW + 20) * 1_000:.0f}"}, 20.0),
        ({"x-ratelimit-reset": f"{NOW + 20:.0f}"}, 20.0),
        ({"x-ratelimit-reset": f"{NOW - 1:.0f}"}, 0.0),
        ({"x-ratelimit-reset": f"{NOW - 3_600:.0f}"}, None),
        ({"x-ratelimit-reset": f"{NOW + 100_000:.0f}"}, None),
        ({"retry-after": "100000", "x-ratelimit-reset": "2"}, 2.0),
        ({"retry-after": "1m30s"}, 90.0),
        # The resets of single limits: those that are used up count, else the first.
        ({"x-ratelimit-reset-requests": "1.5s"}, 1.5),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 1.0),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-tokens": "7s",
                "x-ratelimit-remaining-tokens": "0",
            },
            7.0,
        ),
        ({"x-ratelimit-reset-requests": "0s"}, None),
        ({"anthropic-ratelimit-output-tokens-reset": "2023-11-14T22:13:50Z"}, 30.0),
        ({"anthropic-ratelimit-tokens-reset": "2023-11-14T22:13:50Z", "retry-after": "3"}, 3.0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "12"}, 12.0),
        ({"ratelimit-reset": f"{NOW + 12:.0f}"}, 12.0),
        ({"ratelimit": '"burst";r=0;t=3, "daily";r=7;t=9000'}, 3.0),
        ({"ratelimit": '"burst";r=0;t=3, "daily";r=0;t=9000'}, 9_000.0),
        ({"ratelimit": "limit=5, remaining=0, reset=60"}, 60.0),
        ({"ratelimit": '"default";r=0;t=soon, ";;='}, None),
    ],
    ids=str,
)
def test_retry_after(headers, seconds):
    """Seconds, milliseconds, a date or a duration; the first with sense; never negative, never a NaN."""
    assert retry_after(headers, now=lambda: NOW) == seconds
    error = status_error(429, headers, b"", now=lambda: NOW)
    assert error.retry_after == seconds


@pytest.mark.parametrize("name", ["x-ratelimit-reset", "x-ratelimit-reset-requests", "ratelimit-reset"])
def test_a_reset_is_a_time_to_wait_on_a_429_alone(name):
    """Every response has it."""
    assert retry_after({name: "5"}, status=429, now=lambda: NOW) == 5
    assert retry_after({name: "5"}, status=503, now=lambda: NOW) is None


def test_an_empty_account_is_not_a_rate():
    """Under 429 it has a class of its own, whose text says what to do; under other statuses the status decides."""
    body = encode({"error": {"message": "No credits", "code": "credit_balance_exhausted"}})
    error = status_error(429, {}, body)
    assert type(error) is InsufficientQuotaError
    assert isinstance(error, PaymentRequiredError)
    assert isinstance(error, RateLimitError)
    assert str(error).startswith("429: No credits (waiting does not help: add credit")
    assert type(status_error(402, {}, body)) is PaymentRequiredError
    assert type(status_error(403, {}, body)) is PermissionDeniedError


@given(
    st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset", "ratelimit-reset", "ratelimit"]),
    st.text(max_size=30)
    | st.text('0123456789.dhmsuµ";=,rt', max_size=30)
    | st.floats().map(str)
    | st.builds(
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} {}".format,
        st.sampled_from(["Mon", "X"]),
        st.integers(0, 40),
        st.sampled_from(["Jan", "Dec"]),
        st.integers(0, 99999),
        st.integers(0, 30),
        st.integers(0, 70),
        st.integers(0, 70),
        st.sampled_from(["GMT", "-0000", "+9999", "-2359", ""]),
    ),
)
def test_retry_after_of_any_text(name, value):
    """No header makes it raise, and it returns a time that one can sleep."""
    seconds = retry_after({name: value}, now=lambda: NOW)
    assert seconds is None or 0 <= seconds < float("inf")


def test_request_id():
    """The service's own id before the proxy's."""
    assert request_id({"x-request-id": "a", "cf-ray": "b"}) == "a"
    assert request_id({"x-request-id": "", "cf-ray": "b"}) == "b"
    assert request_id({}) is None


def test_facts_of_an_error_that_has_no_body():
    """Facts can be made without a body."""
    assert ErrorFacts("m", 503).status == 503
    assert ErrorFacts("m").status is None
