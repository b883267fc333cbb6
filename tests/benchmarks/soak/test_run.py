"""A long run of streams, in small."""

from benchmarks.soak import run as soak
from support.benchmarks import run_benchmarks


def test_a_soak_has_the_share_of_broken_streams_and_repeats() -> None:
    streams = [(kind, case.name) for kind, case in soak.chosen(4000, 0.1, seed=7)]
    assert streams == [(kind, case.name) for kind, case in soak.chosen(4000, 0.1, seed=7)]
    assert 300 < sum(kind != "plain" for kind, _ in streams) < 500


def test_a_tiny_soak_in_dev_mode_with_warnings_as_errors() -> None:
    run = run_benchmarks(
        "soak", "--streams", "100", "--at-once", "16", "--faults", "0.2", interpreter=("-X", "dev", "-W", "error")
    )
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
