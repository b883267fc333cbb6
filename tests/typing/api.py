"""What type checkers say about the public surface. Never run: mypy and pyright read it.

Each suppression marks a mistake that mypy and pyright must report; mypy fails for one that is not needed.
"""

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, assert_type

from aiohttp import web

from together_async import (
    AsyncTogether,
    BatchInputError,
    BatchSummary,
    Broadcast,
    Buffer,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionRequest,
    ChatCompletionStream,
    EventStreamParser,
    MapResult,
    MapResults,
    Message,
    MessagesLike,
    OutputError,
    Price,
    Record,
    Retried,
    Retry,
    ServerSentEvent,
    StreamError,
    Subscription,
    Timeouts,
    Timing,
    TogetherError,
    Usage,
    buffered,
    encode_event,
    merge,
    relay,
    tee,
)
from together_async.local import LocalServer


async def batches(client: AsyncTogether, messages: MessagesLike) -> None:
    def note(record: Record) -> None: ...

    try:
        assert_type(await client.run_batch("in.jsonl", "out.jsonl", on_result=note), BatchSummary)
    except (BatchInputError, OutputError) as error:
        assert_type(error, BatchInputError | OutputError)
    assert_type(await client.prices(), dict[str, Price])
    assert_type(await client.create(messages, model="m"), ChatCompletion)


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


async def many(client: AsyncTogether, numbered: AsyncIterator[tuple[int, str]]) -> None:
    results = client.map(["hi"], model="m", max_tokens=64, concurrency=8, ordered=True)
    assert_type(results, MapResults[str])
    assert_type(results.under_way, int)
    assert_type(results.waiting, int)
    assert_type(results.limited_s, float)
    async with results as entered:
        assert_type(entered, MapResults[str])
        async for result in entered:
            assert_type(result, MapResult[str])
            assert_type(result.request, str)
            assert_type(result.index, int)
            assert_type(result.completion, ChatCompletion | None)
            assert_type(result.error, TogetherError | ValueError | None)
            assert_type(result.attempts, int)
            assert_type(result.retries, tuple[Retried, ...])
            assert_type(result.usage, Usage | None)
            assert_type(result.timing, Timing)
            assert_type(result.timing.first_token_s, float | None)
            result.index = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert_type(await anext(results), MapResult[str])
    results.drain()
    await results.aclose()

    async for of_dict in client.map(
        [{"messages": "hi", "model": "m"}], retry=Retry(attempts=1), priority="interactive"
    ):
        assert_type(of_dict.request, dict[str, str])
    async for of_request in client.map(ChatCompletionRequest(messages=text, model="m") for text in "ab"):
        assert_type(of_request, MapResult[ChatCompletionRequest])
    async for of_messages in client.map(conversations(), model="m", timeouts=Timeouts(total=5)):
        assert_type(of_messages, MapResult[list[Message]])

    def note(index: int, chunk: ChatCompletionChunk) -> None:
        assert_type(chunk.choices[0].delta.content, str | None)

    async def note_later(index: int, chunk: ChatCompletionChunk) -> None: ...

    def decide(result: MapResult[Any]) -> MapResult[Any] | None: ...

    def decide_later(result: MapResult[Any]) -> Awaitable[MapResult[Any] | None]:
        raise NotImplementedError

    client.map(["hi"], model="m", stream=True, on_chunk=note, on_error=decide)
    client.map(["hi"], model="m", stream=True, on_chunk=note_later, on_error=decide_later)
    client.map(["hi"], model="m", on_error="raise")
    client.map(["hi"], model="m", on_error="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.map(["hi"], model="m", priority="urgent")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.map(["hi"], model="m", concurrency="8")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.map(["hi"], model="m", temprature=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.map(5, model="m")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.map(["hi"], model="m", on_chunk=len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def conversations() -> Iterator[list[Message]]:
    yield [Message.user("hi")]


async def merged(client: AsyncTogether) -> None:
    streams = {model: client.stream("hi", model=model) for model in ("a", "b")}
    async with merge(streams) as chunks:
        async for model, chunk in chunks:
            assert_type(model, str)
            assert_type(chunk, ChatCompletionChunk)
    async for pair in merge({5: client.stream("hi", model="m").text()}, on_error="raise"):
        assert_type(pair, tuple[int, str])
    async for _, chunk_or_error in merge(streams, on_error="return"):
        assert_type(chunk_or_error, ChatCompletionChunk | TogetherError)
    async for _, of_map in merge({"a": client.map(["hi"], model="m")}):
        assert_type(of_map, MapResult[str])
    merge([client.stream("hi", model="m")])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType,reportCallIssue]
    merge(streams, on_error=print)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType,reportCallIssue]


async def relayed(client: AsyncTogether, request: web.Request, hub: relay.Hub) -> None:
    stream = client.stream("hi", model="m")
    relay.EventSourceResponse(stream, format="text", on_end=print)
    relay.EventSourceResponse(relay.passthrough(stream))
    relay.EventSourceResponse(hub.join(hub.start(stream)), format=lambda chunk: chunk.model)
    relay.EventSourceResponse("hi")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    relay.EventSourceResponse(stream, format="texts")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await relay.aiohttp_response(request, stream), web.StreamResponse)
    async for data in relay.sse(buffered(stream, Buffer(8, on_full="coalesce"))):
        assert_type(data, bytes)
    subscription, _other = tee(stream, 2, on_slow="drop")
    assert_type(subscription, Subscription)
    async for chunk in Broadcast(stream).subscribe():
        assert_type(chunk, ChatCompletionChunk)
    async for text in subscription.text():
        assert_type(text, str)
    async for batch in stream.batches():
        assert_type(batch, list[ChatCompletionChunk])
    async for raw in stream.raw():
        assert_type(raw, bytes)
    Buffer(8, on_full="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def local() -> None:
    async with LocalServer() as server:
        assert_type(server.base_url, str)


def events(error: StreamError) -> None:
    assert_type(EventStreamParser().feed(b""), list[ServerSentEvent])
    assert_type(encode_event(b"x", id="1"), bytes)
    assert_type(error.partial, ChatCompletion)
