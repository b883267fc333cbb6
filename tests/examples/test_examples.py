"""The example apps: complete, on one screen, and right, each under its real server."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from support.example_apps import ASK, FOLDER, NAMES, serving
from together_async.testing import EmulatorServer, ErrorInStream, Stall, Status
from together_async.wire import codec
from together_async.wire.sse import EventStreamParser, ServerSentEvent

pytestmark = pytest.mark.usefixtures("no_leaks")
ANSWER = "Blue light is scattered most."
BAD = (b"", b"{", b"[]", b"{}", b'{"prompt": 1}', b'{"prompt": ""}', b'{"prompt": "\xff"}', b"\xff\xfe")


@pytest_asyncio.fixture
async def emulator(no_leaks: None) -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer(ANSWER) as server:
        yield server


@pytest_asyncio.fixture
async def http(no_leaks: None) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[ServerSentEvent]:
    """The events of a response as they come."""
    parser = EventStreamParser()
    async for data in response.content.iter_any():
        for event in parser.feed(data):
            yield event


def text_of(event: ServerSentEvent) -> str:
    """The text of an event's chunk."""
    choices = codec.decode_json(event.data)["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""


async def whole(response: aiohttp.ClientResponse) -> tuple[str, list[ServerSentEvent]]:
    """All texts of an answer that ends well, and its events."""
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


# ----------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("name", NAMES)
def test_an_app_fits_on_a_screen(name: str) -> None:
    """At most 45 lines, with the command that runs it among the first."""
    source = (FOLDER / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 45
    assert max(map(len, source.splitlines())) <= 120
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert "pip install together-async" in docstring
    assert f"together_async.examples.{name}" in docstring


def test_the_page_is_complete_in_itself() -> None:
    """It loads nothing from elsewhere, and inserts no text of a model as markup."""
    page = (FOLDER / "page.html").read_text()
    assert [url for url in re.findall(r"https?://[^\s'\"]+", page) if "www.w3.org" not in url] == []
    assert not re.search(r"<link[^>]+stylesheet|<script[^>]+src|@import", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", page)


def test_one_app_needs_the_core_dependencies_alone() -> None:
    """`python -m together_async.examples.aiohttp_app` runs where there is no other framework, on loopback."""
    code = """
import importlib.abc, runpy, sys
from aiohttp import web

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("click", "fastapi", "pydantic", "rich", "rstr", "starlette", "uvicorn"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
web.run_app = lambda app, **given: print(sorted(given.items()), *sorted(route.method for route in app.router.routes()))
runpy.run_module("together_async.examples.aiohttp_app", run_name="__main__")
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=FOLDER.parents[1])
    assert done.stderr == ""
    assert done.stdout == "[('host', '127.0.0.1'), ('port', 8000)] GET HEAD POST\n"


# --------------------------------------------------------------------------------------------------- asking in one go


@pytest.mark.parametrize("name", NAMES)
async def test_there_is_a_page(
    name: str, emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GET / is the page."""
    async with serving(name, emulator, monkeypatch) as (url, _), http.get(url) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert await response.text() == (FOLDER / "page.html").read_text()


@pytest.mark.parametrize("name", ASK)
async def test_tokens_come_as_they_are_generated(
    name: str, emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token arrives while the model is still at the second; then the rest, and `[DONE]`."""
    emulator.faults = Stall(after_token=1)
    async with (
        serving(name, emulator, monkeypatch) as (url, _),
        http.post(f"{url}chat", json={"prompt": "Why?"}) as response,
    ):
        assert (response.status, response.content_type) == (200, "text/event-stream")
        text, last = "", b""
        async for event in events(response):
            last = event.data
            if last != b"[DONE]":
                text += text_of(event)
            if text == "Blue" and emulator.journal[0].tokens_written == 1:
                emulator.release()
        assert (text, last) == (ANSWER, b"[DONE]")
    assert emulator.journal[0].body["messages"] == [{"role": "user", "content": "Why?"}]
    assert emulator.journal[0].outcome == "complete"
    assert emulator.open_connections == 0  # the app has ended, and its client with it


@pytest.mark.parametrize("name", NAMES)
async def test_bad_input_is_refused(
    name: str, emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything that is not a question gets a 4xx with the reason, and the model gets no request."""
    headers = {"content-type": "application/json"}
    async with serving(name, emulator, monkeypatch) as (url, _):
        for body in (*BAD, json.dumps({"prompt": "a" * 20_001}).encode()):
            async with http.post(f"{url}chat", data=body, headers=headers) as response:
                assert 400 <= response.status < 500, body
                assert await message(response)
    assert emulator.journal.total == 0


@pytest.mark.parametrize("name", ASK)
async def test_an_error_before_the_start_is_a_status(
    name: str, emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the service refuses a request, the app does, with its status and message."""
    emulator.faults = Status(422, message="this is no question")
    async with (
        serving(name, emulator, monkeypatch) as (url, _),
        http.post(f"{url}chat", json={"prompt": "Why?"}) as response,
    ):
        assert response.status == 422
        assert "no question" in await message(response)


@pytest.mark.parametrize("name", ASK)
async def test_an_error_in_the_middle_is_the_last_event(
    name: str, emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text so far stays; then an event of type `error`, and no `[DONE]`."""
    emulator.faults = ErrorInStream(after_token=2, message="out of memory")
    async with (
        serving(name, emulator, monkeypatch) as (url, _),
        http.post(f"{url}chat", json={"prompt": "Why?"}) as response,
    ):
        found = [event async for event in events(response)]
    assert "".join(text_of(event) for event in found[:-1]) == "Blue light"
    assert (found[-1].event, "out of memory" in found[-1].data.decode()) == ("error", True)


@pytest.mark.parametrize("name", ASK)
async def test_leaving_stops_the_model(
    name: str, emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client leaves while nothing is being sent, and the service sees the app leave."""
    emulator.faults = Stall(after_token=2)
    async with serving(name, emulator, monkeypatch) as (url, _):
        async with http.post(f"{url}chat", json={"prompt": "Why?"}) as response:
            async for event in events(response):
                if text_of(event) == " light":
                    break
            response.close()
        await emulator.journal[0].wait_left()


# ------------------------------------------------------------------------------------------ asking once, reading often


async def start(http: aiohttp.ClientSession, url: str) -> str:
    """Asks, and returns where the answer is."""
    async with http.post(f"{url}chat", json={"prompt": "Why?"}) as response:
        assert response.status == 202
        body: dict[str, Any] = await response.json()
    return f"{url}chat/{body['id']}"


async def test_an_answer_is_read_twice(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that comes back with its last event's id gets the rest; a new one gets everything."""
    emulator.faults = Stall(after_token=2)
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        answer = await start(http, url)
        first, last_id = "", ""
        async with http.get(answer) as response:
            async for event in events(response):
                first, last_id = first + text_of(event), event.id
                if first == "Blue light":
                    break
            response.close()
        emulator.release()
        async with http.get(answer, headers={"Last-Event-ID": last_id}) as response:
            assert first + (await whole(response))[0] == ANSWER
        async with http.get(answer) as response:
            assert (await whole(response))[0] == ANSWER
    assert emulator.journal.total == 1


async def test_stopping_an_answer_stops_the_model(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By DELETE; a reader gets an error."""
    emulator.faults = Stall(after_token=2)
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        answer = await start(http, url)
        async with http.get(answer) as response:
            found = []
            async for event in events(response):
                found.append(event)
                if event.event == "message" and text_of(event) == " light":
                    async with http.delete(answer) as stopped:
                        assert stopped.status == 204
        await emulator.journal[0].wait_left()
        assert found[-1].event == "error"
        assert json.loads(found[-1].data)["error"]["type"] == "StoppedError"


async def test_an_answer_that_is_not_kept(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown id is gone (410), and stopping it does no harm."""
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        async with http.get(f"{url}chat/unknown") as response:
            assert (response.status, "not kept" in await message(response)) == (410, True)
        async with http.delete(f"{url}chat/unknown") as response:
            assert response.status == 204


async def test_a_full_hub(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all places are taken, a question is refused for now (503), not with an internal error."""
    emulator.faults = Stall(after_token=2)
    async with serving("resume_app", emulator, monkeypatch) as (url, module):
        module.hub.max_streams = 1
        await start(http, url)
        async with http.post(f"{url}chat", json={"prompt": "Why?"}) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert "try again later" in await message(response)
    assert emulator.journal[0].outcome == "client left"  # the app has ended, and its hub with it
