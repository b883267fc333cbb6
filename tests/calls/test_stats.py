"""`stats`: the times of a stream, and what it cost."""

import asyncio
from typing import Any

import pytest

from support import virtual_time
from support.calls import counted, emulated, leaves_nothing, retrying_client
from support.servers import ScriptedServer, delta, sse
from support.survival import MODEL, PROMPT
from together_async import Timeouts
from together_async.calls.stats import ArrivalTimes


@leaves_nothing
async def test_a_whole_stream_costs_what_the_server_counted() -> None:
    """`stats` has the server's own number, and None before the end."""
    async with emulated() as (_, client):
        for kind in ("chunks", "text"):
            stream = client.stream(PROMPT, model=MODEL)
            assert (stream.stats.total_tokens, stream.stats.estimated) == (None, False)
            async for _ in stream if kind == "chunks" else stream.text():
                assert stream.stats.total_tokens is None
            completion = await stream.completion()
            assert completion.usage is not None
            assert (stream.stats.total_tokens, stream.stats.estimated) == (completion.usage.total_tokens, False)


LEFT = ("break", "aclose", "idle", "total", "client", "reset", "error", "cancel", "silence after the usage")
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


@virtual_time.virtual
@leaves_nothing
@pytest.mark.parametrize("how", LEFT)
async def test_a_stream_that_was_cut_costs_what_was_seen(how: str) -> None:
    """The tokens that came and an estimate of the prompt, marked as estimated, whatever cut it."""

    async def script(call: Any) -> None:
        await call.head()
        await call.chunk(*(sse(delta(text)) for text in ("a", "b", "c")))
        if how == "silence after the usage":
            await call.chunk(sse({**delta(), "choices": [], "usage": USAGE}))
        if how == "reset":
            call.reset()
        elif how == "error":
            await call.chunk(sse({"error": {"message": "no", "code": 500}}))
        await call.hang()

    timeouts = Timeouts(
        idle=50 if how in ("idle", "silence after the usage") else 5_000, total=50 if how == "total" else None
    )
    async with ScriptedServer(script) as server, retrying_client(server, timeouts=timeouts) as client:
        stream = client.stream(PROMPT, model=MODEL)
        three = asyncio.Event()

        async def read(stream: Any = stream) -> None:
            count = 0
            async for _ in stream.text():
                count += 1
                if count == 3:
                    three.set()
                    if how == "break":
                        break

        task = asyncio.create_task(read())
        await three.wait()
        await {"aclose": stream.aclose, "client": client.aclose}.get(how, three.wait)()
        if how == "cancel":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is (how == "cancel")
        prompt = len(PROMPT) // 4 + 4
        usage_came = how == "silence after the usage"
        stats = stream.stats
        assert (stats.total_tokens, stats.estimated) == ((12, False) if usage_came else (prompt + 3, True))
        assert counted(client) == (0, 0)


def test_times_are_those_of_what_was_generated() -> None:
    """From the call to the first chunk and to the last, and nothing before there is anything to measure."""
    times = ArrivalTimes()
    assert times.stats(chunks=0, completion_tokens=None, total_tokens=None, estimated=False).first_token_s is None
    times.started = 1.0
    for arrived in (3.0, 3.5, 7.0):
        times.note(arrived)
    stats = times.stats(chunks=3, completion_tokens=9, total_tokens=20, estimated=True)
    assert (stats.first_token_s, stats.largest_gap_s, stats.elapsed_s, stats.tokens_per_s) == (2.0, 3.5, 6.0, 2.0)
    assert times.stats(chunks=3, completion_tokens=None, total_tokens=None, estimated=False).tokens_per_s == 0.5
    times.clear()
    assert times.started == 1.0
    assert times.stats(chunks=0, completion_tokens=None, total_tokens=7, estimated=False).total_tokens == 7
