"""How a result is written to a line, and read from it again."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.batch_output import UNKNOWN_SIZE, answer_line, completion_of, failure_line
from support.servers import MODEL, whole
from together_async import ChatCompletion, errors
from together_async.batch.record import (
    Record,
    RecordError,
    body_hash,
    completion_record,
    decode_line,
    encode_line,
    error_code,
    error_record,
    parse_line,
    token_count,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
SECONDS = st.none() | st.floats(0, 1e9)


PARTIAL = ChatCompletion()


# --------------------------------------------------------------------------------------------------------------- hashes


def test_the_order_of_keys_does_not_count() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0.5}
    other = {"temperature": 0.5, "messages": [{"content": "x", "role": "user"}], "model": "m"}
    assert body_hash(body) == body_hash(other)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n", "messages": []},
        {"model": "m", "messages": [{}]},
        {"model": "m", "messages": [], "n": 1},
        {"model": "m", "messages": [], "stop": None},
        {"model": "m", "messages": ["ä"]},
    ],
)
def test_everything_else_counts(other: dict[str, Any]) -> None:
    assert body_hash(other) != body_hash({"model": "m", "messages": []})


def test_a_hash_stays_what_it_is() -> None:
    """Existing files hold it: with another hash every request would be sent again."""
    assert body_hash({"model": "m", "messages": [{"role": "user", "content": "Grüße"}]}) == "ca91951265f2707a"


@given(JSON)
def test_a_body_that_went_through_json_has_the_same_hash(value: Any) -> None:
    assert body_hash({"x": value}) == body_hash(json.loads(json.dumps({"x": value})))


# -------------------------------------------------------------------------------------------------------------- writing


def test_an_answer_is_written_as_the_batch_api_writes_it() -> None:
    """`custom_id`, `response` with status and body, and our own additions in `meta`."""
    body = whole("Hi")
    line = json.loads(answer_line("a", "Hi", body_hash="00ff", total_s=1.5, attempts=2, retries=(("503", 0.25),)))
    assert line == {
        "custom_id": "a",
        "response": {"status_code": 200, "body": body},
        "meta": {"hash": "00ff", "total_s": 1.5, "attempts": 2, "retries": [["503", 0.25]]},
    }


def test_an_error_is_written_as_the_batch_api_writes_it() -> None:
    line = json.loads(failure_line("a", "429", "slow down", body_hash="00ff"))
    assert line["error"] == {"message": "slow down", "code": "429"}
    assert "response" not in line


def test_what_the_server_added_is_kept() -> None:
    """Keys that this package does not know are in the line as they came."""
    body = {**whole(), "service_tier": "x", "novelty": {"deep": [1, None]}}
    completion = completion_of(body)
    line = json.loads(encode_line(completion_record(Record("a"), completion, size=UNKNOWN_SIZE), completion))
    assert line["response"]["body"] == body


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(whole("one\ntwo\r\u2028three"), indent=2).encode(),
        json.dumps(whole()).replace(", ", ",\r\n").encode(),
        b" \t" + json.dumps(whole()).encode() + b" \n",
        json.dumps(whole("\x00\x1f\x7f")).encode(),
    ],
)
def test_a_line_is_one_line(data: bytes) -> None:
    """For every layout of the completion, and every text in it."""
    completion = completion_of(data)
    line = encode_line(completion_record(Record("a\nb\r\u2028"), completion, size=UNKNOWN_SIZE), completion)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert json.loads(line)["response"]["body"] == json.loads(data)
    assert decode_line(line).custom_id == "a\nb\r\u2028"


@given(
    custom_id=st.text(min_size=1),
    code=st.text(min_size=1),
    message=st.text(),
    hashed=st.text(string.hexdigits, max_size=16),
    seconds=st.tuples(SECONDS, SECONDS, SECONDS, SECONDS),
    attempts=st.integers(0, 100),
    retries=st.lists(st.tuples(st.text(), st.floats(0, 1e6)), max_size=3),
)
def test_an_error_is_read_as_it_was_written(
    custom_id: str, code: str, message: str, hashed: str, seconds: Any, attempts: int, retries: Any
) -> None:
    sent_at, queued_s, first_token_s, total_s = seconds
    record = Record(
        custom_id,
        body_hash=hashed,
        code=code,
        message=message,
        sent_at=sent_at,
        queued_s=queued_s,
        first_token_s=first_token_s,
        total_s=total_s,
        attempts=attempts,
        retries=tuple(retries),
    )
    assert decode_line(encode_line(record)) == record


@given(custom_id=st.text(min_size=1), text=st.text(), model=st.text(min_size=1), tokens=st.integers(0, 100_000))
def test_an_answer_is_read_as_it_was_written(custom_id: str, text: str, model: str, tokens: int) -> None:
    body = {**whole(text), "model": model, "usage": {"prompt_tokens": tokens, "completion_tokens": 3}}
    completion = completion_of(body)
    record = completion_record(
        Record(custom_id, body_hash="ab", model="asked", total_s=1.0), completion, size=UNKNOWN_SIZE
    )
    line = encode_line(record, completion)
    assert decode_line(line) == record
    assert (record.model, record.prompt_tokens, record.completion_tokens) == ("asked", tokens, 3)
    assert json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] == text


def test_tokens_that_the_server_did_not_count_are_estimated() -> None:
    """Four characters are a token; the line says so, since budgets of later runs need it."""
    completion = completion_of({**whole("x" * 41), "usage": None})
    record = completion_record(Record("a", model=MODEL), completion, size=UNKNOWN_SIZE, expected_prompt_tokens=7)
    assert (record.prompt_tokens, record.completion_tokens, record.counted) == (7, 11, False)
    assert decode_line(encode_line(record, completion)) == record


def test_the_model_that_was_asked_is_kept_where_another_name_answers() -> None:
    """The price list has that name."""
    completion = completion_of({**whole(), "model": "m-2024-11-06"})
    record = completion_record(Record("a", model="m"), completion, size=UNKNOWN_SIZE)
    assert decode_line(encode_line(record, completion)) == record


UNUSUAL: list[dict[str, Any]] = [
    {"usage": {"prompt_tokens": "12", "completion_tokens": 3}},
    {"usage": {"prompt_tokens": 12.0, "completion_tokens": 3}},
    {"usage": {"prompt_tokens": 12.5, "completion_tokens": None}},
    {"usage": {"prompt_tokens": 2**50, "completion_tokens": 3}},
    {"usage": {"prompt_tokens": [1], "completion_tokens": {"a": 1}}},
    {"usage": [1, 2]},
    {"usage": "none"},
    {"usage": None},
    {"model": None},
    {"model": 7},
    {"model": ["m"]},
]


@pytest.mark.parametrize("fields", UNUSUAL, ids=str)
def test_what_the_client_takes_for_an_answer_is_one_when_it_is_read_again(fields: dict[str, Any]) -> None:
    """A result that was reported as done is done in the next run too, whatever the server's usage looks like."""
    completion = completion_of({**whole(), **fields})
    record = completion_record(Record("a"), completion, size=UNKNOWN_SIZE)
    again = decode_line(encode_line(record, completion))
    assert again.ok
    assert (again.prompt_tokens, again.completion_tokens) == (record.prompt_tokens, record.completion_tokens)


@given(model=JSON, usage=JSON, prompt=JSON)
def test_no_usage_and_no_model_makes_a_result_unreadable(model: Any, usage: Any, prompt: Any) -> None:
    for body in ({"model": model, "usage": usage}, {"usage": {"prompt_tokens": prompt, "completion_tokens": prompt}}):
        completion = completion_of({**whole(), **body})
        record = completion_record(Record("a"), completion, size=UNKNOWN_SIZE)
        again = decode_line(encode_line(record, completion))
        assert again.ok
        assert again.total_tokens == record.total_tokens


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RateLimitError("x", status_code=429), "429"),
        (errors.InternalServerError("x", status_code=529), "529"),
        (errors.APIConnectionError("x"), "connection"),
        (errors.IncompleteStreamError("x", partial=PARTIAL), "incomplete_stream"),
        (errors.StreamAPIError("x", partial=PARTIAL), "stream_api"),
        (errors.APIResponseValidationError("x"), "response_validation"),
        (ValueError("x"), "invalid_request"),
    ],
    ids=repr,
)
def test_codes_of_errors(error: Exception, code: str) -> None:
    assert error_code(error) == code
    assert error_record(Record("a", body_hash="h", attempts=3), error) == Record(
        "a", body_hash="h", attempts=3, code=code, message="x"
    )


def test_codes_of_timeouts_name_their_phase() -> None:
    assert error_code(errors.APITimeoutError(phase="first_token", seconds=1)) == "timeout_first_token"
    assert error_code(errors.StreamTimeoutError(phase="idle", seconds=1, partial=PARTIAL)) == "stream_timeout"


def test_a_message_without_end_is_cut() -> None:
    assert len(error_record(Record("a"), ValueError("x" * 1_000_000)).message) <= 10_000


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_result_of_another_batch_api_is_read() -> None:
    """OpenAI's has more keys, and null for an absent error."""
    line = {
        "id": "batch_req_1",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "r", "body": whole()},
        "error": None,
    }
    record = decode_line(json.dumps(line).encode())
    assert record == Record("a", model=MODEL, prompt_tokens=1, completion_tokens=2)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ({"custom_id": "a", "response": None, "error": {"code": "expired", "message": "late"}}, "expired", "late"),
        ({"custom_id": "a", "error": {"code": 7, "message": None}}, "7", ""),
        ({"custom_id": "a", "error": {}}, "error", ""),
        ({"custom_id": "a", "response": {"status_code": 400, "body": {"error": {"message": "x"}}}}, "400", ""),
        ({"custom_id": "a", "response": {"status_code": 500, "body": None}, "error": None}, "500", ""),
    ],
)
def test_errors_of_other_batch_apis_are_read(line: dict[str, Any], code: str, message: str) -> None:
    record = decode_line(json.dumps(line).encode())
    assert not record.ok
    assert (record.code, record.message) == (code, message)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b'"zanzibar"',
        b'{"custom_id": "zanzibar"}',
        b'{"custom_id": "zanzibar", "body": {"model": "m"}}',
        b'{"custom_id": 5, "response": {}}',
        b'{"response": {"status_code": 200}}',
        b'{"custom_id": "zanzibar", "response": null, "error": null}',
        b'{"custom_id": "zanzi\xff", "error": {}}',
        b'{"custom_id": "zanzibar", "response": ' + b"[" * 100_000,
        b"\0" * 100,
        answer_line("zanzibar")[:-2],
    ],
    ids=lambda line: repr(line[:40]),
)
def test_what_is_no_result_is_refused_without_repeating_it(line: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        decode_line(line)
    assert "zanzi" not in str(caught.value)


def test_no_beginning_of_a_line_is_a_line() -> None:
    """A line is whole only with its last brace, by which a torn line is recognised."""
    for line in (answer_line("a", "Hällo } ] \n"), failure_line("a", "500", 'x"}')):
        for size in range(len(line) - 1):
            with pytest.raises(RecordError):
                decode_line(line[:size])
        assert decode_line(line[:-1]) == decode_line(line)


@pytest.mark.parametrize("tokens", [0, 1, 12, 2**31, 2**53, 10**17])
def test_token_counts(tokens: int) -> None:
    """A count that is a whole number is taken as it is; the same number as a text or a float is the same count."""
    assert token_count(tokens) == token_count(str(tokens)) == token_count(float(tokens)) == tokens
    for usage in (tokens, str(tokens), float(tokens)):
        body = {"usage": {"prompt_tokens": usage, "completion_tokens": usage}}
        line = json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": body}}).encode()
        assert parse_line(line).model_and_tokens == ("", tokens, tokens)
    for usage in (-1, True, None, "many", [1]):
        body = {"usage": {"prompt_tokens": usage, "completion_tokens": usage}}
        line = json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": body}}).encode()
        assert parse_line(line).model_and_tokens == ("", token_count(usage), token_count(usage)) == ("", 0, 0)
