"""The times from a browser's leaving."""

from benchmarks.relay import leaving
from benchmarks.relay.backends import BACKENDS, OURS


def test_what_never_left_counts_as_the_longest() -> None:
    times: list[float | None] = [1.0] * 98 + [7.0, None]
    assert leaving.left_cells(times) == ("100", "1.0 ms", "> 5 s", "> 5 s", "1")
    assert leaving.left_cells([1.0, 2.0, 3.0]) == ("3", "2.0 ms", "3.0 ms", "3.0 ms", "0")
    figure = leaving.left_figure(BACKENDS[OURS], "silent", times)
    assert (figure.value, figure.state, figure.note) == (5000.0, "missed", "1 not within 5 s")
