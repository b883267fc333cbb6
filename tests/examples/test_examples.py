"""The example apps: complete, on one screen, and right, each under its real server."""

from __future__ import annotations

import ast
import json
import re

import aiohttp
import pytest

from support.example_apps import ANSWER, ASK, FOLDER, NAMES, events, message, serving, text_of
from together_async.testing import EmulatorServer, ErrorInStream, Stall, Status

pytestmark = pytest.mark.usefixtures("no_leaks")


BAD = (b"", b"{", b"[]", b"{}", b'{"prompt": 1}', b'{"prompt": ""}', b'{"prompt": "\xff"}', b"\xff\xfe")


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
