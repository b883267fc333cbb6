"""`Transport`: heads of responses, also long, broken and early ones."""

import asyncio

import pytest

from support.clients import client_of, text_of
from support.servers import KEY, MODEL, Call, ScriptedServer, answers, response, whole
from support.survival import chain
from together_async import AsyncTogether, TogetherError

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_head_of_60_kilobytes() -> None:
    """Long headers of proxies are read."""
    extra = b"x-long: " + b"y" * 60_000 + b"\r\n"
    async with ScriptedServer(answers(response(whole(), extra=extra))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "Hello"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 60_000) for i in range(64)) + b"\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x00\xff" * 1000,
    ],
    ids=["line too long", "many lines", "ssh", "no status", "negative length", "two lengths", "bad chunk", "noise"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["create", "stream"])
async def test_a_broken_head_is_a_typed_error(head: bytes, stream: bool) -> None:
    """No error of aiohttp's escapes, whatever comes in place of HTTP."""

    async def script(call: Call) -> None:
        await call.send(head)
        call.close()

    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(TogetherError) as caught:
            await (text_of(client) if stream else client.create("Hi", model=MODEL))
        assert len(str(caught.value)) < 1000
        chain(caught.value)


async def test_early_hints_before_the_response() -> None:
    """Informational responses are skipped."""
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with ScriptedServer(answers(early + response(whole()))) as server, client_of(server) as client:
        assert (await client.create("Hi", model=MODEL)).text == "Hello"


async def test_an_answer_before_the_request_was_read() -> None:
    """A server that refuses a large request at once and closes: a typed error, soon."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response({"error": "too large"}, status=413))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{port}/v1") as client, asyncio.timeout(30):
        with pytest.raises(TogetherError):
            await client.create("x" * 20_000_000, model=MODEL)
    server.close()
    await server.wait_closed()
