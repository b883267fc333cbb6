"""Comments during silence, and the second in which an error is still a status. In virtual time."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from support import virtual_time
from support.clients import served
from support.relay_doors import (
    COMMENT,
    DOORS,
    KINDS,
    PROMPT,
    ASGIClient,
    by_asgi,
    openai_events,
    scope_of,
    serving_handler,
)
from support.servers import DONE, MODEL, Call, delta
from support.servers import sse as event
from together_async import AsyncTogether, Timeouts
from together_async.relay import EventSourceResponse, Hub, aiohttp_response, passthrough, sse
from together_async.wire.sse import EventStreamParser

pytestmark = pytest.mark.usefixtures("no_leaks")


async def timed(door: str, stream: Any, **options: Any) -> list[tuple[float, bytes]]:
    """What a client gets, piece by piece, and when, in seconds from its request."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    got: list[tuple[float, bytes]] = []
    if door == "sse":
        return [(round(loop.time() - began, 1), data) async for data in sse(stream, **options)]
    if door == "asgi":

        async def send(message: Any) -> None:
            if message.get("body"):
                got.append((round(loop.time() - began, 1), message["body"]))

        made: Any = EventSourceResponse(stream, **options)
        await made(scope_of(), ASGIClient().receive, send)
        return got

    async def answer(request: web.Request) -> web.StreamResponse:
        return await aiohttp_response(request, stream, **options)

    async with serving_handler(answer) as url, aiohttp.ClientSession() as session, session.get(url) as response:
        async for data in response.content.iter_any():
            got.append((round(loop.time() - began, 1), data))  # noqa: PERF401 - each has its own time
    return got


PATIENT = Timeouts(connect=None, first_token=None, idle=None, total=None, queue=None)


def at(*seconds: float) -> list[tuple[float, bytes]]:
    return [(second, COMMENT) for second in seconds]


@pytest.mark.parametrize("door", DOORS)
def test_silence_is_filled_with_comments(door: str) -> None:
    """Before the service's head, before the first token, between tokens: one every `heartbeat` seconds of silence."""
    first, second = event(delta("one", role="assistant")), event(delta("two", finish="stop"))

    async def script(call: Call) -> None:
        await asyncio.sleep(3.5)
        await call.head()
        await asyncio.sleep(2)
        await call.chunk(first)
        await asyncio.sleep(2.5)
        await call.chunk(second)
        await asyncio.sleep(0.5)
        await call.chunk(DONE)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with served(script) as (_, client):
            got = await timed(door, client.stream(PROMPT, model=MODEL, timeouts=PATIENT), heartbeat=1, ids=False)
        assert got[:3] == at(1, 2, 3)
        assert got[-5:] == [(5.5, first), *at(6.5, 7.5), (8.0, second), (8.5, DONE)]
        times = [moment for moment, _ in got]
        assert max(after - before for before, after in itertools.pairwise(times)) < 1.05
        assert {data for _, data in got} == {COMMENT, first, second, DONE}

    virtual_time.run(main())


def test_tokens_leave_no_room_for_comments() -> None:
    """A stream that is never silent for so long has none, however long it takes, except the one with its head."""

    async def script(call: Call) -> None:
        await call.head()
        for _ in range(30):
            await asyncio.sleep(9)
            await call.chunk(event(delta("x", role="assistant")))
        await call.chunk(event(delta(finish="stop")), DONE)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with served(script) as (_, client):
            got = await timed("asgi", client.stream(PROMPT, model=MODEL), heartbeat=10)
        assert [piece for piece in got if piece[1].startswith(b":")] == at(1)  # with the head

    virtual_time.run(main())


def decoded(block: bytes) -> Any:
    data = block.removeprefix(b"data: ")
    return json.loads(data) if data.startswith(b"{") else data


@pytest.mark.parametrize("kind", ["chunks", "raw", "buffered", "hub", "own"])
def test_comments_cost_no_byte(kind: str) -> None:
    """Reads are interrupted at any moment, also inside events: without the comments all bytes are as sent."""
    texts = [f"token {number} " for number in range(12)]
    events = [event(json.dumps(delta(text)).encode()) for text in texts]
    body = b"".join(events) + event(delta(finish="stop")) + DONE

    async def script(call: Call) -> None:
        await call.head()
        for start in range(0, len(body), 37):
            await asyncio.sleep(1.7)
            await call.chunk(body[start : start + 37])
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with served(script) as (_, client), Hub(abandon=None) as hub:
            stream = client.stream(PROMPT, model=MODEL)
            made = hub.open(stream) if kind == "hub" else KINDS[kind](stream)
            got = b"".join([data async for data in sse(made, heartbeat=1.1, ids=False)])
        assert got.count(COMMENT) > 20
        without = got.replace(COMMENT, b"").removeprefix(b"retry: 1000\n")
        if kind != "own":
            assert without == body
            expected = [event.data.decode() for event in EventStreamParser().feed(body)]
            assert [data for _, data in openai_events(got)] == expected
        assert [decoded(block) for block in without.split(b"\n\n")] == [decoded(block) for block in body.split(b"\n\n")]

    virtual_time.run(main())


@pytest.mark.parametrize("door", DOORS)
def test_without_heartbeat_silence_is_silent(door: str) -> None:
    """None sends no comment, not even with the head."""

    async def script(call: Call) -> None:
        await call.head()
        await asyncio.sleep(100)
        await call.chunk(event(delta("x", finish="stop")), DONE)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with served(script) as (_, client):
            got = await timed(door, client.stream(PROMPT, model=MODEL, timeouts=PATIENT), heartbeat=None)
        assert got[0][0] == 100
        assert not any(data.startswith(b":") for _, data in got)

    virtual_time.run(main())


@pytest.mark.parametrize("door", DOORS)
def test_a_byte_order_mark_after_a_comment_is_left_out(door: str) -> None:
    """It may only begin a body (WHATWG HTML, 9.2.6): after a comment it would spoil the first event."""
    body = event(delta("one", role="assistant")) + event(delta("two", finish="stop")) + DONE

    async def script(call: Call) -> None:
        await asyncio.sleep(2.5)
        await call.head()
        await call.chunk(b"\xef\xbb\xbf" + body)
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with served(script) as (_, client):
            got = await timed(door, passthrough(client.stream(PROMPT, model=MODEL)), heartbeat=1)
        assert got == [*at(1, 2), (2.5, body)]

    virtual_time.run(main())


@pytest.mark.parametrize(("after_s", "status"), [(0.5, 429), (2.0, 200)])
def test_an_error_shortly_after_the_head_is_a_status(after_s: float, status: int) -> None:
    """Within a second after the head of the service's response an error is a status; later it is an event."""

    async def script(call: Call) -> None:
        await call.head()
        await asyncio.sleep(after_s)
        await call.chunk(event({"error": {"message": "slow down", "code": 429}}))
        await call.send(b"0\r\n\r\n")

    async def main() -> None:
        async with served(script) as (_, client):
            answer = await by_asgi(client.stream(PROMPT, model=MODEL))
        assert answer.status == status
        assert answer.error_object["code"] == 429

    virtual_time.run(main())


@pytest.mark.parametrize(
    "times",
    [
        *({"heartbeat": wrong} for wrong in (0, -1, math.nan, "1")),
        *({"grace": wrong} for wrong in (-1, math.nan, None)),
    ],
)
async def test_seconds_that_are_none_are_refused(client: AsyncTogether, times: dict[str, Any]) -> None:
    """When the response is made."""
    with pytest.raises(ValueError, match=next(iter(times))):
        EventSourceResponse(client.stream(PROMPT, model=MODEL), **times)
