"""`deadlines`: the event loop is blocked for longer than every limit, and what was waited for comes in the meantime."""

import asyncio
import time

import pytest
import trustme

from support.late_loops import LOOPS, HeldServers, expected, outcomes
from support.tls import client_tls, server_tls
from together_async.http import deadlines

LIMIT_S = 1.5
BLOCK_S = 2.0


@pytest.mark.parametrize(
    ("loop", "grace_s"), [*((loop, deadlines.MAX_GRACE_S) for loop in LOOPS), ("asyncio", 0.0), ("uvloop", 0.0)]
)
def test_nothing_good_is_given_up(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, loop: str, grace_s: float
) -> None:
    """Each answer that has come is read, and silence still ends: a token, the first, a head, a whole response, the rest
    of its body, and a TLS connection, which needs round trips after the block.

    Without any grace too, but for TLS: the turns of the loop are enough for what is in the socket.
    """
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    monkeypatch.setattr(deadlines, "MAX_GRACE_S", grace_s)
    tls_too = grace_s > 0

    async def main(servers: HeldServers) -> dict[str, str]:
        calls = asyncio.create_task(outcomes(servers.urls, client_tls(authority), LIMIT_S, tls_too=tls_too))
        await asyncio.to_thread(servers.wait_for_calls, tls_too=tls_too)
        servers.release()
        time.sleep(BLOCK_S)  # noqa: ASYNC251 - this is what the test is about
        return await calls

    with HeldServers(server_tls(authority)) as servers, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert runner.run(main(servers)) == expected(tls_too=tls_too)
