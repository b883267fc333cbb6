"""A long life, in small."""

from benchmarks.life.found import Found
from benchmarks.life.run import text
from support.benchmarks import run_benchmarks

TINY = ("life", "--minutes", "0.05", "--every", "1.5", "--streams", "20")
WITHOUT_COLLECTOR = "end,end-of-block,break,break-in-block,exception,aclose,cancel,cancel-block,timeout,drop"
"""Ways of leaving that need no garbage collection."""


def test_a_tiny_life_in_dev_mode_with_warnings_as_errors() -> None:
    run = run_benchmarks(*TINY, "--leave", WITHOUT_COLLECTOR, interpreter=("-X", "dev", "-W", "error"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "everything is right" in run.stdout
    assert run.stderr == ""


def test_an_unknown_way_is_named() -> None:
    run = run_benchmarks(*TINY, "--leave", "nothing")
    assert run.returncode == 2
    assert "unknown: 'nothing'; known: end" in run.stderr


def test_the_report_says_what_was_wrong_and_shows_the_first_of_each() -> None:
    found = Found()
    found.ended["right"] = 12_000
    found.note("a reader that hangs", "text, left by break")
    found.total()
    report = text(found, ["1 errors that nobody expects"], "asyncio, seed 1").splitlines()
    assert report[0].startswith("asyncio, seed 1, Python ")
    assert "  12,000  right" in report
    assert report[-4:] == [
        "wrong, 1 times: a reader that hangs",
        "    text, left by break",
        "verdict: 1 errors that nobody expects",
        "NOT everything is right",
    ]
    assert text(Found(), [], "asyncio").endswith("everything is right")
