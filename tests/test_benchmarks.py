"""The benchmark harness: its arithmetic, its wire format, and one tiny real measurement."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # `benchmarks` is no part of what is installed

from benchmarks import report, wire
from benchmarks.processes import ChildError, ClientProcess, ServerProcess
from benchmarks.server import MODEL, SCENARIOS
from benchmarks.stats import Figure, Target, paired_ratio, percentile


def test_an_event_is_together_s_shape_and_about_320_bytes() -> None:
    event = wire.event(b" the")
    assert 300 <= len(event) <= 340
    chunk = json.loads(event.removeprefix(b"data: "))
    assert chunk["choices"][0]["text"] == chunk["choices"][0]["delta"]["content"] == " the"
    assert json.loads(wire.LAST.removeprefix(b"data: "))["choices"][0]["finish_reason"] == "stop"


def test_a_block_is_a_chunked_body_of_so_many_events() -> None:
    """The server sends it as it is: a wrong length would look like a slow client."""
    block, events = wire.block(100, seed=1, events_per_chunk=16), b""
    while block:
        size, _, rest = block.partition(b"\r\n")
        events, block = events + rest[: int(size, 16)], rest[int(size, 16) :].removeprefix(b"\r\n")
    assert events.count(b"\n\n") == 100
    assert wire.block(100, 1, 16) == wire.block(100, 1, 16)
    assert wire.block(100, 1, 16) != wire.block(100, 2, 16)


def test_stamps_are_all_of_one_length() -> None:
    assert len({len(wire.stamped(seconds)) for seconds in (0.0, 1.5, 123456.789)}) == 1
    stamp = re.search(rb'"content":"([\d.]+)"', wire.stamped(123456.789012))
    assert stamp is not None
    assert float(stamp[1]) == 123456.789012


@pytest.mark.parametrize("model", [b"bench.blast.100.64", b"together_ai/bench.blast.100.64"])
def test_the_model_names_the_scenario(model: bytes) -> None:
    match = MODEL.search(b'{"model": "%b", "stream": true}' % model)
    assert match is not None
    assert match[1] in SCENARIOS
    assert match[2].split(b".")[1:] == [b"100", b"64"]


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which the machine was three times slower must not count as a difference."""
    assert paired_ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.0]) == 2.0
    assert percentile(range(100), 99) == 99
    assert percentile([5.0], 99) == 5.0


@pytest.mark.parametrize(
    ("target", "value", "state"),
    [
        (Target(1.25, 1.0), 0.9, "go"),
        (Target(1.25, 1.0), 1.2, "reached"),
        (Target(1.25, 1.0), 1.3, "missed"),
        (Target(6, 8, more=True), 9, "go"),
        (Target(6, 8, more=True), 7, "reached"),
        (Target(6, 8, more=True), 5, "missed"),
    ],
)
def test_a_target_says_whether_it_is_reached(target: Target, value: float, state: str) -> None:
    assert target.state(value) == state


def test_the_table_has_the_target_beside_the_figure() -> None:
    figure = Figure("blast", "ours : raw loop", "1 at once", 1.2345, "x", Target(1.25, 1.0))
    table = report.plain(report.rows([figure]))
    assert "1.23 x" in table
    assert "<= 1.25, go for 1" in table
    assert table.endswith("reached")


def test_a_tiny_run_of_server_and_client() -> None:
    """Both processes, both directions, a second job on the same process, and a job that fails."""
    with ServerProcess() as server, ClientProcess("raw loop") as client:
        blast = client.run("blast", server.base_url, streams=4, tokens=4000, timeout_s=10)
        assert 0 < blast["us"] < 1000
        endurance = client.run("endurance", server.base_url, count=40, seed=1, timeout_s=10)
        assert endurance["tasks"] == 0
        with pytest.raises(ChildError, match="ended with"):
            client.run("blast", "http://127.0.0.1:9/v1", streams=1, tokens=10, timeout_s=10)
