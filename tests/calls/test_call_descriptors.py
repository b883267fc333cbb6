"""`Call`: a process that may open few files. The calls wait for a place, and none of them fails."""

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import attrs
import pytest

from support import virtual_time
from support.calls import UNTIMED, clocked, counted, good, leaves_nothing, reasons, refusal
from support.descriptors import no_descriptor_left
from support.paths import TESTS
from support.servers import KEY, MODEL, Call, ScriptedServer, answers
from support.survival import KINDS, TEXT, ask
from together_async import APIConnectionError, AsyncTogether, Limits, Retry
from together_async.http.errors import DescriptorsExhaustedError
from together_async.retry import FREE_RETRIES


async def child(way: str, count: int, base_url: str, *, limit: int = 128, held: int = 0) -> dict[str, Any]:
    """Makes `count` calls in a process that may have `limit` files open; returns what became of them."""
    arguments = ("-m", "support.descriptors_child", way, count, limit, base_url, held)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *map(str, arguments), stdout=subprocess.PIPE, env=environment
    )
    async with asyncio.timeout(50):
        output, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


@leaves_nothing
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("way", ["create", "stream", "map"])
async def test_400_calls_at_once_in_a_process_of_128_files(way: str, host: str) -> None:
    """All are answered, in however many connections there may be; a request that could not be sent counts nowhere."""
    async with ScriptedServer(good) as server:
        found = await child(way, 400, f"http://{host}:{server.port}/v1")
        assert found["outcomes"] == {"ChatCompletion": 400}, found["texts"]
        assert found["attempts"] == {"1": 400}
        assert found["budget"] >= FREE_RETRIES
        assert found["sent"] == len(server.calls) == 400


@leaves_nothing
async def test_what_the_rest_of_the_process_holds_is_left_to_it() -> None:
    """With few descriptors left the calls take turns."""
    async with ScriptedServer(good) as server:
        found = await child("create", 100, server.base_url, held=100)
        assert found["outcomes"] == {"ChatCompletion": 100}, found["texts"]
        assert found["attempts"] == {"1": 100}
        assert len(server.connections) < 30


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_descriptor_a_call_fails_after_a_minute(kind: str) -> None:
    """The error says what to raise, and that nothing was sent."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1", limits=clocked(), timeouts=UNTIMED) as client:
            with no_descriptor_left():
                began = loop.time()
                outcome = await ask(client, kind, within=500, alone=False)
            error = outcome.error
            assert isinstance(error, DescriptorsExhaustedError)
            assert (error.attempts, error.retries) == (0, ())
            assert "ulimit -n" in str(error)
            assert 50 < loop.time() - began < 70
            assert counted(client) == (0, 0)

    virtual_time.run(main())


def test_a_descriptor_that_comes_back_is_used(longest_delays: None) -> None:
    """The call goes on within seconds, and keeps the time and the reason of an attempt that had failed before."""

    async def main() -> None:
        refuses = answers(refusal(503, "connection: close"))

        async def closing(call: Call) -> None:
            await refuses(call)
            call.close()

        rules = Retry(attempts=2, base_delay=1.0)
        async with (
            ScriptedServer(closing, good) as server,
            AsyncTogether(
                KEY, base_url=server.base_url, limits=clocked(Limits()), timeouts=UNTIMED, retry=rules
            ) as client,
        ):
            asking = asyncio.create_task(client.create("Hi", model=MODEL))
            await server.call(0)
            await server.connections[0].left.wait()
            await asyncio.sleep(0.1)  # both ends have given their descriptors back
            with no_descriptor_left():
                await asyncio.sleep(6)
                assert len(server.calls) == 1
            completion = await asking
            assert completion.text == TEXT
            assert completion.attempts == 2
            assert reasons(completion) == ("503",)
            assert 5 < completion.retries[0].waited_s < 9

    virtual_time.run(main())


def test_a_time_limit_ends_the_wait_for_a_descriptor() -> None:
    """`Timeouts.queue` and `Timeouts.total` hold here as in any queue."""

    async def main() -> None:
        for name in ("queue", "total"):
            timeouts = attrs.evolve(UNTIMED, **{name: 7.0})
            async with AsyncTogether(
                KEY, base_url="http://127.0.0.1:9/v1", limits=clocked(), timeouts=timeouts
            ) as client:
                with no_descriptor_left():
                    error = (await ask(client, "create", within=100, alone=False)).error
                assert (error.phase, error.attempts) == (name, 0)
                assert isinstance(error.__cause__, DescriptorsExhaustedError)

    virtual_time.run(main())


def test_leaving_ends_the_wait_for_a_descriptor() -> None:
    """A cancellation, and the end of the client: at once, and nothing is left."""

    async def main() -> None:
        async with AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1", limits=clocked(), timeouts=UNTIMED) as client:
            with no_descriptor_left():
                tasks = [asyncio.create_task(client.create("Hi", model=MODEL)) for _ in range(3)]
                await asyncio.sleep(5)
                tasks[0].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await tasks[0]
                await client.aclose()
                for error in await asyncio.gather(*tasks[1:], return_exceptions=True):
                    assert isinstance(error, APIConnectionError)
                    assert "closed" in str(error)
                    assert error.attempts == 0
            assert counted(client) == (0, 0)

    virtual_time.run(main())
