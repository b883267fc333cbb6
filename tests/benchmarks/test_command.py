"""The options of `python -m benchmarks`: they are lists of names, so that `--help` needs no client."""

import re
import shlex

import pytest

from benchmarks.__main__ import make_parser
from benchmarks.fanout import command as fanout_command
from benchmarks.fanout import plan as fanout_plan
from benchmarks.fanout import run as fanout_run
from benchmarks.harness import options
from benchmarks.limits import command as limits_command
from benchmarks.limits import ways as limits_ways
from benchmarks.ratios import command as ratios_command
from benchmarks.relay import backends as relay_backends
from benchmarks.relay import command as relay_command
from benchmarks.relay import run as relay_run
from benchmarks.stream import command as stream_command
from support.benchmarks import run_benchmarks
from support.paths import ROOT


def test_the_options_name_just_what_can_be_measured() -> None:
    assert tuple(fanout_plan.CLIENTS) == fanout_command.CLIENTS
    assert tuple(fanout_command.PARTS) == (*fanout_plan.GROUPS, *fanout_run.ALONE)
    assert limits_command.CLIENTS == limits_ways.CLIENTS
    assert tuple(relay_backends.BACKENDS) == relay_command.BACKENDS
    assert list(relay_command.PARTS) == list(relay_run.PARTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream", "--only", "blast,nothing"), "unknown: 'nothing'; known: blast"),
        (("relay", "--rounds", "0"), "--rounds: got 0, expected at least 1"),
        (("life", "--read", "text,nothing"), "unknown: 'nothing'; known: chunks"),
        (("limits", "--speed", "0.5"), "--speed: got 0.5, expected at least 1"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], message: str) -> None:
    run = run_benchmarks(*arguments)
    assert run.returncode == 2
    assert message in run.stderr


def commands_of_the_readme() -> list[str]:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return re.findall(r"^python -m benchmarks (.+)$", blocks, re.MULTILINE) + re.findall(
        r"^\| `python -m benchmarks ([^`]+)`", text, re.MULTILINE
    )


def test_the_readme_names_every_benchmark_and_its_commands_are_understood() -> None:
    arguments = [shlex.split(command) for command in commands_of_the_readme()]
    known = {"stream", "ratios", "faults", "soak", "life", "limits", "fanout", "relay"}
    assert {name for name, *_ in arguments} == known
    parts = {"stream": stream_command.PARTS, "ratios": ratios_command.PARTS}
    for command in arguments:
        args = make_parser().parse_args(command)
        if command[0] in parts:
            assert set(options.names(args.only)) <= set(parts[command[0]])
