"""The arithmetic of the picture."""

from benchmarks.limits import picture


def test_the_picture_counts_per_second() -> None:
    edges, heights = picture.per_second([0.0, 0.1, 0.4, 2.0], 0.5, 2.2)
    assert edges == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert heights == [6.0, 0.0, 0.0, 0.0, 2.0]
