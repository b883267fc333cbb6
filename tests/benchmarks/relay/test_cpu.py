"""CPU of a relayed token."""

from typing import Any

from benchmarks.relay import cpu
from benchmarks.relay.backends import CPU, OURS, PASSTHROUGH, PEER
from benchmarks.relay.benchmark import RelayBenchmark


def relayed(way: str, us: float, **facts: Any) -> dict[str, Any]:
    """What one measurement of the relay benchmark came to."""
    usual = {"part": CPU, "what": "fast", "loop": "asyncio", "way": way, "us": us}
    return {**usual, **facts}


def test_relays_are_compared_round_by_round_with_those_that_were_there() -> None:
    """A round in which the machine was three times slower must not count; a backend that failed has no ratio."""
    benchmark = RelayBenchmark(3, quick=True)
    benchmark.results = [relayed(OURS, us) for us in (4.0, 12.0, 4.0)]
    benchmark.results += [relayed(PEER, us) for us in (120.0, 360.0, 120.0)]
    benchmark.results += [relayed(PASSTHROUGH, 1.0, what="paced")]
    (ratio,) = cpu.cpu_figures(benchmark, "fast", "asyncio")
    assert (ratio.who, ratio.value, ratio.state) == ("openai+sse-starlette : ours", 30.0, "reached")
