"""Which client makes which requests, in which order, and the targets of the figures."""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.harness.figures import Ratio, Target

DELAY_S = 0.05
AT_ONCE, MANY_AT_ONCE = 256, 1_000
REQUESTS, QUICK_REQUESTS = 5_000, 1_000
WHOLE, STREAM, CONNECTIONS = "whole", "stream", "connections"


@dataclass(frozen=True, slots=True)
class FanoutClient:
    """A client: a function of `clients`, and its share of the work.

    Attributes:
        slow: It takes part in fewer rounds, and reads fewer streams, as it would take many minutes otherwise.
        streams: Whether it takes part in the streams as well.
    """

    name: str
    function: str
    package: str
    slow: bool = True
    streams: bool = False


CLIENTS = {
    client.name: client
    for client in (
        FanoutClient("raw loop", "raw", "aiohttp", slow=False, streams=True),
        FanoutClient("ours", "ours", "together-async", slow=False, streams=True),
        FanoutClient("openai", "openai", "openai", streams=True),
        FanoutClient("openai+aiohttp", "openai_aiohttp", "openai", streams=True),
        FanoutClient("together", "together", "together", streams=True),
        FanoutClient("together+aiohttp", "together_aiohttp", "together", streams=True),
        FanoutClient("litellm", "litellm", "litellm"),
        FanoutClient("async-batch-llm", "async_batch_llm", "async-batch-llm"),
        FanoutClient("lm-deluge", "lm_deluge", "lm-deluge"),
    )
}


SLOW_STREAMS, SLOW_ROUNDS = 1_000, 2
RATIOS = (
    Ratio("ours", "raw loop", Target(1.4, 1.3)),
    Ratio("openai", "ours", Target(8, more=True)),
    Ratio("together", "ours", Target(8, more=True)),
    Ratio("openai+aiohttp", "ours", Target(3, more=True)),
    Ratio("together+aiohttp", "ours", Target(3, more=True)),
    Ratio("litellm", "ours"),
    Ratio("async-batch-llm", "ours"),
    Ratio("lm-deluge", "ours"),
)


SHARE = Target(80, more=True)
GROUPS = {
    WHOLE: f"whole responses, {AT_ONCE} at once",
    STREAM: f"streams of 64 tokens, {AT_ONCE} at once",
    CONNECTIONS: f"whole responses, {MANY_AT_ONCE:,} at once: is a connection made twice",
}


def plan(group: str, rounds: int, quick: bool) -> Iterable[tuple[int, FanoutClient, int, int]]:
    """The turns in their order: number of the round, client, number of requests, how many of them at once."""
    most = QUICK_REQUESTS if quick else REQUESTS
    for number in range(min(rounds, 2) if group == CONNECTIONS else rounds):
        for client in CLIENTS.values():
            if group == CONNECTIONS:
                if not client.slow:
                    yield number, client, max(most, 2 * MANY_AT_ONCE), MANY_AT_ONCE
            elif (group == WHOLE or client.streams) and (not client.slow or number < SLOW_ROUNDS):
                yield number, client, min(most, SLOW_STREAMS) if client.slow and group == STREAM else most, AT_ONCE
