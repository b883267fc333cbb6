"""The ways of reading: each returns what a loop goes over, as a program of a user would have it.

A completion that comes whole is read as a loop of one item, so that it can be left in the same ways as a stream.
"""
# ruff: noqa: ARG001 - all ways have the same arguments

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from benchmarks.life.plan import Plan
from together_async import (
    AsyncTogether,
    Broadcast,
    Buffer,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionStream,
    MapResult,
    TogetherError,
    buffered,
    merge,
    tee,
)
from together_async.relay import Hub, passthrough, sse


@dataclasses.dataclass(slots=True)
class Tools:
    """What a program has beside its client."""

    hub: Hub


Reading = Callable[[AsyncTogether, Plan, Tools], Awaitable[Any]]


def stream_of(client: AsyncTogether, plan: Plan, **options: Any) -> ChatCompletionStream:
    return client.stream(plan.message, model=plan.model, timeouts=plan.timeouts, retry=plan.retry, **options)


async def chunks(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return stream_of(client, plan, n=2 if two_choices(plan) else 1)


async def text(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return stream_of(client, plan).text()


async def batches(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return stream_of(client, plan).batches()


async def raw(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return stream_of(client, plan).raw()


async def generator(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    """The user's own generator around a stream."""

    async def texts() -> AsyncIterator[str]:
        async with stream_of(client, plan) as stream:
            async for piece in stream.text():
                yield piece

    return texts()


async def texts(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    """Both choices at once, in two tasks."""
    stream = stream_of(client, plan, n=2)
    return merge({0: stream.text(0), 1: stream.text(1)})


async def texts_in_turn(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    """Both choices in one task: two pieces of the first, one of the second, and so on."""

    async def pieces() -> AsyncIterator[tuple[int, str]]:
        async with stream_of(client, plan, n=2) as stream:
            iterators = stream.text(0), stream.text(1)
            left = {0, 1}
            while left:
                for choice in (0, 0, 1):
                    piece = await anext(iterators[choice], None)
                    if piece is None:
                        left.discard(choice)
                    else:
                        yield choice, piece

    return pieces()


async def sdk(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    messages = [{"role": "user", "content": plan.message}]
    return await client.chat.completions.create(model=plan.model, messages=messages, stream=True, timeout=8)


async def map_(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    streamed = plan.dice < 0.5
    return client.map(
        (plan.message for _ in range(TEXTS["map"])),
        concurrency=3,
        ordered=plan.dice > 0.7,
        stream=streamed,
        model=plan.model,
        timeouts=plan.timeouts,
        retry=plan.retry,
    )


async def map_callback(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    """A map whose callback makes a call of its own for the first chunk."""

    async def on_chunk(index: int, _: ChatCompletionChunk) -> None:
        if not called:
            called.append(index)
            with contextlib.suppress(TogetherError):
                await client.create(plan.message, model=plan.model, timeouts=plan.timeouts, retry=plan.retry)

    called: list[int] = []
    return client.map(
        [plan.message], stream=True, on_chunk=on_chunk, model=plan.model, timeouts=plan.timeouts, retry=plan.retry
    )


async def merge_(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return merge({key: stream_of(client, plan) for key in range(TEXTS["merge"])}, on_error="return")


async def buffered_(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return buffered(stream_of(client, plan), Buffer(4, on_full="block" if plan.dice < 0.5 else "coalesce"))


async def broadcast(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    on_slow = "block" if plan.dice < 0.3 else "drop" if plan.dice < 0.5 else "coalesce"
    return Broadcast(stream_of(client, plan), size=8, on_slow=on_slow).subscribe()  # type: ignore[arg-type]  # of three


async def tee_(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return merge(dict(enumerate(tee(stream_of(client, plan)))))


async def hub(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return tools.hub.open(stream_of(client, plan))


async def sse_(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return sse(stream_of(client, plan), heartbeat=0.2)


async def sse_passthrough(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    return sse(passthrough(stream_of(client, plan)), heartbeat=0.2)


async def completion(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    async def whole() -> AsyncIterator[ChatCompletion]:
        async with stream_of(client, plan) as stream:
            yield await stream.completion()

    return whole()


async def create(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    async def whole() -> AsyncIterator[ChatCompletion]:
        yield await client.create(plan.message, model=plan.model, timeouts=plan.timeouts, retry=plan.retry)

    return whole()


async def parse(client: AsyncTogether, plan: Plan, tools: Tools) -> Any:
    """An answer of a class that is made for this call alone."""
    answer = dataclasses.make_dataclass("Answer", [("words", list[str]), ("size", int)])

    async def whole() -> AsyncIterator[Any]:
        yield await client.parse(
            plan.message, response_type=answer, model=plan.model, timeouts=plan.timeouts, retry=plan.retry
        )

    return whole()


READINGS: dict[str, Reading] = {
    "chunks": chunks,
    "text": text,
    "batches": batches,
    "raw": raw,
    "generator": generator,
    "texts": texts,
    "texts-in-turn": texts_in_turn,
    "sdk": sdk,
    "map": map_,
    "map-callback": map_callback,
    "merge": merge_,
    "buffered": buffered_,
    "broadcast": broadcast,
    "tee": tee_,
    "hub": hub,
    "sse": sse_,
    "sse-passthrough": sse_passthrough,
    "completion": completion,
    "create": create,
    "parse": parse,
}
BOTH_CHOICES = {"texts", "texts-in-turn"}
"""Ways that read two choices of one answer."""
UNCHECKED = {"raw", "sse", "sse-passthrough", "parse"}
"""Ways whose items are not compared with what the model said."""


TEXTS = {"map": 4, "merge": 3, "tee": 2}
"""How many equal texts a way reads, if there is more than one."""


def two_choices(plan: Plan) -> bool:
    """Whether both choices of an answer are asked for."""
    return plan.reading in BOTH_CHOICES or (plan.reading == "chunks" and plan.dice < 0.5)


# ------------------------------------------------------------------------------------------------ what was read, judged


def pieces_of(item: Any) -> Iterator[tuple[Any, str]]:
    """The texts in an item of a loop, each with its key: of a stream, or of a choice.

    Raises:
        TogetherError: The item stands for a call that has failed.
    """
    match item:
        case str():
            yield 0, item
        case ChatCompletionChunk():
            yield from ((choice.index or 0, choice.delta.content or "") for choice in item.choices)
        case ChatCompletion():
            yield 0, item.text or ""
        case MapResult():
            if item.error is not None:
                raise item.error
            yield item.index, item.completion.text or ""
        case list():
            for chunk in item:
                yield from pieces_of(chunk)
        case (_, TogetherError() as error):
            raise error
        case (key, value):
            yield from ((key, piece) for _, piece in pieces_of(value))


def wrong_text(plan: Plan, items: list[Any]) -> str:
    """What is wrong with the items of a loop that went to its end; empty if nothing is."""
    if plan.reading in UNCHECKED:
        return ""
    read: dict[Any, str] = {}
    for item in items:
        for key, piece in pieces_of(item):
            read[key] = read.get(key, "") + piece
    for key in range(2 if two_choices(plan) else TEXTS.get(plan.reading, 1)):
        whole = plan.text(key if two_choices(plan) else 0)
        if read.get(key, "") != whole:
            return f"{len(read.get(key, ''))} of {len(whole)} characters of {key}"
    return ""
