"""The emulator's answers: streams and whole responses, dialects, scripts, keys."""

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
                    assert await client.read_to_end() == (b"", "eof")
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


async def test_a_wrong_method_gets_the_right_one():
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
