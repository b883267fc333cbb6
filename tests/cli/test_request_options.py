"""The options for the fields of a request."""

import contextlib
from pathlib import Path

import click
import pytest

from together_async.cli.request_options import JSONType


class TestJSON:
    def test_json(self, tmp_path: Path) -> None:
        """JSON in place, or in a file."""
        (tmp_path / "x.json").write_text('{"a": 1}')
        read = JSONType().convert
        assert read('["a"]', None, None) == ["a"]
        assert read(f"@{tmp_path / 'x.json'}", None, None) == {"a": 1}
        for wrong in ("{", f"@{tmp_path / 'none.json'}"):
            with contextlib.suppress(click.BadParameter), pytest.raises(click.BadParameter):
                read(wrong, None, None)
