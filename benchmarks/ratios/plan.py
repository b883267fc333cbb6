"""What is compared with what, and the targets. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.figures import Target

OURS, TEXT, RAW, OPENAI = "ours", "ours text()", "raw loop", "openai"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A ratio: what `who` costs divided by what `by` costs.

    Attributes:
        part: Its part of the command.
        measurement: The module whose `measure` is run.
        key: Of the result that counts.
        job: What `measure` gets, beside the server's address.
        more: Added to the job of the client of this name.
        answers: Whether the server answers with whole responses, and not with streams.
    """

    part: str
    what: str
    measurement: str
    key: str
    unit: str
    target: Target | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    who: str = OURS
    by: str = RAW
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answers: bool = False

    def job_of(self, name: str) -> dict[str, Any]:
        return {**self.job, **self.more.get(name, {})}


def comparisons(*, quick: bool) -> list[Comparison]:
    """All ratios; `quick` measures less, to see that it works."""
    tokens = 20_000 if quick else 300_000
    few = {OPENAI: {"tokens": 1_000 if quick else 10_000}}
    blast, per_token = "stream.blast", "us/token"
    at_once = {streams: {"streams": streams, "tokens": tokens} for streams in (1, 64)}
    paced = {"streams": 64, "rate": 50, "read_bytes": 65536, "warm_up_s": 0.5, "window_s": 0.5 if quick else 2.0}
    calls = {"calls": 30 if quick else 300, "pause_s": 0.0}
    opened = {"streams": 50 if quick else 1_000}
    requests = {"requests": 512 if quick else 4_000, "streams": 256}
    first, many = "1 stream", "64 streams"
    return [
        Comparison("blast", first, blast, "us", per_token, Target(1.05, 0.95), at_once[1]),
        Comparison("blast", many, blast, "us", per_token, Target(1.2, 1.1), at_once[64]),
        Comparison("text", first, blast, "us", per_token, None, at_once[1], who=TEXT),
        Comparison("text", many, blast, "us", per_token, None, at_once[64], who=TEXT),
        Comparison(
            "openai", first, blast, "us", per_token, Target(42, 48, more=True), at_once[1], OPENAI, OURS, more=few
        ),
        Comparison("paced", "64 x 50 tokens/s", "stream.paced", "us", per_token, Target(1.16, 1.1), paced),
        Comparison("first_byte", "back to back", "stream.first_byte", "ms", "ms", Target(1.35, 1.2), calls),
        Comparison("opening", "back to back", "ratios.opening", "us", "us/stream", Target(1.7, 1.4), opened),
        Comparison("whole", "256 at once", "ratios.whole", "us", "us/call", Target(1.6, 1.45), requests, answers=True),
    ]
