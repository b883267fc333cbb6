"""What the emulator answers: streams and whole responses, models, errors."""

from __future__ import annotations

from typing import Any

import pytest

from support.raw_client import CHAT, TEXT, Client, ask, get, post
from together_async.request import ChatCompletionRequest
from together_async.testing import (
    DIALECTS,
    Chance,
    EmulatorServer,
    Model,
    OneOf,
    Reply,
    Status,
)
from together_async.testing.connection import MAX_HEAD

pytestmark = pytest.mark.usefixtures("no_leaks")


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
