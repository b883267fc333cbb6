"""The example apps, each under its real server, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
import uvicorn
from aiohttp import web

import together_async
from support.servers import KEY
from together_async.testing import EmulatorServer
from together_async.wire import codec
from together_async.wire.sse import EventStreamParser, ServerSentEvent

FOLDER = Path(together_async.__file__).parent / "examples"
ASK = ("fastapi_app", "starlette_app", "aiohttp_app")
"""The apps that stream the answer in the response to the question."""
NAMES = (*ASK, "resume_app")
ANSWER = "Blue light is scattered most."
"""The text that the emulator answers with."""


def load(name: str, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Executes an example's module anew, with an emulator for the service."""
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    monkeypatch.setenv("TOGETHER_BASE_URL", emulator.base_url)
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # FastAPI looks up annotations there
    spec.loader.exec_module(module)
    return module


class _Server(uvicorn.Server):
    """A server that sets an event when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextlib.asynccontextmanager
async def serving(
    name: str, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, ModuleType]]:
    """Serves an example; yields its address, which ends in a slash, and its module."""
    module = load(name, emulator, monkeypatch)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    run = _aiohttp if isinstance(module.app, web.Application) else _uvicorn
    async with run(module, listening):
        yield url, module


@contextlib.asynccontextmanager
async def _uvicorn(module: ModuleType, listening: socket.socket) -> AsyncIterator[None]:
    server = _Server(uvicorn.Config(module.app, lifespan="on", log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait((serving, up), return_when=asyncio.FIRST_COMPLETED)
    up.cancel()
    try:
        yield
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def _aiohttp(module: ModuleType, listening: socket.socket) -> AsyncIterator[None]:
    runner = web.AppRunner(module.app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield
    finally:
        await runner.cleanup()


# ------------------------------------------------------------------------------------------------------------ answers


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[ServerSentEvent]:
    """Yields the events of a response as they come."""
    parser = EventStreamParser()
    async for data in response.content.iter_any():
        for event in parser.feed(data):
            yield event


def text_of(event: ServerSentEvent) -> str:
    """Returns the text of an event's chunk."""
    choices = codec.decode_json(event.data)["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""


async def whole(response: aiohttp.ClientResponse) -> tuple[str, list[ServerSentEvent]]:
    """Returns the whole text of an answer that ends with `[DONE]`, and its events."""
    found = [event async for event in events(response)]
    assert found[-1].data == b"[DONE]"
    return "".join(text_of(event) for event in found[:-1]), found


async def message(response: aiohttp.ClientResponse) -> str:
    """Returns the message of a refusal."""
    text = await response.text()
    if response.content_type != "application/json":
        return text
    body = json.loads(text)
    return str(body["error"]["message"] if "error" in body else body["detail"])
