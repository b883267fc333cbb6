"""`AsyncTogether`: what `create` sends and returns, and mistakes that are reported before anything is sent."""

from typing import Any

import pytest

from support.clients import served
from support.servers import KEY, MODEL, answers, hangs, response, whole
from together_async import ChatCompletionRequest, Message

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "the secret plans of the company"


async def test_a_whole_completion() -> None:
    """Exactly the given fields are sent, and exactly the response is returned."""
    async with served(answers(response(whole("Hé")))) as (server, client):
        completion = await client.create(
            [Message.system("Be brief."), {"role": "user", "content": PROMPT}],
            model=MODEL,
            max_tokens=5,
            headers={"X-Mine": "1"},
            extra_body={"novelty": [1]},
        )
    assert completion.to_dict() == whole("Hé")
    (call,) = server.calls
    assert (call.method, call.target) == ("POST", "/v1/chat/completions")
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.headers["x-mine"] == "1"
    assert call.json["novelty"] == [1]
    assert call.json["max_tokens"] == 5
    assert "stream" not in call.json


async def test_a_request_made_before() -> None:
    """A ChatCompletionRequest goes as it is, with fields replaced."""
    request = ChatCompletionRequest(messages="Hi", model="m", max_tokens=5)
    async with served(answers(response(whole())), answers(response(whole()))) as (server, client):
        await client.create(request)
        await client.create(request, model="other", max_tokens=6)
    assert [(call.json["model"], call.json["max_tokens"]) for call in server.calls] == [("m", 5), ("other", 6)]


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"messages": "Hi"}, ValueError, "model"),
        ({"messages": "Hi", "model": MODEL, "temprature": 1}, TypeError, "temprature"),
        ({"messages": "Hi", "model": MODEL, "n": 0}, ValueError, "n"),
        ({"messages": [], "model": MODEL}, ValueError, "messages"),
        ({"messages": "Hi", "model": MODEL, "extra_body": {"x": object()}}, ValueError, "JSON"),
        ({"messages": "Hi", "model": MODEL, "headers": {"x": "a\r\nb: c"}}, ValueError, "control"),
        ({"messages": "Hi", "model": MODEL, "headers": {"x": 1}}, ValueError, "str"),
    ],
)
async def test_a_mistake_is_reported_before_anything_is_sent(
    arguments: dict[str, Any], error: type[Exception], expected: str
) -> None:
    """Wrong arguments are the caller's error, and no connection is made for them."""
    async with served(hangs) as (server, client):
        messages = arguments.pop("messages")
        with pytest.raises(error, match=expected):
            await client.create(messages, **arguments)
        with pytest.raises(error, match=expected):
            client.stream(messages, **arguments)
        assert not server.connections
