"""The benchmark harness: its arithmetic, its wire format, and one tiny real measurement."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT

sys.path.append(str(ROOT))  # `benchmarks` is no part of what is installed


from benchmarks import (
    fanout,
    fanout_batch,
    fanout_memory,
    faults,
    limits,
    limits_picture,
    limits_pure,
    relay,
    relay_load,
    report,
    soak,
    wire,
)
from benchmarks.cases import CASES, COMPLETE, ERROR, TEXT, Case, Truth, plan
from benchmarks.faults import Verdict, judge
from benchmarks.limits_load import DOWN, DYNAMIC, FIXED, MAX_TOKENS, RATES, number_of, orders
from benchmarks.processes import ChildError, ClientProcess, ServerProcess
from benchmarks.server import MODEL, SCENARIOS
from benchmarks.stats import Figure, Target, paired_ratio, percentile
from together_async.request import ChatCompletionRequest
from together_async.testing import script


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


def seen(**facts: Any) -> dict[str, Any]:
    """What is observed of a client that gives the whole answer, with other facts in place of some."""
    whole = {"text": TEXT, "reasoning": "", "reason": "stop", "calls": []}
    usual = {"error": None, "own": True, "hang": False, "status": None, "partial": None, "took_s": 0.1}
    return {**usual, "choices": {"0": {**whole, **facts.pop("choice", {})}}, **facts}


WHOLE = Case("whole")
BROKEN = Case("broken", right=ERROR, ours="StreamAPIError")
REFUSED = Case("refused", right=ERROR, ours="RateLimitError", status=429)
OPEN = Case("open", right="either")


@pytest.mark.parametrize(
    ("case", "facts", "verdict"),
    [
        (WHOLE, {}, "right"),
        (WHOLE, {"choice": {"text": TEXT[:-1]}}, "silent"),
        (WHOLE, {"choice": {"text": TEXT + "."}}, "silent"),
        (WHOLE, {"choice": {"text": None}}, "silent"),
        (WHOLE, {"choice": {"reason": None}}, "silent"),
        (WHOLE, {"choice": {"reason": "length"}}, "silent"),
        (WHOLE, {"choice": {"calls": [["f", "{}"]]}}, "silent"),
        (WHOLE, {"choices": {}}, "silent"),
        (WHOLE, {"error": "APIError"}, "false alarm"),
        (WHOLE, {"error": "ReadError", "own": False}, "foreign"),
        (WHOLE, {"error": "TimeoutError", "own": False, "hang": True}, "hang"),
        (Case("new", truth=(Truth(reason="tired"),)), {}, "right"),
        (BROKEN, {}, "silent"),
        (BROKEN, {"error": "APIError", "choice": {"text": TEXT[:9]}}, "right"),
        (BROKEN, {"error": "APIError", "choice": {"text": "Something else"}}, "silent"),
        (REFUSED, {"error": "APIError", "status": 429, "choices": {}}, "right"),
        (REFUSED, {"error": "APIError", "status": 500, "choices": {}}, "wrong error"),
        (OPEN, {}, "right"),
        (OPEN, {"error": "APIError", "choice": {"text": TEXT[:9]}}, "right"),
        (OPEN, {"choice": {"text": TEXT[:9]}}, "silent"),
    ],
)
def test_one_rule_judges_every_client(case: Case, facts: dict[str, Any], verdict: str) -> None:
    assert judge(case, seen(**facts)).verdict == verdict


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"error": "StreamAPIError", "partial": {"0": TEXT}}, "right"),
        ({"error": "StreamAPIError", "partial": {"0": TEXT[:-1]}}, "wrong error"),
        ({"error": "StreamTimeoutError", "partial": {"0": TEXT}}, "wrong error"),
    ],
)
def test_this_library_is_held_to_the_class_and_the_partial_that_it_promises(
    facts: dict[str, Any], verdict: str
) -> None:
    assert judge(BROKEN, seen(**facts), exact=True).verdict == verdict


def test_a_silent_loss_that_the_finish_reason_tells_of_is_no_deceit() -> None:
    assert judge(BROKEN, seen()).deceived
    assert not judge(BROKEN, seen(choice={"reason": None})).deceived


def test_the_cases_say_what_is_right_without_contradiction() -> None:
    """Every case which has to fail names this library's class, and none which has to complete does."""
    assert len(CASES) > 205
    for case in CASES.values():
        assert bool(case.ours) is (case.right == ERROR) or case.right == "either", case.name
    assert Counter(case.right for case in CASES.values())[COMPLETE] > 60


def test_the_share_is_never_rounded_up_to_all() -> None:
    verdicts = {"ours": {str(number): Verdict("right") for number in range(9999)} | {"bad": Verdict("hang")}}
    assert faults.table(verdicts)[1][:3] == ("ours", "10000", "99.9")


def test_a_planned_stream_is_the_same_on_both_sides() -> None:
    plans = [plan(f"cut {number}") for number in range(50)]
    assert plans == [plan(f"cut {number}") for number in range(50)]
    assert len({made.tokens for made in plans}) == 50
    assert all(0 <= made.whole <= len(made.tokens) for made in plans)
    with pytest.raises(ValueError, match="no stream is called"):
        plan("Why is the sky blue?")


def test_a_soak_has_the_share_of_broken_streams_and_repeats() -> None:
    streams = [(kind, case.name) for kind, case in soak.chosen(4000, 0.1, seed=7)]
    assert streams == [(kind, case.name) for kind, case in soak.chosen(4000, 0.1, seed=7)]
    assert 300 < sum(kind != "plain" for kind, _ in streams) < 500


def under(account: str, verdicts: list[tuple[float, int]], **facts: Any) -> limits.Run:
    """A run of the limits benchmark in which the account gave these verdicts, at these times, on 100 tokens each."""
    noted = [(at, status, 100, 10.0, 1000.0) for at, status in verdicts]
    usual: dict[str, Any] = {"limit_s": 100.0, "finished": True, "took_s": 1.0}
    outcomes = {"ok": sum(status == 200 for _, status in verdicts)}
    way = limits.WAYS["ours, Limits()"]
    own = {"way": way, "account": account, "calls": len(noted), "speed": 10.0, "noted": noted, "outcomes": outcomes}
    return limits.Run(**{**own, **usual, **facts})


def test_the_calls_of_the_limits_benchmark_are_about_100_tokens_and_the_same_on_both_sides() -> None:
    calls = orders(2000)
    assert calls[:500] == orders(500)
    assert [number_of(call.text) for call in calls] == list(range(2000))
    tokens = [script.prompt_tokens(request(call.text)) + call.reply_tokens for call in calls]
    assert 98 < sum(tokens) / len(tokens) < 102
    assert max(call.reply_tokens for call in calls) < MAX_TOKENS


def request(text: str) -> ChatCompletionRequest:
    return ChatCompletionRequest.from_dict({"model": "m", "messages": [{"role": "user", "content": text}]})


def test_the_throughput_is_a_share_of_what_nobody_can_surpass() -> None:
    """The account holds ten requests and gives ten more a second: 110 in 10 s are all there are."""
    ideal = [(max(0.0, number / 10 - 0.9), 200) for number in range(110)]
    assert under(FIXED, ideal).throughput == pytest.approx(100)
    late = [(2 * at, status) for at, status in ideal]
    assert under(FIXED, late).throughput == pytest.approx(50)
    # Time in which everything was refused counts, and so does what is left of the time limit.
    assert under(FIXED, [*ideal, (20.0, 429)]).throughput == pytest.approx(50)
    assert under(FIXED, ideal, finished=False).throughput == pytest.approx(10)
    assert under(FIXED, [(0.0, 429)]).throughput == 0
    assert under(DYNAMIC, ideal).throughput > 100  # nobody gets this much of a dynamic account


def test_the_table_of_limits_tells_what_was_refused_what_failed_and_what_was_never_done() -> None:
    verdicts = [(0.1 * number, 429 if number < 2 else 200) for number in range(30_000)]
    run = under(FIXED, verdicts, outcomes={"ok": 29_990, "RateLimitError": 3}, finished=False, limit_s=9_000.0)
    assert limits.table([run])[1][2:7] == ("< 0.01 %", "30,000", "29,990", "3", "7")
    assert {figure.what: figure.state for figure in run.figures()} == {"throughput": "missed", "429s": "reached"}
    down = under(DOWN, [(0.1 * number, 503) for number in range(12)], calls=10, outcomes={"OverloadedError": 10})
    assert limits.table_down([down])[1][1:5] == ("10", "10", "12", "1.20")


def test_whoever_is_served_in_turn_waits_for_what_came_before() -> None:
    """Ten go at once; then a large one when the bucket is full, and those behind it when its debt is paid."""
    times = limits_pure.first_come_first_served(RATES[FIXED], [100.0] * 10 + [5000.0] + [100.0] * 2)
    assert times == pytest.approx([0] * 10 + [1, 5.1, 5.2])


async def test_the_large_request_is_overtaken_by_nobody_and_an_idle_limiter_leaves_nothing() -> None:
    fairness = {figure.what.partition(" ")[0]: figure for figure in limits_pure.fairness(400)}
    assert fairness["later"].value == 0
    assert fairness["wait"].value > 15
    left = [figure.value for figure in await limits_pure.cost(700) if figure.what.startswith("timers")]
    assert left == [0]


def test_the_picture_counts_per_second() -> None:
    edges, heights = limits_picture.per_second([0.0, 0.1, 0.4, 2.0], 0.5, 2.2)
    assert edges == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert heights == [6.0, 0.0, 0.0, 0.0, 2.0]


def fanned(way: str, cpu_s: float, group: str = fanout.WHOLE, **facts: Any) -> fanout.Run:
    """A run of the fan-out benchmark: 5,000 requests, 256 at once, in 1.25 s."""
    usual: dict[str, Any] = {"requests": 5_000, "at_once": 256, "took_s": 1.25, "outcomes": {"ok": 5_000}}
    return fanout.Run(group, way, cpu_s=cpu_s, most_open=256, **{**usual, "connections": 256, **facts})


def test_what_a_request_costs_is_compared_round_by_round() -> None:
    """A client that takes part in fewer rounds is compared with those rounds, not with all."""
    runs = [fanned("raw loop", 0.5), fanned("ours", 0.6), fanned("openai", 12.0)]
    runs += [fanned("raw loop", 1.0), fanned("ours", 1.2), fanned("raw loop", 0.5), fanned("ours", 0.6)]
    figures = {(one.who, one.what): one for one in fanout.figures_of(fanout.WHOLE, runs)}
    assert figures["ours : raw loop", "CPU of a request"].value == pytest.approx(1.2)
    assert figures["openai : ours", "CPU of a request"].value == pytest.approx(20)
    share = figures["ours", "of the ideal"]
    assert (share.value, share.state) == (pytest.approx(100 * 4_000 / 5_120), "missed")
    assert figures["raw loop", "of the ideal"].target is None
    assert fanout.table(runs)[2] == ("ours", "120 us", "4,000", "78 %", "256", "0", "5,000", "3")


def test_a_connection_made_twice_misses_the_target() -> None:
    runs = [fanned("ours", 1.0, fanout.CONNECTIONS, at_once=1_000, connections=made) for made in (1_000, 1_001)]
    (figure,) = fanout.figures_of(fanout.CONNECTIONS, runs)
    assert (figure.value, figure.state) == (1_001, "missed")


def test_resuming_is_linear_when_a_line_costs_the_same_in_every_file() -> None:
    seconds = {"10000": [0.1, 0.3, 0.1], "30000": [0.3], "100000": [1.4]}
    *sizes, linear = fanout_batch.resumed("ours", seconds, full=True)
    assert [(one.value, one.state) for one in sizes] == [(0.1, ""), (0.3, ""), (1.4, "missed")]
    assert (linear.value, linear.state) == (pytest.approx(1.4), "missed")


async def test_the_memory_of_a_map_is_looked_at_after_every_so_many_results() -> None:
    found = await fanout_memory.measure(700, every=200)
    assert found["answered"] == 700
    assert len(found["samples_mib"]) == 3


async def test_a_batch_is_written_resumed_and_compared_without_a_server(tmp_path: Path) -> None:
    found = await fanout_batch.resume(tmp_path, (10, 40), rounds=1)
    assert {size: len(samples) for size, samples in found["seconds"].items()} == {"10": 1, "40": 1}
    found = await fanout_batch.journal(tmp_path, 50, rounds=1)
    assert found["fsyncs"][0] >= 1
    assert not (tmp_path / "out.jsonl").exists()


def relayed(way: str, us: float, **facts: Any) -> dict[str, Any]:
    """What one measurement of the relay benchmark came to."""
    usual = {"part": relay.CPU, "what": "fast", "loop": "asyncio", "way": way, "us": us}
    return {**usual, **facts}


def test_relays_are_compared_round_by_round_with_those_that_were_there() -> None:
    """A round in which the machine was three times slower must not count; a backend that failed has no ratio."""
    bench = relay.Bench(3, quick=True)
    bench.results = [relayed(relay.OURS, us) for us in (4.0, 12.0, 4.0)]
    bench.results += [relayed(relay.PEER, us) for us in (120.0, 360.0, 120.0)]
    bench.results += [relayed(relay.PASSTHROUGH, 1.0, what="paced")]
    (ratio,) = relay.cpu_figures(bench, "fast", "asyncio")
    assert (ratio.who, ratio.value, ratio.state) == ("openai+sse-starlette : ours", 30.0, "reached")


def test_what_never_left_counts_as_the_longest() -> None:
    times: list[float | None] = [1.0] * 98 + [7.0, None]
    assert relay.left_cells(times) == ("100", "1.0 ms", "> 5 s", "> 5 s", "1")
    assert relay.left_cells([1.0, 2.0, 3.0]) == ("3", "2.0 ms", "3.0 ms", "3.0 ms", "0")
    figure = relay.left_figure(relay.WAYS[relay.OURS], "silent", times)
    assert (figure.value, figure.state, figure.note) == (5000.0, "missed", "1 not within 5 s")


@pytest.mark.parametrize("event", [wire.stamped(123456.789012), b'data: {"content": "0000123456.789012"}\r\n\r\n',
                                   b"id: 7\ndata: 0000123456.789012\n\n"])  # fmt: skip
def test_the_time_is_found_in_every_backend_s_event(event: bytes) -> None:
    assert [float(found) for found in relay_load.STAMP.findall(event)] == [123456.789012]


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_a_tiny_run_of_fault_cases(tmp_path: Path) -> None:
    """Emulator and client are processes of their own; what is wrong is listed in the file."""
    only = "error in the stream: object"
    run = run_benchmarks("-m", "benchmarks", "faults", "--clients", "ours", "--only", only, "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "faults.json").read_text())
    assert result["summary"][1][:3] == ["ours", "3", "100.0"]
    assert result["wrong"] == {"ours": {}}


def test_a_tiny_run_under_limits(tmp_path: Path) -> None:
    """Emulator and client are processes of their own, with clocks that run thirty times as fast."""
    run = run_benchmarks("-m", "benchmarks", "limits", "--clients", "ours", "--only", "down", "--quick", "--out",
                         str(tmp_path))  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    (result,) = json.loads((tmp_path / "limits.json").read_text())["runs"]
    assert result["statuses"] == {"503": result["sent"]}
    assert 100 < result["sent"] <= 120
    assert result["finished"] is True


def test_a_tiny_fan_out(tmp_path: Path) -> None:
    """Server and clients are processes of their own; every answer is the right one, on one connection a place."""
    only = ("--clients", "raw loop,ours", "--only", "whole,stream")
    run = run_benchmarks("-m", "benchmarks", "fanout", *only, "--quick", "--output", str(tmp_path))
    assert run.returncode in (0, 1), run.stdout + run.stderr  # whether a target is reached is the machine's business
    runs = json.loads((tmp_path / "fanout.json").read_text())["runs"]
    assert [(one["group"], one["way"]) for one in runs] == [
        (group, way) for group in ("whole", "stream") for way in ("raw loop", "ours")
    ]
    for one in runs:
        assert one["outcomes"] == {"ok": 1_000}
        assert one["connections"] == 256


def test_a_tiny_relay(tmp_path: Path) -> None:
    """API, backend and browsers: every stream that its browser leaves is left at the API."""
    only = ("--clients", "ours", "--only", "leaving", "--quick")
    run = run_benchmarks("-m", "benchmarks", "relay", *only, "--out", str(tmp_path))
    assert run.returncode in (0, 1), run.stdout + run.stderr  # whether a target is reached is the machine's business
    (result,) = json.loads((tmp_path / "relay.json").read_text())["results"]
    assert [len(result[kind]) for kind in ("silent", "flowing")] == list(relay.QUICK_LEFT)
    assert None not in result["silent"] + result["flowing"]


def test_a_tiny_soak_in_dev_mode_with_warnings_as_errors() -> None:
    run = run_benchmarks("-X", "dev", "-W", "error", "-m", "benchmarks", "soak", "--streams", "100", "--at-once", "16",
                         "--faults", "0.2")  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "everything is right" in run.stdout
    assert run.stderr == ""


def test_a_soak_tells_what_is_left() -> None:
    found = soak.Soak(samples=[soak.Sample(0, 10, 40.0, 1, 0.0)] * 3 + [soak.Sample(99, 12, 60.0, 1, 1.0)])
    assert soak.judged(found, {"open": 2}) == [
        "2 connections left at the server",
        "12 file descriptors at the end, 10 at the start",
        "20.0 MiB more than after 0 streams",
    ]
