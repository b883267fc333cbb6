"""The options of `python -m benchmarks`: they are lists of names, so that `--help` needs no client."""

import pytest

from benchmarks.fanout import command as fanout_command
from benchmarks.fanout import plan as fanout_plan
from benchmarks.fanout import run as fanout_run
from benchmarks.limits import command as limits_command
from benchmarks.limits import ways as limits_ways
from benchmarks.relay import backends as relay_backends
from benchmarks.relay import command as relay_command
from benchmarks.relay import run as relay_run
from support.benchmarks import run_benchmarks


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
        (("limits", "--speed", "0.5"), "--speed: got 0.5, expected at least 1"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], message: str) -> None:
    run = run_benchmarks(*arguments)
    assert run.returncode == 2
    assert message in run.stderr
