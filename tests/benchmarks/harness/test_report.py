"""The table of figures."""

from benchmarks.harness import report
from benchmarks.harness.figures import Figure, Target


def test_the_table_has_the_target_beside_the_figure() -> None:
    figure = Figure("blast", "ours : raw loop", "1 at once", 1.2345, "x", Target(1.25, 1.0))
    table = report.plain(report.rows([figure]))
    assert "1.23 x" in table
    assert "<= 1.25, go for 1" in table
    assert table.endswith("reached")
