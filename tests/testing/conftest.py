"""Fixtures of the emulator's tests."""

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a recording."""
    return tmp_path / "day.jsonl"
