"""The example for FastAPI: what the framework adds to it."""

from __future__ import annotations

import aiohttp
import pytest

from support.example_apps import serving
from together_async.testing import EmulatorServer

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_the_apps_documentation_shows_the_question(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fields and their bounds are in the OpenAPI schema, and the streamed answer needs no model of its own."""
    async with serving("fastapi_app", emulator, monkeypatch) as (url, _), http.get(f"{url}openapi.json") as response:
        schema = await response.json()
    prompt = schema["components"]["schemas"]["Question"]["properties"]["prompt"]
    assert (prompt["minLength"], prompt["maxLength"]) == (1, 20_000)
    assert "200" in schema["paths"]["/chat"]["post"]["responses"]


async def test_bad_input_is_located(
    emulator: EmulatorServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI's 422 names the field."""
    async with (
        serving("fastapi_app", emulator, monkeypatch) as (url, _),
        http.post(f"{url}chat", json={"prompt": ""}) as response,
    ):
        assert response.status == 422
        assert (await response.json())["detail"][0]["loc"] == ["body", "prompt"]
