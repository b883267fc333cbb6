"""`ChatCompletionStream`: first_token, idle and total; every test is exact in virtual time."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import contextlib

import pytest

from support.clients import read_all, served
from support.scripts import repeats, slow_ticks
from support.servers import (
    DONE,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    delta,
    gone,
    hangs,
    left_at_once,
    sse,
    starts_and_hangs,
)
from support.virtual_time import lasts, timers, virtual
from together_async import APITimeoutError, StreamTimeoutError, Timeouts, TogetherError
from together_async.http.response import HTTPResponse
from together_async.timeouts import Due

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "Hi"


@virtual
@pytest.mark.parametrize(
    "script",
    [
        hangs,
        repeats(b": ping\n\n"),
        repeats(sse(delta("", role="assistant"))),
        repeats(sse({"type": "ping"})),
        repeats(b"event: ping\ndata: {}\n\n"),
        repeats(b" "),
        repeats(b"data: {", b"x"),
        repeats(sse({**delta(), "choices": []})),
    ],
    ids=["silence", "comments", "role only", "json pings", "named pings", "blanks", "dripping", "no choices"],
)
async def test_the_first_token_is_late(script: Script) -> None:
    """first_token counts from the call to the first content; nothing else stops its clock."""
    async with served(script, timeouts=Timeouts(first_token=150, idle=5_000)) as (server, client):
        with lasts(150), pytest.raises(APITimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.seconds) == ("first_token", 150)
        assert isinstance(caught.value, TimeoutError)
        await left_at_once(await server.call())


@virtual
async def test_idle_counts_from_a_first_token_that_comes_later_than_idle() -> None:
    """Before it, idle ends nothing, however often its timer has looked."""

    async def script(call: Call) -> None:
        await call.head()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.left.wait(), 200)
        await call.chunk(sse(delta("a")))
        await call.hang()

    async with served(script, timeouts=Timeouts(first_token=300, idle=60)) as (_, client):
        with lasts(260), pytest.raises(StreamTimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.partial.text) == ("idle", "a")


@virtual
async def test_a_short_idle_does_not_look_often_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer of the first token is not set anew every few milliseconds."""
    look_at, looks = HTTPResponse._look_at, []

    def counted(response: HTTPResponse, late: Due) -> float:
        looks.append(late)
        return look_at(response, late)

    async def script(call: Call) -> None:
        await call.head()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.left.wait(), 10)
        await call.chunk(sse(delta("a")))
        await call.hang()

    monkeypatch.setattr(HTTPResponse, "_look_at", counted)
    async with served(script, timeouts=Timeouts(first_token=300, idle=0.01)) as (_, client):
        with lasts(10.01), pytest.raises(StreamTimeoutError):
            await read_all(client)
    assert 0 < len(looks) < 10


@virtual
@pytest.mark.parametrize("idle", [0.01, 0.9, 1.0, 20.0, 299.0, 400.0])
@pytest.mark.parametrize("first_at", [0.0, 0.5, 15.0, 290.0])
@pytest.mark.parametrize("first_token", [300, None])
async def test_a_silence_after_the_first_token_lasts_as_long_as_idle(
    first_token: float | None, first_at: float, idle: float
) -> None:
    """Whenever the token came, and whichever timer was set for it."""

    async def script(call: Call) -> None:
        await call.head()
        if first_at:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(call.left.wait(), first_at)
        await call.chunk(sse(delta("a")))
        await call.hang()

    async with served(script, timeouts=Timeouts(first_token=first_token, idle=idle)) as (_, client):
        with lasts(first_at + idle), pytest.raises(StreamTimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.seconds) == ("idle", idle)


@virtual
async def test_the_first_token_sets_no_other_timer() -> None:
    """The timer of the wait for it fires soon enough for the silence after it."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a")))
        await reading.wait()
        await call.chunk(sse(delta("b")))
        await call.hang()

    reading = asyncio.Event()
    async with served(script) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
        await anext(stream)
        before = set(timers())
        reading.set()
        await anext(stream)
        assert set(timers()) == before


@virtual
async def test_the_head_does_not_start_the_first_token_anew() -> None:
    """After a late head the token has only what is left of first_token."""

    async def script(call: Call) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.left.wait(), 150)
        await call.head()
        await call.hang()

    async with served(script, timeouts=Timeouts(first_token=200)) as (_, client):
        with lasts(200), pytest.raises(APITimeoutError) as caught:
            await read_all(client)
        assert caught.value.phase == "first_token"


@virtual
@pytest.mark.parametrize("first_token", [50, 5_000, None])
@pytest.mark.parametrize("total", [5_000, None])
@pytest.mark.parametrize(
    "after",
    [
        None,
        b": ping\n\n",
        sse({"type": "ping"}),
        sse(delta("")),
        sse({**delta(), "choices": []}),
        b"x",
        sse({**delta(), "choices": [], "usage": {"total_tokens": 1}}),
    ],
    ids=["silence", "comments", "json pings", "empty content", "no choices", "dripping", "usage"],
)
async def test_silence_after_a_token(after: bytes | None, first_token: float | None, total: float | None) -> None:
    """idle limits the time between contents, whatever the other limits are and whatever else arrives."""
    token = sse(delta("a", role="assistant"))
    script = starts_and_hangs if after is None else repeats(token, b"data: " if after == b"x" else after, after)
    async with served(script, timeouts=Timeouts(first_token=first_token, idle=130, total=total)) as (server, client):
        with lasts(130), pytest.raises(StreamTimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.seconds) == ("idle", 130)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.partial.text.startswith("a")
        await left_at_once(await server.call())


@virtual
@pytest.mark.parametrize("total", [None, 5_000])
@pytest.mark.parametrize("first", [sse(delta("a")), sse(delta("", role="assistant"))], ids=["token", "role"])
async def test_a_slow_consumer_is_not_silence(first: bytes, total: float | None) -> None:
    """The time the consumer takes does not count, before or after the first token, once or often."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(first)
        for letter in "bcd":
            await asked.wait()
            asked.clear()
            await call.chunk(sse(delta(letter)))
        await asked.wait()
        await call.chunk(DONE)
        await call.send(LAST_CHUNK)

    asked = asyncio.Event()
    timeouts = Timeouts(first_token=300, idle=300, total=total)
    async with served(script, timeouts=timeouts) as (_, client), client.stream(PROMPT, model=MODEL) as stream:
        async for _ in stream:
            await asyncio.sleep(200)
            asyncio.get_running_loop().call_later(150, asked.set)
        assert (await stream.completion()).text.endswith("bcd")


@virtual
async def test_idle_is_noticed_after_a_slow_consumer() -> None:
    """A consumer that was away for longer than idle does not switch idle off."""
    async with served(starts_and_hangs, timeouts=Timeouts(first_token=100, idle=100, total=5_000)) as (_, client):
        async with client.stream(PROMPT, model=MODEL) as stream:
            await anext(stream)
            await anext(stream)
            await asyncio.sleep(250)
            with lasts(100), pytest.raises(StreamTimeoutError):
                await anext(stream)


@virtual
async def test_total_ends_a_busy_stream() -> None:
    """total limits the whole call, however busy the stream is."""
    async with served(slow_ticks, timeouts=Timeouts(total=150)) as (server, client):
        with lasts(150), pytest.raises(StreamTimeoutError) as caught:
            await read_all(client)
        assert (caught.value.phase, caught.value.seconds) == ("total", 150)
        assert caught.value.partial.text == "t" * 9
        await left_at_once(await server.call())


@virtual
@pytest.mark.parametrize("reads", [0, 1])
async def test_total_runs_while_nobody_reads(reads: int) -> None:
    """A stream that nobody reads is closed when its time is over; a later read raises the timeout."""
    async with served(slow_ticks, timeouts=Timeouts(total=150)) as (server, client):
        with lasts(150):
            async with client.stream(PROMPT, model=MODEL) as stream:
                for _ in range(reads):
                    await anext(stream)
                await gone(await server.call(), 1_000)
                with pytest.raises(TogetherError) as caught:
                    await stream.completion()
                assert getattr(caught.value, "phase", None) == "total"


@virtual
@pytest.mark.parametrize("script", [hangs, starts_and_hangs], ids=["before the head", "in the body"])
async def test_a_call_may_bring_its_own_limits(script: Script) -> None:
    """timeouts= of a call replaces the client's, and None switches off."""
    async with served(script, timeouts=Timeouts(first_token=10, idle=10)) as (_, client):
        with lasts(100), pytest.raises(TogetherError) as caught:
            await read_all(client, timeouts=Timeouts(first_token=None, idle=None, total=100))
        assert getattr(caught.value, "phase", None) == "total"


@virtual
async def test_none_switches_everything_off() -> None:
    """Without limits a silent stream is waited for."""
    off = Timeouts(connect=None, first_token=None, idle=None, total=None)
    async with served(starts_and_hangs, timeouts=off) as (_, client):
        with lasts(9_000), pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(read_all(client), 9_000)
        assert not isinstance(caught.value, TogetherError)


@virtual
async def test_a_finished_stream_that_stays_open_is_complete() -> None:
    """Finish reasons, no [DONE], no end of the body: after idle it counts as complete."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a")) + sse(delta(finish="stop")))
        await call.hang()

    async with served(script, timeouts=Timeouts(idle=100)) as (_, client):
        with lasts(100):
            assert (await client.stream(PROMPT, model=MODEL).completion()).text == "a"


@virtual
async def test_tokens_under_a_key_that_is_not_known_are_not_silence() -> None:
    """A server's new kind of delta keeps the stream alive, although nothing of it is added up."""

    async def thinks(call: Call) -> None:
        await call.head()
        for _ in range(6):
            await call.chunk(sse(delta(thinking="hm")))
            await asyncio.sleep(50)
        await call.chunk(sse(delta("a", finish="stop")) + DONE)
        await call.send(LAST_CHUNK)

    async with served(thinks) as (_, client):
        limits = Timeouts(idle=60, first_token=60)
        assert (await client.stream(PROMPT, model=MODEL, timeouts=limits).completion()).text == "a"
