"""The relay under real servers, as processes of their own, with visitors that vanish at every stage.

The emulator, which is the upstream, notes in its journal when it was left; the app reports what is left in it.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from h2.connection import H2Connection
from h2.errors import ErrorCodes

from support.relay_apps import (
    COMMENT,
    DEADLINE_S,
    SERVERS,
    SOON,
    STAGES,
    TOKEN,
    TOKEN_MARK,
    Process,
    Upstream,
    Visitor,
    facts_of,
    get,
    leaving,
    nothing_left,
    running,
    until,
)
from together_async.wire.sse import EventStreamParser, ServerSentEvent

DOORS = ("chat", "raw", "buffered", "broadcast")


@pytest.fixture(scope="module")
def processes(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """A process of each server, started at the same time."""
    directory = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(running(name, upstream.emulator.base_url, directory)) for name in SERVERS}


@pytest_asyncio.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest, processes: dict[str, Process]) -> AsyncIterator[Process]:
    """A server; in the end no relay of the test has left anything in it."""
    process = processes[request.param]
    await process.ready()
    async with nothing_left(process):
        yield process


def events_of(response: bytes) -> list[ServerSentEvent]:
    """The events of a whole response, whose body may be chunked."""
    head, _, body = response.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = dechunked(body)
    return EventStreamParser().feed(body)


def dechunked(body: bytes) -> bytes:
    """Returns the data of a chunked body, which must end regularly."""
    pieces = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert body == b"\r\n"
            return b"".join(pieces)
        pieces.append(body[:length])
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]


# ------------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stage", STAGES)
async def test_who_leaves_the_relay_leaves_the_model(server: Process, upstream: Upstream, stage: str, how: str) -> None:
    """At every stage, with a FIN or a RST: the model is stopped within 100 ms, and no place or task is left."""
    assert await leaving(server.port, upstream, stage, how) < SOON


@pytest.mark.parametrize("server", ["uvicorn-uvloop-httptools", "hypercorn", "aiohttp"], indirect=True)
@pytest.mark.parametrize("door", ["raw", "buffered", "broadcast"])
@pytest.mark.parametrize("stage", ["head", "silence", "tokens"])
async def test_who_leaves_what_stands_before_a_stream_leaves_the_model(
    server: Process, upstream: Upstream, stage: str, door: str
) -> None:
    """The same for a pass-through, a buffer, and one of many readers."""
    assert await leaving(server.port, upstream, stage, "close", door) < SOON


async def test_who_leaves_the_queue_gives_up_his_place(server: Process, upstream: Upstream) -> None:
    """A request that waits for its turn has no upstream yet: its place in the queue is free at once."""
    prompt = upstream.prompt()
    with Visitor(server.port) as first, Visitor(server.port) as second:
        await first.ask("/narrow", model="silence", prompt=prompt)
        entry = await upstream.entry(prompt)
        await second.ask("/narrow", model="say", prompt="is never asked")
        await queued(server, 1)
        at = second.leave()
        await queued(server, 0)
        assert time.monotonic() - at < 5 * SOON  # asked by HTTP, again and again
        assert entry.outcome == "open"  # the first is as it was
    await entry.wait_left()
    assert upstream.entry_of("is never asked") is None


async def queued(server: Process, count: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while (await facts_of(server.port))["queued"] != count:
        assert time.monotonic() < end


@pytest.mark.parametrize("stage", ["head", "silence", "tokens"])
async def test_a_body_that_nobody_has_read_hides_nobody(server: Process, upstream: Upstream, stage: str) -> None:
    """Servers stop reading when the app does not read the body, and then do not see the connection end."""
    prompt = upstream.prompt()
    with Visitor(server.port) as visitor:
        sending = asyncio.create_task(
            visitor.ask("/chat", model=stage, prompt=prompt, method="POST", body=b" " * 900_000)
        )
        entry = await upstream.entry(prompt)
        if stage != "head":
            await until(lambda: entry.tokens_written >= 3, "three tokens")
        sending.cancel()
        await asyncio.wait([sending])
        at = visitor.leave()
        assert await entry.wait_left() - at < 5 * SOON  # bytes that are on their way are read first


@pytest.mark.parametrize("name", SERVERS)
async def test_a_heartbeat_finds_who_is_hidden_by_another_request(
    processes: dict[str, Process], upstream: Upstream, name: str
) -> None:
    """A server that has read a connection's next request reads no further, and sees its end only by writing.

    (Hypercorn then keeps a task of its own, with any app.)
    """
    server = processes[name]
    await server.ready()
    prompt = upstream.prompt()
    with Visitor(server.port) as visitor:
        await visitor.ask("/chat", model="silence", prompt=prompt, heartbeat=0.05)
        entry = await upstream.entry(prompt)
        await visitor.until(TOKEN_MARK, 3)
        await visitor.send(b"GET /facts HTTP/1.1\r\nhost: relay.test\r\n\r\n")
        await visitor.until(COMMENT, 3)
        at = visitor.leave()
        assert await entry.wait_left() - at < 0.05 * 3 + SOON


async def test_a_run_of_a_hub_goes_on_without_its_visitor(server: Process, upstream: Upstream) -> None:
    """A client that comes back with the id of its last event gets the rest: the model was not stopped."""
    prompt = upstream.prompt()
    with Visitor(server.port) as visitor:
        await visitor.ask("/hub", model="tokens", prompt=prompt)
        await visitor.until(TOKEN_MARK, 3)
        visitor.leave()
    entry = await upstream.entry(prompt)
    with Visitor(server.port) as visitor:
        await visitor.ask("/hub", model="tokens", prompt=prompt, headers=[f"last-event-id: {prompt}:3"])
        await visitor.until(f"id: {prompt}:".encode(), 2)
        assert entry.outcome == "open"
        got = visitor.got
    position, text = first_of(got)
    assert position > 3
    assert text == TOKEN * (position - 3)
    assert sum(entry.body["messages"][0]["content"] == prompt for entry in upstream.emulator.journal) == 1
    assert (await get(server.port, "/stop", prompt=prompt)).endswith(b"true")
    await entry.wait_left()


def first_of(response: bytes) -> tuple[int, str]:
    """The position and the text of the first chunk of a response."""
    found = re.search(rb"id: [^\n]*:(\d+)\ndata: ([^\n]*)\n", response)
    assert found is not None, response
    return int(found[1]), json.loads(found[2])["choices"][0]["delta"]["content"]


async def test_how_it_ended_is_told_to_the_app(server: Process, upstream: Upstream) -> None:
    """`on_end` tells an answer that was read to its end from one that was left."""
    read, left = upstream.prompt(), upstream.prompt()
    response = await get(server.port, "/chat", model="say", prompt=read)
    await leaving_of(server, upstream, left)
    assert events_of(response)[-1].data == b"[DONE]"
    for line in (f"{read} read", f"{left} left"):
        await ended(server, line)


async def ended(server: Process, line: str) -> None:
    """Waits until the app's `on_end` was called, which is after the model was left."""
    end = time.monotonic() + DEADLINE_S
    while line not in (found := (await facts_of(server.port))["ended"]):
        assert time.monotonic() < end, found


async def leaving_of(server: Process, upstream: Upstream, prompt: str) -> None:
    with Visitor(server.port) as visitor:
        await visitor.ask("/chat", model="silence", prompt=prompt)
        await visitor.until(TOKEN_MARK, 3)
    await (await upstream.entry(prompt)).wait_left()


@pytest.mark.parametrize("stage", ["head", "silence", "tokens"])
async def test_a_stop_button_over_http_2(processes: dict[str, Process], upstream: Upstream, stage: str) -> None:
    """Over HTTP/2 the connection stays when a page stops an answer: a RST_STREAM stops the model."""
    server = processes["hypercorn"]
    await server.ready()
    async with nothing_left(server):
        prompt = upstream.prompt()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        connection = H2Connection()
        connection.initiate_connection()
        query = urlencode({"model": stage, "prompt": prompt})
        head = {":method": "GET", ":path": f"/chat?{query}", ":scheme": "http", ":authority": "relay.test"}
        connection.send_headers(1, list(head.items()), end_stream=True)
        writer.write(connection.data_to_send())
        entry = await upstream.entry(prompt)
        got = b""
        while stage != "head" and got.count(TOKEN_MARK) < 3:
            for event in connection.receive_data(await asyncio.wait_for(reader.read(65_536), DEADLINE_S)):
                got += getattr(event, "data", b"")
        connection.reset_stream(1, ErrorCodes.CANCEL)
        writer.write(connection.data_to_send())
        at = time.monotonic()
        assert await entry.wait_left() - at < 5 * SOON  # a single try
        writer.close()


@pytest.mark.parametrize("server", ["uvicorn-uvloop-httptools", "hypercorn", "gunicorn", "aiohttp"], indirect=True)
async def test_many_leave_at_once(server: Process, upstream: Upstream) -> None:
    """Forty visitors at all stages vanish at once: all of their upstreams are left."""
    async with contextlib.AsyncExitStack() as stack:
        entries = []
        for number in range(40):
            prompt = upstream.prompt()
            visitor = stack.enter_context(Visitor(server.port))
            await visitor.ask("/chat", model=("head", "first", "silence", "tokens")[number % 4], prompt=prompt)
            entries.append(await upstream.entry(prompt))
        at = time.monotonic()
    last = max([await entry.wait_left() for entry in entries])
    assert last - at < 5 * SOON  # forty take some time


# ------------------------------------------------------------------------------------------------------------ shutdown


def shutting_down(response: bytes) -> str:
    """Returns how a response reports the shutdown, by a status or an event, and the error's type."""
    if response.startswith(b"HTTP/1.1 503"):
        head, _, body = response.partition(b"\r\n\r\n")
        assert b"retry-after: 1" in head.lower()
        return "status " + str(json.loads(body)["error"]["type"])
    last = events_of(response)[-1]
    assert last.event == "error"
    assert b"[DONE]" not in response
    return "event " + str(json.loads(last.data)["error"]["type"])


STAYING = [("chat", "silence"), ("chat", "tokens"), ("raw", "silence"), ("buffered", "silence"), ("chat", "head")]
STOPS = [(name, "SIGTERM") for name in SERVERS if name not in ("aiohttp-cancels", "aiohttp-uvloop")]
STOPS += [(name, "SIGINT") for name in ("uvicorn-asyncio-h11", "aiohttp-uvloop")]


@pytest.fixture(scope="module")
def doomed(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Process]]:
    """The servers to stop, started at the same time."""
    directory = tmp_path_factory.mktemp("doomed")
    with contextlib.ExitStack() as stack:
        yield {stop: stack.enter_context(running(stop[0], upstream.emulator.base_url, directory)) for stop in STOPS}


@pytest.mark.parametrize(("name", "signal_name"), STOPS)
async def test_a_shutdown_ends_streams_politely(
    upstream: Upstream, doomed: dict[tuple[str, str], Process], name: str, signal_name: str
) -> None:
    """Within `grace` a stream ends with an `error` event, or a status if nothing was sent; then the server exits."""
    if name == "hypercorn" and sys.version_info >= (3, 12):
        pytest.skip("Hypercorn waits for its connections before it looks at its own time limit (Server.wait_closed)")
    process = doomed[name, signal_name]
    await process.ready()
    with contextlib.ExitStack() as stack:
        visits = []
        for door, model in STAYING:
            prompt = upstream.prompt()
            visitor = stack.enter_context(Visitor(process.port))
            await visitor.ask(f"/{door}", model=model, prompt=prompt, grace=0.1)
            if model != "head":
                await visitor.until(TOKEN_MARK, 3)
            visits.append((visitor, await upstream.entry(prompt), model))
        process.stop(signal_name)
        for visitor, entry, model in visits:
            reason = shutting_down(await visitor.read_to_end())
            assert reason == ("status" if model == "head" else "event") + " ServerShutdownError"
            await entry.wait_left()
    assert await process.exited() in (0, -15, -2)
