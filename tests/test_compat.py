"""`compat`: the calls of the `openai` and `together` SDKs as in their READMEs, unchanged except for the import."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import base64
import json
from typing import Any

import pytest

from support.clients import served
from support.servers import (
    DONE,
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    ScriptedServer,
    answers,
    delta,
    hangs,
    left_at_once,
    response,
    sse,
    starts_and_hangs,
    streams,
    whole,
)
from support.virtual_time import lasts, virtual
from together_async import (
    APIStatusError,
    APITimeoutError,
    AsyncTogether,
    BadRequestError,
    ChatCompletionStream,
    Message,
    RateLimitError,
    StreamError,
    Timeouts,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_async_usage_by_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The READMEs' first asynchronous example: client from the environment, one completion."""
    async with ScriptedServer(answers(response(whole("This is a test")))) as server:
        monkeypatch.setenv("TOGETHER_API_KEY", KEY)
        monkeypatch.setenv("TOGETHER_BASE_URL", server.base_url)

        client = AsyncTogether()

        async def main() -> None:
            chat_completion = await client.chat.completions.create(
                messages=[
                    {
                        "role": "user",
                        "content": "Say this is a test!",
                    }
                ],
                model="openai/gpt-oss-20b",
            )
            print(chat_completion.choices[0].message.content)  # type: ignore[union-attr] # a model answered

        await main()
        await client.aclose()
    assert capsys.readouterr().out == "This is a test\n"
    assert server.calls[0].json == {
        "model": "openai/gpt-oss-20b",
        "messages": [{"role": "user", "content": "Say this is a test!"}],
    }


async def test_async_usage_in_a_block() -> None:
    """`async with AsyncTogether(api_key=...) as client`, a developer's message, and the SDKs' names of arguments."""
    async with ScriptedServer(answers(response(whole()))) as server:
        async with AsyncTogether(api_key=KEY, base_url=server.base_url) as client:
            completion = await client.chat.completions.create(
                model="gpt-4o",
                messages=[
                    {"role": "developer", "content": "Talk like a pirate."},
                    {"role": "user", "content": "How do I check if a Python object is an instance of a class?"},
                ],
            )
    assert completion.choices[0].message.content == "Hello"  # type: ignore[union-attr] # a model answered
    assert completion.usage.total_tokens == 3  # type: ignore[union-attr] # a model answered
    assert server.calls[0].json["messages"][0]["role"] == "developer"


async def test_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    """`stream=True`, and a loop over the chunks."""
    async with served(streams("This ", "is a ", "test")) as (server, client):
        stream = await client.chat.completions.create(
            messages=[{"role": "user", "content": "Say this is a test!"}],
            model="openai/gpt-oss-20b",
            stream=True,
        )
        async for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)  # type: ignore[union-attr] # a model answered
    assert capsys.readouterr().out == "This is a test"
    assert server.calls[0].json["stream"] is True


async def test_streaming_checks_for_choices() -> None:
    """The loop that knows of usage-only chunks."""
    usage = {**delta(), "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")), sse(delta(finish="stop")), sse(usage), DONE)
        await call.send(LAST_CHUNK)

    async with served(script) as (server, client):
        response_text, total = "", None
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta and chunk.choices[0].delta.content is not None:
                response_text += chunk.choices[0].delta.content
            if chunk.usage:
                total = chunk.usage.total_tokens
    assert (response_text, total) == ("a", 3)
    assert server.calls[0].json["stream_options"] == {"include_usage": True}


async def test_many_at_once() -> None:
    """The `asyncio.gather` example."""
    messages = ["What are the top things to do in San Francisco?", "What country is Paris in?"]

    async def echo(call: Call) -> None:
        await call.send(response(whole(call.json["messages"][0]["content"])))

    async with served(echo) as (_, client):

        async def async_chat_completion(messages: list[str]) -> list[str | None]:
            tasks = [
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": message}])
                for message in messages
            ]
            responses = await asyncio.gather(*tasks)
            return [response.choices[0].message.content for response in responses]  # type: ignore[union-attr] # a model answered

        assert await async_chat_completion(messages) == messages


async def test_logprobs() -> None:
    """The `logprobs=1` example, with the native shape."""
    body = whole()
    body["choices"][0]["logprobs"] = {"tokens": ["He", "llo"], "token_logprobs": [-0.1, -0.2]}
    async with served(answers(response(body))) as (server, client):
        completion = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell me about New York"}],
            logprobs=1,
        )
        response_logprobs = completion.choices[0].logprobs
        assert response_logprobs is not None
        assert response_logprobs.tokens is not None
        assert response_logprobs.token_logprobs is not None
        pairs = dict(zip(response_logprobs.tokens, response_logprobs.token_logprobs, strict=True))
    assert pairs == {"He": -0.1, "llo": -0.2}
    assert server.calls[0].json["logprobs"] == 1


@pytest.mark.parametrize("kind", ["url", "data", "several", "video"])
async def test_images(kind: str) -> None:
    """Vision by URL, by base64, with several images, and video."""
    encoded = base64.b64encode(b"\x89PNG").decode()
    parts: list[dict[str, Any]] = {
        "url": [{"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}],
        "data": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}", "detail": "high"}}],
        "several": [
            {"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/b.jpg"}},
        ],
        "video": [{"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}],
    }[kind]
    content = [{"type": "text", "text": "What is in this image?"}, *parts]
    async with served(answers(response(whole()))) as (server, client):
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert server.calls[0].json["messages"][0]["content"] == content


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {"location": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
                "required": ["location"],
            },
        },
    }
]


async def test_a_round_trip_of_tools() -> None:
    """The message object of the answer is appended as it is, the tools' results after it."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_current_weather", "arguments": '{"location": "NY"}'},
    }
    asks = whole()
    asks["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
    asks["choices"][0]["finish_reason"] = "tool_calls"
    async with served(answers(response(asks)), answers(response(whole("Cold.")))) as (server, client):
        messages: list[Any] = [
            {"role": "system", "content": "You are a helpful assistant that can access external functions."},
            {"role": "user", "content": "What is the temperature of New York?"},
        ]
        completion = await client.chat.completions.create(
            model=MODEL, messages=messages, tools=TOOLS, tool_choice="auto"
        )
        message = completion.choices[0].message
        assert message is not None
        assert message.tool_calls
        messages.append(message)
        for tool_call in message.tool_calls:
            assert tool_call.function is not None
            arguments = json.loads(tool_call.function.arguments or "")
            messages.append(
                {
                    "tool_call_id": tool_call.id,
                    "role": "tool",
                    "name": tool_call.function.name,
                    "content": json.dumps({"location": arguments["location"], "temperature": "10"}),
                }
            )
        completion = await client.chat.completions.create(model=MODEL, messages=messages)
        assert completion.choices[0].message.content == "Cold."  # type: ignore[union-attr] # a model answered
    first, second = (call.json for call in server.calls)
    assert first["tools"] == TOOLS
    assert first["tool_choice"] == "auto"
    assert second["messages"][2]["tool_calls"] == [call]
    assert second["messages"][2]["role"] == "assistant"
    assert second["messages"][3]["tool_call_id"] == "call_1"


async def test_a_round_trip_of_streamed_tools() -> None:
    """Tool calls gathered by hand from deltas, as the SDKs' examples do, and by the stream itself."""
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(
            sse(delta(None, role="assistant", tool_calls=[first])),
            sse(delta(None, tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}])),
            sse(delta(None, tool_calls=[{"index": 0, "function": {"arguments": " 1}"}}])),
            sse(delta(finish="tool_calls")),
            DONE,
        )
        await call.send(LAST_CHUNK)

    async with served(script, answers(response(whole()))) as (server, client):
        messages: list[Any] = [{"role": "user", "content": "Hi"}]
        stream = await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, stream=True)
        final_tool_calls: dict[int, list[str]] = {}
        async for chunk in stream:
            for tool_call in chunk.choices[0].delta.tool_calls or []:  # type: ignore[union-attr] # a model answered
                assert tool_call.index is not None
                assert tool_call.function is not None
                final_tool_calls.setdefault(tool_call.index, []).append(tool_call.function.arguments or "")
        assert {index: "".join(parts) for index, parts in final_tool_calls.items()} == {0: '{"a": 1}'}
        messages.append((await stream.completion()).choices[0].message)
        messages.append({"role": "tool", "tool_call_id": "call_1", "content": "2"})
        await client.chat.completions.create(model=MODEL, messages=messages)
    sent = server.calls[1].json["messages"][1]["tool_calls"]
    assert [(call["id"], call["function"]) for call in sent] == [("call_1", {"name": "f", "arguments": '{"a": 1}'})]


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {"type": "json_object", "schema": {"type": "object", "properties": {"title": {"type": "string"}}}},
        {"type": "json_schema", "json_schema": {"name": "note", "schema": {"type": "object"}, "strict": True}},
        {"type": "regex", "pattern": "(yes|no)"},
    ],
)
async def test_response_formats(response_format: dict[str, Any]) -> None:
    """JSON mode as both SDKs write it."""
    async with served(answers(response(whole('{"title": "x"}')))) as (server, client):
        completion = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Answer in JSON"}],
            response_format=response_format,
        )
        assert json.loads(completion.choices[0].message.content or "") == {"title": "x"}  # type: ignore[union-attr] # a model answered
    assert server.calls[0].json["response_format"] == response_format


async def test_everything_else_is_passed_on() -> None:
    """Parameters which we do not name go into the body, None is left out, extra_body and extra_headers as there."""
    async with served(answers(response(whole()))) as (server, client):
        await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=5,
            max_completion_tokens=6,
            temperature=None,
            user="u-1",
            metadata={"a": "b"},
            stream=False,
            extra_headers={"X-Mine": "1"},
            extra_body={"top_k": 7, "novelty": True},
        )
    body = server.calls[0].json
    assert (
        body.items()
        >= {"max_tokens": 5, "max_completion_tokens": 6, "user": "u-1", "novelty": True, "top_k": 7}.items()
    )
    assert "temperature" not in body
    assert not body.get("stream")
    assert server.calls[0].headers["x-mine"] == "1"


async def test_messages_of_every_kind() -> None:
    """Dicts, messages of ours, messages of the model, in any iterable."""
    async with served(answers(response(whole()))) as (server, client):
        first = await client.chat.completions.create(model=MODEL, messages=[Message.user("Hi")])
        kinds = ({"role": "user", "content": "Hi"}, first.choices[0].message, Message.user("And now?"))
        await client.chat.completions.create(model=MODEL, messages=iter(kinds))  # type: ignore[arg-type] # typed as a sequence
    assert [message["role"] for message in server.calls[1].json["messages"]] == ["user", "assistant", "user"]


async def test_errors_are_caught_where_the_sdks_raise_them() -> None:
    """The request of a stream is sent by create(): its refusal is raised there, not in the loop."""
    refused = answers(response({"error": {"message": "no"}}, status=429))
    async with served(answers(response({"error": "no"}, status=400)), refused) as (_, client):
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(model=MODEL, messages=[Message.user("Hi")])
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=[Message.user("Hi")], stream=True)
        assert caught.value.status_code == 429


@virtual
async def test_the_timeout_argument() -> None:
    """`timeout=` is for the whole call, and the client's other limits stay."""
    async with served(hangs, starts_and_hangs, timeouts=Timeouts(idle=5_000)) as (_, client):
        for stream in (False, True):
            with lasts(100), pytest.raises((APITimeoutError, StreamError)) as caught:  # noqa: PT012 - the stream fails while it is read
                result = await client.chat.completions.create(
                    model=MODEL, messages=[Message.user("Hi")], stream=stream, timeout=100
                )
                assert isinstance(result, ChatCompletionStream)
                async for _ in result:
                    pass
            assert isinstance(caught.value, TimeoutError)
            assert getattr(caught.value, "phase", None) == "total"


@virtual
@pytest.mark.parametrize("how", ["break", "block", "close", "aclose", "drop", "cancel"])
async def test_leaving_a_stream(how: str) -> None:
    """A stream that create() has opened is closed by whatever ends its use."""
    async with served(starts_and_hangs) as (server, client):
        creating = client.chat.completions.create(model=MODEL, messages=[Message.user("Hi")], stream=True)
        stream: Any = await creating
        if how == "break":
            async for _ in stream:
                break
        elif how == "block":
            async with stream:
                async for _ in stream:
                    break
        elif how == "cancel":

            async def use() -> None:
                async for _ in stream:
                    pass

            task = asyncio.create_task(use())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how in ("close", "aclose"):
            await getattr(stream, how)()
        if how == "drop":
            del stream
        await left_at_once(await server.call())


@virtual
async def test_cancelled_while_creating() -> None:
    """Cancelling create() leaves nothing open."""
    async with served(hangs) as (server, client):
        task = asyncio.ensure_future(
            client.chat.completions.create(model=MODEL, messages=[Message.user("Hi")], stream=True)
        )
        call = await server.call()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await left_at_once(call)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n": 0}, ValueError),
        ({"messages": []}, ValueError),
        ({"temperature": "hot"}, ValueError),
        ({"model": ""}, ValueError),
    ],
)
async def test_mistakes_are_reported_before_anything_is_sent(options: dict[str, Any], error: type[Exception]) -> None:
    """The same checks as elsewhere."""
    async with served(hangs) as (server, client):
        with pytest.raises(error):
            await client.chat.completions.create(**{"model": MODEL, "messages": [Message.user("Hi")], **options})
        assert not server.connections


async def test_statuses_are_errors_of_the_tree() -> None:
    """`except APIStatusError as e: e.status_code, e.request_id, e.body` as in the READMEs."""
    body = {"error": {"message": "no", "code": "x"}}
    async with served(answers(response(body, status=418, extra=b"x-request-id: r-1\r\n"))) as (_, client):
        with pytest.raises(APIStatusError) as caught:
            await client.chat.completions.create(model=MODEL, messages=[Message.user("Hi")])
    assert (caught.value.status_code, caught.value.request_id, caught.value.body) == (418, "r-1", body)
