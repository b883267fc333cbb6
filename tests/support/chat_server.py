"""A server whose answers a test scripts event by event, and `together-async chat` against it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from support.servers import Call, ScriptedServer
from support.terminal import TIMEOUT_S, environment, run


class Exchange:
    """One request of the command, and short ways to answer it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.headers = {name: value.lower() for name, value in call.headers.items()}
        self.body: dict[str, Any] = call.json

    async def send(self, data: str) -> None:
        await self._call.send(data.encode())

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
        await asyncio.wait_for(self._call.left.wait(), TIMEOUT_S)


Script = Callable[[Exchange], Awaitable[None]]


class ChatServer(ScriptedServer):
    """Answers each request with the script on a connection of its own, and remembers what was asked."""

    def __init__(self, script: Script) -> None:
        super().__init__(self._answer)
        self._script = script
        self.requests: list[Exchange] = []

    async def _answer(self, call: Call) -> None:
        exchange = Exchange(call)
        self.requests.append(exchange)
        await self._script(exchange)
        call.close()


async def hello(exchange: Exchange) -> None:
    """The script for tests that look at something else."""
    await exchange.begin()
    await exchange.text("Hel")
    await exchange.text("lo")
    await exchange.end()


async def ask(script: Script, *arguments: str, stdin: str = "", **variables: str) -> tuple[int, str, str]:
    """Run `chat` against a server with this script."""
    async with ChatServer(script) as server:
        return await run("chat", "--base-url", server.base_url, *arguments, env=environment(**variables), stdin=stdin)
