"""What the relay's doors send: events, statuses, headers, heartbeats and ids, and what they tell nobody.

Each door is driven as its server does it: the ASGI response by a plain harness, `aiohttp_response` by aiohttp's server
on a real socket, `sse` by a loop. The upstream is the emulator, or an iterator of chunks where an error must be exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import math
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import aiohttp
import attrs
import pytest
import pytest_asyncio
from aiohttp import web
from openai._streaming import SSEDecoder

from support import virtual_time
from support.servers import DONE, Call, ScriptedServer, delta
from support.servers import sse as event
from together_async import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncTogether,
    AuthenticationError,
    BadRequestError,
    ChatCompletion,
    ChatCompletionChunk,
    ContextLengthError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    QueueFullError,
    RateLimitError,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    Timeouts,
    TogetherError,
    UnprocessableEntityError,
)
from together_async.relay import (
    HEADERS,
    Broadcast,
    End,
    EventSourceResponse,
    Hub,
    NotKeptError,
    ServerSentEvent,
    ServerShutdownError,
    SlowConsumerError,
    aiohttp_response,
    buffered,
    error_for_browser,
    passthrough,
    shut_down,
    sse,
    status_of,
)
from together_async.relay.browser_errors import AllReadError, IdError, StoppedError, TooLargeError
from together_async.testing import Cut, EmulatorServer, ErrorInStream, Fault, Raw, Reply, Stall, Status, WithoutDone
from together_async.wire.codec import decode_chunk
from together_async.wire.sse import EventStreamParser

pytestmark = pytest.mark.usefixtures("no_leaks")

MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
KEY = "tgp_v1_relay-key-0f1e2d3c4b5a"
PROMPT = "zanzibar-penguins whisper about turbines"
TOKENS = ("One", " two", " thrée", "\nfour")
TEXT = "".join(TOKENS)
SOON = 5.0
COMMENT = b":\n"
"""A line and no block: after an event with an id, the openai SDK takes each empty line for an event."""

# --------------------------------------------------------------------------------------------------------------- doors


@attrs.frozen
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def events(self) -> list[ServerSentEvent]:
        return EventStreamParser().feed(self.body)

    @property
    def problem(self) -> dict[str, Any]:
        """The error that was told, in either way."""
        data = self.body if self.status != 200 else self.events[-1].data
        problem: dict[str, Any] = json.loads(data)["error"]
        return problem

    @property
    def text(self) -> str:
        """The text of all events of chunks."""
        chunks = [json.loads(one.data) for one in self.events if one.event == "message" and one.data != b"[DONE]"]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def scope_of(method: str = "GET", headers: Mapping[str, str] | None = None, kind: str = "http") -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": kind, "method": method, "headers": raw, "path": "/", "query_string": b""}


class Client:
    """A client of a plain ASGI server: takes what is sent, and leaves when it is told to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.heard = asyncio.Event()  # something came
        self.refuses: BaseException | None = None  # what `send` raises
        self.reads = asyncio.Event()  # else `send` waits
        self.reads.set()
        self._requested = False

    async def receive(self) -> dict[str, Any]:
        if not self._requested:
            self._requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(dict(message))
        self.heard.set()
        await self.reads.wait()

    @property
    def answer(self) -> Answer:
        head = self.sent[0]
        assert head["type"] == "http.response.start"
        assert sum(one["type"] == "http.response.start" for one in self.sent) == 1
        raw = [(name.decode(), value.decode()) for name, value in head["headers"]]
        assert all(name == name.lower() for name, _ in raw)
        assert len(raw) == len(dict(raw))
        return Answer(head["status"], dict(raw), b"".join(one.get("body", b"") for one in self.sent[1:]))

    @property
    def finished(self) -> bool:
        """Whether the response is whole."""
        return bool(self.sent) and self.sent[-1]["type"].endswith("body") and not self.sent[-1].get("more_body", False)


async def by_asgi(stream: Any, method: str = "GET", asked: Mapping[str, str] | None = None, **options: Any) -> Answer:
    client = Client()
    response: Any = EventSourceResponse(stream, **options)
    await response(scope_of(method, asked), client.receive, client.send)
    assert client.finished
    return client.answer


async def by_aiohttp(
    stream: Any, method: str = "GET", asked: Mapping[str, str] | None = None, **options: Any
) -> Answer:
    failed: list[Exception] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await aiohttp_response(request, stream, **options)
        except Exception as error:
            failed.append(error)
            raise

    async with (
        served(answer) as url,
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=asked) as response,
    ):
        with contextlib.suppress(aiohttp.ClientPayloadError):
            body = await response.read()
        names = {name.lower(): value for name, value in response.headers.items()}
        assert len(names) == len(response.headers)
    if failed:
        raise failed[0]
    return Answer(response.status, names, body)


@contextlib.asynccontextmanager
async def served(answer: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: Any) -> AsyncIterator[str]:
    """Serves a handler in this loop; yields its URL."""
    app = web.Application()
    app.router.add_route("*", "/", answer)
    runner = web.AppRunner(app, access_log=None, **options)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def by_loop(stream: Any, asked: Mapping[str, str] | None = None, **options: Any) -> Answer:
    options["last_event_id"] = (asked or {}).get("last-event-id")
    return Answer(200, HEADERS, b"".join([data async for data in sse(stream, **options)]))


DOORS: Mapping[str, Callable[..., Awaitable[Answer]]] = {"asgi": by_asgi, "aiohttp": by_aiohttp, "sse": by_loop}


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Answer]]:
    return DOORS[request.param]


@pytest.fixture(params=["asgi", "aiohttp"])
def response(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Answer]]:
    """The doors that are a response, with a status."""
    return DOORS[request.param]


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer(Reply(TOKENS)) as server:
        yield server


@pytest_asyncio.fixture
async def client(upstream: EmulatorServer) -> AsyncIterator[AsyncTogether]:
    async with AsyncTogether(KEY, base_url=upstream.base_url) as one:
        yield one
        assert one.limits.in_flight == 0


def chunk(text: str | None, **more: Any) -> ChatCompletionChunk:
    return decode_chunk(json.dumps(delta(text, **more)).encode())


async def says(*items: str | BaseException) -> AsyncIterator[ChatCompletionChunk]:
    """Somebody's own stream: chunks of these texts, and errors where they stand."""
    for item in items:
        if isinstance(item, BaseException):
            raise item
        yield chunk(item)


async def own(stream: Any) -> AsyncIterator[ChatCompletionChunk]:
    async for one in stream:
        yield one


KINDS: Mapping[str, Callable[[Any], Any]] = {
    "chunks": lambda stream: stream,
    "raw": passthrough,
    "buffered": buffered,
    "broadcast": lambda stream: Broadcast(stream).subscribe(),
    "own": own,
}
"""What stands for a stream at the doors."""


# ------------------------------------------------------------------------------------------------------------- formats


async def test_chunks_are_the_services_own_to_the_last_key(door: Any) -> None:
    """Unknown keys, order, numbers, escapes and blanks: the data of each event is the service's, byte by byte."""
    payloads = [
        b'{"choices":[{"delta":{"content":"\\u00e9 \xc3\xa9"},"index":0,"weird":1e5}],"id":"a","x":[1.0,-0]}',
        b'{ "id":"a" , "choices":[ {"index":0,"delta":{"content":" b","thought":{"deep":true}}}] }',
        b'{"id":"a","choices":[{"index":0,"delta":{"content":"c"},"finish_reason":"eos_new"}],"usage":null}',
    ]

    async def script(call: Call) -> None:
        await call.head(framing="close")
        await call.send(*map(event, payloads), DONE)
        call.close()

    async with ScriptedServer(script) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        answer = await door(client.stream(PROMPT, model=MODEL))
    assert [one.data for one in answer.events] == [*payloads, b"[DONE]"]
    assert [one.id for one in answer.events] == ["1", "2", "3", "3"]
    assert answer.body == b"".join(b"id: %d\n%b" % (n, event(one)) for n, one in enumerate(payloads, 1)) + DONE


async def test_chunks_over_several_lines_are_the_same_json(door: Any) -> None:
    """An event of the service may have several data lines; ours has one, with blanks for the breaks between tokens."""
    payload = b'{"id":"a",\ndata: "choices":[{"index":0,\ndata: "delta":{"content":"a\\nb"}}]}'

    async def script(call: Call) -> None:
        await call.head(framing="close")
        await call.send(b"data: " + payload + b"\n\n", event(delta(finish="stop")), DONE)
        call.close()

    async with ScriptedServer(script) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        answer = await door(client.stream(PROMPT, model=MODEL))
    first = answer.events[0].data
    assert b"\n" not in first
    assert json.loads(first) == json.loads(payload.replace(b"\ndata: ", b"\n"))


async def test_passthrough_is_the_services_body(door: Any, client: AsyncTogether, upstream: EmulatorServer) -> None:
    """What goes out is what came in: every byte, in order, and nothing of ours."""
    answer = await door(passthrough(client.stream(PROMPT, model=MODEL)))
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{upstream.base_url}/chat/completions", json=upstream.journal[0].body) as response,
    ):
        expected = EventStreamParser().feed(await response.read())
    assert len(answer.events) == len(expected)
    for got, want in zip(answer.events[:-1], expected[:-1], strict=True):
        assert known(got.data) == known(want.data)
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")


def known(data: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(data).items() if name not in ("id", "created")}


async def test_the_whole_text_arrives_in_every_format(door: Any, client: AsyncTogether) -> None:
    """Chunks, texts and a function of the chunk tell the same."""
    chunks = await door(client.stream(PROMPT, model=MODEL))
    texts = await door(client.stream(PROMPT, model=MODEL), format="text")
    by_function = await door(client.stream(PROMPT, model=MODEL), format=lambda one: one.choices[0].delta.content)
    assert chunks.text == TEXT
    assert [one.data.decode() for one in texts.events] == [*TOKENS, "[DONE]"]
    assert [one.data.decode() for one in by_function.events if one.data] == [*TOKENS, "[DONE]"]


@pytest.mark.parametrize(
    "text",
    ["a\nb", "\n", "\n\n", "a\n", "a\r\nb", "a\rb", "data: x", ":x", " x", "id: 7\n\nevent: error", "\ufeff", "\0"],
)
async def test_any_text_is_read_back(door: Any, text: str) -> None:
    """Line breaks are the data's lines: nothing a model says can look like an event. Parsers join them by LF."""
    answer = await door(says(text, "end"), format="text")
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert [one.data.decode() for one in answer.events] == [expected, "end", "[DONE]"]
    assert {one.event for one in answer.events} == {"message"}
    assert by_openai(answer.body) == [("", expected), ("", "end"), ("", "[DONE]")]


def by_openai(body: bytes) -> list[tuple[str, str]]:
    """The events as the SDK's own decoder reads them: type and data."""
    return [(one.event or "", one.data) for one in SSEDecoder().iter_bytes(iter([body]))]


async def test_done_as_a_text_is_no_end(door: Any) -> None:
    """A model that says `[DONE]` does not end the answer: it comes in two events."""
    answer = await door(says("a", "[DONE]", "b"), format="text")
    data = [one.data for one in answer.events]
    assert b"".join(data[:-1]) == b"a[DONE]b"
    assert data.count(b"[DONE]") == 1
    assert data[-1] == b"[DONE]"


async def test_what_a_function_returns(door: Any) -> None:
    """A str and bytes are the data, None is no event, a ServerSentEvent says all, everything else becomes JSON."""

    @attrs.frozen
    class Told:
        word: str
        number: int

    returned = iter(
        (
            "text",
            b"bytes",
            None,
            {"a": [1, None]},
            Told("w", 3),
            ServerSentEvent(b"x\ny", event="custom", id="mine", retry=5),
            7,
        )
    )
    answer = await door(says(*"abcdefg"), format=lambda _: next(returned))
    assert [(one.event, one.id) for one in answer.events] == [
        *(("message", number) for number in "1245"),
        ("custom", "mine"),
        *(("message", number) for number in "77"),
    ]
    text, data, a_dict, told, custom, number, _ = answer.events
    assert (text.data, data.data) == (b"text", b"bytes")
    assert json.loads(a_dict.data) == {"a": [1, None]}
    assert json.loads(told.data) == {"word": "w", "number": 3}
    assert (custom.data, custom.retry) == (b"x\ny", 5)
    assert number.data == b"7"


async def test_a_function_that_returns_nothing_ever(door: Any) -> None:
    """No event but the end."""
    answer = await door(says("a", "b"), format=lambda _: None)
    assert answer.body == DONE


async def test_a_function_that_raises_is_told_to_both(door: Any) -> None:
    """The client hears that something went wrong and nothing of what; its author gets the exception."""
    ended: list[End] = []

    def broken(one: ChatCompletionChunk) -> str:
        if one.choices[0].delta.content == "b":
            raise LookupError(f"secret {PROMPT}")
        return "fine"

    client = Client()
    if door is by_asgi:
        made: Any = EventSourceResponse(says("a", "b", "c"), format=broken, on_end=ended.append)
        with pytest.raises(LookupError, match="secret"):
            await made(scope_of(), client.receive, client.send)
        assert client.finished
        answer = client.answer
        assert answer.status == 200
        assert answer.events[-1].event == "error"
        assert answer.problem == {
            "message": "something went wrong in this app",
            "type": "LookupError",
            "param": None,
            "code": 500,
        }
        assert b"secret" not in answer.body
        assert DONE not in answer.body
    else:
        with pytest.raises(LookupError, match="secret"):
            await door(says("a", "b", "c"), format=broken, on_end=ended.append)
    assert isinstance(ended[0].error, LookupError)
    assert not ended[0].left


async def test_what_came_before_the_chunk_that_a_function_fails_at_is_sent() -> None:
    """However the network has grouped them: of three chunks that come together, two are good."""

    def broken(one: ChatCompletionChunk) -> str | None:
        text = one.choices[0].delta.content
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

    async with ScriptedServer(script) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        with pytest.raises(LookupError):
            await read(client.stream(PROMPT, model=MODEL))
    assert [one.data for one in EventStreamParser().feed(pieces[0])] == [b"a", b"b"]
    assert [one.event for one in EventStreamParser().feed(b"".join(pieces[1:]))] == ["error"]


async def test_a_function_that_raises_at_the_first_event_is_its_authors_affair(response: Any) -> None:
    """Nothing was sent, so the server answers as it does for every handler that raises."""
    with pytest.raises(ZeroDivisionError):
        await response(says("a"), format=lambda _: 1 / 0)

    def unreachable(_: Any) -> None:
        raise ConnectionError("a database of the app's, and not the client's leaving")

    with pytest.raises(ConnectionError):
        await response(says("a"), format=unreachable)


@pytest.mark.parametrize("format", ["json", "", None, 3])
def test_an_unknown_format_is_refused_when_the_response_is_made(format: Any) -> None:
    """Not when half of the answer is out."""
    with pytest.raises(ValueError, match=r"format: got .*, expected 'chunks', 'text' or a function"):
        EventSourceResponse(Hub().join("x"), format=format)


@pytest.mark.parametrize("make", [EventSourceResponse, sse])
async def test_an_async_function_as_a_format_is_refused(make: Any) -> None:
    """Nobody would wait for what it returns."""

    async def later(one: ChatCompletionChunk) -> str:
        return one.choices[0].delta.content or ""

    with pytest.raises(TypeError, match="format: got an async function"):
        make(Hub().join("x"), format=later)


async def test_what_is_no_stream_is_refused(client: AsyncTogether) -> None:
    """The likeliest mistake, an awaitable of a completion, is closed, so that no warning follows."""
    with pytest.raises(TypeError, match=r"expected what `client\.stream"):
        EventSourceResponse(client.create(PROMPT, model=MODEL))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got a str"):
        EventSourceResponse("text")  # type: ignore[arg-type]


async def test_the_loop_refuses_when_it_is_made(client: AsyncTogether) -> None:
    """And not at its first step, when a framework has sent its 200."""
    stream = client.stream(PROMPT, model=MODEL)
    with pytest.raises(TypeError, match=r"expected what `client\.stream"):
        sse(client.create(PROMPT, model=MODEL))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format: got 'json'"):
        sse(stream, format="json")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format: a pass-through has none"):
        sse(passthrough(stream), format="text")
    with pytest.raises(ValueError, match="heartbeat: got 0"):
        sse(stream, heartbeat=0)


@pytest.mark.parametrize("of", ["text", "raw", "batches"])
async def test_what_a_stream_makes_of_its_chunks_is_refused_unasked(
    door: Any, client: AsyncTogether, upstream: EmulatorServer, of: str
) -> None:
    """The likeliest first call, `client.stream(...).text()`: the error says what to hand over; nothing is paid."""
    with pytest.raises(TypeError, match=r"got a \w+ where chunks are needed; hand over .* itself .*format='text'"):
        await door(getattr(client.stream(PROMPT, model=MODEL), of)())
    assert upstream.journal.total == 0


async def test_an_iterator_of_texts_is_refused(door: Any) -> None:
    """Somebody's own: its type shows with its first item."""

    async def texts() -> AsyncIterator[str]:
        yield "a"

    with pytest.raises(TypeError, match=r"got a async_generator with a str where chunks are needed.*format='text'"):
        await door(texts())


async def test_a_stream_that_was_read_to_its_end_is_an_error(door: Any, client: AsyncTogether) -> None:
    """And no empty answer that ends as if it were whole."""
    stream = client.stream(PROMPT, model=MODEL)
    await stream.completion()
    with pytest.raises(RuntimeError, match="read to its end already"):
        await door(stream)


@pytest.mark.parametrize("kind", ["chunks", "raw", "buffered", "broadcast", "own"])
async def test_a_response_that_is_sent_twice_is_an_error(client: AsyncTogether, kind: str) -> None:
    """A response of a module, say, instead of one for each request: the second client gets no empty 200."""
    made: Any = EventSourceResponse(KINDS[kind](client.stream(PROMPT, model=MODEL)))
    first, second = Client(), Client()
    await made(scope_of(), first.receive, first.send)
    assert first.answer.events[-1].data == b"[DONE]"
    with pytest.raises(RuntimeError):
        await made(scope_of(), second.receive, second.send)
    assert not second.sent


async def test_without_ids_there_are_none(door: Any, client: AsyncTogether) -> None:
    """Each event is its data."""
    answer = await door(client.stream(PROMPT, model=MODEL), ids=False)
    assert b"id:" not in answer.body.replace(b'"id":', b"")
    assert answer.text == TEXT


# ------------------------------------------------------------------------------------------------------------- headers


async def test_headers_keep_proxies_from_collecting(response: Any, client: AsyncTogether) -> None:
    """The type, no caching or transforming, and nginx's own word."""
    headers = (await response(client.stream(PROMPT, model=MODEL))).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers


async def test_headers_can_be_added_and_replaced(response: Any, client: AsyncTogether) -> None:
    """By any case of their names; none comes twice."""
    stream = client.stream(PROMPT, model=MODEL)
    headers = (await response(stream, headers={"X-Mine": "1", "Cache-Control": "no-store"})).headers
    assert headers["x-mine"] == "1"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("asked", [None, "3"])
async def test_headers_of_the_app_are_on_refusals_too(response: Any, asked: str | None) -> None:
    """Without those of CORS no page may read why it failed; those that are the stream's own are not on them."""
    own = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/event-stream", "Cache-Control": "no-transform"}
    headers = {"last-event-id": asked} if asked else None
    answer = await response(says(status_error(RateLimitError, 429)), asked=headers, headers=own)
    assert answer.status == (204 if asked else 429)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-accel-buffering" not in answer.headers
    assert answer.headers.get("cache-control") != "no-transform"
    if not asked:
        assert answer.headers["content-type"].partition(";")[0] == "application/json"
        assert answer.problem["type"] == "RateLimitError"


@pytest.mark.parametrize(
    ("method", "asked", "error"), [("HEAD", None, type(None)), ("GET", {"Last-Event-ID": "3"}, AllReadError)]
)
@pytest.mark.parametrize("kind", ["chunks", "raw", "buffered", "broadcast"])
async def test_what_is_not_sent_is_left(
    response: Any, client: AsyncTogether, upstream: EmulatorServer, method: str, asked: Any, error: Any, kind: str
) -> None:
    """HEAD, and who comes back to what can't be resumed: a stream that is open is closed, and `on_end` hears of it."""
    upstream.faults = Stall(after_token=0)
    stream, ended = client.stream(PROMPT, model=MODEL), list[End]()
    await stream.__aenter__()
    feed = KINDS[kind](stream)
    await response(feed, method, asked, on_end=ended.append)
    assert client.limits.in_flight == 0
    (end,) = ended
    assert isinstance(end.error, error)
    assert not end.left


async def test_head_asks_nothing(response: Any, client: AsyncTogether, upstream: EmulatorServer) -> None:
    """The headers of a stream, and no request to the model."""
    answer = await response(client.stream(PROMPT, model=MODEL), "HEAD")
    assert answer.status == 200
    assert answer.body == b""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert upstream.journal.total == 0


async def test_another_protocol_is_refused(client: AsyncTogether) -> None:
    """A websocket's scope is a mistake of the app."""
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL))
    with pytest.raises(RuntimeError, match="websocket"):
        await made(scope_of(kind="websocket"), Client().receive, Client().send)


# -------------------------------------------------------------------------------------------------------------- errors

PARTIAL = ChatCompletion()
URL = "https://inference.internal.example:8443/v1"
ACCOUNT = "org-5f2a1b"
SECRETS = f"{KEY} {PROMPT} {URL} {ACCOUNT}"


def status_error(cls: type[APIStatusError], status: int, **more: Any) -> APIStatusError:
    return cls(f"{status}: nothing secret", status_code=status, body={"error": {"message": SECRETS}}, **more)


ERRORS: Mapping[type[TogetherError], tuple[TogetherError, int]] = {
    TogetherError: (TogetherError(SECRETS), 500),
    APIConnectionError: (APIConnectionError(f"cannot connect to {SECRETS}"), 502),
    APITimeoutError: (APITimeoutError(phase="connect", seconds=3), 504),
    QueueFullError: (QueueFullError("3 wait"), 503),
    APIStatusError: (status_error(APIStatusError, 409), 409),
    BadRequestError: (status_error(BadRequestError, 400), 400),
    AuthenticationError: (status_error(AuthenticationError, 401), 401),
    PaymentRequiredError: (status_error(PaymentRequiredError, 402), 402),
    PermissionDeniedError: (status_error(PermissionDeniedError, 403), 403),
    ContextLengthError: (status_error(ContextLengthError, 403), 403),
    NotFoundError: (status_error(NotFoundError, 404), 404),
    UnprocessableEntityError: (status_error(UnprocessableEntityError, 422), 422),
    RateLimitError: (status_error(RateLimitError, 429, retry_after=1.2), 429),
    InternalServerError: (status_error(InternalServerError, 529), 529),
    APIResponseValidationError: (APIResponseValidationError(SECRETS, body=SECRETS), 502),
    StreamError: (StreamError(SECRETS, partial=PARTIAL), 502),
    IncompleteStreamError: (IncompleteStreamError(SECRETS, partial=PARTIAL), 502),
    StreamConnectionError: (StreamConnectionError(SECRETS, partial=PARTIAL), 502),
    StreamTimeoutError: (StreamTimeoutError(phase="idle", seconds=3, partial=PARTIAL), 504),
    StreamAPIError: (StreamAPIError("the model broke off", partial=PARTIAL, body={"error": SECRETS}), 502),
    StreamProtocolError: (StreamProtocolError(SECRETS, partial=PARTIAL), 502),
    SlowConsumerError: (SlowConsumerError(65, 64), 503),
    IdError: (IdError(SECRETS, status_code=409), 409),
    TooLargeError: (TooLargeError(SECRETS), 503),
    NotKeptError: (NotKeptError(SECRETS), 410),
    ServerShutdownError: (ServerShutdownError(SECRETS), 503),
    StoppedError: (StoppedError(SECRETS), 410),
}
"""An error of each class, and the status that means it."""


def tree(cls: type[TogetherError] = TogetherError) -> Iterator[type[TogetherError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from tree(sub)


def test_no_class_of_error_was_forgotten() -> None:
    """A new one has to find its status, here and in the relay's own table; a subclass of one has that one's."""
    of_a_server = "together_async.local"  # which nobody relays
    ours = {cls for cls in tree() if cls.__module__.startswith("together_async.") and cls.__module__ != of_a_server}
    named = {base for cls in ours for base in cls.__mro__ if base in ERRORS and base is not TogetherError}
    assert {cls for cls in ours if not any(base in named for base in cls.__mro__)} == {TogetherError, AllReadError}


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
async def test_an_error_before_the_first_event_is_a_status(response: Any, cls: type[TogetherError]) -> None:
    """With a JSON body in the shape of the API's errors, which no cache keeps."""
    error, status = ERRORS[cls]
    answer = await response(says(error))
    assert answer.status == status == status_of(error)
    assert answer.headers["content-type"].partition(";")[0] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.problem == error_for_browser(error)
    assert answer.problem["type"] == cls.__name__
    assert answer.problem["message"]
    check_discreet(answer)


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
async def test_an_error_after_the_first_event_is_the_last_event(door: Any, cls: type[TogetherError]) -> None:
    """Of type `error`, with the same object; all that came before it is there, and nothing says that it is complete."""
    error, _ = ERRORS[cls]
    ended: list[End] = []
    answer = await door(says("one", "two", error), on_end=ended.append)
    assert answer.status == 200
    assert answer.text == "onetwo"
    assert [one.event for one in answer.events] == ["message", "message", "error"]
    assert answer.problem == error_for_browser(error)
    assert b"[DONE]" not in answer.body
    assert ended[0].error is error
    check_discreet(answer)


async def test_an_answer_too_large_to_keep_is_not_asked_for_again(
    door: Any, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """The next would be as large: nobody is told to try again."""
    upstream.faults = Stall(after_token=2)
    async with Hub(max_size=1) as hub:
        answer = await door(hub.open(client.stream(PROMPT, model=MODEL)))
    assert answer.problem["type"] == "TooLargeError"
    assert answer.problem["code"] == 503
    assert "larger than this app can keep" in answer.problem["message"]
    assert "again" not in answer.problem["message"]


async def test_the_loop_has_no_status_and_tells_every_error_as_an_event() -> None:
    """Who wants a status opens the stream first."""
    answer = await by_loop(says(ERRORS[RateLimitError][0]))
    assert [one.event for one in answer.events] == ["error"]
    assert answer.problem["code"] == 429


def check_discreet(answer: Answer) -> None:
    """Neither key, prompt, address nor account is in what a browser gets."""
    told = answer.body.decode() + str(dict(answer.headers))
    for secret in (KEY, PROMPT, "inference.internal", ACCOUNT):
        assert secret not in told


@pytest.mark.parametrize(("seconds", "said"), [(1.2, "2"), (0.0, "0"), (30, "30"), (None, None)])
async def test_when_to_come_back_is_passed_on(response: Any, seconds: float | None, said: str | None) -> None:
    """In whole seconds, not too early."""
    answer = await response(says(status_error(RateLimitError, 429, retry_after=seconds)))
    assert answer.headers.get("retry-after") == said


REAL = {
    "401": Status(401, message=f"Invalid API key provided: {KEY} of {ACCOUNT}"),
    "402": Status(402, message=f"Credit limit exceeded for {ACCOUNT}, see {URL}"),
    "403": Status(403, message=f"{ACCOUNT} may not use this model"),
    "400 with the prompt": Status(400, message=f"bad prompt: {PROMPT}"),
    "400 with the key": Status(400, message=f"bad key {KEY}"),
    "429": Status(429, message=f"{ACCOUNT} reached its limit of 60 requests a minute, see {URL}"),
    "404": Status(404, message=f"{ACCOUNT} can't access this model, see {URL}"),
    "500": Status(500, message=f"internal: {URL} {ACCOUNT} {PROMPT}"),
    "503 as a page": Status(503, f"<html>{URL} {ACCOUNT} {PROMPT}</html>"),
    "garbage": Raw(b"SSH-2.0-x\r\n" + URL.encode() + b"\r\n\r\n"),
    "an error in the stream": ErrorInStream(after_token=0, message=f"broke {PROMPT} {KEY}"),
    "no body": Cut(after_token=0, how="close"),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("kind", ["decoded", "passed through"])
async def test_what_a_service_says_about_app_and_account_stays_here(
    response: Any, client: AsyncTogether, upstream: EmulatorServer, name: str, kind: str
) -> None:
    """Real answers of a service with a key, a prompt, an address and an account in them."""
    upstream.faults = REAL[name]
    stream: Any = client.stream(PROMPT, model=MODEL)
    answer = await response(passthrough(stream) if kind == "passed through" else stream)
    assert answer.status >= 400
    check_discreet(answer)
    assert str(upstream.port) not in answer.body.decode()


IN_STREAM = {
    "a payment": ErrorInStream(after_token=2, code=402, message=f"Credit limit exceeded for {ACCOUNT}, see {URL}"),
    "a key": ErrorInStream(after_token=2, code=401, message=f"{KEY} of {ACCOUNT} was revoked"),
    "a failure": ErrorInStream(after_token=2, code=500, message=f"worker at {URL} of {ACCOUNT} died"),
    "a cut": Cut(after_token=2, how="reset"),
    "an end": Cut(after_token=2, how="end"),
}


@pytest.mark.parametrize("name", IN_STREAM)
async def test_what_a_service_says_in_the_midst_of_a_stream_stays_here_too(
    door: Any, client: AsyncTogether, upstream: EmulatorServer, name: str
) -> None:
    """A last event that says what a browser can use, whatever the service said."""
    upstream.faults = IN_STREAM[name]
    answer = await door(client.stream(PROMPT, model=MODEL))
    assert answer.events[-1].event == "error"
    assert answer.text == "One two"
    assert b"[DONE]" not in answer.body
    check_discreet(answer)


async def test_a_stream_that_is_whole_without_done_is_ended_with_it(
    door: Any, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """Servers that never send `[DONE]` end with a finish reason; clients of the relay wait for it."""
    upstream.faults = WithoutDone()
    answer = await door(client.stream(PROMPT, model=MODEL))
    assert answer.text == TEXT
    assert answer.events[-1].data == b"[DONE]"


async def test_errors_are_logged_with_what_the_browser_is_not_told(
    caplog: pytest.LogCaptureFixture, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """The operator finds the reason; a key and a prompt are in no log."""
    upstream.faults = Status(402, message=f"Credit limit exceeded for {ACCOUNT}")
    with caplog.at_level(logging.INFO, "together_async.relay"):
        await by_asgi(client.stream(PROMPT, model=MODEL))
    assert "Credit limit exceeded" in caplog.text
    assert KEY not in caplog.text
    assert PROMPT not in caplog.text


# ------------------------------------------------------------------------------------------------------- ends, leaving


@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_on_end_hears_of_the_end(door: Any, client: AsyncTogether, kind: str) -> None:
    """Once, with the completion; a function or a coroutine function."""
    ended: list[End] = []

    async def later(end: End) -> None:
        await asyncio.sleep(0)
        ended.append(end)

    await door(client.stream(PROMPT, model=MODEL), on_end=later if kind == "coroutine" else ended.append)
    (end,) = ended
    assert end.completion is not None
    assert end.completion.text == TEXT
    assert end.error is None
    assert not end.left


@pytest.mark.parametrize("stage", ["head", "token", "silence", "not reading", "send fails"])
async def test_leaving_an_asgi_server(client: AsyncTogether, upstream: EmulatorServer, stage: str) -> None:
    """By `http.disconnect`, or an OSError of `send`: the response returns, the upstream is left, the place is free."""
    faults: dict[str, Fault] = {"head": Stall(), "token": Stall(after_token=0)}
    upstream.faults = faults.get(stage, Stall(after_token=2))
    visitor, ended = Client(), list[End]()
    if stage == "not reading":
        visitor.reads.clear()
    if stage == "send fails":
        visitor.refuses = ConnectionResetError("gone")
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), on_end=ended.append)
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    entry = await upstream.journal.wait(1)
    if stage in ("silence", "not reading"):
        await visitor.heard.wait()
    if stage != "send fails":
        visitor.left.set()
    await asyncio.wait_for(task, SOON)
    await entry.wait_left()
    assert client.limits.in_flight == 0
    assert ended[0].left
    assert ended[0].error is None


@pytest.mark.parametrize("stage", ["head", "silence"])
async def test_cancelling_an_asgi_response_leaves_the_upstream(
    client: AsyncTogether, upstream: EmulatorServer, stage: str
) -> None:
    """Servers cancel what they don't wait for any more. The client, who is still there, hears why."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    visitor = Client()
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL))
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    entry = await upstream.journal.wait(1)
    if stage == "silence":
        await visitor.heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, SOON)
    await entry.wait_left()
    assert visitor.finished
    assert visitor.answer.problem["type"] == "ServerShutdownError"
    assert visitor.answer.status == (503 if stage == "head" else 200)


@pytest.mark.parametrize("stage", ["head", "silence"])
@pytest.mark.parametrize("how", ["aclose", "cancel", "drop"])
async def test_leaving_the_loop(client: AsyncTogether, upstream: EmulatorServer, stage: str, how: str) -> None:
    """By its end, its cancellation, or by nobody's having it any more: the upstream is left."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    ended: list[End] = []
    iterator: Any = sse(client.stream(PROMPT, model=MODEL), on_end=ended.append)
    if stage == "silence":
        await anext(iterator)
    reading = asyncio.create_task(anext(iterator))
    entry = await upstream.journal.wait(1)
    for _ in range(3):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    if how == "aclose":
        await iterator.aclose()
    del iterator, reading
    await entry.wait_left()
    assert ended[0].left


async def test_who_made_the_error_and_who_left(response: Any) -> None:
    """An error of the stream's or of a function's before the first event is no client's leaving."""
    ended: list[End] = []
    with pytest.raises(ConnectionResetError):
        await response(says(ConnectionResetError("a database of the app's")), on_end=ended.append)
    with pytest.raises(ZeroDivisionError):
        await response(says("a"), format=lambda _: 1 / 0, on_end=ended.append)
    assert [(type(end.error), end.left) for end in ended] == [(ConnectionResetError, False), (ZeroDivisionError, False)]


@pytest.mark.parametrize("stage", ["head", "silence"])
async def test_a_response_that_its_server_cancels_was_not_left(
    client: AsyncTogether, upstream: EmulatorServer, stage: str
) -> None:
    """The client is there, and is told: `on_end` hears the same."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    visitor, ended = Client(), list[End]()
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), on_end=ended.append)
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    await upstream.journal.wait(1)
    if stage == "silence":
        await visitor.heard.wait()
    task.cancel()
    await asyncio.wait([task], timeout=SOON)
    assert visitor.answer.problem["type"] == "ServerShutdownError"
    assert isinstance(ended[0].error, ServerShutdownError)
    assert not ended[0].left


@pytest.mark.parametrize("cancels", [False, True])
async def test_leaving_an_aiohttp_server(client: AsyncTogether, upstream: EmulatorServer, cancels: bool) -> None:
    """Whether or not it cancels its handlers then, `on_end` hears that the client has left."""
    upstream.faults = Stall(after_token=2)
    ended = asyncio.Queue[End]()

    async def answer(request: web.Request) -> web.StreamResponse:
        return await aiohttp_response(request, client.stream(PROMPT, model=MODEL), on_end=ended.put)

    async with served(answer, handler_cancellation=cancels) as url, aiohttp.ClientSession() as session:
        visitor = await session.get(url)
        await visitor.content.readany()
        visitor.close()
        end = await asyncio.wait_for(ended.get(), SOON)
    assert end.left
    assert end.error is None


def asks(door: str, stream: Any, **options: Any) -> tuple[asyncio.Task[None], asyncio.Event]:
    """A task that relays, and what is set when something was sent."""
    visitor = Client()

    async def loop() -> None:
        async for _ in sse(stream, **options):
            visitor.heard.set()

    if door == "sse":
        return asyncio.create_task(loop()), visitor.heard
    made: Any = EventSourceResponse(stream, **options)
    return asyncio.create_task(made(scope_of(), visitor.receive, visitor.send)), visitor.heard


@pytest.mark.parametrize("stage", ["head", "silence"])
@pytest.mark.parametrize("door", ["sse", "asgi"])
async def test_on_end_is_not_cut_off(client: AsyncTogether, upstream: EmulatorServer, door: str, stage: str) -> None:
    """Even where who reads is cancelled at every `await` of his, as anyio does; he ends when it has, and cancelled."""
    upstream.faults = Stall() if stage == "head" else Stall(after_token=2)
    begun, saved, ended = asyncio.Event(), asyncio.Event(), list[End]()

    async def on_end(end: End) -> None:
        begun.set()
        await saved.wait()
        await asyncio.sleep(0)
        ended.append(end)

    task, heard = asks(door, client.stream(PROMPT, model=MODEL), on_end=on_end)
    await upstream.journal.wait(1)
    if stage == "silence":
        await heard.wait()
    for turn in itertools.count():
        if task.done():
            break
        task.cancel()
        await asyncio.sleep(0)
        if turn > 20 and begun.is_set():
            assert saved.is_set() or not ended
            saved.set()
        assert turn < 100_000
    assert len(ended) == 1
    assert task.cancelled()
    assert client.limits.in_flight == 0


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("door", ["sse", "asgi"])
async def test_an_on_end_that_raises_hides_no_cancellation(
    client: AsyncTogether, upstream: EmulatorServer, caplog: pytest.LogCaptureFixture, door: str, times: int
) -> None:
    """Who was cancelled, once or while it ran too, ends so; the error is in the log."""
    upstream.faults = Stall(after_token=2)
    begun, goes_on = asyncio.Event(), asyncio.Event()
    lost: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))

    async def on_end(_: End) -> None:
        begun.set()
        await goes_on.wait()
        raise LookupError("no database")

    task, heard = asks(door, client.stream(PROMPT, model=MODEL), on_end=on_end)
    await heard.wait()
    task.cancel()
    await asyncio.wait_for(begun.wait(), SOON)
    if times == 2:
        task.cancel()
        await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait([task], timeout=SOON)
    assert task.cancelled()
    gc.collect()
    assert not lost
    assert "on_end of a relay failed" in caplog.text
    assert "LookupError: no database" in caplog.text


async def test_an_on_end_that_raises_is_told_its_author(door: Any, client: AsyncTogether) -> None:
    """Where nothing else is on its way."""

    def on_end(_: End) -> None:
        raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        await door(client.stream(PROMPT, model=MODEL), on_end=on_end)


@pytest.mark.parametrize("how", ["left", "cancelled"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", ["sse", "asgi"])
async def test_what_was_left_is_freed_at_once(
    client: AsyncTogether, upstream: EmulatorServer, door: str, kind: str, how: str
) -> None:
    """Without the garbage collector: what is relayed by the thousand may not wait for it."""
    upstream.faults = Stall(after_token=2)
    stream = client.stream(PROMPT, model=MODEL)
    alive = weakref.ref(stream)
    visitor = Client()
    feed: Any = KINDS[kind](stream)
    del stream
    gc.collect()
    gc.disable()
    try:
        if door == "sse":
            iterator: Any = sse(feed)
            del feed
            while b"two" not in await anext(iterator):
                pass
            if how == "left":
                await iterator.aclose()
            else:
                reading = asyncio.create_task(anext(iterator))
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait([reading])
                del reading
            del iterator
        else:
            made: Any = EventSourceResponse(feed)
            del feed
            task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
            del made
            while not visitor.sent or b"two" not in visitor.answer.body:
                visitor.heard.clear()
                await asyncio.wait_for(visitor.heard.wait(), SOON)
            if how == "left":
                visitor.left.set()
            else:
                task.cancel()
            await asyncio.wait([task])
            del task
        for _ in range(100):  # transports close some turns after they are told to
            if alive() is None:
                break
            await asyncio.sleep(0.001)
        assert alive() is None
    finally:
        gc.enable()


async def test_a_loop_that_never_began_has_asked_nothing(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """It may be dropped or closed without a warning."""
    await sse(client.stream(PROMPT, model=MODEL)).aclose()  # type: ignore[attr-defined]
    del client
    assert upstream.journal.total == 0


# ----------------------------------------------------------------------------------------------------------- shutdown


@contextlib.contextmanager
def a_servers_handler(number: signal.Signals) -> Iterator[list[int]]:
    """A handler as a server has it; yields what it has heard."""
    heard: list[int] = []
    before = signal.signal(number, lambda got, _: heard.append(got))
    try:
        yield heard
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_what_is_relayed_and_reaches_the_server(
    client: AsyncTogether, upstream: EmulatorServer, number: signal.Signals
) -> None:
    """All streams end with their event within `grace`; the server hears the signal as ever, and its handler is back."""
    upstream.faults = Stall(after_token=2)
    with a_servers_handler(number) as heard:
        handler = signal.getsignal(number)
        visitors = [Client(), Client()]
        answers = []
        for visitor in visitors:
            made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), grace=0.01)
            answers.append(asyncio.create_task(made(scope_of(), visitor.receive, visitor.send)))
            await visitor.heard.wait()
        assert signal.getsignal(number) is not handler
        signal.raise_signal(number)
        await asyncio.wait_for(asyncio.gather(*answers), SOON)
        assert heard == [number]
        assert signal.getsignal(number) is handler
    for visitor in visitors:
        assert visitor.answer.problem["type"] == "ServerShutdownError"
        assert visitor.finished
    assert client.limits.in_flight == 0


async def test_an_answer_that_ends_within_its_grace_is_whole(door: Any, client: AsyncTogether) -> None:
    """Being told to stop cuts nothing that is about to end."""
    seen: list[str] = []

    def told_at_the_first(one: ChatCompletionChunk) -> str:
        if not seen:
            shut_down()
        seen.append(one.choices[0].delta.content or "")
        return seen[-1]

    answer = await door(client.stream(PROMPT, model=MODEL), format=told_at_the_first, grace=SOON)
    assert "".join(seen) == TEXT
    assert answer.events[-1].data == b"[DONE]"


async def test_where_no_server_listens_no_handler_is_ours(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """A signal that would end the process still does."""
    upstream.faults = Stall(after_token=2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    iterator: Any = sse(client.stream(PROMPT, model=MODEL))
    await anext(iterator)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    await iterator.aclose()


async def test_whoever_takes_the_signal_meanwhile_keeps_it(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """A handler that was set while something was relayed is not replaced by the one before it."""
    upstream.faults = Stall(after_token=2)
    with a_servers_handler(signal.SIGTERM):
        iterator: Any = sse(client.stream(PROMPT, model=MODEL))
        await anext(iterator)
        mine = lambda *_: None  # noqa: E731
        signal.signal(signal.SIGTERM, mine)
        await iterator.aclose()
        assert signal.getsignal(signal.SIGTERM) is mine


async def test_a_reader_who_has_stopped_holds_up_no_shutdown(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """Who does not even take the last event is given up after the grace has passed once more."""
    upstream.script = Reply(("tok ",) * 5_000)
    visitor = Client()
    visitor.reads.clear()
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL), grace=0.01)
    task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
    await visitor.heard.wait()
    shut_down()
    await asyncio.wait([task], timeout=SOON)
    assert task.done()
    assert client.limits.in_flight == 0


# ------------------------------------------------------------------------------------------------------ Last-Event-ID


async def test_who_comes_back_to_what_cannot_be_resumed_is_sent_away(
    response: Any, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """204 ends a browser's attempts; asking again would be paid again."""
    answer = await response(client.stream(PROMPT, model=MODEL), asked={"Last-Event-ID": "3"})
    assert answer.status == 204
    assert answer.body == b""
    assert upstream.journal.total == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", [False, True])
async def test_the_loop_sends_who_comes_back_to_it_nothing(
    client: AsyncTogether, upstream: EmulatorServer, kind: str, opened: bool
) -> None:
    """It has no status to say so: no event at all, nothing asked again, and what was open is closed."""
    stream, ended = client.stream(PROMPT, model=MODEL), list[End]()
    if opened:
        await stream.__aenter__()
    answer = await by_loop(KINDS[kind](stream), {"last-event-id": "3"}, on_end=ended.append)
    assert answer.body == b""
    assert upstream.journal.total == int(opened)
    if kind != "own" or not opened:  # who opens it for a loop of his own closes it
        assert client.limits.in_flight == 0
    else:
        await stream.aclose()
    (end,) = ended
    assert isinstance(end.error, AllReadError)
    assert not end.left


async def test_an_empty_last_event_id_is_none(response: Any, client: AsyncTogether) -> None:
    """It means that no event had an id."""
    answer = await response(client.stream(PROMPT, model=MODEL), asked={"Last-Event-ID": ""})
    assert answer.text == TEXT


@pytest.mark.parametrize("had", range(len(TOKENS) + 2))
async def test_who_comes_back_to_a_hub_gets_the_rest(
    door: Any, client: AsyncTogether, upstream: EmulatorServer, had: int
) -> None:
    """After any of its events: what was had and what comes make the text, once; the model was asked once."""
    async with Hub() as hub:
        first = await door(hub.open(client.stream(PROMPT, model=MODEL), "conversation"))
        had_events = first.events[:had]
        asked = {"last-event-id": had_events[-1].id} if had else None
        second = await door(hub.open(client.stream(PROMPT, model=MODEL), "conversation"), asked=asked)
    assert text_of(had_events) + second.text == TEXT
    assert second.events[-1].data == b"[DONE]"
    assert upstream.journal.total == 1


def text_of(events: list[ServerSentEvent]) -> str:
    return Answer(200, {}, b"".join(b"data: " + one.data + b"\n\n" for one in events)).text


async def test_who_has_had_the_end_is_told_that_it_was(response: Any, client: AsyncTogether) -> None:
    """The last event has an id too: a browser that comes back after it gets 204, and is silent from then on."""
    async with Hub() as hub:
        first = await response(hub.open(client.stream(PROMPT, model=MODEL), "conversation"))
        last = first.events[-1]
        assert last.data == b"[DONE]"
        again = await response(hub.join("conversation"), asked={"last-event-id": last.id})
    assert again.status == 204


@pytest.mark.parametrize(
    "id", ["other:1", "conversation:99", "conversation:x", "conversation:-1", "::", "\u00e9:1", "9" * 400]
)
async def test_an_id_of_nothing_here_is_gone(response: Any, client: AsyncTogether, id: str) -> None:
    """410, and no word about what there is."""
    async with Hub() as hub:
        hub.start(client.stream(PROMPT, model=MODEL), "conversation")
        answer = await response(hub.join("conversation"), asked={"last-event-id": id})
    assert answer.status == 410
    assert answer.problem["type"] == "NotKeptError"


async def test_a_reader_who_left_in_the_midst_continues(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """The completion goes on without him; who has its id and position gets exactly the rest."""
    upstream.faults = Stall(after_token=2)
    async with Hub() as hub:
        visitor = Client()
        made: Any = EventSourceResponse(hub.open(client.stream(PROMPT, model=MODEL), "conversation"))
        task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
        while b"two" not in b"".join(one.get("body", b"") for one in visitor.sent):
            visitor.heard.clear()
            await asyncio.wait_for(visitor.heard.wait(), SOON)
        visitor.left.set()
        await asyncio.wait_for(task, SOON)
        had = visitor.answer
        upstream.release()
        rest = await by_asgi(hub.join("conversation"), asked={"last-event-id": had.events[-1].id})
    assert had.text + rest.text == TEXT


# ---------------------------------------------------------------------------------------------------------- heartbeats


@contextlib.asynccontextmanager
async def scene(script: Callable[[Call], Awaitable[None]]) -> AsyncIterator[tuple[ScriptedServer, AsyncTogether]]:
    async with ScriptedServer(script) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        yield server, client


async def timed(door: str, stream: Any, **options: Any) -> list[tuple[float, bytes]]:
    """What a client gets, piece by piece, and when, in whole seconds from its asking."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    got: list[tuple[float, bytes]] = []
    if door == "sse":
        return [(round(loop.time() - began, 1), data) async for data in sse(stream, **options)]
    if door == "asgi":

        async def send(message: Any) -> None:
            if message.get("body"):
                got.append((round(loop.time() - began, 1), message["body"]))

        made: Any = EventSourceResponse(stream, **options)
        await made(scope_of(), Client().receive, send)
        return got

    async def answer(request: web.Request) -> web.StreamResponse:
        return await aiohttp_response(request, stream, **options)

    async with served(answer) as url, aiohttp.ClientSession() as session, session.get(url) as response:
        async for data in response.content.iter_any():
            got.append((round(loop.time() - began, 1), data))  # noqa: PERF401 - each has its own time
    return got


PATIENT = Timeouts(connect=None, first_token=None, idle=None, total=None, queue=None)


def at(*seconds: float) -> list[tuple[float, bytes]]:
    return [(second, COMMENT) for second in seconds]


@pytest.mark.parametrize("door", DOORS)
def test_silence_is_filled_with_comments(door: str) -> None:
    """Before the service's head, before the first token, between tokens: one every `heartbeat` seconds of silence."""
    one, two = event(delta("one", role="assistant")), event(delta("two", finish="stop"))

    async def script(call: Call) -> None:
        await asyncio.sleep(3.5)
        await call.head()
        await asyncio.sleep(2)
        await call.chunk(one)
        await asyncio.sleep(2.5)
        await call.chunk(two)
        await asyncio.sleep(0.5)
        await call.chunk(DONE)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with scene(script) as (_, client):
            got = await timed(door, client.stream(PROMPT, model=MODEL, timeouts=PATIENT), heartbeat=1, ids=False)
        assert got[:3] == at(1, 2, 3)
        assert got[-5:] == [(5.5, one), *at(6.5, 7.5), (8.0, two), (8.5, DONE)]
        times = [second for second, _ in got]
        assert max(after - before for before, after in itertools.pairwise(times)) < 1.05
        assert {data for _, data in got} == {COMMENT, one, two, DONE}

    virtual_time.run(main())


def test_tokens_leave_no_room_for_comments() -> None:
    """A stream that is never silent for so long has none, however long it takes, but for the one with its head."""

    async def script(call: Call) -> None:
        await call.head()
        for _ in range(30):
            await asyncio.sleep(9)
            await call.chunk(event(delta("x", role="assistant")))
        await call.chunk(event(delta(finish="stop")), DONE)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with scene(script) as (_, client):
            got = await timed("asgi", client.stream(PROMPT, model=MODEL), heartbeat=10)
        assert [one for one in got if one[1].startswith(b":")] == at(1)  # with the head

    virtual_time.run(main())


def decoded(block: bytes) -> Any:
    data = block.removeprefix(b"data: ")
    return json.loads(data) if data.startswith(b"{") else data


@pytest.mark.parametrize("kind", ["chunks", "raw", "buffered", "hub", "own"])
def test_comments_cost_no_byte(kind: str) -> None:
    """Interrupted at every moment, in the midst of events too: without the comments all is as it was sent."""
    texts = [f"token {number} " for number in range(12)]
    events = [event(json.dumps(delta(text)).encode()) for text in texts]
    body = b"".join(events) + event(delta(finish="stop")) + DONE

    async def script(call: Call) -> None:
        await call.head()
        for start in range(0, len(body), 37):
            await asyncio.sleep(1.7)
            await call.chunk(body[start : start + 37])
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with scene(script) as (_, client), Hub(abandon=None) as hub:
            stream = client.stream(PROMPT, model=MODEL)
            made = hub.open(stream) if kind == "hub" else KINDS[kind](stream)
            got = b"".join([data async for data in sse(made, heartbeat=1.1, ids=False)])
        assert got.count(COMMENT) > 20
        without = got.replace(COMMENT, b"").removeprefix(b"retry: 1000\n")
        if kind != "own":
            assert without == body
            assert [data for _, data in by_openai(got)] == [one.data.decode() for one in EventStreamParser().feed(body)]
        assert [decoded(one) for one in without.split(b"\n\n")] == [decoded(one) for one in body.split(b"\n\n")]

    virtual_time.run(main())


@pytest.mark.parametrize("door", DOORS)
def test_without_heartbeat_silence_is_silent(door: str) -> None:
    """None sends none, not even with the head."""

    async def script(call: Call) -> None:
        await call.head()
        await asyncio.sleep(100)
        await call.chunk(event(delta("x", finish="stop")), DONE)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with scene(script) as (_, client):
            got = await timed(door, client.stream(PROMPT, model=MODEL, timeouts=PATIENT), heartbeat=None)
        assert got[0][0] == 100
        assert not any(data.startswith(b":") for _, data in got)

    virtual_time.run(main())


@pytest.mark.parametrize("door", DOORS)
def test_a_byte_order_mark_after_a_comment_is_left_out(door: str) -> None:
    """It is one at the start of a body alone (WHATWG HTML, 9.2.6): behind a comment it would spoil the first event."""
    body = event(delta("one", role="assistant")) + event(delta("two", finish="stop")) + DONE

    async def script(call: Call) -> None:
        await asyncio.sleep(2.5)
        await call.head()
        await call.chunk(b"\xef\xbb\xbf" + body)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with scene(script) as (_, client):
            got = await timed(door, passthrough(client.stream(PROMPT, model=MODEL)), heartbeat=1)
        assert got == [*at(1, 2), (2.5, body)]

    virtual_time.run(main())


@pytest.mark.parametrize(("after_s", "status"), [(0.5, 429), (2.0, 200)])
def test_an_error_shortly_after_the_head_is_a_status(after_s: float, status: int) -> None:
    """A service that begins its response and breaks within a second is told by a status; later by an event."""

    async def script(call: Call) -> None:
        await call.head()
        await asyncio.sleep(after_s)
        await call.chunk(event({"error": {"message": "slow down", "code": 429}}))
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with scene(script) as (_, client):
            answer = await by_asgi(client.stream(PROMPT, model=MODEL))
        assert answer.status == status
        assert answer.problem["code"] == 429

    virtual_time.run(main())


@pytest.mark.parametrize(
    "times",
    [
        *({"heartbeat": wrong} for wrong in (0, -1, math.nan, "1")),
        *({"grace": wrong} for wrong in (-1, math.nan, None)),
    ],
)
async def test_seconds_that_are_none_are_refused(client: AsyncTogether, times: dict[str, Any]) -> None:
    """When the response is made."""
    with pytest.raises(ValueError, match=next(iter(times))):
        EventSourceResponse(client.stream(PROMPT, model=MODEL), **times)


# -------------------------------------------------------------------------------------------------------------- imports


def test_the_relay_imports_no_framework() -> None:
    """Neither one it serves, nor the server's half of aiohttp."""
    code = "import sys, together_async.relay; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for name in ("starlette", "fastapi", "litestar", "quart", "django", "uvicorn", "anyio", "aiohttp.web"):
        assert name not in modules


ORDERS = {
    "the relay first": "from together_async.relay import EventSourceResponse\nimport starlette.responses",
    "starlette first": "import starlette.responses\nfrom together_async.relay import EventSourceResponse",
}


@pytest.mark.parametrize("order", ORDERS)
def test_where_starlette_is_loaded_it_is_one_of_its_responses(order: str) -> None:
    """Whichever came first; and it is one of ours."""
    code = f"""
import asyncio
{ORDERS[order]}
async def main():
    from together_async.relay import Hub
    response = EventSourceResponse(Hub().join("x"))
    assert isinstance(response, starlette.responses.Response), type(response).__mro__
    assert isinstance(response, EventSourceResponse)
    assert type(response).__name__ == "EventSourceResponse"
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
