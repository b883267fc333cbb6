"""The emulator on real sockets, read by a raw client: what is on the wire, and what the journal says of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import math
import socket
import ssl
import struct
import sys
import threading
import time
import zlib
from typing import Any, Self

import pytest
import trustme

from support.virtual_time import lasts, virtual
from together_async.request import ChatCompletionRequest
from together_async.testing import (
    DIALECTS,
    MODELS,
    ByModel,
    Chance,
    CloseAfter,
    Cut,
    Drip,
    EmulatorServer,
    EndlessHeaders,
    ErrorInStream,
    Fault,
    Frame,
    Garbage,
    Gzip,
    Headers,
    HugeLine,
    Insert,
    InTurn,
    LineEndings,
    Model,
    OneOf,
    Raw,
    Redirect,
    Reply,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
    WrongLength,
)
from together_async.testing.connection import MAX_HEAD

pytestmark = pytest.mark.usefixtures("no_leaks")

SOON = 1.0
"""Seconds in which nothing must come; most who look for silence do so in virtual time."""
CHAT = "/v1/chat/completions"
NO_RULE: Any = "x"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "one two three four"


def post(path: str = CHAT, *, headers: str = "", body: Any = None, **fields: Any) -> bytes:
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps({**BODY, **fields} if body is None else body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(data)}\r\n\r\n".encode() + data


def get(path: str, *, headers: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode()


class Answer:
    """One response off the wire."""

    def __init__(self, head: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        self.line = line
        self.status = int(line.split(" ")[1])
        self.headers = {name: value for name, _, value in (field.partition(": ") for field in fields)}
        self.chunks: list[bytes] = []
        self.ended = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The stream's data, JSON decoded; without `[DONE]`, which must be the last."""
        *events, done, rest = self.body.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        return [json.loads(event.removeprefix(b"data: ")) for event in events]

    @property
    def text(self) -> str:
        choices = [event["choices"][0] for event in self.events if event["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


class Client:
    """A socket, and just enough HTTP to read what comes without mending it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, server: EmulatorServer, *, sock: socket.socket | None = None, **options: Any) -> Self:
        if sock is not None:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
            return cls(*await asyncio.open_connection(sock=sock, limit=1_000))
        return cls(*await asyncio.open_connection("127.0.0.1", server.port, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def ask(self, request: bytes) -> Answer:
        """Sends a request and reads one whole response."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> Answer:
        async with asyncio.timeout(5):
            answer = Answer(await self.reader.readuntil(b"\r\n\r\n"))
            if "chunked" in answer.headers.get("transfer-encoding", ""):
                while size := int(await self.reader.readline(), 16):
                    answer.chunks.append(await self.reader.readexactly(size))
                    assert await self.reader.readexactly(2) == b"\r\n"
                assert await self.reader.readexactly(2) == b"\r\n"
            elif "content-length" in answer.headers:
                answer.chunks.append(await self.reader.readexactly(int(answer.headers["content-length"])))
            else:
                answer.chunks.append(await self.reader.read())
            answer.ended = True
            return answer

    async def rest(self) -> tuple[bytes, str]:
        """All bytes until the connection ends, and how it did."""
        got = bytearray()
        async with asyncio.timeout(5):
            try:
                while data := await self.reader.read(65_536):
                    got += data
            except ConnectionResetError:
                return bytes(got), "reset"
        return bytes(got), "eof"

    async def silence(self) -> bytes:
        """What comes until nothing more does for a while; the connection is open then."""
        got = bytearray()
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(SOON):
                    data = await self.reader.read(65_536)
                assert data, f"the connection ended after {bytes(got)!r}"
                got += data
        return bytes(got)


async def ask(server: EmulatorServer, request: bytes) -> Answer:
    async with await Client.to(server) as client:
        return await client.ask(request)


async def raw(server: EmulatorServer, request: bytes) -> tuple[bytes, str]:
    async with await Client.to(server) as client:
        client.writer.write(request)
        return await client.rest()


async def plain(*, stream: bool) -> tuple[bytes, list[bytes]]:
    """The body without any fault, and its events."""
    async with EmulatorServer(TEXT) as server:
        body = (await ask(server, post(stream=stream))).body
    body = body.replace(b"\n\n", b"\n\n\0")
    events = body.split(b"\0")
    return body.replace(b"\0", b""), events[:-1] if stream else events


def same(body: bytes) -> bytes:
    """A body without what differs from second to second."""
    at = body.find(b'"created":')
    while at >= 0:
        end = at + len(b'"created":1763880000')
        body = body[:at] + b'"created":1763880000' + body[end:]
        at = body.find(b'"created":', end)
    return body


# ------------------------------------------------------------------------------------------------------------- answers


async def test_a_whole_response():
    """200, JSON with its length, the id in body and header, the connection kept."""
    async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
        answer = await client.ask(post())
        assert answer.line == "HTTP/1.1 200 OK"
        assert answer.headers["content-type"] == "application/json"
        assert answer.json["id"] == answer.headers["x-request-id"]
        assert answer.headers["cf-ray"].startswith(answer.headers["x-request-id"])
        assert answer.json["choices"][0]["message"]["content"] == TEXT
        assert (await client.ask(post())).json["choices"] == answer.json["choices"]
        assert server.connections == server.open_connections == 1


async def test_a_stream():
    """The media type with its charset, chunked, `[DONE]`, the connection kept."""
    async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
        answer = await client.ask(post(stream=True))
        assert answer.headers["content-type"] == "text/event-stream;charset=utf-8"
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.text == TEXT
        assert {event["id"] for event in answer.events} == {answer.headers["x-request-id"]}
        assert (await client.ask(post(stream=True))).text == TEXT
        assert [entry.connection for entry in server.journal] == [0, 0]


async def test_models_are_a_bare_array():
    """With context_length and pricing; no `object: list` around it."""
    async with EmulatorServer(models=[Model("a/b", context_length=7, input_price=1.0), "c"]) as server:
        answer = await ask(server, get("/v1/models?x=1"))
    assert [model["id"] for model in answer.json] == ["a/b", "c"]
    assert answer.json[0] == {
        "id": "a/b",
        "object": "model",
        "created": 0,
        "type": "chat",
        "display_name": "b",
        "organization": "a",
        "link": "",
        "license": "",
        "context_length": 7,
        "pricing": {"hourly": 0, "input": 1.0, "output": 0.88, "base": 0, "finetune": 0},
    }


async def test_three_choices_as_a_stream_and_whole():
    """The same texts, whichever way."""
    async with EmulatorServer(["a", "b c", "d"]) as server:
        whole = (await ask(server, post(n=3))).json
        events = (await ask(server, post(n=3, stream=True))).events
    texts = ["", "", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"]["content"]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]] == ["a", "b c", "d"]


async def test_stop_and_max_tokens_are_honoured():
    """Whole and streamed, with the reason and the count."""
    async with EmulatorServer(TEXT) as server:
        cases: tuple[tuple[dict[str, Any], str, str, int], ...] = (
            ({"max_tokens": 2}, "one two", "length", 2),
            ({"stop": [" three"]}, "one two", "stop", 2),
        )
        for fields, text, reason, tokens in cases:
            whole = (await ask(server, post(**fields))).json
            assert whole["choices"][0]["message"]["content"] == text
            assert whole["choices"][0]["finish_reason"] == reason
            assert whole["usage"]["completion_tokens"] == tokens
            streamed = await ask(server, post(stream=True, **fields))
            assert (streamed.text, streamed.events[-1]["usage"]) == (text, whole["usage"])


async def test_each_model_answers_in_its_dialect():
    """The shapes and the closing of the connection are the model's."""
    models = [Model(name, dialect) for name, dialect in DIALECTS.items()]
    async with EmulatorServer(Reply(TEXT, reasoning="Hm."), models=models) as server:
        for name, dialect in DIALECTS.items():
            async with await Client.to(server) as client:
                answer = await client.ask(post(stream=True, model=name))
                assert "connection" not in answer.headers  # llama.cpp promises to keep it, and does not
                if dialect.closes:
                    assert await client.rest() == (b"", "eof")
                assert answer.body.endswith(b"data: [DONE]\n\n") is dialect.done
                assert f'"{dialect.reasoning}":'.encode() in answer.body


async def test_a_script_may_be_a_function_of_the_request():
    """Called once a request, not once a choice; a list is for the choices in turn."""
    seen = []

    def script(request: ChatCompletionRequest) -> list[str | Reply]:
        seen.append(request.n)
        return [f"n = {request.n}", Reply(request.model)]

    async with EmulatorServer(script) as server:
        body = (await ask(server, post(n=3))).json
    assert [choice["message"]["content"] for choice in body["choices"]] == ["n = 3", "m", "n = 3"]
    assert seen == [3]


async def test_the_same_seed_says_the_same():
    """Generated text, ids and the choice of faults repeat; another seed is another run."""

    async def run(seed: int) -> list[tuple[int, Any]]:
        async with EmulatorServer(seed=seed, faults=[Chance(0.5, Status(500)), OneOf(None, Status(429))]) as server:
            answers = [await ask(server, post()) for _ in range(40)]
            return [(answer.status, {**answer.json, "created": 0}) for answer in answers]

    first = await run(3)
    assert await run(3) == first
    assert await run(4) != first
    assert {status for status, _ in first} == {200, 429, 500}


async def test_a_question_is_answered_the_same_as_a_stream_or_not():
    """Generated text depends on the question, not on how it is asked for."""
    async with EmulatorServer() as server:
        whole = (await ask(server, post())).json["choices"][0]["message"]["content"]
        streamed = await ask(server, post(stream=True, stream_options={"include_usage": True}))
        other = (await ask(server, post(messages=[{"role": "user", "content": "ho"}]))).json
    assert streamed.text == whole
    assert other["choices"][0]["message"]["content"] != whole


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        (get("/v1/nothing"), 404, {"message": "no such path: '/v1/nothing'; there are POST /v1/chat/completions"}),
        (get(CHAT), 405, {"message": "GET /v1/chat/completions: expected POST"}),
        (post("/v1/models"), 405, {"message": "POST /v1/models: expected GET"}),
        (
            post(model="other"),
            404,
            {
                "message": "the model 'other' does not exist here",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_available",
            },
        ),
        (
            post(max_tokens=100),
            403,
            {
                "message": "prompt (5 tokens) + max_tokens (100) exceed the model's context of 100 tokens",
                "type": "invalid_request_error",
                "param": "max_tokens",
                "code": None,
            },
        ),
        (post(body=b"{"), 400, {"message": "the body is no JSON object", "type": "invalid_request_error"}),
        (post(body=[1]), 400, {"message": "the body is no JSON object"}),
        (post(body={"model": "m"}), 400, {"param": "messages"}),
        (post(n=0), 400, {"param": "n"}),
        (post(stream="yes"), 400, {"param": "stream", "message": "stream: got 'yes', expected true or false"}),
        (post(response_format={"type": "regex", "pattern": "("}), 400, {}),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_refused(request_, status, error):
    """With the service's body, whose id is the header's."""
    async with EmulatorServer(models=[Model("m", context_length=100)]) as server, await Client.to(server) as client:
        answer = await client.ask(request_)
        assert answer.status == status
        assert answer.json["id"] == answer.headers["x-request-id"]
        told = answer.json["error"]
        assert list(told) == ["message", "type", "param", "code"]
        assert {name: told[name] for name in error if name != "message"} == {
            name: value for name, value in error.items() if name != "message"
        }
        assert told["message"].startswith(error.get("message", ""))
        assert (await client.ask(get("/v1/models"))).status == 200  # the connection is good
        assert server.journal[0].outcome == "refused"


async def test_a_wrong_method_is_told_the_right_one():
    """In `allow`."""
    async with EmulatorServer() as server:
        assert (await ask(server, get(CHAT))).headers["allow"] == "POST"


@pytest.mark.parametrize("request_", [post(), get("/v1/models")], ids=["chat", "models"])
async def test_a_key_is_checked_when_there_is_one(request_):
    """None and a wrong one are refused; the right one is not."""
    async with EmulatorServer(api_key="secret") as server:
        for key in ("", "authorization: Bearer wrong\r\n", "authorization: secret\r\n"):
            answer = await ask(server, request_.replace(b"host: x\r\n", b"host: x\r\n" + key.encode()))
            assert answer.status == 401
            assert answer.json["id"] == answer.headers["x-request-id"]
            assert answer.json["error"]["code"] == "invalid_api_key"
        good = request_.replace(b"host: x\r\n", b"host: x\r\nAuthorization: Bearer secret\r\n")
        assert (await ask(server, good)).status == 200


async def test_a_wrong_key_is_refused_with_the_services_words():
    """Word for word."""
    async with EmulatorServer(api_key="secret") as server:
        assert (await ask(server, post())).json["error"] == {
            "message": "Invalid API key provided.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /v1/models\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: \xb2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 268435457\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffff1\r\n", 413),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD, 431),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(garbage, status):
    """A body that says why, and a FIN; the journal has no entry."""
    async with EmulatorServer() as server, await Client.to(server) as client:
        answer = await client.ask(garbage)
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert answer.json["error"]["message"]
        assert await client.rest() == (b"", "eof")
        assert len(server.journal) == 0


# ---------------------------------------------------------------------------------------------------------------- HTTP


async def test_a_request_may_come_byte_by_byte():
    """The head and the body in pieces of one byte."""
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        for at in range(len(request := post())):
            client.writer.write(request[at : at + 1])
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        assert server.journal[0].body == BODY


@virtual
async def test_a_request_body_may_be_chunked():
    """In chunks of any size, with extensions, in pieces."""
    data = json.dumps(BODY).encode()
    body = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (data[:1], data[1:20], data[20:]))
    request = f"POST {CHAT} HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n".encode() + body + b"0\r\n\r\n"
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        assert (await client.ask(request)).status == 200
        client.writer.write(request[:90])
        await client.silence()
        assert (await client.ask(request[90:])).status == 200
        assert [entry.body for entry in server.journal] == [BODY, BODY]


async def test_expect_100_continue():
    """The interim response comes before the body is sent, once."""
    request = post(headers="Expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        client.writer.write(head + b"\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(body[:5])
        await asyncio.sleep(0)
        assert (await client.ask(body[5:])).status == 200


async def test_pipelined_requests_are_answered_in_order():
    """Streams, whole responses and refusals in one write, each after the one before has ended."""
    requests = [post(stream=True), get("/v1/models"), post(n=0), post(), post(stream=True)]
    async with EmulatorServer(TEXT, faults=Split(every=50)) as server, await Client.to(server) as client:
        client.writer.write(b"".join(requests))
        assert (await client.answer()).text == TEXT
        assert isinstance((await client.answer()).json, list)
        assert (await client.answer()).status == 400
        assert (await client.answer()).json["choices"][0]["message"]["content"] == TEXT
        assert (await client.answer()).text == TEXT
        assert [entry.number for entry in server.journal] == [0, 1, 2, 3, 4]
        assert server.connections == 1


async def test_a_large_request_and_a_large_response():
    """One MiB each way."""
    content = "word " * 200_000
    async with EmulatorServer(lambda request: request.messages[0]["content"]) as server:
        answer = await ask(server, post(messages=[{"role": "user", "content": content}], max_tokens=None))
        assert answer.status == 403  # above the context
        server.script = Reply([content])
        assert (await ask(server, post())).json["choices"][0]["message"]["content"] == content


async def test_a_standard_library_client_understands_it():
    """http.client, in another thread: a whole response, a stream, on one connection."""

    def talk(port: int) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        got = []
        for stream in (False, True):
            connection.request("POST", CHAT, json.dumps({**BODY, "stream": stream}))
            got.append(connection.getresponse().read())
        connection.close()
        return got

    async with EmulatorServer(TEXT) as server:
        whole, stream = await asyncio.to_thread(talk, server.port)
        assert json.loads(whole)["choices"][0]["message"]["content"] == TEXT
        assert stream.endswith(b"data: [DONE]\n\n")
        assert server.connections == 1


# --------------------------------------------------------------------------------------------------- faults on the wire


@pytest.mark.parametrize("tokens", range(5))
@pytest.mark.parametrize(("how", "end"), [("reset", "reset"), ("close", "eof"), ("chunk", "eof")])
async def test_a_cut_after_a_token_of_a_stream(how, end, tokens):
    """The events before it, in good framing; then RST, FIN, or FIN inside a promised chunk."""
    _, events = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=Cut(after_token=tokens, how=how)) as server:
        got, ended = await raw(server, post(stream=True))
        entry = await server.journal.wait()
    head, _, body = got.partition(b"\r\n\r\n")
    sent = b"".join(events[:tokens])
    framed = b"%x\r\n%b\r\n" % (len(sent), sent) if sent else b""
    assert b"transfer-encoding: chunked" in head
    assert same(body) == same(framed + (b"7f\r\n" if how == "chunk" else b""))
    assert ended == end
    assert (entry.outcome, entry.tokens_written, entry.tokens) == ("broken off", tokens, 4)
    assert not entry.client_left


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_cut_at_a_byte_in_each_framing(framing, where, how):
    """Exactly so many bytes of the body come, whether framed by chunks, a length or the connection's end."""
    body, _ = await plain(stream=True)
    at = {"first": 0, "middle": len(body) // 2, "last": len(body)}[where]
    async with EmulatorServer(TEXT, faults=Frame(framing) + Cut(at_byte=at, how=how)) as server:
        got, ended = await raw(server, post(stream=True))
    head, _, data = got.partition(b"\r\n\r\n")
    if framing == "length":
        assert f"content-length: {len(body)}".encode() in head
    sent = b"%x\r\n%b\r\n" % (at, body[:at]) if framing == "chunked" and at else body[:at]
    assert same(data) == same(sent)
    assert ended == ("reset" if how == "reset" else "eof")


@pytest.mark.parametrize("at", [0, 1, 9, 40, 10_000])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_in_the_head(at, stream):
    """So many of its bytes, at most all of them, and nothing of the body."""
    async with EmulatorServer(TEXT) as server:
        full, _, _ = (await raw(server, post(stream=stream, headers="") + b"junk\r\n\r\n"))[0].partition(b"\r\n\r\n")
        server.journal.clear()
        server.faults = Cut(in_head=at)
        got, ended = await raw(server, post(stream=stream))
    assert got == (full + b"\r\n\r\n")[:at]
    assert ended == "reset"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_before_the_first_byte(stream):
    """Nothing but the reset."""
    async with EmulatorServer(TEXT, faults=Cut()) as server:
        assert await raw(server, post(stream=stream)) == (b"", "reset")
        assert server.journal[0].bytes_written == 0


@pytest.mark.parametrize("at", [0, 1, 100])
@pytest.mark.parametrize(("how", "end"), [("reset", "reset"), ("close", "eof"), ("chunk", "eof")])
async def test_a_cut_of_a_whole_response(how, end, at):
    """The length promised the whole, so it is too short whichever way it ends."""
    body, _ = await plain(stream=False)
    async with EmulatorServer(TEXT, faults=Cut(at_byte=at, how=how)) as server:
        got, ended = await raw(server, post())
    head, _, data = got.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert (same(data), ended) == (same(body[:at]), end)


async def test_an_end_in_good_order_keeps_the_connection():
    """`Cut(how="end")` is a response that is whole for HTTP, and too short for its content."""
    _, events = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=Cut(after_token=2, how="end")) as server, await Client.to(server) as client:
        for _ in range(2):
            answer = await client.ask(post(stream=True))
            assert same(answer.body) == same(b"".join(events[:2])).replace(b"em0-000000", answer_id(answer))
        assert [entry.outcome for entry in server.journal] == ["complete", "complete"]


def answer_id(answer: Answer) -> bytes:
    return answer.headers["x-request-id"].encode()


async def test_a_cut_beyond_the_end_is_no_fault():
    """The response is whole, and the journal says that nothing went wrong."""
    async with EmulatorServer(TEXT, faults=Cut(after_token=5) + Stall(at_byte=10**6)) as server:
        assert (await ask(server, post(stream=True))).text == TEXT
        assert server.journal[0].faults == ()


@virtual
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_gzip_is_decompressed_as_it_comes(framing):
    """A cut of a compressed body is one of what is inside, each event can be inflated when it is out."""
    body, events = await plain(stream=True)
    fault = Gzip() + Frame(framing) + Stall(after_token=2)
    async with EmulatorServer(TEXT, faults=fault) as server, await Client.to(server) as client:
        client.writer.write(post(stream=True))
        head, _, data = (await client.silence()).partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in head
        server.release()
        rest = bytearray()
        while framing == "close" or not rest.endswith(b"0\r\n\r\n"):
            piece = await client.reader.read(65_536)
            if not piece:
                break
            rest += piece

    def payload(data: bytes) -> bytes:
        if framing == "close":
            return data
        got = b""
        while data and not data.startswith(b"0\r\n"):
            size, _, data = data.partition(b"\r\n")
            got, data = got + data[: int(size, 16)], data[int(size, 16) + 2 :]
        return got

    inflate = zlib.decompressobj(wbits=31)
    assert same(inflate.decompress(payload(data))) == same(b"".join(events[:2]))
    assert same(gzip.decompress(payload(data) + payload(bytes(rest)))) == same(body)


async def test_a_gzip_cut_off():
    """The compressed stream has no end."""
    _, events = await plain(stream=True)
    fault = Gzip() + Frame("close") + Cut(after_token=1, how="close")
    async with EmulatorServer(TEXT, faults=fault) as server:
        got, _ = await raw(server, post(stream=True))
    inflate = zlib.decompressobj(wbits=31)
    assert same(inflate.decompress(got.partition(b"\r\n\r\n")[2])) == same(events[0])
    assert not inflate.eof


@pytest.mark.parametrize(
    ("fault", "sizes"),
    [
        (Split(every=100), [100]),
        (Split(at=(1, 3)), [1, 2]),
        (Drip(size=7, every_s=0), [7, 7, 7]),
        (Split(inside="utf-8"), []),
    ],
    ids=repr,
)
async def test_pieces_are_chunks_of_their_own(fault, sizes):
    """The same body in other chunks."""
    async with EmulatorServer("é ö 🌊") as server:
        plain = await ask(server, post(stream=True))
        server.journal.clear()
        server.faults = fault
        split = await ask(server, post(stream=True))
    assert same(split.body) == same(plain.body)
    assert len(split.chunks) > len(plain.chunks)
    assert [len(chunk) for chunk in split.chunks[: len(sizes)]] == sizes
    if isinstance(fault, Split) and fault.inside:
        inside = [chunk for chunk in split.chunks if chunk[:1] >= b"\x80"]
        assert len(inside) == 6  # each character of two in `content` and in `text`


async def test_line_endings_on_the_wire():
    """CR LF, each cut in two."""
    body, _ = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=LineEndings() + Split(inside="crlf")) as server:
        answer = await ask(server, post(stream=True))
    assert same(answer.body) == same(body.replace(b"\n", b"\r\n"))
    assert all(not chunk.endswith(b"\r\n") or chunk == b"\n" for chunk in answer.chunks)


SHAPES = ["object", "text", "flat", "detail", "named", "named_text", "beside"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("done", [False, True])
async def test_an_error_in_a_stream(shape, done):
    """After the tokens before it, as one event; the HTTP body ends in good order."""
    _, events = await plain(stream=True)
    fault = ErrorInStream(after_token=2, shape=shape, message="broke off", code=503, done=done)
    async with EmulatorServer(TEXT, faults=fault) as server:
        answer = await ask(server, post(stream=True))
    sent = same(b"".join(events[:2]))
    assert same(answer.body).startswith(sent)
    rest = same(answer.body)[len(sent) :]
    assert rest.count(b"\n\n") == 1 + done
    assert rest.endswith(b"data: [DONE]\n\n") is done
    assert b"broke off" in rest
    assert rest.startswith(b"event: error\ndata: ") is shape.startswith("named")


async def test_garbage_inserts_and_missing_ends():
    """Each in its place, all in one sum."""
    _, events = await plain(stream=True)
    fault = (
        WithoutDone() + WithoutFinishReason() + Garbage(after_token=1, data=b"?") + Insert(at_byte=0, data=b":x\n\n")
    )
    async with EmulatorServer(TEXT, faults=fault) as server:
        body = (await ask(server, post(stream=True))).body
        assert server.journal[0].faults == (
            WithoutDone(),
            WithoutFinishReason(),
            Garbage(after_token=1, data=b"?"),
            Insert(at_byte=0, data=b":x\n\n"),
        )
    got = same(body).split(b"\n\n")
    assert (got[0], got[2]) == (b":x", b"data: ?")
    assert b"[DONE]" not in body
    assert b'"stop"' not in body
    assert len(got) == len(events) - 1 + 2 + 1


@pytest.mark.parametrize(("by", "end"), [(5, "eof"), (-5, "eof")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_length(by, end, stream):
    """The whole body comes, with another length, then a FIN without a word."""
    body, _ = await plain(stream=stream)
    async with EmulatorServer(TEXT, faults=WrongLength(by)) as server:
        got, ended = await raw(server, post(stream=stream))
    head, _, data = got.partition(b"\r\n\r\n")
    assert f"content-length: {len(body) + by}".encode() in head
    assert b"connection" not in head
    assert (same(data), ended) == (same(body), end)


async def test_statuses_headers_redirects_and_raw_bytes():
    """As they are written."""
    rules = InTurn(
        Status(429, headers={"retry-after": "2"}),
        Status(503, "<html>busy</html>"),
        Status(500, b""),
        Headers({"x-new": "1", "cf-ray": None, "content-type": "text/html"}),
        Redirect("http://127.0.0.1:9/", code=308),
    )
    async with EmulatorServer(TEXT, faults=rules) as server, await Client.to(server) as client:
        first = await client.ask(post(stream=True))
        assert (first.status, first.headers["retry-after"]) == (429, "2")
        assert first.json["error"]["type"] == "dynamic_request_limited"
        second = await client.ask(post(stream=True))
        assert (second.line, second.headers["content-type"]) == ("HTTP/1.1 503 Service Unavailable", "text/html")
        assert second.body == b"<html>busy</html>"
        assert (await client.ask(post())).headers["content-length"] == "0"
        fourth = await client.ask(post(stream=True))
        assert (fourth.headers["x-new"], "cf-ray" in fourth.headers) == ("1", False)
        assert fourth.headers["content-type"] == "text/html"
        fifth = await client.ask(post())
        assert (fifth.status, fifth.headers["location"], fifth.body) == (308, "http://127.0.0.1:9/", b"")
        outcomes = [entry.outcome for entry in server.journal]
        assert outcomes == ["refused", "refused", "refused", "complete", "refused"]
        server.faults = Raw(b"not HTTP at all")
        client.writer.write(post())
        assert await client.rest() == (b"not HTTP at all", "eof")


async def test_where_a_redirect_leads_there_is_an_answer():
    """Without the fault."""
    async with EmulatorServer(TEXT, faults=Redirect()) as server, await Client.to(server) as client:
        location = (await client.ask(post())).headers["location"]
        answer = await client.ask(post(location))
        assert answer.json["choices"][0]["message"]["content"] == TEXT


async def test_the_follow_up_of_a_redirect_takes_no_turn():
    """The second fault is for the second request that anyone made."""
    async with (
        EmulatorServer(TEXT, faults=InTurn(Redirect(), Status(429))) as server,
        await Client.to(server) as client,
    ):
        location = (await client.ask(post())).headers["location"]
        assert (await client.ask(post(location))).status == 200
        assert (await client.ask(post())).status == 429


async def test_close_after_a_response_without_a_word():
    """The response is whole and promises nothing; then comes the FIN."""
    async with EmulatorServer(TEXT, faults=CloseAfter()) as server, await Client.to(server) as client:
        answer = await client.ask(post())
        assert "connection" not in answer.headers
        assert await client.rest() == (b"", "eof")
        assert server.journal[0].outcome == "complete"
        server.faults = CloseAfter(announce=True)
        assert (await ask(server, post(stream=True))).headers["connection"] == "close"


async def test_close_after_closes_also_when_another_request_comes():
    """The connection goes after its time, whatever is asked on it."""
    async with (
        EmulatorServer(TEXT, faults=InTurn(CloseAfter(0.1), Stall(after_token=1))) as server,
        await Client.to(server) as client,
    ):
        await client.ask(post())
        client.writer.write(post(stream=True))
        try:
            await client.rest()
        finally:  # the task that is left would be reported of the next test
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if "_carry_out" in repr(task):
                    task.cancel()


# --------------------------------------------------------------------------------------------------------------- stalls


@virtual
@pytest.mark.parametrize(
    ("fault", "tokens"),
    [(Stall(), 0), (Stall(in_head=20), 0), (Stall(after_token=0), 0), (Stall(after_token=2), 2), (Stall(at_byte=1), 0)],
    ids=repr,
)
async def test_a_stall_is_silence_until_it_is_released(fault, tokens):
    """What comes before is out, the connection open; `release` brings the rest."""
    _, events = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=fault) as server, await Client.to(server) as client:
        client.writer.write(post(stream=True))
        got = await client.silence()
        entry = server.journal[0]
        assert (entry.outcome, entry.tokens_written) == ("open", tokens)
        _, _, sent = got.partition(b"\r\n\r\n")
        if fault.in_head is not None or fault == Stall():
            assert len(got) == (fault.in_head or 0)
        elif fault.at_byte:
            assert sent == b"1\r\nd\r\n"
        else:
            assert same(sent.partition(b"\r\n")[2]).rstrip() == same(b"".join(events[:tokens])).rstrip()
        server.release()
        rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert rest.endswith(b"0\r\n\r\n")
        await entry.wait_ended()
        assert (entry.outcome, entry.tokens_written) == ("complete", 4)


async def test_a_stall_ends_by_itself():
    """After its seconds, at least."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=1, seconds=0.1)) as server:
        before = time.monotonic()
        assert (await ask(server, post(stream=True))).text == TEXT
        assert time.monotonic() - before >= 0.1


@virtual
async def test_two_stalls_are_released_one_by_one():
    """`release` ends those that responses are in now."""
    async with (
        EmulatorServer(TEXT, faults=Stall(after_token=1) + Stall(after_token=3)) as server,
        await Client.to(server) as client,
    ):
        client.writer.write(post(stream=True))
        await client.silence()
        assert server.journal[0].tokens_written == 1
        server.release()
        await client.silence()
        assert server.journal[0].tokens_written == 3
        server.release()
        await server.journal[0].wait_ended()


async def test_release_where_nothing_stalls_does_nothing():
    """Neither to an idle connection nor to a pace."""
    async with EmulatorServer(TEXT, first_token_s=0.1) as server, await Client.to(server) as client:
        before = time.monotonic()
        client.writer.write(post(stream=True))
        await server.journal.wait()
        server.release()
        assert (await client.answer()).text == TEXT
        assert time.monotonic() - before >= 0.1
        server.release()


async def test_pings_while_it_stalls():
    """One each so many seconds, whole ones, until released."""
    _, events = await plain(stream=True)
    async with (
        EmulatorServer(TEXT, faults=Stall(after_token=1, ping_every=0.01)) as server,
        await Client.to(server) as client,
    ):
        client.writer.write(post(stream=True))
        got = await client.reader.readuntil(b": ping\n\n\r\n8\r\n: ping\n\n\r\n8\r\n: ping\n\n\r\n")
        assert same(got.partition(b"\r\n\r\n")[2].partition(b"\r\n")[2]).startswith(same(events[0]))
        server.release()
        await client.reader.readuntil(b"0\r\n\r\n")
        assert server.journal[0].outcome == "complete"


@virtual
async def test_a_stall_with_pings_ends_by_itself():
    """As many pings as fit."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=1, seconds=2, ping_every=0.4)) as server:
        answer = await ask(server, post(stream=True))
    assert 1 <= answer.body.count(b": ping\n\n") <= 5


@pytest.mark.parametrize(
    "fault",
    [Stall(after_token=1, seconds=0.05, ping_every=0), Stall(after_token=1, seconds=0.05, ping_every=30.0)],
    ids=repr,
)
async def test_a_stall_lasts_as_long_as_it_says_whatever_its_pings(fault):
    """Without a pause between them, and with a longer one than the stall."""
    async with EmulatorServer(TEXT, faults=fault) as server:
        assert (await ask(server, post(stream=True))).body.endswith(b"[DONE]\n\n")


# --------------------------------------------------------------------------------------------------------- backpressure


def narrow() -> socket.socket:
    """A socket that takes little without being read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    return sock


ENDLESS: dict[str, Fault] = {
    "huge line": HugeLine(size=10**9, after_token=1),
    "pings": Stall(after_token=1, ping_every=0),
    "headers": EndlessHeaders(),
    "insert": Insert(after_token=1, data=b"x" * 1000, times=10**9),
}


@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
async def test_a_flood_stops_when_nobody_reads_and_ends_when_the_client_leaves(fault):
    """What is written stays what the kernel took; then the leaving is seen, and nothing is left."""
    async with EmulatorServer(TEXT, faults=fault) as server:
        async with await Client.to(server, sock=narrow()) as client:
            client.writer.write(post(stream=True))
            await client.reader.readexactly(1_000)
            entry = server.journal[0]
            written = -1
            while written != entry.bytes_written:  # the pause has come when nothing was added in some time
                written = entry.bytes_written
                await asyncio.sleep(0.05)
            assert 1_000 <= written < 16 * 1024 * 1024
            assert entry.outcome == "open"
        await entry.wait_left()
        assert entry.outcome == "client left"
        assert entry.bytes_written == written


async def test_a_stream_pauses_when_nobody_reads_and_goes_on():
    """`tokens_written` stops short of the end; the reader who comes back gets every token."""
    tokens = [f" {number:x}".ljust(4_000, "x") for number in range(2_000)]
    async with EmulatorServer(Reply(tokens)) as server, await Client.to(server, sock=narrow()) as client:
        client.writer.write(post(stream=True))
        await client.reader.readexactly(100)
        entry = server.journal[0]
        written = -1
        while written != entry.tokens_written:
            written = entry.tokens_written
            await asyncio.sleep(0.05)
        assert 0 < written < 1_500
        assert entry.tokens == 2_000
        while not entry.ended_at:
            await client.reader.read(1 << 20)
        assert (entry.tokens_written, entry.outcome) == (2_000, "complete")


async def test_pipelined_requests_pause_when_nobody_reads():
    """Requests that come in are not answered while the answers before are not taken; later they are."""
    async with EmulatorServer("x" * 9_000) as server, await Client.to(server, sock=narrow()) as client:
        client.writer.write(post() * 2_000)
        await server.journal.wait()
        answered = -1
        while answered != server.journal.total:
            answered = server.journal.total
            await asyncio.sleep(0.05)
        assert answered < 1_000
        while server.journal.total < 2_000:
            assert await client.reader.read(1 << 20)


# ---------------------------------------------------------------------------------------------------------------- pace


async def test_speed_and_time_to_first_token():
    """Not before: the first token after its seconds, the others 1/speed apart; a whole response all together."""
    async with EmulatorServer(TEXT, tokens_per_second=50, first_token_s=0.1) as server:
        before = time.monotonic()
        async with await Client.to(server) as client:
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b'"content":"one"')
            first = time.monotonic() - before
            await client.reader.readuntil(b"0\r\n\r\n")
            last = time.monotonic() - before
        assert first >= 0.1
        assert last - 0.1 >= 3 / 50 - 0.01
        before = time.monotonic()
        await ask(server, post())
        assert time.monotonic() - before >= 0.1 + 4 / 50


@virtual
async def test_choices_are_generated_side_by_side():
    """Four choices of ten tokens take as long as one, not four times that."""
    async with EmulatorServer(" x" * 10, tokens_per_second=5) as server:
        with lasts((4 * 10 - 1) / (4 * 5)):  # each choice begins a quarter of a token after the one before
            await ask(server, post(stream=True, n=4))


async def test_the_pace_may_be_a_models_own():
    """In place of the server's; jitter moves the tokens, and not their number."""
    models = [Model("slow", first_token_s=0.1), Model("m", tokens_per_second=1e6)]
    async with EmulatorServer(TEXT, models=models, tokens_per_second=1e3, jitter=1.0) as server:
        before = time.monotonic()
        assert (await ask(server, post(stream=True, model="slow"))).text == TEXT
        assert time.monotonic() - before >= 0.1
        assert (await ask(server, post(stream=True))).text == TEXT


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
async def test_a_speed_that_cannot_be_is_a_value_error(speed):
    """None is for no limit."""
    with pytest.raises(ValueError, match=r"tokens_per_second: got .*, expected more than 0, or None"):
        EmulatorServer(tokens_per_second=speed)


@pytest.mark.parametrize(
    "arguments",
    [{"jitter": 3}, {"first_token_s": -1}, {"replay_speed": 0}, {"journal_size": -1}, {"port": -4}],
    ids=lambda arguments: next(iter(arguments)),
)
async def test_other_numbers_that_cannot_be_are_value_errors(arguments):
    """Name, value and expectation."""
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: got"):
        EmulatorServer(**arguments)


@virtual
async def test_a_status_takes_no_time_of_the_model():
    """A whole response that is refused comes at once, as a stream does."""
    async with EmulatorServer(TEXT, first_token_s=500, faults=Status(429)) as server:
        with lasts(0):
            await ask(server, post())


# -------------------------------------------------------------------------------------------------------------- journal


async def test_an_entry_has_the_facts_of_a_request():
    """Method, path, headers in lower case, body, request, times, counts; neither key nor prompt in its repr."""
    async with EmulatorServer(TEXT) as server:
        request = post(CHAT + "?a=b", headers="X-Own: Value\r\nAuthorization: Bearer secret\r\n", stream=True, n=1)
        await ask(server, request)
        entry = server.journal[-1]
        assert (entry.number, entry.method, entry.path, entry.connection) == (0, "POST", CHAT + "?a=b", 0)
        assert entry.headers["x-own"] == "Value"
        assert entry.body == {**BODY, "stream": True, "n": 1}
        assert entry.request is not None
        assert entry.request.n == 1
        assert (entry.model, entry.streamed, entry.status, entry.faults) == ("m", True, 200, ())
        assert (entry.tokens, entry.tokens_written, entry.outcome) == (4, 4, "complete")
        assert entry.first_byte_at is not None
        assert entry.ended_at is not None
        assert entry.received_at <= entry.first_byte_at <= entry.ended_at <= time.monotonic()
        assert (entry.left_at, entry.client_left) == (None, False)
        text = f"{entry!r} {server.journal!r} {server!r}"
        assert "secret" not in text
        assert "'hi'" not in text
        assert "<Entry 0 'm' 200 complete, 4 of 4 tokens>" in text


async def test_bytes_written_are_those_on_the_wire():
    """Head and framing included."""
    async with EmulatorServer(TEXT, faults=Cut(at_byte=200, how="close")) as server:
        got, _ = await raw(server, post(stream=True))
        assert server.journal[0].bytes_written == len(got)


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("goodbye", ["fin", "rst"])
async def test_a_client_that_leaves_is_seen_at_once(goodbye, tokens):
    """With a FIN and with a RST: when, and how many tokens were out by then."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=tokens)) as server:
        async with await Client.to(server) as client:
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b"\r\n\r\n")
            entry = server.journal[0]
            while entry.tokens_written < tokens:  # noqa: ASYNC110 - nothing tells of single tokens
                await asyncio.sleep(0.001)
            if goodbye == "rst":
                sock = client.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            before = time.monotonic()
            client.writer.transport.abort()
            left_at = await entry.wait_left()
        assert before <= left_at < before + 1
        assert (entry.outcome, entry.client_left, entry.tokens_written) == ("client left", True, tokens)
        assert entry.left_at == left_at
        assert await entry.wait_ended() >= left_at


@virtual
async def test_a_client_that_leaves_between_requests_leaves_no_trace():
    """Neither an entry nor a connection."""
    async with EmulatorServer(TEXT) as server:
        await ask(server, post())
        async with await Client.to(server) as client:
            client.writer.write(post()[:30])
            await client.silence()
            assert server.open_connections >= 1
        while server.open_connections:  # noqa: ASYNC110 - nothing tells of connections
            await asyncio.sleep(0.001)
        assert [entry.outcome for entry in server.journal] == ["complete"]


async def test_what_does_not_happen_is_an_assertion_error():
    """With what was waited for."""
    async with EmulatorServer(TEXT, faults=Stall()) as server, await Client.to(server) as client:
        with pytest.raises(AssertionError, match=r"request number 1 \(0 came\) did not happen within 0.01 s"):
            await server.journal.wait(timeout=0.01)
        with pytest.raises(IndexError, match="request 0: the journal holds 0"):
            _ = server.journal[0]
        client.writer.write(post())
        entry = await server.journal.wait()
        with pytest.raises(AssertionError, match="the client's leaving of request 0 did not happen"):
            await entry.wait_left(timeout=0.01)
        with pytest.raises(AssertionError, match="the end of request 0 did not happen"):
            await entry.wait_ended(timeout=0.01)


async def test_the_journal_keeps_the_last():
    """`total` counts all; an index counts from the oldest kept; `clear` begins anew."""
    async with EmulatorServer("x", journal_size=3) as server, await Client.to(server) as client:
        for _ in range(5):
            await client.ask(post())
        journal = server.journal
        assert (journal.total, len(journal)) == (5, 3)
        assert [entry.number for entry in journal] == [2, 3, 4]
        assert [entry.number for entry in journal[1:]] == [3, 4]
        assert journal[-1].number == 4
        assert (await journal.wait(4)).number == 3
        journal.clear()
        assert (journal.total, list(journal)) == (0, [])
        await client.ask(post())
        assert (await journal.wait(1)).number == 0


# ------------------------------------------------------------------------------------------------------------- lifetime


async def test_drop_connections_ends_all_of_them():
    """The idle one and the one in the middle of a stream; the server goes on."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=1)) as server:
        async with await Client.to(server) as busy, await Client.to(server) as idle:
            busy.writer.write(post(stream=True))
            await busy.reader.readuntil(b'"one"')
            assert (await idle.ask(get("/v1/models"))).status == 200
            server.drop_connections()
            await busy.rest()
            await idle.rest()
            assert server.journal[0].outcome == "broken off"
        server.faults = None
        assert (await ask(server, post(stream=True))).text == TEXT


async def test_drop_connections_is_a_reset():
    """As a server does that crashes."""
    async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
        await client.ask(post())
        server.drop_connections()
        assert await client.rest() == (b"", "reset")


async def test_the_end_of_the_server_ends_everything():
    """A stall, a paced stream, a flood nobody reads, an idle connection, half a request: all are left and gone."""
    faults = ByModel({"stall": Stall(), "flood": Stall(ping_every=0, after_token=0)})
    models = ["stall", "flood", Model("slow", tokens_per_second=0.1)]
    async with contextlib.AsyncExitStack() as clients:
        async with EmulatorServer(TEXT, faults=faults, models=models) as server:
            open_ = [await clients.enter_async_context(await Client.to(server)) for _ in range(5)]
            for client, model in zip(open_, ("stall", "slow", "flood"), strict=False):
                client.writer.write(post(stream=True, model=model))
            open_[3].writer.write(b"POST / HT")
            await server.journal.wait(3)
            entries = list(server.journal)
        assert {entry.outcome for entry in entries} == {"broken off"}
        assert server.open_connections == 0
        for client in open_:
            await client.rest()
        with pytest.raises(OSError, match=r"."):
            await Client.to(server)


async def test_a_script_that_raises_is_a_500_and_raised_at_the_end():
    """The client learns that it was the emulator; the author, what it was."""

    def script(request: Any) -> str:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the end of the block raises
        async with EmulatorServer(script) as server:
            answer = await ask(server, post())
            assert answer.status == 500
            assert "KeyError('mine')" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "rule", ["x", lambda _: 1 / 0, HugeLine(size=10**6) + Cut(at_byte=100)], ids=["type", "raises", "place"]
)
async def test_a_rule_that_raises_is_a_500_and_raised_at_the_end(rule):
    """Likewise."""
    with pytest.raises((TypeError, ZeroDivisionError, ValueError)):
        async with EmulatorServer(faults=rule) as server:
            assert (await ask(server, post(stream=True))).status == 500


async def test_what_the_body_raises_is_not_hidden_by_it():
    """The test's own failure comes first."""
    with pytest.raises(LookupError):  # noqa: PT012 - the end of the block could raise another
        async with EmulatorServer(faults=NO_RULE) as server:
            await ask(server, post())
            raise LookupError


async def test_a_script_that_raises_a_value_error_is_a_500_too():
    """Such as json.loads in it."""
    with pytest.raises(ValueError, match="Expecting value"):
        async with EmulatorServer(lambda _: json.loads("")) as server:
            assert (await ask(server, post())).status == 500


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": 5}},
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": 5},
        },
    ],
    ids=["response_format", "tool_choice"],
)
async def test_a_request_of_the_wrong_shape_is_no_failure(fields):
    """Or answered as if it were not there; nothing is raised at the end."""
    async with EmulatorServer() as server:
        assert (await ask(server, post(**fields))).status in (200, 400)


async def test_two_servers_at_once():
    """Each on its port, with its journal and seed."""
    async with EmulatorServer("a") as one, EmulatorServer("b", seed=9) as other:
        assert one.port != other.port
        first, second = await ask(one, post()), await ask(other, post())
        assert [answer.json["choices"][0]["message"]["content"] for answer in (first, second)] == ["a", "b"]
        assert [one.journal.total, other.journal.total] == [1, 1]


async def test_a_port_in_use_is_an_os_error():
    """In both ways to run it; nothing is left behind."""
    async with EmulatorServer() as server:
        with pytest.raises(OSError, match="address already in use"):
            async with EmulatorServer(port=server.port):
                pass
        with pytest.raises(OSError, match="address already in use"), EmulatorServer(port=server.port):
            pass


async def test_an_emulator_is_entered_once_at_a_time():
    """Twice at once is a mistake, twice one after the other is not; without a port there is no address before."""
    server = EmulatorServer("x")
    assert repr(server) == "<EmulatorServer not running, 0 requests>"
    for call in (lambda: server.base_url, server.release, server.drop_connections):
        with pytest.raises(RuntimeError, match="the emulator does"):
            call()
    for _ in range(2):
        async with server:
            assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
            with pytest.raises(RuntimeError, match="runs already"):
                await server.__aenter__()
            assert (await ask(server, post())).status == 200
    assert server.journal.total == 2


async def test_settings_change_while_it_runs():
    """Script and faults, each beginning its turns anew."""
    async with EmulatorServer(InTurn("a", "b", then="z")) as server, await Client.to(server) as client:

        async def text() -> str:
            return str((await client.ask(post())).json["choices"][0]["message"]["content"])

        assert [await text() for _ in range(3)] == ["a", "b", "z"]
        server.script = server.script
        assert await text() == "a"
        server.faults = InTurn(Status(500))
        assert [(await client.ask(post())).status for _ in range(2)] == [500, 200]
        server.faults = InTurn(Status(500))
        assert (await client.ask(post())).status == 500
        server.api_key = "k"
        assert (await client.ask(post())).status == 401


def test_a_thread_of_its_own():
    """`with`: http.client in this thread; the journal may be waited for in a loop of this thread; no thread is left."""
    before = threading.active_count()
    with EmulatorServer(TEXT, faults=InTurn(None, Stall(after_token=1))) as server:
        assert threading.active_count() == before + 1
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("POST", CHAT, json.dumps(BODY))
        assert json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] == TEXT
        connection.request("POST", CHAT, json.dumps({**BODY, "stream": True}))
        response = connection.getresponse()
        assert b"one" in response.readline()
        server.release()
        assert response.read().endswith(b"[DONE]\n\n")
        connection.request("POST", CHAT, json.dumps(BODY))
        connection.getresponse().read()

        async def watch() -> None:
            assert (await server.journal.wait(3)).number == 2
            waiting = asyncio.create_task(server.journal.wait(4))
            await asyncio.sleep(0)
            server.faults = Stall()
            connection.request("POST", CHAT, json.dumps(BODY))
            entry = await waiting
            connection.close()
            await entry.wait_left()

        asyncio.run(watch())
    assert threading.active_count() == before
    assert server.open_connections == 0


def test_a_thread_raises_what_its_script_raised():
    """At the end of the `with`, unless its body raised."""
    with pytest.raises(TypeError, match="among the faults"), EmulatorServer(faults=NO_RULE) as server:  # noqa: PT012
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("POST", CHAT, json.dumps(BODY))
        assert connection.getresponse().status == 500
        connection.close()


def test_many_threads_ask_one_server():
    """Four threads of 50 requests: each answered, all in the journal, waiters of another loop woken."""

    def talk() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        for _ in range(50):
            connection.request("POST", CHAT, json.dumps(BODY))
            assert connection.getresponse().read()
        connection.close()

    with EmulatorServer("x") as server:
        threads = [threading.Thread(target=talk) for _ in range(4)]

        async def watch() -> list[int]:
            waiting = [asyncio.create_task(server.journal.wait(number)) for number in (1, 50, 150, 200)]
            for thread in threads:
                thread.start()
            return [(await one).number for one in waiting]

        numbers = asyncio.run(watch())
        for thread in threads:
            thread.join()
        assert numbers[-1] == 199
        assert [entry.number for entry in server.journal] == list(range(200))


async def test_release_may_be_called_from_any_thread():
    """Also where the server runs in the event loop."""
    async with EmulatorServer(TEXT, faults=Stall()) as server, await Client.to(server) as client:
        client.writer.write(post())
        await client.silence()
        await asyncio.to_thread(server.release)
        assert (await client.answer()).status == 200


# -------------------------------------------------------------------------------------------------------------- sockets


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_tls(authority):
    """Whole responses and streams over https, on one connection."""
    server_side, client_side = contexts(authority)
    async with EmulatorServer(TEXT, ssl=server_side) as server:
        assert server.base_url == f"https://127.0.0.1:{server.port}/v1"
        async with await Client.to(server, ssl=client_side) as client:
            assert (await client.ask(post(stream=True))).text == TEXT
            assert (await client.ask(post())).status == 200
        assert server.connections == 1


async def test_tls_with_faults(authority):
    """A cut is a reset, a stall goes on, leaving is seen, over https too."""
    server_side, client_side = contexts(authority)
    faults = InTurn(Cut(after_token=1), Stall(after_token=1))
    async with EmulatorServer(TEXT, ssl=server_side, faults=faults) as server, asyncio.timeout(10):
        async with await Client.to(server, ssl=client_side) as client:
            client.writer.write(post(stream=True))
            got, ended = await client.rest()
            assert got.count(b"\n\n") == 1
            assert ended == "reset"
        async with await Client.to(server, ssl=client_side) as client:
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b'"one"')
            server.release()
            await client.reader.readuntil(b"[DONE]")
        async with await Client.to(server, ssl=client_side) as client:
            server.faults = Stall(after_token=1)
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b'"one"')
        await server.journal[-1].wait_left()


async def test_a_failed_handshake_leaves_no_connection(authority):
    """A client that does not trust the certificate."""
    server_side, _ = contexts(authority)
    async with EmulatorServer(TEXT, ssl=server_side) as server:
        with pytest.raises(ssl.SSLError):
            await Client.to(server, ssl=ssl.create_default_context())
        async with asyncio.timeout(5):
            while server.open_connections:  # noqa: ASYNC110 - nothing tells of connections
                await asyncio.sleep(0.001)


async def test_ipv6():
    """Brackets in the URL."""
    try:
        async with EmulatorServer(TEXT, host="::1") as server:
            assert server.base_url == f"http://[::1]:{server.port}/v1"
            reader, writer = await asyncio.open_connection("::1", server.port)
            async with Client(reader, writer) as client:
                assert (await client.ask(post())).status == 200
    except OSError:
        pytest.skip("no IPv6 here")


@pytest.mark.skipif(sys.platform == "win32", reason="no uvloop")
def test_uvloop():
    """Streams, resets, stalls and leaving on another event loop."""
    uvloop = pytest.importorskip("uvloop")

    async def talk() -> None:
        async with EmulatorServer(TEXT, faults=InTurn(None, Cut(after_token=1), Stall(after_token=1))) as server:
            assert (await ask(server, post(stream=True))).text == TEXT
            got, ended = await raw(server, post(stream=True))
            assert (got.count(b"\n\n"), ended) == (1, "reset")
            async with await Client.to(server) as client:
                client.writer.write(post(stream=True))
                await client.reader.readuntil(b'"one"')
            await server.journal[2].wait_left()

    uvloop.run(talk())


# ------------------------------------------------------------------------------------------------------ what was wrong


async def outcome(server: EmulatorServer, request: bytes) -> Answer:
    async with asyncio.timeout(5):
        return await ask(server, request)


@pytest.mark.parametrize(
    "request_",
    [post(headers="connection: close\r\n"), get("/v1/models").replace(b"1.1", b"1.0")],
    ids=["close", "HTTP/1.0"],
)
async def test_a_client_that_reads_to_the_end(request_):
    """Who says so, and who speaks HTTP/1.0, gets the end of the connection after the response."""
    async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
        client.writer.write(request_)
        await client.rest()


async def test_a_plan_that_cannot_be_carried_out_is_a_500_and_raised_at_the_end():
    """A body without an end has no content-length: the client is told, and so is the author."""

    async def talk() -> None:
        faults = Insert(after_token=0, data=b"x", times=math.inf) + Frame("length")
        async with EmulatorServer(TEXT, faults=faults) as server:
            assert (await ask(server, post())).status == 500
            assert server.journal[0].outcome == "refused"

    with pytest.raises(ValueError, match="without an end"):
        await talk()


async def test_a_content_length_of_many_digits_is_refused():
    """400 or 413, not silence."""
    async with EmulatorServer() as server:
        answer = await outcome(server, b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 5_000 + b"\r\n\r\n")
        assert answer.status in (400, 413)


@pytest.mark.parametrize("size", [b"+1", b"-6", b"0x1", b"1_0", b""])
async def test_a_chunk_size_is_hexadecimal_digits_only(size):
    """Signs, prefixes and the like are refused; a negative one must not lead back."""
    async with EmulatorServer("x") as server, await Client.to(server) as client:
        client.writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + size + b"\r\nx\r\n0\r\n\r\n")
        assert (await client.answer()).status == 400


async def test_a_pipelined_request_after_a_cut_was_never_seen():
    """The cut ended the connection with all that waited on it."""
    async with EmulatorServer(TEXT, faults=Cut(after_token=1, how="close")) as server:
        await raw(server, post(stream=True) + post(stream=True))
        assert len(server.journal) == 1


@virtual
async def test_a_stall_before_raw_bytes():
    """What is listed as a fault happens."""
    async with EmulatorServer(TEXT, faults=Stall() + Raw(b"x")) as server, await Client.to(server) as client:
        client.writer.write(post())
        assert await client.silence() == b""


async def test_tls_spoken_to_a_plain_server_is_answered():
    """The text that speaks of https is for this."""
    async with EmulatorServer() as server:
        assert (await outcome(server, b"\x16\x03\x01\x02\x00\x01\x00" + bytes(100))).status == 400


async def test_an_empty_line_before_a_request_is_skipped():
    """RFC 9112, 2.2."""
    async with EmulatorServer("x") as server:
        assert (await outcome(server, b"\r\n" + post())).status == 200


def test_models_that_are_there_when_nothing_is_said():
    """Three, one in each of the service's shapes; any other name is answered too."""
    assert [model.dialect.name for model in MODELS] == ["together", "gpt-oss", "deepseek"]
