"""`HTTPResponse`: compressed bodies, and bodies above the size limits."""

import asyncio
import gzip
import subprocess
import sys
import zlib

import pytest

from support.clients import client_of, text_of
from support.paths import ROOT
from support.servers import MODEL, Call, ScriptedServer, answers, gone, heartbeat, response, say, whole
from together_async import APIResponseValidationError, StreamProtocolError, TogetherError
from together_async.http import response as response_module

pytestmark = pytest.mark.usefixtures("no_leaks")


BOMB_CLIENT = """
import asyncio, resource, sys, time
from together_async import AsyncTogether, TogetherError

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

async def main(url, kind):
    worst = peak = 0
    async def beat():
        nonlocal worst, peak
        last = time.thread_time()  # which other work on the machine does not lengthen
        while True:
            await asyncio.sleep(0.005)
            now = time.thread_time()
            worst, last = max(worst, now - last), now
            peak = max(peak, rss())
    async with AsyncTogether("k" * 20, base_url=url) as client:
        async def call(kind):
            if kind == "create":
                return await client.create("Hi", model="m")
            async for _ in client.stream("Hi", model="m"):
                pass
        await call("create")  # everything is imported and warm
        before = rss()
        task = asyncio.create_task(beat())
        try:
            await call(kind)
            outcome = "nothing"
        except TogetherError as error:
            outcome = type(error).__name__
        await asyncio.sleep(0.01)
        task.cancel()
    print(outcome, (max(peak, rss()) - before) >> 20, round(worst * 1000))

asyncio.run(main(*sys.argv[1:]))
"""


def bomb(piece: bytes, megabytes: int) -> bytes:
    """`megabytes` of `piece`, compressed."""
    packer = zlib.compressobj(9, wbits=31)
    piece *= 2**20 // len(piece)
    return b"".join(packer.compress(piece) for _ in range(megabytes)) + packer.flush()


async def run_client(code: str, *args: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *args, stdout=subprocess.PIPE, cwd=ROOT)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return out.decode().split()


@pytest.mark.parametrize(
    ("kind", "piece", "expected"),
    [
        ("create", b" ", "APIResponseValidationError"),
        ("stream", b"data: " + b"x" * 58, "StreamProtocolError"),
        ("stream", b"\n", "StreamProtocolError"),
        ("stream", b": ping\n\n", "StreamProtocolError"),
        ("stream", b"data: {}\n\n", "StreamProtocolError"),
        ("stream", b"data: x\n", "StreamProtocolError"),
        ("stream", b" ", "StreamProtocolError"),
        ("error", b"x", "InternalServerError"),
    ],
    ids=[
        "create",
        "one line",
        "empty lines",
        "pings",
        "empty objects",
        "one event of many lines",
        "blanks",
        "error body",
    ],
)
async def test_a_gzip_bomb_costs_little(kind: str, piece: bytes, expected: str) -> None:
    """200 MiB in 200 KB: a typed error, less than 16 MiB more memory, and a loop that goes on turning."""
    data = bomb(piece, 200)
    media_type = "text/event-stream" if kind == "stream" else "application/json"
    status = 500 if kind == "error" else 200
    packed = response(data, status=status, media_type=media_type, extra=b"content-encoding: gzip\r\n")
    async with ScriptedServer(answers(response(whole())), answers(packed)) as server:
        outcome, megabytes, blocked_ms = await run_client(
            BOMB_CLIENT, server.base_url, "create" if kind == "error" else kind
        )
    assert outcome == expected
    assert int(megabytes) < 16
    assert int(blocked_ms) < 150


async def test_gzip_of_reasonable_size_is_read() -> None:
    """A proxy that compresses although the client asked for identity does no harm."""
    body = gzip.compress(say("a", "b"))
    packed = response(body, media_type="text/event-stream", extra=b"content-encoding: gzip\r\n")
    async with ScriptedServer(answers(packed)) as server, client_of(server) as client:
        assert await text_of(client) == "ab"


async def test_broken_gzip_is_a_typed_error() -> None:
    """A body that can't be inflated is a typed error."""
    for body in (b"no gzip at all", gzip.compress(say("a" * 1000))[:-20]):
        packed = response(body, media_type="text/event-stream", extra=b"content-encoding: gzip\r\n")
        async with ScriptedServer(answers(packed)) as server, client_of(server) as client:
            with pytest.raises(TogetherError):
                await text_of(client)


async def test_a_line_of_64_mebibytes() -> None:
    """An endless line is refused at the size limit: no more of it is read, and the connection is closed."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(b"data: ")
        for _ in range(1024):
            await call.chunk(b"x" * 65_536)
        all_sent.set()

    all_sent = asyncio.Event()
    async with ScriptedServer(script) as server, client_of(server) as client, heartbeat() as gaps:
        with pytest.raises(StreamProtocolError, match="8388608"):
            await text_of(client)
        await gone(await server.call(), 5)
        assert not all_sent.is_set()
    assert max(gaps) < 0.25


async def test_a_body_above_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole response has a size limit, and what is above it is not read."""
    monkeypatch.setattr(response_module.HTTPResponse.read_all, "__defaults__", (100_000,))

    async def script(call: Call) -> None:
        await call.head(media_type="application/json")
        while True:
            await call.chunk(b" " * 65_536)

    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(APIResponseValidationError, match="at most 100000"):
            await client.create("Hi", model=MODEL)
        await gone(await server.call(), 5)
