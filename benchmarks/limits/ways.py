"""The clients under limits, and the ways in which each is used."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """A client and how it is used: `how` is for `benchmarks.limits.clients.<module>`."""

    name: str
    module: str
    how: str
    package: str
    scaled: bool = True

    @property
    def client(self) -> str:
        return self.name.partition(",")[0]


WAYS = {
    way.name: way
    for way in (
        Way("ours, Limits()", "ours", "learns", "together-async"),
        Way("ours, rates given", "ours", "given", "together-async"),
        Way('ours, concurrency="auto"', "ours", "auto", "together-async"),
        Way("openai, as it comes", "sdk", "openai:gather", "openai", scaled=False),
        Way("openai, as advised", "sdk", "openai:advised", "openai"),
        Way("together, as it comes", "sdk", "together:gather", "together", scaled=False),
        Way("together, as advised", "sdk", "together:advised", "together"),
        Way("async-batch-llm, as it comes", "async_batch_llm", "plain", "async-batch-llm"),
        Way("async-batch-llm, as advised", "async_batch_llm", "advised", "async-batch-llm"),
        Way("lm-deluge, as it comes", "lm_deluge", "plain", "lm-deluge"),
        Way("lm-deluge, as advised", "lm_deluge", "advised", "lm-deluge"),
    )
}


CLIENTS = tuple(dict.fromkeys(way.client for way in WAYS.values()))
