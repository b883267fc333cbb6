"""`EventSourceResponse`: for one HTTP request each, and one of Starlette's responses where Starlette is loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from support.relay_doors import KINDS, PROMPT, ASGIClient, scope_of
from support.servers import MODEL
from together_async import AsyncTogether
from together_async.relay import EventSourceResponse

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("kind", ["chunks", "raw", "buffered", "broadcast", "own"])
async def test_a_response_that_is_sent_twice_is_an_error(client: AsyncTogether, kind: str) -> None:
    """One response for a whole module, for example: the second client gets no empty 200."""
    made: Any = EventSourceResponse(KINDS[kind](client.stream(PROMPT, model=MODEL)))
    first, second = ASGIClient(), ASGIClient()
    await made(scope_of(), first.receive, first.send)
    assert first.answer.events[-1].data == b"[DONE]"
    with pytest.raises(RuntimeError):
        await made(scope_of(), second.receive, second.send)
    assert not second.sent


async def test_another_protocol_is_refused(client: AsyncTogether) -> None:
    """The scope of a websocket is the app's mistake."""
    made: Any = EventSourceResponse(client.stream(PROMPT, model=MODEL))
    with pytest.raises(RuntimeError, match="websocket"):
        await made(scope_of(kind="websocket"), ASGIClient().receive, ASGIClient().send)


def test_the_relay_imports_no_framework() -> None:
    """Neither a framework, nor the server's half of aiohttp."""
    code = "import sys, together_async.relay; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for name in ("starlette", "fastapi", "litestar", "quart", "django", "uvicorn", "anyio", "aiohttp.web"):
        assert name not in modules


ORDERS = {
    "the relay first": "from together_async.relay import EventSourceResponse\nimport starlette.responses",
    "starlette first": "import starlette.responses\nfrom together_async.relay import EventSourceResponse",
}


@pytest.mark.parametrize("order", ORDERS)
def test_where_starlette_is_loaded_it_is_one_of_its_responses(order: str) -> None:
    """Whichever was imported first; and it is one of ours."""
    code = f"""
import asyncio
{ORDERS[order]}
async def main():
    from together_async.relay import Hub
    response = EventSourceResponse(Hub().join("x"))
    assert isinstance(response, starlette.responses.Response), type(response).__mro__
    assert isinstance(response, EventSourceResponse)
    assert type(response).__name__ == "EventSourceResponse"
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
