"""Times and lists in headers, in each form that servers use."""

import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from together_async.wire.header_values import (
    DAY_S,
    ListItem,
    by_lower_name,
    go_duration,
    is_date,
    list_items,
    seconds_to_wait,
)

NOW = 1_700_000_000.25  # 2023-11-14T22:13:20.25Z


def wait(text: str, unit_s: float = 1.0) -> float | None:
    return seconds_to_wait(text, lambda: NOW, unit_s=unit_s)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        # seconds
        ("0", 0.0),
        ("-0.0", 0.0),
        (" 2.5 ", 2.5),
        ("1e3", 1_000.0),
        ("86400", DAY_S),
        ("86401", None),
        ("900000000", None),
        ("-1", None),
        ("-1700000000", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("1" * 400, None),
        # Unix time
        ("1700000010", 9.75),
        ("1700000010.5", 10.25),
        ("1700000000", 0.0),
        ("1699999900", None),
        ("1700086400", DAY_S - 0.25),
        ("1700186400", None),
        ("1700000010250", 10.0),
        ("1700000000000", 0.0),
        ("1600000000000", None),
        ("1700000010250000", None),
        # HTTP dates
        ("Tue, 14 Nov 2023 22:13:50 GMT", 29.75),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 29.75),
        ("Tue, 14 Nov 2023 23:13:50 +0100", 29.75),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", None),
        ("Thu, 16 Nov 2023 22:13:50 GMT", None),
        ("Tue, 99 Nov 2023 22:13:50 GMT", None),
        # RFC 3339
        ("2023-11-14T22:13:50Z", 29.75),
        ("2023-11-14t22:13:50.25z", 30.0),
        ("2023-11-15T00:13:50+02:00", 29.75),
        ("2023-11-14 22:13:50", 29.75),
        ("2023-11-14T22:13:19Z", 0.0),
        ("2023-11-14", None),
        ("2023-13-14T22:13:50Z", None),
        ("2023-11-14T22:13:50Z" + "0" * 200, None),
        # durations of Go
        ("6ms", 0.006),
        ("1.5s", 1.5),
        ("1m30s", 90.0),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3_723.0),
        ("450us", 450e-6),
        ("450µs", 450e-6),
        ("450μs", 450e-6),
        ("10ns", 1e-8),
        ("0s", 0.0),
        ("24h0m0s", DAY_S),
        ("1d", DAY_S),
        ("25h", None),
        ("-5s", None),
        ("1m 30s", None),
        ("9" * 400 + "s", None),
        # garbage
        ("", None),
        (" ", None),
        ("soon", None),
        ("5 seconds", None),
        ("1,000", None),
        ("5s5", None),
        (".s", None),
        ("1.2.3s", None),
        ("5;w=60", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_times(text: str, seconds: float | None) -> None:
    assert wait(text) == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


@pytest.mark.parametrize(
    ("text", "seconds"), [("1500", 1.5), ("1700000010250", 10.0), ("90000000", None), ("-1", None)]
)
def test_milliseconds(text: str, seconds: float | None) -> None:
    """The unit is that of a plain number; a date is a date."""
    assert wait(text, unit_s=0.001) == seconds


def test_the_clock_is_asked_for_a_date_alone() -> None:
    def clock() -> float:
        raise AssertionError("not needed")

    assert seconds_to_wait("5", clock) == 5
    assert seconds_to_wait("5ms", clock) == 0.005
    assert seconds_to_wait("soon", clock) is None


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("1700000010", True),
        ("1700000010250", True),
        ("2023-11-14T22:13:50Z", True),
        ("Tue, 14 Nov 2023 22:13:50 GMT", True),
        ("60", False),
        ("86401", False),
        ("60s", False),
        ("nan", False),
        ("soon", False),
        ("", False),
    ],
)
def test_which_times_are_dates(text: str, date: bool) -> None:
    assert is_date(text) is date


def test_a_plain_number_is_no_duration() -> None:
    assert go_duration("60") is None
    assert go_duration(" 60s ") == 60


@given(
    st.text(max_size=60)
    | st.text("0123456789.dhmsunµ:-+TZ ", max_size=60)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.datetimes().map(str)
    | st.floats(0, 4e11).map(lambda seconds: email.utils.formatdate(seconds % 2**33, usegmt=True))
)
def test_any_time_is_read_or_ignored(text: str) -> None:
    seconds = wait(text)
    assert seconds is None or 0 <= seconds <= DAY_S
    is_date(text)


@pytest.mark.parametrize("piece", ["1", "1.", "1s", ".", '"', ";", ",", "a=", "µ"])
def test_a_hostile_value_takes_no_longer_than_its_size(piece: str) -> None:
    """Ten times the header is not a hundred times the work."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        began = time.perf_counter()
        wait(text)
        list_items(text)
        return time.perf_counter() - began

    assert min(seconds(60_000) for _ in range(5)) < 30 * min(seconds(6_000) for _ in range(5)) + 0.02


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        (" , ,", []),
        ('"default";r=50;t=30', [("default", {"r": "50", "t": "30"})]),
        (
            '"burst";q=100;w=60, "daily"; q=1000 ;W=86400',
            [("burst", {"q": "100", "w": "60"}), ("daily", {"q": "1000", "w": "86400"})],
        ),
        ('"a,b;c";r=1;qu="tokens"', [("a,b;c", {"r": "1", "qu": "tokens"})]),
        ("100, 100;w=60", [("100", {}), ("100", {"w": "60"})]),
        ("limit=5, remaining=4;x", [("", {"limit": "5", "remaining": "4", "x": ""})]),
        ("limit=5, 100;w=60, remaining=4", [("", {"limit": "5"}), ("100", {"w": "60"}), ("", {"remaining": "4"})]),
        ('"unclosed;r=1', [("unclosed", {"r": "1"})]),
        (";;=", [("", {"": ""})]),
    ],
)
def test_lists(text: str, items: list[tuple[str, dict[str, str]]]) -> None:
    assert list_items(text) == [ListItem(value, parameters) for value, parameters in items]


@given(st.text(max_size=60) | st.text('",;=abrt019 ', max_size=60))
def test_any_list_is_read(text: str) -> None:
    for item in list_items(text):
        assert all(isinstance(part, str) for pair in item.parameters.items() for part in pair)


def test_headers_by_their_names_in_lower_case():
    """A repeated name has all of its values, in their order."""
    headers = CIMultiDict([("X-Request-Id", "1"), ("Via", "a"), ("via", "b"), ("VIA", "c")])
    assert by_lower_name(headers) == {"x-request-id": "1", "via": "a, b, c"}
    assert by_lower_name({}) == {}
