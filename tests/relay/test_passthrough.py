"""`passthrough`: the service's bytes, unchanged."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from support.relay_doors import PROMPT
from support.servers import MODEL
from together_async import AsyncTogether
from together_async.relay import passthrough
from together_async.testing import EmulatorServer
from together_async.wire.sse import EventStreamParser

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_passthrough_is_the_services_body(door: Any, client: AsyncTogether, upstream: EmulatorServer) -> None:
    """Every byte that came in goes out, in order, and nothing is added."""
    answer = await door(passthrough(client.stream(PROMPT, model=MODEL)))
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{upstream.base_url}/chat/completions", json=upstream.journal[0].body) as response,
    ):
        expected = EventStreamParser().feed(await response.read())
    assert len(answer.events) == len(expected)
    for got, want in zip(answer.events[:-1], expected[:-1], strict=True):
        assert known(got.data) == known(want.data)
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")


def known(data: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(data).items() if name not in ("id", "created")}
