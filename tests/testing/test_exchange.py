"""The line of an exchange: written and read back, and lines that can't be read."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.testing import (
    Recording,
)
from together_async.testing.exchange import RecordedExchange

pytestmark = pytest.mark.usefixtures("no_leaks")


class TestBytes:
    @given(st.lists(st.tuples(st.floats(0, 1e6), st.binary(max_size=30))), st.booleans(), st.none() | st.floats(0, 1e6))
    def test_a_line_is_read_as_it_was_written(
        self, pieces: list[tuple[float, bytes]], complete: bool, ended: float | None
    ) -> None:
        rounded = tuple((round(at, 6), data) for at, data in pieces)
        exchange = RecordedExchange(
            200, {"x": "y"}, rounded, {"n": 2}, complete, 0.25, None if ended is None else round(ended, 6)
        )
        line = exchange.to_line()
        assert line.count(b"\n") == 1
        assert RecordedExchange.from_line(line, "") == exchange


class TestFile:
    GOOD = RecordedExchange(200, {}, ((0.5, b"x"),)).to_line().decode()

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda line: line[:-8], "EOF|truncated"),
            (lambda _: "[1]", 'the key "recording"'),
            (lambda _: '"x"', 'the key "recording"'),
            (lambda _: "not JSON", "malformed"),
            (lambda _: '{"custom_id": "1"}', 'the key "recording"'),
            (lambda line: line.replace('"recording":1', '"recording":7'), "got version 7, expected 1"),
            (lambda line: line.replace('"status":200', '"status":"ok"'), "status: unexpected str 'ok'"),
            (lambda line: line.replace('"status":200', '"status":7'), "status: unexpected int '7'"),
            (lambda line: line.replace('"status":200', '"status":true'), "status: unexpected bool"),
            (lambda line: line.replace('"status":200,', ""), "'status' is missing"),
            (lambda line: line.replace('"headers":{}', '"headers":{"a":1}'), "a: unexpected int"),
            (lambda line: line.replace("0.5", '"soon"'), "got 'soon', expected seconds"),
            (lambda line: line.replace("0.5", "-1"), "got '-1', expected seconds"),
            (lambda line: line.replace('"x"', '{"base64":"%%"}'), "base64"),
            (lambda line: line.replace('"x"', "7"), "got int among the data"),
            (lambda line: line.replace('[0.5,"x"]', "[0.5]"), "not enough values"),
            (lambda line: line.replace('"complete":true', '"complete":1'), "complete: unexpected int"),
        ],
    )
    def test_a_bad_line_is_named(self, path: Path, change: Any, reason: str) -> None:
        """The message has the file, the line's number, and the mistake."""
        path.write_text(self.GOOD + "\n" + change(self.GOOD) + "\n", "utf-8")
        with pytest.raises(ValueError, match=reason) as caught:
            Recording.load(path)
        assert str(caught.value).startswith(f"{path}:3: not a line of a recording: ")
