"""The values of the options of `together-async batch`."""

import datetime as dt

import click
import pytest

from together_async.cli.batch.options import Deadline


class TestDeadline:
    def test_deadlines(self) -> None:
        """Spans, times of the day (the next one) and dates."""
        read = Deadline().convert
        assert read("1h30m", None, None) == dt.timedelta(minutes=90)
        assert read("2d", None, None) == dt.timedelta(days=2)
        now = dt.datetime.now().astimezone()
        soon = read(f"{now.hour:02}:{now.minute:02}", None, None)
        assert dt.timedelta(0) < soon - now <= dt.timedelta(days=1)
        assert read("2030-01-02T03:04", None, None).year == 2030
        for wrong in ("", "soon", "25:00", "3"):
            with pytest.raises(click.BadParameter):
                read(wrong, None, None)
