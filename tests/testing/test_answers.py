"""Planned answers: refusals, and the pace of streams and whole responses."""

from __future__ import annotations

import time

import pytest

from support.raw_client import CHAT, TEXT, Client, ask, get, post
from support.virtual_time import lasts, virtual
from together_async.testing import (
    EmulatorServer,
    Model,
    Status,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


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
        got = answer.json["error"]
        assert list(got) == ["message", "type", "param", "code"]
        assert {name: got[name] for name in error if name != "message"} == {
            name: value for name, value in error.items() if name != "message"
        }
        assert got["message"].startswith(error.get("message", ""))
        assert (await client.ask(get("/v1/models"))).status == 200  # the connection is still usable
        assert server.journal[0].outcome == "refused"


async def test_a_question_is_answered_the_same_as_a_stream_or_not():
    """Generated text depends on the question, not on how it is asked for."""
    async with EmulatorServer() as server:
        whole = (await ask(server, post())).json["choices"][0]["message"]["content"]
        streamed = await ask(server, post(stream=True, stream_options={"include_usage": True}))
        other = (await ask(server, post(messages=[{"role": "user", "content": "ho"}]))).json
    assert streamed.text == whole
    assert other["choices"][0]["message"]["content"] != whole


async def test_speed_and_time_to_first_token():
    """The first token comes after its seconds, the others 1/speed apart; a whole response takes the sum."""
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
