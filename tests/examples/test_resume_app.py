"""The example that keeps answers: asked once, read in any tab, also by a client that comes back."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from support.example_apps import ANSWER, events, message, serving, text_of, whole
from together_async.testing import EmulatorServer, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")


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
