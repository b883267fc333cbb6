"""`Call`: accounts with a rate, used in full and not overdrawn."""

import asyncio
import contextlib

import pytest

from support import virtual_time
from support.calls import CALLS, UNTIMED, clocked, emulated, refuses
from support.survival import KEY, KINDS, TEXT, ask
from together_async import AsyncTogether
from together_async.testing import Account, ByModel, Dynamic, EmulatorServer, InTurn, Rate


def account_of(rate: Rate | dict[str, Rate]) -> Account:
    """An account on the clock of the running event loop."""
    clock = asyncio.get_running_loop().time
    return Account(per_model=rate, clock=clock) if isinstance(rate, dict) else Account(rate, clock=clock)


@pytest.mark.parametrize(
    ("rate", "count", "within", "most_limited", "clients"),
    [
        (Rate(requests_per_second=60), 200, 4.5, 1, 1),
        (Rate(requests_per_second=60, dynamic=Dynamic(start=0.1)), 200, 45.0, 40, 2),
        (Rate(requests_per_second=60, tokens_per_second=1000), 200, 4.5, 1, 1),
    ],
    ids=["fixed", "dynamic, two clients", "tokens"],
)
@pytest.mark.default_retry
def test_an_account_is_used_in_full_and_not_overdrawn(
    rate: Rate, count: int, within: float, most_limited: int, clients: int
) -> None:
    """A gather of 200 with nothing configured: all succeed, few are refused if any, and the rate is used.

    The dynamic account holds less than a start sends, and halves its limit once.
    """

    async def main() -> None:
        loop = asyncio.get_running_loop()
        account, limiter = account_of(rate), clocked()
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(EmulatorServer(TEXT, account=account))
            sharing = [
                await stack.enter_async_context(AsyncTogether(KEY, base_url=server.base_url, limits=limiter))
                for _ in range(clients)
            ]
            began = loop.time()
            calls = [CALLS[n % 5](sharing[n % clients]) for n in range(count)]
            assert await asyncio.gather(*calls) == [TEXT] * count
            assert loop.time() - began < within
            assert account.counts().admitted == count
            assert account.counts().limited <= most_limited
            assert limiter.state.rate_limited == account.counts().limited
            assert (limiter.state.in_flight, limiter.state.queued, limiter.state.sent) == (0, 0, len(server.journal))

    virtual_time.run(main())


def test_a_model_that_is_limited_disturbs_no_other() -> None:
    """A 429 pauses all calls of its model, and no call of another model."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        faults = ByModel({"limited": InTurn(refuses(429, **{"retry-after": "30"}))})
        async with emulated(faults=faults, timeouts=UNTIMED) as (server, client):
            elapsed_s: dict[str, list[float]] = {"limited": [], "free": []}

            async def call(model: str, kind: str) -> None:
                began = loop.time()
                assert (await ask(client, kind, model=model, within=500, alone=False)).text == TEXT
                elapsed_s[model].append(loop.time() - began)

            await call("free", "create")
            first = asyncio.create_task(call("limited", "create"))
            await server.journal.wait(2)
            await asyncio.sleep(0.1)
            state = client.limits
            assert state.models["limited"].paused_for_s > 25
            assert state.models["free"].paused_for_s == 0
            await asyncio.gather(first, *(call(model, kind) for model in elapsed_s for kind in KINDS for _ in range(3)))
            assert max(elapsed_s["free"]) < 1
            assert min(elapsed_s["limited"]) >= 29
            assert max(elapsed_s["limited"]) < 40
            assert client.limits.rate_limited == 1

    virtual_time.run(main())
