"""`MapResult` and `MapResults`: their order, times, attempts and errors, and what they show."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import attrs
import pytest

from support.fanout import (
    KINDS,
    ORDERS,
    SECRET,
    TEXT,
    all_of,
    check_complete,
    client_of,
    emulated,
    prompts,
    tidy,
)
from support.servers import MODEL, ScriptedServer, delta, sse
from together_async import (
    APIConnectionError,
    BadRequestError,
    InternalServerError,
    Limits,
    StreamError,
)
from together_async.testing import (
    Cut,
    InTurn,
    Stall,
    Status,
)


@ORDERS
@tidy
async def test_results_come_as_they_finish_or_in_order(ordered: bool) -> None:
    """The first request is the slowest."""
    faults = InTurn(Stall(seconds=3), Stall(seconds=2), Stall(seconds=1))
    async with emulated(faults=faults) as (_, client):
        results = await all_of(client.map(prompts(3), model=MODEL, concurrency=3, ordered=ordered))
    assert [result.index for result in results] == ([0, 1, 2] if ordered else [2, 1, 0])


@KINDS
@tidy
async def test_timing(stream: bool) -> None:
    """`queued_s` is the wait for a place; `first_token_s` counts from the same moment, and only streams have it."""
    limits = Limits(concurrency=1)
    async with emulated("a b c d e", limits=limits, first_token_s=2.0, tokens_per_second=10) as (_, client):
        results = await all_of(client.map(prompts(3), model=MODEL, concurrency=3, ordered=True, stream=stream))
    each = results[0].timing.total_s
    assert 2.4 <= each <= 2.7
    for place, result in enumerate(results):
        timing = result.timing
        assert timing.queued_s == pytest.approx(place * each, abs=0.1)
        assert timing.total_s == pytest.approx((place + 1) * each, abs=0.1)
        if stream:
            assert timing.first_token_s == pytest.approx(timing.queued_s + 2.0, abs=0.1)
        else:
            assert timing.first_token_s is None


@KINDS
@pytest.mark.default_retry
@tidy
async def test_a_retried_request_tells_of_it(stream: bool) -> None:
    """Attempts and their reasons; `queued_s` ends with the first attempt, and `total_s` includes the pauses."""
    faults = InTurn(Status(503, headers={"retry-after": "7"}), Status(429, headers={"retry-after": "11"}))
    async with emulated(faults=faults) as (server, client):
        (result,) = await all_of(client.map(["prompt 0"], model=MODEL, stream=stream))
        check_complete([result], prompts(1))
        assert (result.attempts, len(server.journal)) == (3, 3)
        assert [
            (retried.reason, retried.waited_s >= least) for retried, least in zip(result.retries, (7, 11), strict=True)
        ]
        assert [retried.reason for retried in result.retries] == ["503", "429"]
        assert result.completion is not None
        assert (result.completion.attempts, result.completion.retries) == (3, result.retries)
        assert result.timing.queued_s < 1
        assert result.timing.total_s >= 18


@KINDS
@tidy
async def test_errors_are_results(stream: bool) -> None:
    """Refused, broken off or lost: a `TogetherError` each, and no completion; the others succeed."""
    faults = InTurn(Cut(), Status(400), Status(500), None)
    async with emulated(faults=faults) as (_, client):
        results = await all_of(client.map(prompts(8), model=MODEL, concurrency=1, ordered=True, stream=stream))
        check_complete(results, prompts(8))
    assert [type(result.error) for result in results[:4]] == [
        APIConnectionError,
        BadRequestError,
        InternalServerError,
        type(None),
    ]
    assert [result.attempts for result in results] == [1] * 8
    assert all(result.completion for result in results[3:])


@tidy
async def test_a_stream_that_breaks_has_what_had_come() -> None:
    """`.partial`, and the time of the first token, without a completion."""
    async with emulated(TEXT, faults=InTurn(Cut(after_token=2))) as (_, client):
        broken, fine = await all_of(client.map(prompts(2), model=MODEL, stream=True, concurrency=1))
    assert isinstance(broken.error, StreamError)
    assert TEXT.startswith(broken.error.partial.text)
    assert broken.error.partial.text
    assert broken.timing.first_token_s is not None
    assert fine.completion is not None
    assert fine.completion.text == TEXT


@pytest.mark.default_retry
@pytest.mark.parametrize("tokens", [0, 1])
@tidy
async def test_a_stream_that_breaks_before_its_first_token_is_asked_again(tokens: int) -> None:
    """A role alone is not a token; after one token the stream is not asked for again, and the token is in
    `.partial`."""

    async def script(call: Any) -> None:
        await call.head()
        await call.chunk(sse(delta("", role="assistant")), *[sse(delta("a"))] * tokens)
        if len(server.calls) == 1:
            call.reset()
            return
        await call.chunk(sse(delta("b", finish="stop")), sse(b"[DONE]"), b"")

    async with ScriptedServer(script) as server, client_of(server) as client:
        (result,) = await all_of(client.map(prompts(1), model=MODEL, stream=True))
    if tokens:
        assert isinstance(result.error, StreamError)
        assert (result.error.partial.text, result.attempts) == ("a", 1)
    else:
        assert result.completion is not None
        assert (result.completion.text, result.attempts) == ("b", 2)


@tidy
async def test_a_result_says_nothing_of_what_was_said() -> None:
    """Its repr has no prompt and no answer; it can be pickled, and is frozen."""
    async with emulated(faults=InTurn(None, Status(400))) as (_, client):
        for result in await all_of(client.map([SECRET, SECRET], model=MODEL, concurrency=1)):
            assert SECRET not in repr(result)
            assert "index=" in repr(result)
            copy = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
            assert (copy.request, copy.completion, copy.timing) == (SECRET, result.completion, result.timing)
            assert (type(copy.error), str(copy.error)) == (type(result.error), str(result.error))
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                result.index = 5


@tidy
async def test_what_goes_on_is_shown() -> None:
    """How many requests are under way, wait and were read; zeros when it is over, at its end or before."""
    async with emulated(limits=Limits(concurrency=1), first_token_s=1.0) as (_, client):
        for take in (1, 6):
            results = client.map(prompts(6), model=MODEL, concurrency=4)
            assert (results.under_way, results.waiting, results.limited_s) == (0, 0, 0.0)
            await anext(results)
            await asyncio.sleep(0)  # the fifth begins
            assert (results.under_way, results.waiting) == (4, 3)
            assert repr(results) == "<MapResults 4 under way, 3 of them wait, 5 read>"
            assert results.limited_s == pytest.approx(1.0, abs=0.2)
            for _ in range(take - 1):
                await anext(results)
            await results.aclose()
            assert (results.under_way, results.waiting) == (0, 0)
            assert results.limited_s == pytest.approx(1.0 if take == 1 else 5.0, abs=0.2)
