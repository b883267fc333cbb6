"""What the doors send: the service's own chunks, texts, or what a function makes of them; and the ids of events."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clients import served
from support.relay_doors import PROMPT, TEXT, TOKENS, ASGIClient, by_asgi, openai_events, scope_of, stream_of
from support.servers import DONE, MODEL, Call, delta
from support.servers import sse as event
from together_async import AsyncTogether, ChatCompletionChunk
from together_async.relay import End, EventSourceResponse, ServerSentEvent, sse
from together_async.relay.events import single_line_event
from together_async.wire.sse import EventStreamParser, encode_event

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_chunks_are_the_services_own_to_the_last_key(door: Any) -> None:
    """Unknown keys, order, numbers, escapes and spaces: the data of each event is the service's, byte by byte."""
    payloads = [
        b'{"choices":[{"delta":{"content":"\\u00e9 \xc3\xa9"},"index":0,"weird":1e5}],"id":"a","x":[1.0,-0]}',
        b'{ "id":"a" , "choices":[ {"index":0,"delta":{"content":" b","thought":{"deep":true}}}] }',
        b'{"id":"a","choices":[{"index":0,"delta":{"content":"c"},"finish_reason":"eos_new"}],"usage":null}',
    ]

    async def script(call: Call) -> None:
        await call.head(framing="close")
        await call.send(*map(event, payloads), DONE)
        call.close()

    async with served(script) as (_, client):
        answer = await door(client.stream(PROMPT, model=MODEL))
    assert [event.data for event in answer.events] == [*payloads, b"[DONE]"]
    assert [event.id for event in answer.events] == ["1", "2", "3", "3"]
    assert answer.body == b"".join(b"id: %d\n%b" % (n, event(payload)) for n, payload in enumerate(payloads, 1)) + DONE


async def test_chunks_over_several_lines_are_the_same_json(door: Any) -> None:
    """The service's event may have several data lines; ours has one, with spaces for the line breaks."""
    payload = b'{"id":"a",\ndata: "choices":[{"index":0,\ndata: "delta":{"content":"a\\nb"}}]}'

    async def script(call: Call) -> None:
        await call.head(framing="close")
        await call.send(b"data: " + payload + b"\n\n", event(delta(finish="stop")), DONE)
        call.close()

    async with served(script) as (_, client):
        answer = await door(client.stream(PROMPT, model=MODEL))
    first = answer.events[0].data
    assert b"\n" not in first
    assert json.loads(first) == json.loads(payload.replace(b"\ndata: ", b"\n"))


async def test_the_whole_text_arrives_in_every_format(door: Any, client: AsyncTogether) -> None:
    """Chunks, texts and a function of the chunk all give the whole text."""
    chunks = await door(client.stream(PROMPT, model=MODEL))
    texts = await door(client.stream(PROMPT, model=MODEL), format="text")
    by_function = await door(client.stream(PROMPT, model=MODEL), format=lambda chunk: chunk.choices[0].delta.content)
    assert chunks.text == TEXT
    assert [event.data.decode() for event in texts.events] == [*TOKENS, "[DONE]"]
    assert [event.data.decode() for event in by_function.events if event.data] == [*TOKENS, "[DONE]"]


@pytest.mark.parametrize(
    "text",
    ["a\nb", "\n", "\n\n", "a\n", "a\r\nb", "a\rb", "data: x", ":x", " x", "id: 7\n\nevent: error", "\ufeff", "\0"],
)
async def test_any_text_is_read_back(door: Any, text: str) -> None:
    """Line breaks become lines of data, so no text can look like an event. Parsers join them with LF."""
    answer = await door(stream_of(text, "end"), format="text")
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert [event.data.decode() for event in answer.events] == [expected, "end", "[DONE]"]
    assert {event.event for event in answer.events} == {"message"}
    assert openai_events(answer.body) == [("", expected), ("", "end"), ("", "[DONE]")]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), st.none() | st.integers(0, 10**9).map(str))
def test_single_line_events_are_alike(data: str, id: str | None) -> None:
    """By the quick path and by `encode_event`."""
    assert single_line_event(data.encode(), id) == encode_event(data, id=id)


async def test_done_as_a_text_is_no_end(door: Any) -> None:
    """A text that reads `[DONE]` does not end the answer: it comes in two events."""
    answer = await door(stream_of("a", "[DONE]", "b"), format="text")
    data = [event.data for event in answer.events]
    assert b"".join(data[:-1]) == b"a[DONE]b"
    assert data.count(b"[DONE]") == 1
    assert data[-1] == b"[DONE]"


async def test_what_a_function_returns(door: Any) -> None:
    """A str or bytes is the data, None is no event, a ServerSentEvent has all fields, everything else becomes JSON."""

    @attrs.frozen
    class Word:
        word: str
        number: int

    returned = iter(
        (
            "text",
            b"bytes",
            None,
            {"a": [1, None]},
            Word("w", 3),
            ServerSentEvent(b"x\ny", event="custom", id="mine", retry=5),
            7,
        )
    )
    answer = await door(stream_of(*"abcdefg"), format=lambda _: next(returned))
    assert [(event.event, event.id) for event in answer.events] == [
        *(("message", number) for number in "1245"),
        ("custom", "mine"),
        *(("message", number) for number in "77"),
    ]
    text, data, a_dict, a_word, custom, number, _ = answer.events
    assert (text.data, data.data) == (b"text", b"bytes")
    assert json.loads(a_dict.data) == {"a": [1, None]}
    assert json.loads(a_word.data) == {"word": "w", "number": 3}
    assert (custom.data, custom.retry) == (b"x\ny", 5)
    assert number.data == b"7"


async def test_a_function_that_returns_nothing_ever(door: Any) -> None:
    """Only the end is an event."""
    answer = await door(stream_of("a", "b"), format=lambda _: None)
    assert answer.body == DONE


async def test_a_function_that_raises_is_told_to_both(door: Any) -> None:
    """The client gets an error without details; the app gets the exception."""
    ended: list[End] = []

    def broken(chunk: ChatCompletionChunk) -> str:
        if chunk.choices[0].delta.content == "b":
            raise LookupError(f"secret {PROMPT}")
        return "fine"

    client = ASGIClient()
    if door is by_asgi:
        made: Any = EventSourceResponse(stream_of("a", "b", "c"), format=broken, on_end=ended.append)
        with pytest.raises(LookupError, match="secret"):
            await made(scope_of(), client.receive, client.send)
        assert client.finished
        answer = client.answer
        assert answer.status == 200
        assert answer.events[-1].event == "error"
        assert answer.error_object == {
            "message": "something went wrong in this app",
            "type": "LookupError",
            "param": None,
            "code": 500,
        }
        assert b"secret" not in answer.body
        assert DONE not in answer.body
    else:
        with pytest.raises(LookupError, match="secret"):
            await door(stream_of("a", "b", "c"), format=broken, on_end=ended.append)
    assert isinstance(ended[0].error, LookupError)
    assert not ended[0].left


async def test_what_came_before_the_chunk_that_a_function_fails_at_is_sent() -> None:
    """Of three chunks that come together, two are good, however the network has grouped them."""

    def broken(chunk: ChatCompletionChunk) -> str | None:
        text = chunk.choices[0].delta.content
        if text == "c":
            raise LookupError(text)
        return text

    async def script(call: Call) -> None:
        await call.head(framing="close")
        await call.send(b"".join(event(delta(text)) for text in "abcd") + event(delta(finish="stop")) + DONE)
        call.close()

    pieces: list[bytes] = []

    async def read(stream: Any) -> None:
        async for data in sse(stream, format=broken):
            pieces.append(data)  # noqa: PERF401 - what comes before the error counts

    async with served(script) as (_, client):
        with pytest.raises(LookupError):
            await read(client.stream(PROMPT, model=MODEL))
    assert [event.data for event in EventStreamParser().feed(pieces[0])] == [b"a", b"b"]
    assert [event.event for event in EventStreamParser().feed(b"".join(pieces[1:]))] == ["error"]


async def test_a_function_that_raises_at_the_first_event_is_its_authors_affair(response: Any) -> None:
    """Nothing was sent, so the server answers as for every handler that raises."""
    with pytest.raises(ZeroDivisionError):
        await response(stream_of("a"), format=lambda _: 1 / 0)

    def unreachable(_: Any) -> None:
        raise ConnectionError("the app's database, not the client that left")

    with pytest.raises(ConnectionError):
        await response(stream_of("a"), format=unreachable)


async def test_without_ids_there_are_none(door: Any, client: AsyncTogether) -> None:
    """Each event is only its data."""
    answer = await door(client.stream(PROMPT, model=MODEL), ids=False)
    assert b"id:" not in answer.body.replace(b'"id":', b"")
    assert answer.text == TEXT
