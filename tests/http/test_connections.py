"""`Connections`: closing a client, and clients that nobody closed."""

import asyncio
import copy
import gc
import pickle
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from support.clients import client_of, served
from support.leaks import open_sockets
from support.scripts import stalls
from support.servers import (
    DONE,
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    ScriptedServer,
    delta,
    gone,
    hangs,
    left_at_once,
    sse,
    starts_and_hangs,
    streams,
    threaded,
)
from support.virtual_time import lasts, virtual
from together_async import APIConnectionError, AsyncTogether, Retry, StreamConnectionError, Timeouts

pytestmark = pytest.mark.usefixtures("no_leaks")


@virtual
@pytest.mark.parametrize(
    "script",
    [hangs, stalls(b"HTTP/1.1 200 OK\r\ncon"), starts_and_hangs],
    ids=["before the head", "in the head", "in the body"],
)
@pytest.mark.parametrize("kind", ["chunks", "text", "create", "completion", "block"])
async def test_closing_the_client_ends_what_is_under_way(script: Script, kind: str) -> None:
    """Every waiting call ends at once with a typed error; closing twice is fine."""
    async with served(script) as (server, client):

        async def call() -> None:
            if kind == "create":
                await client.create("Hi", model=MODEL)
            stream = client.stream("Hi", model=MODEL)
            if kind == "block":
                async with stream:
                    async for _ in stream:
                        pass
            elif kind == "completion":
                await stream.completion()
            else:
                async for _ in stream if kind == "chunks" else stream.text():
                    pass

        task = asyncio.create_task(call())
        seen = await server.call()
        await asyncio.sleep(1)
        with lasts(0):
            await asyncio.gather(client.aclose(), client.aclose())
            with pytest.raises((APIConnectionError, StreamConnectionError), match="client was closed"):
                await task
            await gone(seen, 5)
        await client.aclose()


@pytest.mark.parametrize("way", ["closed", "cancelled", "late"])
async def test_no_server_that_has_stopped_reading_is_waited_for(way: str) -> None:
    """A request that is larger than all buffers is on its way, and the rest of it is not sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        base_url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        timeouts = Timeouts(first_token=0.5 if way == "late" else 60)
        client = AsyncTogether(KEY, base_url=base_url, timeouts=timeouts, retry=Retry(attempts=1))
        before = open_sockets()
        call = asyncio.create_task(client.create("x" * 20_000_000, model=MODEL))
        accepted, _ = await asyncio.to_thread(server.accept)
        with accepted:
            await asyncio.to_thread(accepted.recv, 1)
            async with asyncio.timeout(5):
                if way == "closed":
                    await client.aclose()
                elif way == "cancelled":
                    call.cancel()
                await asyncio.wait((call,))
                while len(open_sockets() - before) > 1:  # noqa: ASYNC110 - asyncio closes it a turn later
                    await asyncio.sleep(0)
                await client.aclose()
        if way == "cancelled":
            assert call.cancelled()
        else:
            assert isinstance(call.exception(), APIConnectionError)


@virtual
async def test_closing_the_client_while_nobody_reads() -> None:
    """A stream that is not being read right now ends with what was delivered."""
    async with served(starts_and_hangs) as (server, client):
        stream = client.stream("Hi", model=MODEL)
        await anext(stream)
        await client.aclose()
        await left_at_once(await server.call())
        with pytest.raises(StreamConnectionError, match="client was closed") as caught:  # noqa: PT012 - buffered chunks come first
            while True:
                await anext(stream)
        assert caught.value.partial.text in ("a", "ab")


async def test_a_closed_client_says_so() -> None:
    """Every call fails, and nothing is sent."""
    async with served(hangs) as (server, client):
        await client.aclose()
        for call in (
            client.create("Hi", model=MODEL),
            client.stream("Hi", model=MODEL).completion(),
            anext(client.stream("Hi", model=MODEL)),
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True),
        ):
            with pytest.raises(APIConnectionError, match="closed") as caught:
                await call
            assert caught.value.attempts == 0
        assert not server.connections
        assert "closed" in repr(client)


async def test_a_client_that_was_never_used_needs_no_closing(recwarn: pytest.WarningsRecorder) -> None:
    """Without a connection there is nothing to warn of."""
    client = AsyncTogether(KEY)
    del client
    gc.collect()
    assert not list(recwarn)


@virtual
@pytest.mark.parametrize("kind", ["idle", "live stream", "finished stream"])
async def test_an_unclosed_client_warns_once(kind: str) -> None:
    """One ResourceWarning with the line that made it, none of aiohttp's, and the sockets are closed."""
    script = starts_and_hangs if kind == "live stream" else streams("a")
    async with ScriptedServer(script) as server:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            line = sys._getframe().f_lineno + 1
            client = AsyncTogether(KEY, base_url=server.base_url)
            stream = client.stream("Hi", model=MODEL)
            await anext(stream)
            if kind != "live stream":
                await stream.completion()
            if kind == "idle":
                await asyncio.sleep(1)
            del stream, client
            gc.collect()
            await asyncio.sleep(0)
            gc.collect()
            await left_at_once(await server.call())
        assert [warning.category for warning in caught] == [ResourceWarning], [str(w.message) for w in caught]
        assert f"{__file__}:{line}" in str(caught[0].message)
        assert KEY not in str(caught[0].message)


@virtual
async def test_a_client_that_is_dropped_leaves_its_stream_alone() -> None:
    """A stream is read to its end though nobody holds its client; the warning comes when the stream is gone too."""
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        await go_on.wait()
        await call.chunk(sse(delta("b")) + sse(delta(finish="stop")) + DONE)
        await call.send(LAST_CHUNK)

    async with ScriptedServer(script) as server:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client = client_of(server)
            stream = client.stream("Hi", model=MODEL)
            await anext(stream)
            del client
            gc.collect()
            assert not caught
            go_on.set()
            assert [chunk.choices[0].delta.content or "" async for chunk in stream] == ["b", ""]
            assert (await stream.completion()).text == "ab"
            assert not caught
            del stream
            gc.collect()
            await asyncio.sleep(0)
        assert [warning.category for warning in caught] == [ResourceWarning], [str(w.message) for w in caught]
        assert "unclosed AsyncTogether" in str(caught[0].message)
        await left_at_once(await server.call())


def test_an_unclosed_client_after_its_loop() -> None:
    """The same when the loop is gone: one warning, no 'Event loop is closed', no socket left."""
    with threaded(streams("a"), starts_and_hangs) as server:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client = client_of(server)

            async def main(client: AsyncTogether) -> Any:
                await client.stream("Hi", model=MODEL).completion()
                stream = client.stream("Hi", model=MODEL)
                await anext(stream)
                return stream

            stream = asyncio.run(main(client))
            del client, stream
            gc.collect()
        assert [warning.category for warning in caught] == [ResourceWarning], [str(w.message) for w in caught]
        assert "unclosed AsyncTogether" in str(caught[0].message)


@pytest.mark.parametrize("read", ["chunks", "text", "batches", "raw"])
@pytest.mark.parametrize("take", [pickle.dumps, copy.deepcopy])
def test_what_holds_the_key_cannot_be_pickled_or_copied(read: str, take: Callable[[Any], object]) -> None:
    """The client, a stream, and each of its readers: a pickle of any of them would have the key in it."""
    client = AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1")
    stream = client.stream("Hi", model=MODEL)
    for holder in (client, stream, aiter(stream) if read == "chunks" else getattr(stream, read)()):
        with pytest.raises(TypeError, match="can't be pickled"):
            take(holder)
