"""The clients under limits, and the ways in which each is used."""

from dataclasses import dataclass

from benchmarks.limits.workload import DOWN, DYNAMIC, FIXED

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Way:
    """A client and how it is used: `how` is for `benchmarks.limits.clients.<module>`.

    Attributes:
        speed: The most that its clock may be accelerated, since its own work can't be; None for any speed.
        parts: The parts of the benchmark in which this way is measured; empty for all.
        drawn: Whether the picture has a row for it.
    """

    name: str
    module: str
    how: str
    package: str
    speed: float | None = None
    parts: tuple[str, ...] = (FIXED, DYNAMIC, DOWN)
    drawn: bool = True

    @property
    def scaled(self) -> bool:
        return self.speed != 1

    @property
    def client(self) -> str:
        return self.name.partition(",")[0]


def _ours(name: str, how: str, *, drawn: bool = True, speed: float | None = None) -> Way:
    """A way that shows in what the rates do; the retries of an outage do not depend on it."""
    return Way(f"{OURS}, {name}", OURS, how, "together-async", speed=speed, parts=(FIXED, DYNAMIC), drawn=drawn)


WAYS = {
    way.name: way
    for way in (
        Way(f"{OURS}, Limits()", OURS, "learns", "together-async", parts=()),
        _ours("concurrency=20", "20", drawn=False),
        _ours("concurrency=100", "100"),
        _ours("concurrency=1000", "1000", drawn=False),
        _ours("rates given", "given"),
        _ours('concurrency="auto"', "auto"),
        _ours("map", "map"),
        _ours("run_batch", "run_batch", speed=4),  # it streams, and has every result on disk
        Way("openai, as it comes", "sdk", "openai:gather", "openai", speed=1),
        Way("openai, as advised", "sdk", "openai:advised", "openai"),
        Way("together, as it comes", "sdk", "together:gather", "together", speed=1),
        Way("together, as advised", "sdk", "together:advised", "together"),
        Way("async-batch-llm, as it comes", "async_batch_llm", "plain", "async-batch-llm"),
        Way("async-batch-llm, as advised", "async_batch_llm", "advised", "async-batch-llm"),
        Way("lm-deluge, as it comes", "lm_deluge", "plain", "lm-deluge"),
        Way("lm-deluge, as advised", "lm_deluge", "advised", "lm-deluge"),
    )
}


CLIENTS = tuple(dict.fromkeys(way.client for way in WAYS.values()))
