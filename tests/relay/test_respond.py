"""Headers, HEAD and `Last-Event-ID`: what ASGI and aiohttp answer in the same way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.relay_doors import (
    KINDS,
    PROMPT,
    SOON,
    TEXT,
    TOKENS,
    Answer,
    ASGIClient,
    by_asgi,
    scope_of,
    status_error,
    stream_of,
)
from support.servers import MODEL
from together_async import AsyncTogether, RateLimitError
from together_async.relay import End, EventSourceResponse, Hub, ServerSentEvent
from together_async.relay.browser_errors import AllReadError
from together_async.testing import EmulatorServer, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_headers_keep_proxies_from_collecting(response: Any, client: AsyncTogether) -> None:
    """The type, no caching or transforming, and nginx's own header."""
    headers = (await response(client.stream(PROMPT, model=MODEL))).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers


async def test_headers_can_be_added_and_replaced(response: Any, client: AsyncTogether) -> None:
    """In any case of their names, and none is sent twice."""
    stream = client.stream(PROMPT, model=MODEL)
    headers = (await response(stream, headers={"X-Mine": "1", "Cache-Control": "no-store"})).headers
    assert headers["x-mine"] == "1"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("asked", [None, "3"])
async def test_headers_of_the_app_are_on_refusals_too(response: Any, asked: str | None) -> None:
    """Without those for CORS no page may read why it failed; those that describe the stream are left out."""
    own = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/event-stream", "Cache-Control": "no-transform"}
    headers = {"last-event-id": asked} if asked else None
    answer = await response(stream_of(status_error(RateLimitError, 429)), asked=headers, headers=own)
    assert answer.status == (204 if asked else 429)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-accel-buffering" not in answer.headers
    assert answer.headers.get("cache-control") != "no-transform"
    if not asked:
        assert answer.headers["content-type"].partition(";")[0] == "application/json"
        assert answer.error_object["type"] == "RateLimitError"


@pytest.mark.parametrize(
    ("method", "asked", "error"), [("HEAD", None, type(None)), ("GET", {"Last-Event-ID": "3"}, AllReadError)]
)
@pytest.mark.parametrize("kind", ["chunks", "raw", "buffered", "broadcast"])
async def test_what_is_not_sent_is_left(
    response: Any, client: AsyncTogether, upstream: EmulatorServer, method: str, asked: Any, error: Any, kind: str
) -> None:
    """HEAD, or a client that comes back and can't resume: an open stream is closed, and `on_end` is called."""
    upstream.faults = Stall(after_token=0)
    stream, ended = client.stream(PROMPT, model=MODEL), list[End]()
    await stream.__aenter__()
    feed = KINDS[kind](stream)
    await response(feed, method, asked, on_end=ended.append)
    assert client.limits.in_flight == 0
    (end,) = ended
    assert isinstance(end.error, error)
    assert not end.left


async def test_head_asks_nothing(response: Any, client: AsyncTogether, upstream: EmulatorServer) -> None:
    """The headers of a stream, without a request to the model."""
    answer = await response(client.stream(PROMPT, model=MODEL), "HEAD")
    assert answer.status == 200
    assert answer.body == b""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert upstream.journal.total == 0


async def test_who_comes_back_to_what_cannot_be_resumed_is_sent_away(
    response: Any, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """204 ends a browser's attempts; another request would cost again."""
    answer = await response(client.stream(PROMPT, model=MODEL), asked={"Last-Event-ID": "3"})
    assert answer.status == 204
    assert answer.body == b""
    assert upstream.journal.total == 0


async def test_an_empty_last_event_id_is_none(response: Any, client: AsyncTogether) -> None:
    """It means that the client has had no event with an id."""
    answer = await response(client.stream(PROMPT, model=MODEL), asked={"Last-Event-ID": ""})
    assert answer.text == TEXT


@pytest.mark.parametrize("had", range(len(TOKENS) + 2))
async def test_who_comes_back_to_a_hub_gets_the_rest(
    door: Any, client: AsyncTogether, upstream: EmulatorServer, had: int
) -> None:
    """After any event: both parts together are the text, and the model was asked once."""
    async with Hub() as hub:
        first = await door(hub.open(client.stream(PROMPT, model=MODEL), "conversation"))
        had_events = first.events[:had]
        asked = {"last-event-id": had_events[-1].id} if had else None
        second = await door(hub.open(client.stream(PROMPT, model=MODEL), "conversation"), asked=asked)
    assert text_of(had_events) + second.text == TEXT
    assert second.events[-1].data == b"[DONE]"
    assert upstream.journal.total == 1


def text_of(events: list[ServerSentEvent]) -> str:
    return Answer(200, {}, b"".join(b"data: " + event.data + b"\n\n" for event in events)).text


async def test_who_has_had_the_end_is_told_that_it_was(response: Any, client: AsyncTogether) -> None:
    """The last event has an id too: a browser that comes back with it gets 204, and stops."""
    async with Hub() as hub:
        first = await response(hub.open(client.stream(PROMPT, model=MODEL), "conversation"))
        last = first.events[-1]
        assert last.data == b"[DONE]"
        again = await response(hub.join("conversation"), asked={"last-event-id": last.id})
    assert again.status == 204


@pytest.mark.parametrize(
    "id", ["other:1", "conversation:99", "conversation:x", "conversation:-1", "::", "\u00e9:1", "9" * 400]
)
async def test_an_id_of_nothing_here_is_gone(response: Any, client: AsyncTogether, id: str) -> None:
    """410, and nothing about the ids that exist."""
    async with Hub() as hub:
        hub.start(client.stream(PROMPT, model=MODEL), "conversation")
        answer = await response(hub.join("conversation"), asked={"last-event-id": id})
    assert answer.status == 410
    assert answer.error_object["type"] == "NotKeptError"


async def test_a_reader_who_left_in_the_midst_continues(client: AsyncTogether, upstream: EmulatorServer) -> None:
    """The completion goes on without the reader; its id and position get exactly the rest."""
    upstream.faults = Stall(after_token=2)
    async with Hub() as hub:
        visitor = ASGIClient()
        made: Any = EventSourceResponse(hub.open(client.stream(PROMPT, model=MODEL), "conversation"))
        task = asyncio.create_task(made(scope_of(), visitor.receive, visitor.send))
        while b"two" not in b"".join(message.get("body", b"") for message in visitor.sent):
            visitor.received.clear()
            await asyncio.wait_for(visitor.received.wait(), SOON)
        visitor.left.set()
        await asyncio.wait_for(task, SOON)
        had = visitor.answer
        upstream.release()
        rest = await by_asgi(hub.join("conversation"), asked={"last-event-id": had.events[-1].id})
    assert had.text + rest.text == TEXT
