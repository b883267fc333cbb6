"""Numbers, shares and durations are written for people."""

import pytest

from together_async.batch.report.formats import compact, count, duration, share


@pytest.mark.parametrize(
    ("seconds", "shown", "brief"),
    [
        (0, "0 ms", "0 ms"),
        (0.00234, "2.3 ms", "2.34 ms"),
        (0.0481, "48.1 ms", "48.1 ms"),
        (0.5, "500 ms", "500 ms"),
        (0.9996, "1.00 s", "0.9996 s"),
        (2, "2.00 s", "2 s"),
        (59.99, "60.0 s", "59.99 s"),
        (99.96, "1 min 40 s", "1 min 40 s"),
        (120, "2 min 00 s", "2 min"),
        (3_599.4, "59 min 59 s", "59 min 59 s"),
        (3_599.6, "1 h 00 min", "1 h"),
        (86_369, "23 h 59 min", "23 h 59 min"),
        (86_371, "1 d 00 h", "1 d"),
        (1e9, "11,574 d 02 h", "11,574 d 02 h"),
        (None, "\u2013", "\u2013"),
    ],
)
def test_durations_are_written_for_people(seconds, shown, brief):
    assert duration(seconds).replace("\u00a0", " ") == shown
    assert duration(seconds, brief=True).replace("\u00a0", " ") == brief


def test_only_all_is_all():
    """One error in a million is not 0 %, and the other results are not 100 %."""
    written = [share(part, whole).replace("\u00a0", "") for part, whole in ((0, 9), (9, 9), (1, 3), (1, 10**6))]
    assert written == ["0%", "100%", "33.3%", "0.0001%"]
    assert share(10**6 - 1, 10**6) == "99.9999\u00a0%"
    assert share(0, 0) == "0\u00a0%"


def test_numbers_are_written_for_people():
    assert [count(number) for number in (0, 7, 0.254, 99.94, 1_234_567.8)] == ["0", "7", "0.254", "99.9", "1,234,568"]
    assert [compact(number) for number in (0.5, 9_999, 25_000, 1.5e6, 2e9)] == ["0.5", "9,999", "25k", "1.5M", "2G"]
