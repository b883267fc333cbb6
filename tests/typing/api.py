"""What type checkers say about the public surface. Never run: mypy and pyright read it."""

from collections.abc import AsyncIterator
from typing import assert_type

from together_async import (
    AsyncTogether,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionRequest,
    ChatCompletionStream,
    Message,
    StreamError,
    Timeouts,
    Usage,
)
from together_async.local import LocalServer
from together_async.sse import EventStreamParser, ServerSentEvent, encode_event


async def calls(client: AsyncTogether) -> None:
    stream = client.stream("hi", model="m", max_tokens=64, temperature=0.5, stop=["x"], extra_body={"a": 1})
    assert_type(stream, ChatCompletionStream)
    async with stream as entered:
        assert_type(entered, ChatCompletionStream)
        async for chunk in entered:
            assert_type(chunk, ChatCompletionChunk)
            assert_type(chunk.choices[0].delta.content, str | None)
    assert_type(await stream.completion(), ChatCompletion)
    assert_type(stream.text(choice=1), AsyncIterator[str])
    async for text in client.stream([Message.user("hi")], model="m").text():
        assert_type(text, str)
    assert_type(stream.stats.first_token_s, float | None)
    assert_type(stream.request_id, str | None)

    completion = await client.create([{"role": "user", "content": "hi"}], model="m", timeouts=Timeouts(total=5))
    assert_type(completion, ChatCompletion)
    assert_type(completion.usage, Usage | None)
    message = completion.choices[0].message
    assert_type(message, ChatCompletionMessage)
    await client.create([Message.user("hi"), message, {"role": "user", "content": "more"}], model="m")
    for call in message.tool_calls or ():
        Message.tool(call.function.arguments, tool_call_id=call.id)

    request = ChatCompletionRequest(messages="hi", model="m", stop="x", tools=[{"type": "function"}])
    assert_type(await client.create(request), ChatCompletion)
    assert_type(client.stream(request, temperature=0.1), ChatCompletionStream)


async def compatible(client: AsyncTogether) -> None:
    streamed = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert_type(streamed, ChatCompletionStream)
    whole = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert_type(whole, ChatCompletion)


async def local() -> None:
    async with LocalServer() as server:
        assert_type(server.base_url, str)


def events(error: StreamError) -> None:
    assert_type(EventStreamParser().feed(b""), list[ServerSentEvent])
    assert_type(encode_event(b"x", id="1"), bytes)
    assert_type(error.partial, ChatCompletion)
