"""A server whose answers a test scripts event by event, and `together-async chat` against it."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Self

from support.terminal import TIMEOUT_S, environment, run


class Exchange:
    """One request as the scripted server sees it, and the means to answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str, body: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self.headers = dict(re.findall(r"^([\w-]+): *(.*?)\r?$", head.lower(), re.MULTILINE))
        self.body: dict[str, Any] = json.loads(body)

    async def send(self, data: str) -> None:
        self._writer.write(data.encode())
        await self._writer.drain()

    async def status(self, status: str, body: object) -> None:
        text = json.dumps(body)
        await self.send(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n"
            f"connection: close\r\n\r\n{text}"
        )

    async def begin(self) -> None:
        await self.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")

    async def event(self, **fields: object) -> None:
        chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
        await self.send(f"data: {json.dumps(chunk)}\n\n")

    async def text(self, text: str, finish_reason: str | None = None, **fields: object) -> None:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        await self.event(choices=[choice], **fields)

    async def end(self, finish_reason: str = "stop") -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        await self.text("", finish_reason, usage=usage)
        await self.send("data: [DONE]\n\n")

    async def left(self) -> None:
        """Wait until the client has dropped the connection."""
        await asyncio.wait_for(self._reader.read(), TIMEOUT_S)


Script = Callable[[Exchange], Awaitable[None]]


class ScriptedServer:
    """Answers each request with the script, and remembers what was asked."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[Exchange] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            assert length is not None
            exchange = Exchange(reader, writer, head, await reader.readexactly(int(length[1])))
            self.requests.append(exchange)
            await self._script(exchange)
        writer.close()


async def hello(exchange: Exchange) -> None:
    """The script for tests that look at something else."""
    await exchange.begin()
    await exchange.text("Hel")
    await exchange.text("lo")
    await exchange.end()


async def ask(script: Script, *arguments: str, stdin: str = "", **variables: str) -> tuple[int, str, str]:
    """Run `chat` against a server with this script."""
    async with ScriptedServer(script) as server:
        return await run("chat", "--base-url", server.base_url, *arguments, env=environment(**variables), stdin=stdin)
