"""`Call`: the retry budget, which bounds the requests of many calls that fail."""

import asyncio
import socket
from typing import Any

import attrs
import pytest

from support import virtual_time
from support.calls import (
    QUICK,
    UNTIMED,
    MakeCall,
    counted,
    do_completion,
    do_create,
    emulated,
    leaves_nothing,
    notes,
    refusal,
    retrying_client,
)
from support.servers import ScriptedServer, answers
from support.survival import KEY, TEXT
from together_async import AsyncTogether, Limits, RateLimitError, Retry, TogetherError
from together_async.retry import FREE_RETRIES, RetryBudget
from together_async.testing import Chance, Status


async def failures(
    make_call: MakeCall, client: AsyncTogether, count: int, *, at_once: bool = True
) -> list[TogetherError]:
    """Makes `count` calls, each of which has to fail; returns their errors."""

    async def failure() -> TogetherError:
        try:
            await make_call(client)
        except TogetherError as error:
            return error
        raise AssertionError("a call went well")

    async with asyncio.timeout(10_000 if isinstance(asyncio.get_running_loop(), virtual_time.VirtualTimeLoop) else 20):
        if at_once:
            return await asyncio.gather(*(failure() for _ in range(count)))
        return [await failure() for _ in range(count)]


@leaves_nothing
@pytest.mark.parametrize("make_call", [do_create, do_completion])
async def test_when_everything_fails_a_thousand_calls_cost_at_most_1200_requests(make_call: MakeCall) -> None:
    """All at once, or one after the other; the errors know how many requests were sent, and no call hangs."""
    rules = Retry(base_delay=0.0001, max_delay=0.001)
    for script, at_once, count in (
        (answers(refusal(503)), True, 1000 if make_call is do_create else 200),
        (answers(refusal(503)), False, 200),
        (role_lost, True, 200),
        (role_lost, False, 200),
    ):
        async with ScriptedServer(script) as server, retrying_client(server, retry=rules) as client:
            errors = await failures(make_call, client, count, at_once=at_once)
            assert sum(error.attempts for error in errors) == len(server.calls)
            assert count < len(server.calls) <= 1.2 * count


@leaves_nothing
async def test_a_thousand_refused_calls_try_at_most_1200_connections() -> None:
    """The same where connections are refused."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        rules = Retry(base_delay=0.0001, max_delay=0.001)
        async with AsyncTogether(KEY, base_url=url, retry=rules) as client:
            errors = await failures(do_create, client, 1000)
            assert 1000 < sum(error.attempts for error in errors) <= 1200
            assert counted(client) == (0, 0)


@pytest.mark.parametrize(("header", "most_s"), [("x: y", 60), ("retry-after: 0", 900), ("retry-after: 2", 900)])
def test_when_everything_is_limited_the_service_is_asked_now_and_then(header: str, most_s: int) -> None:
    """No call is paid from the budget. After the start one request at a time asks, until a minute is over, or 15 if the
    service names the times to wait; then every call fails, and the error says why."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            ScriptedServer(answers(refusal(429, header))) as server,
            retrying_client(server, timeouts=UNTIMED, retry=Retry()) as client,
        ):
            began = loop.time()
            errors = await failures(do_create, client, 60)
            assert most_s < loop.time() - began < most_s + 30
            assert all(isinstance(error, RateLimitError) for error in errors)
            assert any(f"has refused everything for {most_s // 100 or 6}" in str(error) for error in errors)
            assert sum(error.attempts for error in errors) == len(server.calls) < 60 + most_s
            assert client.limits.rate_limited == len(server.calls)
            assert client._budget.left >= FREE_RETRIES
            for error in errors:
                assert max(0, error.attempts - 1) <= len(error.retries) <= error.attempts
                assert all(len(note) < 200 for note in notes(error))

    virtual_time.run(main())


@leaves_nothing
@pytest.mark.parametrize("limits", [Limits(), Limits(concurrency=20)], ids=["unlimited", "20 at once"])
async def test_calls_at_once_have_the_whole_budget(limits: Limits) -> None:
    """With one failure in ten every call succeeds, whether calls come one by one or all at once."""
    async with emulated(faults=Chance(0.1, Status(503)), retry=attrs.evolve(QUICK, attempts=9), limits=limits) as (
        server,
        client,
    ):
        client._budget = RetryBudget(0.2)
        texts = await asyncio.gather(*(do_create(client) for _ in range(300)))
        assert texts == [TEXT] * 300
        assert 310 < len(server.journal) <= 360


async def role_lost(call: Any) -> None:
    """A response that breaks off before anything was generated."""
    await call.head()
    call.reset()
