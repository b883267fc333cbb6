"""The models that the emulator lists."""

from __future__ import annotations

import pytest

from support.raw_client import ask, get
from together_async.testing import (
    MODELS,
    EmulatorServer,
    Model,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_models_are_a_bare_array():
    """With context_length and pricing; no `object: list` around it."""
    async with EmulatorServer(models=[Model("a/b", context_length=7, input_price=1.0), "c"]) as server:
        answer = await ask(server, get("/v1/models?x=1"))
    assert [model["id"] for model in answer.json] == ["a/b", "c"]
    assert answer.json[0] == {
        "id": "a/b",
        "object": "model",
        "created": 0,
        "type": "chat",
        "display_name": "b",
        "organization": "a",
        "link": "",
        "license": "",
        "context_length": 7,
        "pricing": {"hourly": 0, "input": 1.0, "output": 0.88, "base": 0, "finetune": 0},
    }


def test_models_by_default():
    """Three, one in each of the service's shapes; any other name is answered too."""
    assert [model.dialect.name for model in MODELS] == ["together", "gpt-oss", "deepseek"]
