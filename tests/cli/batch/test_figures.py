"""Durations and amounts of money as a person reads them."""

import pytest

from together_async.cli.batch.figures import duration, money


class TestShown:
    @pytest.mark.parametrize(
        ("seconds", "output"), [(0.4, "0 s"), (99, "99 s"), (185, "3:05 min"), (3_599, "59:59 min"), (9_669, "2:41:09")]
    )
    def test_durations(self, seconds: float, output: str) -> None:
        assert duration(seconds) == output

    @pytest.mark.parametrize(
        ("dollars", "output"),
        [(0, "$0.00"), (0.00012, "$0.00012"), (0.05, "$0.050"), (0.1, "$0.10"), (1234.5, "$1,234.50")],
    )
    def test_amounts(self, dollars: float, output: str) -> None:
        assert money(dollars) == output
