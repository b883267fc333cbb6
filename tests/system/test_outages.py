"""What a long life meets: a server that restarts, a name that can't be looked up, a clock that is set."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from typing import Any

import pytest

from support.calls import QUICK, counted, refuses
from support.survival import KEY, MODEL, PROMPT, TEXT
from together_async import APIConnectionError, AsyncTogether, Limits, Retry, StreamConnectionError
from together_async.testing import EmulatorServer, InTurn

pytestmark = pytest.mark.usefixtures("no_leaks")
HOUR_S = 3_600.0


async def test_a_server_that_restarts_ten_times() -> None:
    """Calls under way end whole or with typed errors; after each restart all succeed, and nothing is left."""
    async with EmulatorServer(TEXT) as first:
        port = first.port

    async def ask(client: AsyncTogether, number: int) -> str:
        if number % 2:
            return (await client.create(PROMPT, model=MODEL)).text
        return "".join([text async for text in client.stream(PROMPT, model=MODEL).text()])

    ended: list[Any] = []
    async with AsyncTogether(
        KEY, base_url=f"http://127.0.0.1:{port}/v1", limits=Limits(concurrency=8), retry=QUICK
    ) as client:
        for _ in range(10):
            async with EmulatorServer(TEXT, port=port, tokens_per_second=200):
                texts = await asyncio.gather(*(ask(client, number) for number in range(8)))
                assert texts == [TEXT] * 8
                under_way = [asyncio.ensure_future(ask(client, number)) for number in range(8)]
                await asyncio.sleep(0.02)
            ended += await asyncio.gather(*under_way, return_exceptions=True)
        assert all(end == TEXT or isinstance(end, (APIConnectionError, StreamConnectionError)) for end in ended), ended
        assert any(isinstance(end, APIConnectionError) for end in ended)
        gc.collect()
        assert counted(client) == (0, 0)


async def test_a_name_that_can_not_be_looked_up_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed errors that name the host while it lasts, and answers as soon as it is over."""
    gone = True
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if host != "models.test":
            return look_up(host, *args, **options)
        if gone:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with (
        EmulatorServer(TEXT) as server,
        AsyncTogether(KEY, base_url=f"http://models.test:{server.port}/v1", retry=QUICK) as client,
    ):
        for _ in range(3):
            errors = await asyncio.gather(
                *(client.create(PROMPT, model=MODEL) for _ in range(20)), return_exceptions=True
            )
            assert all(isinstance(error, APIConnectionError) and "models.test" in str(error) for error in errors)
            assert counted(client) == (0, 0)
        gone = False
        completions = await asyncio.gather(*(client.create(PROMPT, model=MODEL) for _ in range(20)))
        assert [completion.text for completion in completions] == [TEXT] * 20


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
async def test_a_clock_that_is_set_by_an_hour(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits after a 429 waits as long as it was asked to: durations are those of the monotonic clock."""
    wall = time.time
    faults = InTurn(refuses(429, **{"retry-after": "0.05"}))
    async with (
        EmulatorServer(TEXT, faults=faults) as server,
        AsyncTogether(KEY, base_url=server.base_url, retry=Retry(max_retry_after=60)) as client,
    ):
        call = asyncio.ensure_future(client.create(PROMPT, model=MODEL))
        while not len(server.journal):  # noqa: ASYNC110 - it has no event for the first
            await asyncio.sleep(0)
        monkeypatch.setattr(time, "time", lambda: wall() + step_s)
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(10):
            assert (await call).text == TEXT
        assert asyncio.get_running_loop().time() - began > 0.04
