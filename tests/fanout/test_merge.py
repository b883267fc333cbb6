"""`merge`: many streams read as one, each in its order, none at the cost of another."""
# ruff: noqa: PT012 - blocks within blocks and loops within blocks, because they are what is tested

from __future__ import annotations

import asyncio
import contextlib
import itertools
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.fanout import (
    IMMEDIATE,
    SECRET,
    TEXT,
    WAYS,
    Mine,
    broken,
    check_idle,
    children,
    counted,
    emulated,
    leave,
    prompts,
    tidy,
)
from support.servers import MODEL
from support.virtual_time import now
from together_async import (
    BadRequestError,
    TogetherError,
    merge,
)
from together_async.testing import (
    Cut,
    InTurn,
    Stall,
    Status,
)


@pytest.mark.parametrize("what", ["chunks", "texts", "entered"])
@tidy
async def test_many_streams_as_one(what: str) -> None:
    """All chunks of each stream in its order; from streams, from texts, and from streams that are open already."""
    async with emulated(tokens_per_second=50) as (_, client), contextlib.AsyncExitStack() as stack:
        made = {prompt: client.stream(prompt, model=MODEL) for prompt in prompts(5)}
        if what == "entered":
            for stream in made.values():
                await stack.enter_async_context(stream)
        texts: dict[str, list[str]] = {}
        keys = []
        async with merge({k: s.text() if what == "texts" else s for k, s in made.items()}) as chunks:
            async for key, chunk in chunks:
                text = chunk if isinstance(chunk, str) else "".join(c.delta.content or "" for c in chunk.choices)
                texts.setdefault(key, []).append(text)
                keys.append(key)
        assert {key: "".join(parts) for key, parts in texts.items()} == {p: f"You said: {p}" for p in made}
        assert keys != sorted(keys), "one stream after the other"
        for prompt, stream in made.items():
            assert (await stream.completion()).text == f"You said: {prompt}"


@tidy
async def test_streams_are_opened_when_they_are_read() -> None:
    """All of them at the first read, and not before."""
    async with emulated(first_token_s=1.0) as (server, client):
        merged = merge({prompt: client.stream(prompt, model=MODEL) for prompt in prompts(5)})
        await asyncio.sleep(1)
        assert not server.journal
        began = now()
        assert len({key async for key, _ in merged}) == 5
        assert now() - began < 1.5


@tidy
async def test_a_slow_reader_of_many_streams() -> None:
    """64 chunks are read ahead, and one more of each stream; the reader slows them all."""
    made: list[Any] = []
    taken = 0
    async with merge({key: counted(None, made=made) for key in range(20)}) as merged:
        async for _ in merged:
            taken += 1
            await asyncio.sleep(0.1)
            assert len(made) - taken <= 64 + 20
            if taken == 300:
                break


@tidy
async def test_a_fast_stream_does_not_starve_the_others() -> None:
    """However fast one stream and however slow the reader, every stream advances."""
    seen = Counter[int]()
    async with merge({0: counted(None, turns=0), **{key: counted(None, turns=3) for key in range(1, 5)}}) as merged:
        async for key, _ in merged:
            seen[key] += 1
            await asyncio.sleep(0)
            if seen.total() == 3_000:
                break
    assert min(seen[key] for key in range(5)) >= 20, seen


@tidy
async def test_each_stream_keeps_its_order() -> None:
    """At any speed."""
    seen: dict[int, list[int]] = {}
    async for key, number in merge({key: counted(200, turns=key % 3) for key in range(10)}):
        seen.setdefault(key, []).append(number)
    assert seen == {key: list(range(200)) for key in range(10)}


@tidy
async def test_no_streams() -> None:
    """It ends at once."""
    assert [pair async for pair in merge({})] == []
    async with merge({"a": counted(0)}) as merged:
        assert [pair async for pair in merged] == []


@pytest.mark.parametrize("bad", [None, 5, "ab", ["a"], {"a": 5}, {"a": [1, 2]}], ids=repr)
@tidy
async def test_what_is_no_mapping_of_streams(bad: Any) -> None:
    """Refused at the call, before any stream is opened."""
    with pytest.raises(ValueError, match="streams: got a"):
        merge(bad)


@tidy
async def test_on_error_is_one_of_two() -> None:
    """Only `map` takes a function."""
    with pytest.raises(ValueError, match=r"on_error: got .*, expected 'raise' or 'return'"):
        merge({}, on_error=print)  # type: ignore[arg-type]  # the mistake under test


@tidy
async def test_one_stream_under_two_keys() -> None:
    """A clear error instead of an endless wait; the same text twice is noticed while reading. Two texts are fine."""
    async with emulated(["a b", "c d"]) as (_, client):
        stream = client.stream("hi", model=MODEL)
        with pytest.raises(ValueError, match="one of them stands under two keys; a stream is read once"):
            merge({"a": stream, "b": stream})
        with pytest.raises(RuntimeError, match="another loop reads this stream already; one loop reads a stream"):
            async for _ in merge({"a": stream.text(0), "b": stream.text(0)}):
                pass
        stream = client.stream("hi", model=MODEL, n=2)
        got = {"a": "", "b": ""}
        async for key, text in merge({"a": stream.text(0), "b": stream.text(1)}):
            got[key] += text
        assert got == {"a": "a b", "b": "c d"}
        await asyncio.sleep(0.1)
        check_idle(client)


@tidy
async def test_the_first_error_ends_all_streams() -> None:
    """Its note names the stream by number: a key may be a prompt."""
    async with emulated(faults=InTurn(None, Status(400), then=Stall(after_token=1))) as (server, client):
        merged = merge({f"{SECRET} {key}": client.stream("hi", model=MODEL) for key in range(5)})
        with pytest.raises(BadRequestError) as caught:
            async for _ in merged:
                pass
        shown = "".join(traceback.format_exception(caught.value))
        assert "stream" in caught.value.__notes__[0]
        assert SECRET not in shown
        check_idle(client)
        assert [pair async for pair in merged] == []
        for entry in tuple(server.journal)[2:]:
            await entry.wait_ended()


@tidy
async def test_an_error_is_not_put_off_by_a_slow_reader() -> None:
    """Next to a stream that always has another chunk ready."""
    taken = 0
    with pytest.raises(Mine):
        async for _ in merge({"bad": broken(Mine(), after=3), "good": counted(None)}):
            taken += 1
            await asyncio.sleep(0.1)
    assert taken <= 66


@tidy
async def test_returned_errors_come_in_a_chunks_place() -> None:
    """After all chunks of that stream; the others go on."""
    async with emulated(TEXT, faults=InTurn(None, Cut(after_token=2), Status(500))) as (_, client):
        came: dict[int, list[Any]] = {}
        streams_of = {key: client.stream("hi", model=MODEL) for key in range(4)}
        async for key, chunk in merge(streams_of, on_error="return"):
            came.setdefault(key, []).append(chunk)
        errors = [chunks[-1] for chunks in came.values() if isinstance(chunks[-1], TogetherError)]
        assert sorted(type(error).__name__ for error in errors) == ["InternalServerError", "StreamConnectionError"]
        assert sum(isinstance(chunk, TogetherError) for chunks in came.values() for chunk in chunks) == 2
        assert min(map(len, came.values())) == 1


@pytest.mark.parametrize("on_error", ["raise", "return"])
@pytest.mark.parametrize("error", [Mine(), asyncio.CancelledError()], ids=repr)
@tidy
async def test_a_foreign_error_always_comes_out(error: BaseException, on_error: Any) -> None:
    """From a stream that is not ours; a cancellation inside of it never looks like the reader's."""
    with pytest.raises(Mine if isinstance(error, Mine) else RuntimeError):
        async for _ in merge({"a": broken(error), "b": counted(None)}, on_error=on_error):
            pass
    assert not children()


@pytest.mark.parametrize("way", WAYS)
@tidy
async def test_leaving_a_merge_closes_all_streams(way: str) -> None:
    """Those that wait for a chunk, those that wait for the reader and those that are being opened."""
    async with emulated(TEXT, faults=InTurn(Stall(after_token=1), Stall(), then=Stall(after_token=2))) as (
        server,
        client,
    ):
        kept = [merge({key: client.stream("hi", model=MODEL) for key in range(4)})]
        await leave(way, kept[0] if way != "dropped" else kept.pop())
        if way in IMMEDIATE:
            check_idle(client)
        await asyncio.sleep(0.1)
        check_idle(client)
        assert server.journal
        for entry in server.journal:
            await entry.wait_left()
        if kept:
            assert [pair async for pair in kept[0]] == []


@tidy
async def test_a_merge_cancelled_at_every_await() -> None:
    """After any number of turns of the event loop."""

    async def read() -> int:
        streams_of = {key: client.stream("hi", model=MODEL) for key in range(3)}
        return len([pair async for pair in merge(streams_of)])

    async with emulated(TEXT) as (_, client):
        for turns in itertools.count():
            task = asyncio.ensure_future(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.cancel():
                assert await task >= 3
                break
            with pytest.raises(asyncio.CancelledError):
                await task
            check_idle(client)
        assert turns > 5


@tidy
async def test_a_stream_that_does_not_care_for_cancellation() -> None:
    """It swallows its cancellation: leaving does not wait for ever, and none of its later chunks comes."""

    async def stubborn() -> AsyncIterator[int]:
        for number in range(1_000):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
            yield number

    async with merge({"a": stubborn(), "b": counted(None)}) as merged:
        await anext(merged)
        before = now()
    assert now() - before < 5
    assert [pair async for pair in merged] == []
    assert not children()


@tidy
async def test_a_merge_of_maps() -> None:
    """Any async iterable will do: two maps, of two models, are read as one."""
    async with emulated() as (_, client):
        both = {model: client.map(prompts(5), model=model, concurrency=2) for model in ("one", "two")}
        got = [(model, result.index) async for model, result in merge(both)]
        assert sorted(got) == [(model, index) for model in ("one", "two") for index in range(5)]


@tidy
async def test_merged_says_how_many_it_reads() -> None:
    """Its repr has no keys."""
    async with merge({SECRET: counted(None), "b": counted(None)}) as merged:
        await anext(merged)
        assert repr(merged) == "<Merged 2 streams>"
