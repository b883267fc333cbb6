"""Every field of a delta and of a chunk's choice comes through every way of reading a stream.

A field that is added to `Delta` or `ChunkChoice` fails here until this file says where it shows in the completion, and
every reader hands it on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from support.any_chunks import completion_of
from support.servers import DONE, KEY, ScriptedServer, answers, delta, response, sse
from support.virtual_time import run
from together_async import AsyncTogether, ChatCompletionStream
from together_async.models import (
    GENERATED_FIELDS,
    TEXT_FIELDS,
    ChatCompletion,
    ChatCompletionMessage,
    ChunkChoice,
    Delta,
    plain,
)
from together_async.wire.coalesce import Coalescer
from together_async.wire.codec import TextDelta, decode_chunk, encode
from together_async.wire.completions import chunk_of

CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"name": "f", "arguments": "{}"}
AFTER_TEXT = "xy"
"""The content of the chunks before the one with the field, which bring the readers onto their quick path."""

Field = tuple[dict[str, Any], Callable[[dict[str, Any]], Any], Any]
"""A choice of a chunk, where its field shows in the completion's choice, and what is there."""


def in_message(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda choice: choice["message"][name]


DELTA: dict[str, Field] = {
    "content": ({"delta": {"content": "a"}}, in_message("content"), AFTER_TEXT + "a"),
    "role": ({"delta": {"role": "critic"}}, in_message("role"), "critic"),
    "token_id": (
        {"delta": {"content": "a", "token_id": 7}, "logprobs": -0.5},
        lambda choice: choice["logprobs"]["token_ids"],
        [7],
    ),
    "tool_calls": ({"delta": {"content": "a", "tool_calls": [CALL]}}, in_message("tool_calls"), [CALL]),
    "reasoning": ({"delta": {"reasoning": "a"}}, in_message("reasoning"), "a"),
    "reasoning_content": ({"delta": {"reasoning_content": "a"}}, in_message("reasoning_content"), "a"),
    "function_call": ({"delta": {"function_call": FUNCTION}}, in_message("function_call"), FUNCTION),
    "refusal": ({"delta": {"refusal": "a"}}, in_message("refusal"), "a"),
}
CHOICE: dict[str, Field] = {
    "index": ({"index": 1, "delta": {"content": "a"}}, lambda choice: choice["index"], 1),
    "delta": ({"delta": {"content": "a"}}, in_message("content"), AFTER_TEXT + "a"),
    "finish_reason": (
        {"delta": {"content": "a"}, "finish_reason": "length"},
        lambda choice: choice["finish_reason"],
        "length",
    ),
    "logprobs": ({"delta": {"content": "a"}, "logprobs": -0.5}, lambda choice: choice["logprobs"]["tokens"], ["a"]),
    "seed": ({"delta": {}, "seed": 2**70}, lambda choice: choice["seed"], 2**70),
    "text": ({"text": "a"}, in_message("content"), AFTER_TEXT + "a"),
}
FIELDS = {**{f"delta-{name}": field for name, field in DELTA.items()}, **CHOICE}


def payloads(choice: dict[str, Any], *, lenient: bool) -> list[bytes]:
    """A stream with this choice among plain text; with a value that only the lenient decoder accepts."""
    index = choice.get("index", 0)
    middle: dict[str, Any] = {**delta(), "choices": [choice]}
    if lenient:
        middle["created"] = "yesterday"
    last = delta(finish=None if choice.get("finish_reason") else "stop", index=index)
    return [encode(chunk) for chunk in (*map(delta, AFTER_TEXT), middle, delta("" if index else None), last)]


# ------------------------------------------------------------------------------------------------- the ways of reading


async def by_chunks(stream: ChatCompletionStream) -> ChatCompletion:
    chunks = [chunk async for chunk in stream]
    assert plain(completion_of(chunks)) == plain(await stream.completion())
    return await stream.completion()


async def by_batches(stream: ChatCompletionStream) -> ChatCompletion:
    chunks = list(itertools.chain.from_iterable([batch async for batch in stream.batches()]))
    assert plain(completion_of(chunks)) == plain(await stream.completion())
    return await stream.completion()


async def by_text(stream: ChatCompletionStream) -> ChatCompletion:
    text = "".join([text async for text in stream.text()])
    completion = await stream.completion()
    assert text == completion.choices[0].message.content
    return completion


async def by_completion(stream: ChatCompletionStream) -> ChatCompletion:
    return await stream.completion()


async def by_raw(stream: ChatCompletionStream) -> ChatCompletion:
    data = b"".join([data async for data in stream.raw()])
    events = [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event]
    assert events.pop() == b"[DONE]"
    return completion_of(map(decode_chunk, events))


WAYS = [by_chunks, by_batches, by_text, by_completion, by_raw]


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_comes_through_every_way_of_reading(field: str, way: Any, lenient: bool) -> None:
    """A field's value is in the completion, in whichever way the stream is read."""
    choice, where, expected = FIELDS[field]
    body = b"".join(map(sse, payloads(choice, lenient=lenient))) + DONE

    async def read() -> ChatCompletion:
        script = answers(response(body, media_type="text/event-stream"))
        async with (
            ScriptedServer(script) as server,
            AsyncTogether(KEY, base_url=server.base_url) as client,
            client.stream("hi", model="m") as stream,
        ):
            completion: ChatCompletion = await way(stream)
            return completion

    completion = run(read())
    assert where(plain(completion)["choices"][-1]) == expected


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_merged_and_is_in_a_whole_completion(field: str) -> None:
    """Merged chunks add up to the same, and so does a whole completion as a stream's only chunk."""
    choice, where, expected = FIELDS[field]
    chunks = [decode_chunk(payload) for payload in payloads(choice, lenient=False)]
    completion = completion_of(chunks)
    assert where(plain(completion)["choices"][-1]) == expected
    coalescer = Coalescer()
    for chunk in chunks:
        coalescer.add(chunk)
    assert plain(completion_of(chunk for _, chunk in coalescer.take())) == plain(completion)
    assert plain(completion_of([chunk_of(completion)])) == plain(completion)


# ---------------------------------------------------------------------------------------------------------- the tables


def names(cls: type[Any]) -> set[str]:
    return {field.name for field in attrs.fields(cls)}


def test_every_field_is_tried_here() -> None:
    """The tables above leave out none."""
    assert names(Delta) == set(DELTA)
    assert names(ChunkChoice) == set(CHOICE)


def test_fields_that_are_generated_are_in_every_table() -> None:
    """The text decoder looks at each, the message has each, and the rest of a delta is known by name."""
    assert set(TextDelta.__struct_fields__) == {"role", *GENERATED_FIELDS}
    assert names(ChatCompletionMessage) == {"role", *GENERATED_FIELDS}
    assert names(Delta) == {"role", "token_id", *GENERATED_FIELDS}
    assert set(TEXT_FIELDS) <= set(GENERATED_FIELDS)
