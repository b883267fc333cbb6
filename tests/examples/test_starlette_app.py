"""The example for Starlette: what it does by itself, without FastAPI's checks."""

from __future__ import annotations

import aiohttp
import pytest

from support.example_apps import serving
from together_async.testing import EmulatorServer

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_bad_input_is_a_400_with_the_reason(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is the decoder's, which names the field."""
    async with (
        serving("starlette_app", emulator, monkeypatch) as (url, _),
        http.post(f"{url}chat", json={"prompt": ""}) as response,
    ):
        assert response.status == 400
        assert "$.prompt" in await response.text()


async def test_another_method_is_refused(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions are posted: a GET gets a 405, and the model gets no request."""
    async with serving("starlette_app", emulator, monkeypatch) as (url, _), http.get(f"{url}chat") as response:
        assert response.status == 405
    assert emulator.journal.total == 0
