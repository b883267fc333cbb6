"""`Call`: what the server's count of tokens may do to the limits."""

import asyncio
from typing import Any

import pytest

from support import virtual_time
from support.calls import UNTIMED, retrying_client
from support.servers import DONE, MODEL, Call, ScriptedServer, chunked, delta, response, sse, whole
from support.servers import LAST_CHUNK as END
from together_async import Limits

COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
NONSENSE = (-1, -(10**15), 10**15, 10**30, True, False, 1.5, 1e300, "many", [1], {})


def answering(usage: Any) -> Any:
    """A script that answers with this usage, streamed or whole."""

    async def script(call: Call) -> None:
        if not call.json.get("stream"):
            await call.send(response({**whole("a"), "usage": usage}))
            return
        await call.head()
        await call.send(chunked(sse(delta("a")) + sse({**delta(finish="stop"), "usage": usage}) + DONE) + END)

    return script


def seconds_for_calls(usage: Any, *, stream: bool, count: int = 10) -> float:
    """Seconds for calls one after the other, at 600 tokens per minute, which start with as many."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        limits = Limits(tokens_per_minute=600)
        async with (
            ScriptedServer(answering(usage)) as server,
            retrying_client(server, limits=limits, timeouts=UNTIMED) as client,
        ):
            began = loop.time()
            for _ in range(count):
                if stream:
                    async with client.stream("x" * 32, model=MODEL, max_tokens=50) as opened:
                        completion = await opened.completion()
                    assert opened.stats.total_tokens is not None
                else:
                    completion = await client.create("x" * 32, model=MODEL, max_tokens=50)
                shown = completion.usage.to_dict() if completion.usage is not None else None
                if isinstance(usage, dict) and all(type(n) is int and abs(n) < 2**53 for n in usage.values()):
                    assert shown == usage, "the user sees what came"
            assert len(server.calls) == count
            return loop.time() - began

    taken_s: float = virtual_time.run(main())
    return taken_s


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("number", NONSENSE, ids=repr)
def test_nonsense_is_as_no_count_at_all(number: Any, stream: bool) -> None:
    """It switches no limit off, and stops nothing."""
    without = seconds_for_calls(None, stream=stream)
    for usage in (dict.fromkeys(COUNTS, number), {"total_tokens": number}):
        assert seconds_for_calls(usage, stream=stream) == pytest.approx(without, rel=0.1, abs=0.5)


def test_a_count_that_is_possible_counts() -> None:
    """Large ones too: tools and documents, and reasoning beyond `max_tokens`."""
    small = dict(zip(COUNTS, (12, 20, 32), strict=True))
    large = dict(zip(COUNTS, (700, 300, 1_000), strict=True))
    assert seconds_for_calls(small, stream=False) < 40
    assert seconds_for_calls(large, stream=False) > 400
