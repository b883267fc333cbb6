"""The contents of a stream: malformed events, errors, false ends, bodies of another kind."""

import itertools
import json
from typing import Any, get_args

import pytest

from support.survival import KINDS, STREAMED, TEXT, TOKENS, Scene, ask, case, events_of, scene
from together_async import (
    APIResponseValidationError,
    APIStatusError,
    IncompleteStreamError,
    InternalServerError,
    RateLimitError,
    StreamAPIError,
    StreamConnectionError,
    StreamProtocolError,
    TogetherError,
)
from together_async.testing import Cut, ErrorInStream, Garbage, Gzip, Insert, Reply, Split, Status
from together_async.testing.dialect import ErrorShape

pytestmark = pytest.mark.usefixtures("no_leaks")

DONE = b"data: [DONE]\n\n"


def chunk(content: Any = "!", **choice: Any) -> dict[str, Any]:
    """A chunk that says `!`, but for what is wrong with it."""
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": content}, **choice}]}


def content_of(text: str) -> bytes:
    """A chunk as text, with `TEXT` in the place of its content."""
    return json.dumps(chunk("TEXT")).replace('"TEXT"', text).encode()


def with_(text: str) -> bytes:
    """A chunk as text, with a key and value of its own."""
    return json.dumps(chunk()).replace('"id": "x"', text).encode()


ERROR, SKIPPED, READ = "error", "skipped", "read"
EVENTS: dict[str, tuple[Any, str]] = {
    # not JSON
    "truncated JSON": (json.dumps(chunk()).encode()[:-4], ERROR),
    "trailing text": (json.dumps(chunk()).encode() + b" x", ERROR),
    "two documents": (json.dumps(chunk()).encode() * 2, ERROR),
    "text": (b"hello", ERROR),
    "single quotes": (b"{'choices': []}", ERROR),
    "HTML": (b"<html><body>502</body></html>", ERROR),
    "done, misspelt": (b"[done]", ERROR),
    "done, without brackets": (b"DONE", ERROR),
    "NaN": (with_('"created": NaN'), ERROR),
    "Infinity": (with_('"created": Infinity'), ERROR),
    "minus Infinity": (with_('"created": -Infinity'), ERROR),
    "invalid UTF-8 in the content": (b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}', ERROR),
    "half a character": (b'{"choices":[{"index":0,"delta":{"content":"\xc3"}}]}', ERROR),
    "a lone surrogate": (content_of(r'"\ud800"'), ERROR),
    "a NUL in the content": (content_of('"\0"'), ERROR),
    "a NUL alone": (b"\0", ERROR),
    "a control character in the content": (content_of('"\x01"'), ERROR),
    "a byte order mark before the JSON": (b"\xef\xbb\xbf" + json.dumps(chunk()).encode(), ERROR),
    "arrays in arrays without end": (with_('"x": ' + "[" * 100_000), ERROR),
    "objects in objects without end": (with_('"x": ' + '{"a":' * 100_000), ERROR),
    "UTF-16": (json.dumps(chunk()).encode("utf-16-le").replace(b"\n", b""), ERROR),
    # JSON of another type
    "a number": (5, ERROR),
    "a fraction": (-1.5, ERROR),
    "a string": ("[DONE]", ERROR),
    "null": (None, ERROR),
    "true": (True, ERROR),
    "an empty list": ([], ERROR),
    "a list of chunks": ([chunk()], ERROR),
    # the spine is not as documented
    "choices is an object": ({"choices": {"0": {"delta": {"content": "!"}}}}, ERROR),
    "choices is a string": ({"choices": "!"}, ERROR),
    "choices is a number": ({"choices": 1}, ERROR),
    "a choice is a number": ({"choices": [5]}, ERROR),
    "a choice is a string": ({"choices": ["!"]}, ERROR),
    "a choice is a list": ({"choices": [[]]}, ERROR),
    "delta is a string": ({"choices": [{"index": 0, "delta": "!"}]}, ERROR),
    "delta is a list": ({"choices": [{"index": 0, "delta": ["!"]}]}, ERROR),
    "delta is a number": ({"choices": [{"index": 0, "delta": 1}]}, ERROR),
    "content is a number": (chunk(5), ERROR),
    "content is a boolean": (chunk(True), ERROR),
    "content is an object": (chunk({"text": "!"}), ERROR),
    "content is a list": (chunk(["!"]), ERROR),
    "tool_calls is an object": ({"choices": [{"index": 0, "delta": {"tool_calls": {}}}]}, ERROR),
    "tool_calls holds a number": ({"choices": [{"index": 0, "delta": {"tool_calls": [1]}}]}, ERROR),
    "function is a string": ({"choices": [{"index": 0, "delta": {"tool_calls": [{"function": "f"}]}}]}, ERROR),
    "arguments is a number": (
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": 1}}]}}]},
        ERROR,
    ),
    # no content
    "an empty object": ({}, SKIPPED),
    "an object without a meaning": ({"type": "ping"}, SKIPPED),
    "no choices": ({"choices": []}, SKIPPED),
    "choices is null": ({"choices": None}, SKIPPED),
    "a choice is null": ({"choices": [None]}, SKIPPED),
    "an empty choice": ({"choices": [{}]}, SKIPPED),
    "delta is null": ({"choices": [{"index": 0, "delta": None}]}, SKIPPED),
    "an empty delta": ({"choices": [{"index": 0, "delta": {}}]}, SKIPPED),
    "content is null": (chunk(None), SKIPPED),
    "empty content": (chunk(""), SKIPPED),
    "empty data": (b"", SKIPPED),
    "an error that is false": ({"choices": [], "error": False}, SKIPPED),
    "an error that is null": ({"choices": [], "error": None}, SKIPPED),
    # wrong at the edges: the content is read
    "usage is a list": ({**chunk(), "usage": [1]}, READ),
    "usage is a string": ({**chunk(), "usage": "much"}, READ),
    "usage has strings": ({**chunk(), "usage": {"prompt_tokens": "many"}}, READ),
    "id is a number": ({**chunk(), "id": 1}, READ),
    "created is a string": ({**chunk(), "created": "today"}, READ),
    "created is huge": (with_('"created": 1' + "0" * 300), READ),
    "model is a list": ({**chunk(), "model": []}, READ),
    "object is a number": ({**chunk(), "object": 1}, READ),
    "finish_reason is a number": (chunk(finish_reason=1), READ),
    "finish_reason is empty": (chunk(finish_reason=""), READ),
    "logprobs is a string": (chunk(logprobs="x"), READ),
    "seed beyond 64 bits": (chunk(seed=10**40), READ),
    "seed is an object": (chunk(seed={}), READ),
    "text is a number": (chunk(text=5), READ),
    "warnings is a number": ({**chunk(), "warnings": 1}, READ),
    "prompt is a number": ({**chunk(), "prompt": 1}, READ),
    "index is null": (chunk(index=None), READ),
    "index is a number in a string": (chunk(index="0"), READ),
    "index is 0.0": (chunk(index=0.0), READ),
    "keys of the server's own": ({**chunk(), "x": {"y": [1]}, "ü": None}, READ),
    "a key twice": (content_of('"?", "content": "!"'), READ),
    "a choices twice": (b'{"choices": 5, ' + json.dumps(chunk()).encode()[1:], READ),
    "an error that is an empty object": ({**chunk(), "error": {}}, READ),
    "an error that is an empty text": ({**chunk(), "error": ""}, READ),
    "nested, but not without end": (with_('"x": ' + "[" * 200 + "]" * 200), READ),
    "blanks around": (b"  \t" + json.dumps(chunk()).encode() + b"  ", READ),
    "several lines": (json.dumps(chunk(), indent=1).encode(), READ),
}


@pytest.mark.parametrize("name", EVENTS)
async def test_an_event_that_is_not_as_it_should_be(name: str) -> None:
    """First thing and after tokens: an error, nothing, or what it says; the same for every way of reading."""
    data, expected = EVENTS[name]
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    async with scene(usable=False) as s:
        for tokens, kind in itertools.product((0, 2), STREAMED):
            s.server.faults = Garbage(after_token=tokens, data=data)
            with case(tokens, kind):
                outcome = await ask_freely(s, kind)
                if expected == ERROR:
                    assert type(outcome.error) is StreamProtocolError
                    assert outcome.partial == "".join(TOKENS[:tokens])
                    assert outcome.error.attempts == 1
                    assert outcome.error.request_id == f"em0-{s.server.journal[-1].number:06x}"
                    assert len(str(outcome.error)) < 500
                else:
                    assert outcome.error is None
                    extra = "!" if expected == READ else ""
                    assert outcome.text == "".join((*TOKENS[:tokens], extra, *TOKENS[tokens:]))
        await s.check_usable()


async def ask_freely(s: Scene, kind: str, **options: Any) -> Any:
    """`ask` where the server says more than the truth."""
    return await ask(s.client, kind, **options)


SAYS = b'data: {"choices":[{"index":0,"delta":{"content":"!"}}]}\n\n'
LINES: dict[str, tuple[bytes, str]] = {
    "a comment": (b": comment\n\n", ""),
    "a comment without a blank": (b":\n", ""),
    "a line without a colon": (b"garbage\n\n", ""),
    "an unknown field": (b"foo: bar\n\n", ""),
    "data without a colon": (b"data\n\n", ""),
    "data without a blank": (SAYS.replace(b"data: ", b"data:"), "!"),
    "data in two lines": (SAYS.replace(b'"delta"', b'\ndata: "delta"'), "!"),
    "only line ends": (b"\n" * 50, ""),
    "carriage returns": (SAYS.replace(b"\n", b"\r"), "!"),
    "both line ends": (SAYS.replace(b"\n", b"\r\n"), "!"),
    "an id with NUL": (b"id: a\0b\n" + SAYS, "!"),
    "retry without a number": (b"retry: soon\n" + SAYS, "!"),
    "retry of 5,000 digits": (b"retry: " + b"9" * 5000 + b"\n" + SAYS, "!"),
    "the usual name": (b"event: message\n" + SAYS, "!"),
    "a name of the server's own": (b"event: token\n" + SAYS, "!"),
    "a name that is no UTF-8": (b"event: \xff\n" + SAYS, "!"),
    "a ping by name": (b"event: ping\ndata: {}\n\n", ""),
    "a ping by name with text": (b"event: ping\ndata: pong\n\n", ""),
    "a name without data": (b"event: error\n\n", ""),
}


@pytest.mark.parametrize("name", LINES)
async def test_lines_that_are_unusual(name: str) -> None:
    """What the standard allows is read, or overlooked, as it says."""
    data, extra = LINES[name]
    async with scene(usable=False) as s:
        s.server.faults = Insert(after_token=2, data=data)
        for kind in STREAMED:
            with case(kind):
                assert (await ask_freely(s, kind)).text == "One two" + extra + " thrée four"


# ----------------------------------------------------------------------------------------------------------- false ends


ENDS: dict[str, tuple[bytes, type[TogetherError] | None, str]] = {
    "[DONE] twice": (DONE * 2, None, ""),
    "a chunk after [DONE]": (DONE + SAYS, None, ""),
    "garbage after [DONE]": (DONE + b"data: {{{\n\n" + b"\xff" * 99, None, ""),
    "an error after [DONE]": (DONE + b'data: {"error": "late"}\n\n', None, ""),
    "[DONE] with blanks": (b"data:   [DONE]  \n\n", None, ""),
    "[DONE] under a name": (b"event: done\ndata: [DONE]\n\n", None, ""),
    "nothing": (b"", None, ""),
    "half of [DONE]": (b"data: [DO", None, ""),
    "an event without its end": (SAYS[:-1], None, ""),
    "a text after the finish reason": (SAYS + DONE, None, "!"),
    "garbage before [DONE]": (b"data: {{{\n\n" + DONE, StreamProtocolError, ""),
    "an error before [DONE]": (b'data: {"error": "late"}\n\n' + DONE, StreamAPIError, ""),
    "another choice without an end": (SAYS.replace(b":0", b":1"), IncompleteStreamError, ""),
    "another choice, then [DONE]": (SAYS.replace(b":0", b":7") + DONE, None, ""),
    "a choice below zero, then [DONE]": (SAYS.replace(b":0", b":-1") + DONE, None, ""),
    "a choice of a huge index, then [DONE]": (SAYS.replace(b":0", b":999999999999") + DONE, None, ""),
    "a choice beyond 64 bits, then [DONE]": (SAYS.replace(b":0", b":" + b"9" * 30) + DONE, None, ""),
}


@pytest.mark.parametrize("name", ENDS)
async def test_what_comes_after_the_finish_reason(name: str) -> None:
    """[DONE] ends it, whatever follows; without it the choices' finish reasons decide."""
    tail, error, extra = ENDS[name]
    async with scene(usable=False) as s:
        events = await events_of(s.server)
        s.server.faults = Status(200, b"".join(events[:-1]) + tail, {"content-type": "text/event-stream"})
        for kind in STREAMED:
            with case(kind):
                outcome = await ask_freely(s, kind)
                if error is None:
                    assert outcome.error is None
                    assert outcome.text == TEXT + extra
                    assert next(c for c in outcome.completion.choices if c.index == 0).finish_reason == "stop"
                else:
                    assert type(outcome.error) is error
                    assert outcome.partial == TEXT
        await s.check_usable()


async def test_a_choice_that_comes_late() -> None:
    """A second choice that begins when the first has ended counts, and keeps the stream open until its own end."""
    async with scene([Reply(("a",)), Reply(("b", "c", "d", "e"))], usable=False) as s:
        for kind in STREAMED:
            outcome = await ask_freely(s, kind, n=2)
            assert [choice.message.content for choice in outcome.completion.choices] == ["a", "bcde"]
            assert [choice.finish_reason for choice in outcome.completion.choices] == ["stop", "stop"]


# --------------------------------------------------------------------------------------------- bodies of another kind


SSE, JSON, HTML, PLAIN = "text/event-stream", "application/json", "text/html", "text/plain"
WHOLE = json.dumps(
    {"id": "w", "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}]}
).encode()
BODIES: dict[str, tuple[bytes, str, Any]] = {
    "an empty stream": (b"", SSE, IncompleteStreamError),
    "an empty stream of JSON": (b"", JSON, IncompleteStreamError),
    "blanks": (b" \n\n \n", SSE, IncompleteStreamError),
    "only pings": (b": ping\n\n" * 9, SSE, IncompleteStreamError),
    "only JSON pings": (b'data: {"type":"ping"}\n\n' * 9, SSE, IncompleteStreamError),
    "only [DONE]": (DONE, SSE, ""),
    "a whole completion": (WHOLE, JSON, TEXT),
    "a whole completion that calls itself a stream": (WHOLE, SSE, TEXT),
    "half a completion": (WHOLE[:60], JSON, StreamProtocolError),
    "a JSON list": (b"[1]", JSON, StreamProtocolError),
    "a JSON text": (b'"hello"', JSON, StreamProtocolError),
    "a JSON error": (b'{"error": {"message": "no", "code": 503}}', JSON, StreamAPIError),
    "a JSON error that calls itself a stream": (b'{"detail": "no"}', SSE, StreamAPIError),
    "HTML": (b"<!doctype html><title>502</title>", HTML, StreamProtocolError),
    "HTML that calls itself a stream": (b"<html>", SSE, StreamProtocolError),
    "HTML after blanks": (b"\r\n  <html>", PLAIN, StreamProtocolError),
    "text": (b"upstream connect error", PLAIN, StreamProtocolError),
    "text that calls itself a stream": (b"upstream connect error", SSE, IncompleteStreamError),
    "bytes": (bytes(range(128, 256)) * 9, "application/octet-stream", StreamProtocolError),
    "a stream that calls itself JSON": (SAYS + DONE, JSON, "!"),
    "a stream that calls itself nothing": (SAYS + DONE, "", "!"),
    "a stream after a byte order mark": (b"\xef\xbb\xbf" + SAYS + DONE, SSE, "!"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_200_of_any_kind_for_a_stream(name: str) -> None:
    """Never taken for an answer."""
    body, media_type, expected = BODIES[name]
    async with scene(usable=False) as s:
        for split, kind in itertools.product((False, True), STREAMED):
            fault = Status(200, body, {"content-type": media_type})
            s.server.faults = fault + Split(every=1) if split else fault
            with case("byte by byte" if split else "at once", kind):
                outcome = await ask_freely(s, kind)
                if isinstance(expected, str):
                    assert outcome.text == expected
                else:
                    assert type(outcome.error) is expected
                    assert outcome.partial == ""
                    assert getattr(outcome.error, "status_code", None) == (503 if b"503}" in body else None)
        await s.check_usable()


CREATED: dict[str, tuple[bytes, Any, str]] = {
    "nothing": (b"", APIResponseValidationError, "$"),
    "blanks": (b" \r\n ", APIResponseValidationError, "$"),
    "half a completion": (WHOLE[:60], APIResponseValidationError, "$"),
    "an event stream": (SAYS + DONE, APIResponseValidationError, "$"),
    "HTML": (b"<html>", APIResponseValidationError, "$"),
    "text": (b"hello", APIResponseValidationError, "$"),
    "a list": (b"[]", APIResponseValidationError, "$"),
    "a string": (b'"x"', APIResponseValidationError, "$"),
    "a number": (b"1", APIResponseValidationError, "$"),
    "null": (b"null", APIResponseValidationError, "$"),
    "an empty object": (b"{}", APIResponseValidationError, "$.choices"),
    "choices is an object": (b'{"choices": {}}', APIResponseValidationError, "$.choices"),
    "a choice is a string": (b'{"choices": ["x"]}', APIResponseValidationError, "$.choices[0]"),
    "a message is a string": (b'{"choices": [{"message": "x"}]}', APIResponseValidationError, "$.choices[0].message"),
    "content is a number": (
        b'{"choices": [{"message": {"content": 5}}]}',
        APIResponseValidationError,
        "$.choices[0].message.content",
    ),
    "invalid UTF-8": (WHOLE.replace(b"One", b"\xff"), APIResponseValidationError, "$"),
    "a lone surrogate": (WHOLE.replace(b"One", rb"\ud800"), APIResponseValidationError, "$"),
    "NaN": (b'{"choices": NaN}', APIResponseValidationError, "$"),
    "without end": (b'{"x":' * 100_000, APIResponseValidationError, "$"),
    "two documents": (WHOLE * 2, APIResponseValidationError, "$"),
    "a NUL behind": (WHOLE + b"\0", APIResponseValidationError, "$"),
    "an error": (b'{"error": {"message": "no", "code": 503}}', InternalServerError, ""),
    "an error beside choices": (b'{"choices": [], "error": {"message": "no", "code": 429}}', RateLimitError, ""),
    "an error without a code": (b'{"error": "no"}', APIStatusError, ""),
}


@pytest.mark.parametrize("name", CREATED)
async def test_a_200_of_any_kind_for_a_whole_response(name: str) -> None:
    """A typed error that says where; an error object is an error whatever its status."""
    body, error, path = CREATED[name]
    async with scene() as s:
        for number, fault in enumerate((Status(200, body), Status(200, body) + Gzip())):
            s.server.faults = fault
            outcome = await s.ask("create")
            assert type(outcome.error) is error
            assert outcome.error.attempts == 1
            assert outcome.error.request_id == f"em0-{number:06x}"
            assert getattr(outcome.error, "path", "") == path
            if error is APIStatusError:
                assert outcome.error.status_code == 200


# --------------------------------------------------------------------------------------------- errors in the stream


CODES: dict[Any, int | None] = {None: None, 429: 429, "503": 503, "overloaded": None, 7: None, 200: None}


@pytest.mark.parametrize("shape", get_args(ErrorShape))
async def test_an_error_in_the_stream(shape: ErrorShape) -> None:
    """Every shape, first thing and after tokens: the tokens before it, its message and its status."""
    async with scene() as s:
        for (code, status), done, tokens in itertools.product(CODES.items(), (False, True), (0, 2)):
            s.server.faults = ErrorInStream(after_token=tokens, shape=shape, code=code, done=done)
            for kind in STREAMED:
                with case(code, done, tokens, kind):
                    outcome = await s.ask(kind)
                    error = outcome.error
                    assert type(error) is StreamAPIError
                    assert str(error) == "the server sent an error in the stream: the model broke off"
                    assert error.status_code == (None if shape in ("detail", "named_text") else status)
                    assert outcome.partial == "".join(TOKENS[:tokens])
                    assert "the model broke off" in str(error.body)
                    assert error.request_id == f"em0-{s.server.journal[-1].number:06x}"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_broken_compression(kind: str) -> None:
    """A body that calls itself compressed and is not, or in a way unknown here, is an error of the tree."""
    async with scene() as s:
        for encoding in ("gzip", "deflate", "br", "zstd"):
            headers = {"content-type": SSE, "content-encoding": encoding}
            s.server.faults = Status(200, b"this is not compressed at all" * 9, headers)
            with case(encoding):
                outcome = await s.ask(kind)
                assert outcome.error is not None
                assert outcome.partial in (None, "")
                assert outcome.error.attempts == 1


async def test_a_cut_inside_a_compressed_piece() -> None:
    """What could be inflated before the cut is delivered, and nothing else."""
    async with scene() as s:
        events = await events_of(s.server)
        for at in range(0, len(events[0]) * 2, 7):
            s.server.faults = Gzip() + Split(every=11) + Cut(at_byte=at, how="close")
            with case(at):
                outcome = await s.ask("text")
                assert type(outcome.error) is StreamConnectionError
                assert outcome.partial == "".join(TOKENS[: (at >= len(events[0])) + (at >= len(events[0] + events[1]))])
