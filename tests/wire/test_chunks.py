"""`ChunkDecoder`: what each payload becomes, how a body ends, and that any split of it gives the same."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.paths import SAMPLES
from together_async.errors import (
    APIResponseValidationError,
    APIStatusError,
    TogetherError,
)
from together_async.wire.accumulator import ChatCompletionAccumulator
from together_async.wire.chunks import ChunkDecoder, ProtocolError, ReportedError
from together_async.wire.codec import decode_completion, encode
from together_async.wire.completions import completion_of
from together_async.wire.error_bodies import error_facts, status_error

STREAMS = sorted(SAMPLES.glob("*.sse"))
CHUNK = b'{"id":"s","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}'
BOM = b"\xef\xbb\xbf"


def walk(pieces, **options):
    """Every chunk of a body and how it ended: `done`, `end`, or the exception's type and text."""
    chunks = []
    decoder = None
    try:
        decoder = ChunkDecoder(**options)
        for piece in itertools.chain(pieces, [None]):
            for payload in decoder.end() if piece is None else decoder.feed(piece):
                chunk = decoder.decode(payload)
                if chunk is not None:
                    chunks.append(chunk)
                if decoder.done:
                    return chunks, "done"
    except (ReportedError, ProtocolError) as error:
        return chunks, (type(error), str(error))
    return chunks, "end"


def decode(payload: bytes):
    return ChunkDecoder().decode(payload)


def one_event(payload: bytes, event: bytes = b""):
    named = b"event: " + event + b"\n" if event else b""
    return walk([named + b"data: " + payload + b"\n\n"])


# ---------------------------------------------------------------------------------------- the table: payload -> outcome


def test_a_chunk_is_the_chunk():
    """A chunk decodes, and keeps its JSON."""
    chunk = decode(CHUNK)
    assert chunk.choices[0].delta.content == "a"
    assert chunk.to_dict() == json.loads(CHUNK)


@pytest.mark.parametrize("payload", [b"[DONE]", b" [DONE]", b"[DONE]  ", b"[DONE]\n"])
def test_done_is_the_end(payload):
    """`[DONE]`, blanks around it or not, is the end and no chunk."""
    decoder = ChunkDecoder()
    assert decoder.decode(payload) is None
    assert decoder.done
    assert repr(decoder).startswith("<ChunkDecoder done")


def test_whatever_follows_done_is_ignored():
    """Errors, oversize events and garbage after `[DONE]` do not matter, in the same read or later."""
    for after in (
        b'data: {"error":"x"}\n\n',
        b"data: " + b"x" * 1000 + b"\n\n",
        b"data: nonsense\n\n",
        b"\xff\n\n<html>",
    ):
        chunks, ending = walk([b"data: " + CHUNK + b"\n\ndata: [DONE]\n\n" + after], max_event_size=200)
        assert (len(chunks), ending) == (1, "done")
        chunks, ending = walk([b"data: " + CHUNK + b"\r\n\r\ndata: [DONE]\n\n", after], max_event_size=200)
        assert (len(chunks), ending) == (1, "done")


ERRORS = {
    "object": ({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}, "m", "c", None),
    "object, int code": ({"error": {"message": "m", "code": 503}}, "m", 503, 503),
    "object, text code": ({"error": {"message": "m", "code": "429"}}, "m", "429", 429),
    "object, status beside a code": (
        {"error": {"message": "m", "code": "overloaded", "status": 503}},
        "m",
        "overloaded",
        503,
    ),
    "object, null code": ({"error": {"message": "m", "code": None, "status_code": 500}}, "m", 500, 500),
    "object without message": ({"error": {"type": "overloaded_error"}}, "overloaded_error", None, None),
    "empty object": ({"error": {}}, "no message", None, None),
    "object beside empty choices": ({"error": {"message": "m"}, "choices": []}, "m", None, None),
    "object beside choices": (
        {"error": {"message": "m"}, "choices": [{"index": 0, "delta": {"content": "x"}}]},
        "m",
        None,
        None,
    ),
    "text": ({"error": "m"}, "m", None, None),
    "text and status": ({"error": "m", "status": 404}, "m", 404, 404),
    "list": ({"error": ["m"]}, "no message", None, None),
    "true": ({"error": True}, "no message", None, None),
    "detail text": ({"detail": "m"}, "m", None, None),
    "detail list": ({"detail": [{"loc": ["body", "n"], "msg": "m", "input": "my prompt"}]}, "body.n: m", None, None),
    "detail list of texts": ({"detail": ["a", "b"]}, "a; b", None, None),
    "detail object": ({"detail": {"message": "m"}}, "m", None, None),
    "detail of odd places": ({"detail": [{"loc": 5, "msg": "m"}, {"loc": None}, 7, None]}, "m", None, None),
    "flat": ({"message": "m", "code": 400}, "m", 400, 400),
    "flat with type": ({"message": "m", "type": "t"}, "m", None, None),
    "object error": ({"object": "error", "message": "m", "code": 404}, "m", 404, 404),
    "object error without message": ({"object": "error"}, "no message", None, None),
    "code of 5,000 digits": ({"error": {"message": "m", "code": "9" * 5000}}, "m", "9" * 5000, None),
    "code of other digits": (
        {"error": {"message": "m", "code": "\u0664\u0660\u0660"}},
        "m",
        "\u0664\u0660\u0660",
        None,
    ),
    "code out of range": ({"error": {"message": "m", "code": 200}}, "m", 200, None),
}


@pytest.mark.parametrize(("body", "message", "code", "status"), ERRORS.values(), ids=ERRORS)
def test_error_objects_in_every_shape(body, message, code, status):
    """Each shape gives its message, code and status, alone and as a payload of the stream."""
    facts = error_facts(body)
    assert (facts.message, facts.code, facts.status) == (message, code, status)
    with pytest.raises(ReportedError) as caught:
        decode(encode(body))
    assert caught.value.facts == facts
    assert "my prompt" not in repr(facts)


@pytest.mark.parametrize(
    "body",
    [
        {"error": None, "choices": []},
        {"error": "", "choices": []},
        {"error": {}, "choices": [{"index": 0, "delta": {"content": "x"}}]},
        {"error": False, "choices": []},
        {"choices": [], "detail": "x", "message": "m", "code": 1},
        {"message": "hello"},
        {},
        [],
        "text",
        None,
    ],
)
def test_what_is_not_an_error(body):
    """An empty error next to choices, and an object without an error's fields, is not an error."""
    assert error_facts(body) is None


@pytest.mark.parametrize(
    ("data", "message", "status"),
    [
        (b'{"message":"overloaded","code":529}', "overloaded", 529),
        (b'{"error":{"message":"m","code":500}}', "m", 500),
        (b"upstream gone", "upstream gone", None),
        (b"", "no message", None),
        (b"{}", "no message", None),
        (b"[1]", "no message", None),
        (b'"text"', "text", None),
        (b"\xff", "\ufffd", None),
    ],
)
def test_an_event_named_error_is_an_error(data, message, status):
    """Whatever the data of an event named `error` is, it is an error in the stream."""
    decoder = ChunkDecoder()
    (payload,) = decoder.feed(b"event: error\ndata: " + data + b"\n\n")
    with pytest.raises(ReportedError) as caught:
        decoder.decode(payload)
    assert (caught.value.facts.message, caught.value.facts.status) == (message, status)


@pytest.mark.parametrize(
    "payload", [b"{}", b'{"type":"ping"}', b'{"error":null}', b'{"id":"x","created":1}', b"", b"  "]
)
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_pings_in_json_are_skipped(payload, end):
    """JSON of another shape without choices, and events with no data at all, are skipped: LF or CRLF, both ways."""
    chunks, ending = walk([b"data: " + payload + end + b"data: " + CHUNK + end])
    assert (len(chunks), ending) == (1, "end")


def test_named_events_are_read_by_their_content():
    """Some servers name their chunks; pings have names too, and their data may be no JSON."""
    assert len(one_event(CHUNK, b"completion.chunk")[0]) == 1
    assert one_event(b"keep alive", b"ping") == ([], "end")
    assert one_event(b'{"type":"ping"}', b"ping") == ([], "end")
    assert one_event(b"[DONE]", b"done") == ([], "done")
    assert one_event(b'{"error":{"message":"m"}}', b"failure")[1] == (ReportedError, "m")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"nonsense", "data is not JSON (8 bytes"),
        (b'{"id":"s","choi', "data is not JSON (15 bytes"),
        (b"\xff\xfe", "not JSON"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
        (b"5", "a JSON int, expected an object"),
        (b'"text"', "a JSON str, expected an object"),
        (b"[1,2]", "a JSON list, expected an object"),
        (b'{"choices":{}}', "$.choices: got an object, expected an array"),
        (b'{"choices":["my prompt"]}', "$.choices[0]: got a string, expected an object"),
        (
            b'{"choices":[{"delta":{"content":["my prompt"]}}]}',
            "$.choices[0].delta.content: got an array, expected a string",
        ),
    ],
)
def test_anything_else_is_not_the_protocol(payload, text):
    """The error names what was got and expected, and quotes nothing."""
    with pytest.raises(ProtocolError) as caught:
        decode(payload)
    assert text in str(caught.value)
    assert "my prompt" not in str(caught.value)


def test_usage_alone_is_a_chunk():
    """A last chunk with the usage is a chunk, whether `choices` is empty, null or absent."""
    for choices in (b'"choices":[],', b'"choices":null,', b""):
        chunk = decode(b"{" + choices + b'"usage":{"total_tokens":3}}')
        assert chunk.choices == ()
        assert chunk.usage.total_tokens == 3
    assert decode(b'{"choices":[]}').usage is None


@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_payload_has_one_of_the_outcomes(payload):
    """No bytes at all make the decoder raise anything else."""
    try:
        decode(payload)
    except (ReportedError, ProtocolError) as error:
        assert str(error)  # noqa: PT017 - it may also not raise


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=8) | st.just("9" * 5000),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "detail",
                    "message",
                    "code",
                    "status",
                    "loc",
                    "msg",
                    "type",
                    "object",
                    "choices",
                    "delta",
                    "content",
                    "index",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from([200, 400, 403, 429, 500]))
def test_any_json_has_one_of_the_outcomes(value, status):
    """The same for JSON with the protocol's keys in the wrong places, in streams, errors and whole bodies."""
    body = encode(value)
    for event in (b"", b"error", b"ping"):
        one_event(body, event)
    assert isinstance(status_error(status, {}, body), APIStatusError)
    try:
        completion_of(body, status=200, headers={})
    except TogetherError as error:
        assert isinstance(error, (APIStatusError, APIResponseValidationError))  # noqa: PT017 - it may also not raise


# ------------------------------------------------------------------------------------------------------- whole streams


@pytest.mark.parametrize("sample", STREAMS, ids=lambda path: path.stem)
def test_samples_give_the_same_however_they_are_split(sample):
    """Chunks and ending are those of the whole body for every two-way split and byte by byte."""
    body = sample.read_bytes()
    expected = walk([body])
    assert expected[0]
    for place in range(1, len(body), 3):
        assert walk([body[:place], body[place:]]) == expected, place
    assert walk(body[i : i + 1] for i in range(len(body))) == expected


ENDINGS = {
    "transformers_serve": "end",
    "cut_off": "end",
    "multi_line_data": "done",
    "error_object": (ReportedError, "CUDA out of memory"),
    "error_text": (ReportedError, "overloaded"),
    "error_named": (ReportedError, "overloaded"),
    "error_named_text": (ReportedError, "upstream gone"),
    "error_detail": (ReportedError, "body.messages: field required"),
    "error_flat": (ReportedError, "too long"),
    "error_beside_choices": (ReportedError, "provider disconnected"),
}


@pytest.mark.parametrize("sample", STREAMS, ids=lambda path: path.stem)
def test_how_each_sample_ends(sample):
    """`[DONE]`, the body's end, or the server's error; pings and comments are no chunks."""
    chunks, ending = walk([sample.read_bytes()])
    assert ending == ENDINGS.get(sample.stem, "done")
    if sample.stem == "pings":
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["a", "b", "c", None]
    if sample.stem.startswith("error_"):
        assert len(chunks) == 1


@pytest.mark.parametrize("head", [b"", BOM, b"\r\n \t", BOM + b"\n"])
@pytest.mark.parametrize("step", [1, 5, 10_000])
@pytest.mark.parametrize("name", ["together_llama", "tool_calls", "llama_cpp_two_choices"])
def test_a_whole_completion_is_a_stream_of_one_chunk(name, head, step):
    """A server that answers a stream request with the whole JSON: one chunk that adds up to that completion."""
    document = (SAMPLES / f"{name}.json").read_bytes()
    body = head + document
    (chunk,), ending = walk((body[i : i + step] for i in range(0, len(body), step)), media_type="application/json")
    assert ending == "end"
    accumulator = ChatCompletionAccumulator()
    accumulator.add(chunk)
    assert accumulator.completion() == decode_completion(document)
    assert accumulator.finished


def test_a_whole_completion_as_one_event():
    """The same inside an event stream."""
    document = json.dumps(json.loads((SAMPLES / "together_gpt_oss.json").read_bytes())).encode()
    (chunk,), ending = walk([b"data: " + document + b"\n\ndata: [DONE]\n\n"])
    assert (chunk.choices[0].delta.content, chunk.choices[0].delta.reasoning) == ("It is 4.", "We need 2+2.")
    assert ending == "done"


def test_a_message_next_to_a_delta_repeats_it():
    """A chunk with both is a chunk: its text is the delta's, once."""
    chunk = decode(b'{"choices":[{"index":0,"delta":{"content":"a"},"message":{"content":"all of it a"}}]}')
    assert chunk.choices[0].delta.content == "a"


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (b'{"error":{"message":"m","code":500}}', (ReportedError, "m")),
        (b' {"detail":"m"}', (ReportedError, "m")),
        (b'{"id":"s","choices":[', ProtocolError),
        (b"[1,2]", ProtocolError),
        (b"<!DOCTYPE html><h1>Bad gateway</h1>", ProtocolError),
        (BOM + b"\n  <html>", ProtocolError),
    ],
)
@pytest.mark.parametrize("step", [1, 10_000])
def test_a_body_that_is_not_an_event_stream(body, ending, step):
    """A JSON error is the server's error; any other body is named in the message."""
    chunks, how = walk(body[i : i + step] for i in range(0, len(body), step))
    assert chunks == []
    assert how == ending or how[0] is ending


def test_an_html_content_type_is_refused_at_once():
    """A page needs no reading."""
    with pytest.raises(ProtocolError, match="HTML"):
        ChunkDecoder(media_type="text/html")


@pytest.mark.parametrize("step", [1, 50, 10_000])
def test_an_oversize_event_comes_after_what_was_before_it(step):
    """The chunks before it are delivered, then it is refused with both sizes, however the bytes were split."""
    body = (b"data: " + CHUNK + b"\n\n") * 3 + b"data: " + b"x" * 500 + b"\n\ndata: " + CHUNK + b"\n\n"
    chunks, (kind, text) = walk((body[i : i + step] for i in range(0, len(body), step)), max_event_size=200)
    assert (len(chunks), kind) == (3, ProtocolError)
    assert "expected at most 200" in text
    assert "max_event_size" in text


def test_a_whole_document_has_the_same_cap():
    """A JSON body without an end is not collected without an end."""
    decoder = ChunkDecoder(max_event_size=1000)
    assert decoder.feed(b'{"x":"') == []
    for _ in range(9):
        assert decoder.feed(b"y" * 100) == []
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        decoder.feed(b"y" * 100)
    assert decoder.end() == []
